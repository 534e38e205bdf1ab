from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPE: dict[str, Any] = {
    "dataset": "tiny",
    "features": {"visual": "imported"},
    "model": {"name": "vbpr", "embedding_size": 4},
    "training": {"epochs": 2, "batch_size": 256, "learning_rate": 0.05},
    "seeds": [0, 1],
    "search": {"training.learning_rate": [0.001, 0.05]},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def file(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changes}))
        return path

    return file


def test_train_tune_prints_trials_budget_and_leaderboard(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    line = ("train", write(), "--data-dir", tiny_data, "--tune", "grid")
    first = mmbench(*line)
    assert first.status == 0, first.err
    for text in ("Trials of vbpr", "yes", "Budget: 2 trials; grid", "Recall@20", "Seeds: 2"):
        assert text in first.out
    assert all(len(text) <= 80 for text in first.out.splitlines())
    again = mmbench(*line)
    assert again.out == first.out
    assert again.err.count("finished before") == 4  # two trials, and two seeds of the chosen one
    document = json.loads(mmbench(*line, "--format", "json").out)
    assert [trial["chosen"] for trial in document[0]["trials"]] == [True, False]
    assert len(document[1]["systems"]) == 1
    compared = mmbench("compare", *Path("runs").glob("[!.]*"))  # as a shell reads runs/*
    assert compared.status == 0, compared.err


def test_ablate_tune_gives_every_condition_the_same_budget(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    search = {"training.learning_rate": {"low": 0.001, "high": 0.1, "log": True}}
    asked = ("--drop", "visual", "--tune", "random", "--trials", "2")
    done = mmbench("ablate", write(search=search), "--data-dir", tiny_data, *asked)
    assert done.status == 0, done.err
    flat = " ".join(done.out.split())
    assert "Equal budgets: 2 trials for each of 2 systems; random" in flat
    assert "Space, the same for all:" in flat
    assert "Trials of vbpr -visual" in done.out
    assert all(len(text) <= 80 for text in done.out.splitlines())
    document = mmbench(
        "ablate", write(search=search), "--data-dir", tiny_data, *asked, "--format", "json"
    )
    json.loads(document.out)
    assert "Equal budgets" in document.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tune", "randon"), 'Did you mean "random"'),
        (("--tune", "random"), "needs --trials N"),
        (("--tune", "random", "--trials", "0"), "at least one trial"),
        (("--tune", "grid", "--trials", "1"), "2 points, more than --trials 1"),
        (("--trials", "3"), "--trials belongs to --tune"),
        (("--processes", "3"), "--processes belongs to --tune"),
        (("--tune", "grid", "--processes", "0"), "range"),
        (("--tune", "grid", "--processes", "2", "--ray", "auto"), "exclude one another"),
        (("--tune", "grid", "--set", "training.learning_rate=1.0"), "searches over; leave"),
        (("--tune", "grid", "--set", "search={}"), "there is nothing to tune"),
        (("--tune", "grid", "--set", "search={model.x: [1]}"), "x is not a setting"),
        (("--tune", "grid", "--set", "search={model.embedding_size: []}"), "it lists no value"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    mmbench: Callable, write: Callable, tiny_data: Path, arguments: tuple[str, ...], message: str
) -> None:
    for command in ("train", "ablate"):
        done = mmbench(command, write(), "--data-dir", tiny_data, *arguments)
        assert done.status == 2
        assert message in " ".join(done.err.split())
        assert "Traceback" not in done.err
        assert not list(Path().glob("runs/[!.]*"))


def test_sizes_cannot_be_searched_and_fixed(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    recipe = write(search={"model.embedding_size": [2, 4]})
    done = mmbench("ablate", recipe, "--data-dir", tiny_data, "--sizes", "2,4", "--tune", "grid")
    assert done.status == 2
    assert "--sizes fixes model.embedding_size" in done.err


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("optuna", ("--tune", "optuna", "--trials", "2")),
        ("ray", ("--tune", "grid", "--ray", "auto")),
    ],
)
def test_a_missing_extra_is_one_message_with_the_command(
    mmbench: Callable,
    write: Callable,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = mmbench("train", write(), "--data-dir", tiny_data, *arguments)
    assert done.status == 2
    extra = {"optuna": "tune"}.get(package, package)
    assert f"pip install 'mmbench[{extra}]'" in done.err
