from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def runs(mmbench: Callable, tiny_data: Path) -> Path:
    """Two systems with deep lists, in the folder of the test."""
    for model in ("itemknn", "bpr-mf"):
        recipe = {
            "dataset": "tiny",
            "model": {"name": model},
            "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.05},
            "evaluation": {"metrics": ["recall@10"], "depth": 1000},
        }
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        done = mmbench("train", "recipe.yaml", "--data-dir", tiny_data)
        assert done.status == 0, done.err
    return Path("runs")


def test_gains_over_k_and_two_stages_of_finished_runs(
    mmbench: Callable, runs: Path, tiny_data: Path
) -> None:
    done = mmbench(
        "stages", runs, "--baseline", "bpr-mf", "--metric", "recall", "--cutoff", "10",
        "--rerank", "15", "--out", "out", "--html", "s.html", "--data-dir", tiny_data,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    assert "Lists are 40 items deep" in done.out  # there are no more items
    assert "itemknn > bpr-mf @15" in done.out
    assert "bpr-mf > itemknn @15" in done.out
    assert "Holm-Bonferroni" in done.out
    assert len(list(Path("runs-two-stage").glob("*/lists/test/items.npy"))) == 2
    assert (Path("out") / "figures" / "stages-recall.svg").exists()
    page = Path("s.html").read_text(encoding="utf-8")
    assert "Stages of a pipeline" in page
    assert "itemknn &gt; bpr-mf @15" in page
    compared = mmbench("compare", runs, "runs-two-stage", "--format", "json")
    assert compared.status == 0, compared.err
    assert len(json.loads(compared.out)["systems"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--baseline", "nobody"), "nobody"),
        (("--rerank", "41"), "stores 40 items per user"),
        (("--cutoff", "41"), "no cut-off 41"),
        (("--metric", "nothing"), "nothing"),
        (("--force",), "--force belongs to --html and --out"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    mmbench: Callable, runs: Path, tiny_data: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = mmbench("stages", runs, *arguments, "--data-dir", tiny_data)
    assert done.status == 2
    assert message in done.err
    assert not Path("runs-two-stage").exists()
