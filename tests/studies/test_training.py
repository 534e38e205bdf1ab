from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmbench.engine import inputs as engine_inputs
from mmbench.engine.device import choose
from mmbench.engine.train import train_run
from mmbench.errors import ConfigError, DataError
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run
from mmbench.studies.training import Events, Trained, Workplace, train_recipes


def recipe(model: str = "bpr-mf", **changes: Any) -> Recipe:
    settings = {"embedding_size": 4} if model in ("bpr-mf", "vbpr") else {}
    raw = {
        "dataset": "tiny",
        "model": {"name": model, **settings},
        "training": {"epochs": 3, "batch_size": 64, "learning_rate": 0.05},
    }
    return Recipe({**raw, **changes}, "test.yaml")


@pytest.fixture
def place(tiny_data: Path, tmp_path: Path) -> Workplace:
    return Workplace(tiny_data, tmp_path / "runs", choose("cpu"))


def test_a_grid_trains_every_trial_and_seed_and_the_best_on_validation_is_chosen(
    place: Workplace,
) -> None:
    # A rate of 1e-8 leaves the vectors as they began.
    grid = {"training.learning_rate": [1e-8, 0.05]}
    (trained,) = train_recipes([recipe(grid=grid, seeds=[0, 1])], place)
    assert [trial.label for trial in trained.trials] == [
        "bpr-mf (learning_rate=1e-08)",
        "bpr-mf (learning_rate=0.05)",
    ]
    assert [[run.seed for run in trial.runs] for trial in trained.trials] == [[0, 1], [0, 1]]
    for trial in trained.trials:
        recorded = [run.manifest["metrics"]["valid"]["recall@20"] for run in trial.runs]
        assert trial.value == pytest.approx(sum(recorded) / 2, abs=1e-15)
    assert trained.chosen.label == "bpr-mf (learning_rate=0.05)"


def test_test_values_play_no_part_in_the_choice(place: Workplace) -> None:
    grid = {"training.learning_rate": [1e-8, 0.05]}
    (trained,) = train_recipes([recipe(grid=grid)], place)
    worse_on_test = trained.chosen.runs[0]
    (worse_on_test.path / "lists" / "test" / "hits.npy").unlink()
    (again,) = train_recipes([recipe(grid=grid)], place)
    assert again.chosen.label == trained.chosen.label
    assert Trained(again.recipe, again.trials[::-1]).chosen.label == trained.chosen.label


def test_finished_runs_are_told_from_those_that_are_trained_now(place: Workplace) -> None:
    told: list[tuple[int, bool]] = []

    def done(plan: RunRecipe, run: Run, was_finished: bool) -> None:
        told.append((plan.seed, was_finished))

    events = Events(done=done)
    (first,) = train_recipes([recipe(seeds=[0])], place, events)
    train_recipes([recipe(seeds=[0, 1])], place, events)
    assert told == [(0, False), (0, True), (1, False)]
    # Killed while the folder was written: all is there but the manifest still says unfinished.
    manifest = first.chosen.runs[0].path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"unfinished"'))
    train_recipes([recipe(seeds=[0])], place, events)
    assert told[-1] == (0, False)


def test_models_that_read_the_same_share_it_in_memory(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = engine_inputs.load_dataset

    def count(name: str, data_dir: Path) -> Any:
        opened.append(name)
        return original(name, data_dir)

    monkeypatch.setattr(engine_inputs, "load_dataset", count)
    train_recipes([recipe("popularity"), recipe("itemknn"), recipe("bpr-mf")], place)
    assert opened == ["tiny"]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (recipe("itemknn-cbf"), ConfigError),
        (recipe("bpr-mf", features={"visual": "imported"}), ConfigError),
        (recipe("vbpr", features={"textual": "tfidf-svd"}), DataError),
    ],
    ids=["needs features", "takes none", "not stored"],
)
def test_every_recipe_is_checked_before_the_first_is_trained(
    place: Workplace, wrong: Recipe, problem: type[Exception]
) -> None:
    begun: Sequence[RunRecipe] = []
    events = Events(begun=begun.append)  # type: ignore[attr-defined]
    with pytest.raises(problem):
        train_recipes([recipe("popularity"), wrong], place, events)
    assert not begun
    assert not place.runs_dir.exists()


def test_a_run_of_a_study_is_the_run_of_its_recipe(place: Workplace) -> None:
    (trained,) = train_recipes([recipe()], place)
    (plan,) = recipe().expand()
    again = train_run(plan, data_dir=place.data_dir, runs_dir=place.runs_dir, compute=place.compute)
    assert again.path == trained.chosen.runs[0].path
