"""The benchmark of all models runs, on tiny data; nothing here depends on how fast."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result

from mmbench.engine.device import choose
from mmbench.models.base import MODELS

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ("--size", "90,80,900", "--widths", "12,5", "--rate-seconds", "0.001", "--repeats", "1")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as Python would load it: with its own folder first on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("models")
    sys.modules.pop("models")  # a name that others may want


@pytest.fixture
def run(script: ModuleType) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(
        script.main, ["--device", "cpu", "--threads", "1", *map(str, arguments)]
    )


def test_epochs_evaluations_frozen_features_and_floors_are_measured(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    chosen = ("--model", "vbpr", "--model", "lattice", "--model", "bm3")
    done = run(*TINY, *chosen, "--json", file)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    facts = json.loads(file.read_text(encoding="utf-8"))
    results = {one["work"]: one for one in facts["results"]}
    assert list(results) == ["vbpr", "lattice", "lattice, evaluation", "bm3"]
    for one in results.values():
        assert len(one["times_s"]) == 1
        assert one["median_s"] > 0
        assert one["ratio"] is None
        assert one["floor"]
        assert one["floor_s"] == pytest.approx(sum(part["time_s"] for part in one["floor"]))
        assert one["work"] in done.stdout
    assert results["bm3"]["frozen_gain"] > 0
    assert results["vbpr"]["frozen_gain"] is None
    assert any("sparse" in part["what"] for part in results["bm3"]["floor"])


def test_an_epoch_is_judged_by_its_first_batches(run: Callable[..., Result]) -> None:
    done = run("--size", "300,200,7000", *TINY[2:], "--model", "vbpr", "--steps", "2")
    assert done.exit_code == 0, done.output
    assert "judged by 2 of its 3 batches" in done.stdout


def test_the_watch_counts_the_first_step_once(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 14.0, 16.0])  # the run begins, its second step begins, it ends
    monkeypatch.setattr(script.time, "perf_counter", lambda: next(clock))
    watch = script.Stopwatch(3, 11, choose("cpu"))
    step = watch.watch(lambda batch: batch)
    # 4 s before the second step; 2 s for the other two, so 1 s for each of the other ten.
    assert watch.epoch_s(lambda: [step(batch) for batch in range(3)]) == 14.0


def test_products_are_recorded_forwards_and_backwards(script: ModuleType) -> None:
    left = torch.randn(4, 3, requires_grad=True)
    right = torch.randn(3, 5, requires_grad=True)
    table = torch.randn(6, 2)
    with script.Recorder() as recorder:
        (left @ right).sum().backward()
        torch.nn.functional.embedding_bag(torch.tensor([0, 1, 5]), table, torch.tensor([0, 2]))
    assert recorder.dense == {(1, 4, 3, 5): 1, (1, 4, 5, 3): 1, (1, 3, 4, 5): 1}
    assert recorder.sparse == {(3, 2, 6): 1}


def test_every_setting_of_a_pair_is_one_of_its_model(script: ModuleType) -> None:
    assert set(script.PAIRS) <= set(MODELS.names())
    assert set(script.EVALUATED) <= set(script.models())
    for name, pair in script.PAIRS.items():
        script.recipe_of(name, pair.settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [("lattise", 'Did you mean "lattice"'), ("ease", "ease is not trained by gradient")],
)
def test_a_model_without_epochs_is_one_message_and_status_2(
    run: Callable[..., Result], name: str, message: str
) -> None:
    done = run(*TINY, "--model", name)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
