from __future__ import annotations

from pathlib import Path

import pytest

from mmbench.cli import training
from mmbench.cli.training import ensure_demo
from mmbench.data.prepared import load_dataset
from mmbench.engine.training import Progress
from mmbench.recipe import Recipe


def test_the_demo_is_given_the_split_that_a_recipe_names(tmp_path: Path) -> None:
    """Its default split stays the first one, whoever asks first."""
    ensure_demo("demo", tmp_path, "leave-one-out")
    dataset = load_dataset("demo", tmp_path)
    assert dataset.split_names == ["random-per-user", "leave-one-out"]
    before = (dataset.root / "manifest.json").read_bytes()
    ensure_demo("demo", tmp_path, "leave-one-out")
    ensure_demo("another", tmp_path, "leave-one-out")
    assert (dataset.root / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["demo"]


def test_no_best_epoch_is_told_before_the_first_evaluation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY_S", 0.0)
    raw = {"model": {"name": "bpr-mf"}, "training": {"epochs": 4, "evaluate_every": 2}}
    (plan,) = Recipe(raw, "test").expand()
    with training.display(tmp_path) as events:
        events.planned([plan])
        events.begun(plan)
        events.epoch(plan, {"epoch": 1}, Progress())
        events.epoch(plan, {"epoch": 2}, Progress(best_value=0.25, best_epoch=2))
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in told] == [
        "epoch 1 of at most 4",
        "epoch 2 of at most 4, best recall@20 0.2500 at epoch 2",
    ]
