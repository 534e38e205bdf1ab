from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbench.engine.device import choose as choose_device
from mmbench.errors import ConfigError, DataError, TrainingError
from mmbench.recipe import Recipe
from mmbench.runs import Run
from mmbench.studies.crew import Alone, Outcome, Site, Task
from mmbench.studies.training import Workplace
from mmbench.studies.tuning import Tried, Tuned, Tuning, TuningEvents, choose, tune_recipes

SEARCH = {
    "model.embedding_size": [2, 4],
    "training.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
}


def recipe(**changes: Any) -> Recipe:
    raw = {
        "dataset": "tiny",
        "model": {"name": "bpr-mf", "embedding_size": 4},
        "training": {"epochs": 2, "batch_size": 256, "learning_rate": 0.05},
        "search": SEARCH,
    }
    return Recipe({**raw, **changes}, "test.yaml")


@pytest.fixture
def place(tiny_data: Path, tmp_path: Path) -> Workplace:
    return Workplace(tiny_data, tmp_path / "runs", choose_device("cpu"))


def site(place: Workplace) -> Site:
    return Site(str(place.data_dir), str(place.runs_dir), "cpu", False, 30.0, 1)


class Elsewhere(Alone):
    """Trains in an order of its own, and may be stopped after some runs, as by Ctrl-C."""

    def __init__(self, place: Workplace, seed: int, stop_after: int | None = None) -> None:
        super().__init__(site(place))
        self._rng, self.left, self.trained = np.random.default_rng(seed), stop_after, 0

    def work(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        for number in self._rng.permutation(len(tasks)).tolist():
            for outcome in super().work([tasks[number]]):
                if self.left is not None and self.trained == self.left:
                    raise KeyboardInterrupt
                self.trained += 1
                yield Outcome(number, outcome.error, outcome.final)


def content(run: Run) -> dict[str, bytes]:
    """All that was learnt and ranked, byte for byte."""
    files = [*run.path.glob("lists/*/*.npy"), run.path / "weights.safetensors"]
    assert len(files) == 13
    made = {str(file.relative_to(run.path)): file.read_bytes() for file in files}
    return {**made, "metrics": json.dumps(run.manifest["metrics"], sort_keys=True).encode()}


def summary(tuned: Tuned) -> list[Any]:
    trials = [(t.number, t.point, t.value, t.error, t.run and content(t.run)) for t in tuned.tried]
    return [trials, tuned.chosen.number, [content(run) for run in tuned.trained.chosen.runs]]


@pytest.mark.parametrize("method", ["random", "optuna:tpe"])
@pytest.mark.parametrize("seed", [0, 11])
def test_who_trains_in_which_order_and_how_often_it_is_stopped_moves_nothing(
    place: Workplace, tmp_path: Path, method: str, seed: int
) -> None:
    asked, how = [recipe(seeds=[seed, 99])], Tuning(method, trials=6)
    (expected,) = tune_recipes(asked, how, place)
    other = Workplace(place.data_dir, tmp_path / "other", place.compute)
    n_trained = 0
    for attempt in range(20):
        crew = Elsewhere(other, seed=attempt, stop_after=2)
        try:
            (found,) = tune_recipes(asked, how, other, crew=crew)
        except KeyboardInterrupt:
            n_trained += crew.trained
            continue
        break
    n_trained += crew.trained
    assert summary(found) == summary(expected)
    # What was trained when it was stopped is not trained again, told to the ledger or not.
    assert n_trained <= len(list((tmp_path / "other").glob("*/manifest.json")))
    assert attempt >= 2


@pytest.mark.slow
def test_processes_give_the_trials_of_one_process(place: Workplace, tmp_path: Path) -> None:
    asked = [recipe(seeds=[0, 1])]
    (expected,) = tune_recipes(asked, Tuning("random", 4), place)
    other = Workplace(place.data_dir, tmp_path / "other", place.compute)
    (found,) = tune_recipes(asked, Tuning("random", 4, processes=2), other)
    assert summary(found) == summary(expected)
    names = [
        sorted(path.name for path in folder.iterdir())
        for folder in (place.runs_dir, other.runs_dir)
    ]
    assert names[0] == names[1]


def test_the_best_on_validation_is_trained_with_all_seeds(place: Workplace) -> None:
    search = {"training.learning_rate": [1e-8, 0.05]}  # the first leaves vectors as they began
    (tuned,) = tune_recipes([recipe(search=search, seeds=[3, 0, 1])], Tuning("grid"), place)
    assert [trial.point["training.learning_rate"] for trial in tuned.tried] == [1e-8, 0.05]
    assert tuned.chosen.number == 2
    assert [trial.run and trial.run.seed for trial in tuned.tried] == [3, 3]
    runs = tuned.trained.chosen.runs
    assert [run.seed for run in runs] == [3, 0, 1]
    assert runs[0].path == (tuned.tried[1].run or runs[1]).path
    recorded = [run.manifest["metrics"]["valid"]["recall@20"] for run in runs]
    assert tuned.tried[1].value == pytest.approx(recorded[0], abs=1e-15)
    assert tuned.trained.chosen.value == pytest.approx(sum(recorded) / 3, abs=1e-15)
    # Trials are ordinary runs: four folders, and the ledger where no pattern of runs meets it.
    assert len(list(place.runs_dir.glob("[!.]*"))) == 4
    assert tuned.ledger.parent == place.runs_dir / ".tuning"


def test_the_first_of_equal_trials_is_chosen_and_failed_ones_never() -> None:
    tried = [Tried(1, {}, error="no"), Tried(2, {}, value=0.0), Tried(3, {}, value=0.0)]
    assert choose(tried).number == 2


def test_a_finished_search_trains_nothing_and_a_larger_one_goes_on(place: Workplace) -> None:
    asked = [recipe()]
    (first,) = tune_recipes(asked, Tuning("optuna", 3), place)
    again = Elsewhere(place, 0)
    (second,) = tune_recipes(asked, Tuning("optuna", 3), place, crew=again)
    assert again.trained == 0
    assert summary(second) == summary(first)
    lines = first.ledger.read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines[1:]] == [1, 2, 3]
    more = Elsewhere(place, 0)
    (larger,) = tune_recipes(asked, Tuning("optuna", 6), place, crew=more)
    assert [t.point for t in larger.tried[:3]] == [t.point for t in first.tried]
    assert more.trained == len({repr(t.point) for t in larger.tried[3:]})
    assert larger.ledger == first.ledger


def test_conditions_share_budget_seed_and_the_space_that_they_have(place: Workplace) -> None:
    search = {"features.visual": ["imported"], **SEARCH}
    model = {"name": "vbpr", "embedding_size": 4}
    full = recipe(features={"visual": "imported"}, model=model, search=search)
    without = full.replace(features={}, label="IDs")
    tuned = tune_recipes([full, without], Tuning("random", 3), place)
    assert [len(each.tried) for each in tuned] == [3, 3]
    assert list(tuned[1].space) == list(SEARCH)
    for one, other in zip(tuned[0].tried, tuned[1].tried, strict=True):
        assert {key: one.point[key] for key in SEARCH} == other.point
        assert other.run is not None
        assert other.run.manifest["model"]["modalities"] == []


def test_a_failing_trial_is_tried_once_more_and_the_others_go_on(place: Workplace) -> None:
    told: list[str] = []
    events = TuningEvents(retried=lambda what, error: told.append(f"{what}: {error}"))
    asked = [recipe(search={"training.learning_rate": [1e38, 0.05]})]
    (tuned,) = tune_recipes(asked, Tuning("grid"), place, events)
    assert tuned.chosen.number == 2
    assert tuned.tried[0].value is None
    assert len(told) == 1
    assert told[0].startswith("bpr-mf trial 1: ")
    entry = json.loads(tuned.ledger.read_text().splitlines()[1])
    assert entry["status"] == "failed"
    # It stays failed, so that what was proposed after it stays the same.
    again = Elsewhere(place, 0)
    (same,) = tune_recipes(asked, Tuning("grid"), place, crew=again)
    assert same.tried[0].error == tuned.tried[0].error
    assert again.trained == 0


def test_a_search_whose_trials_all_fail_says_why(place: Workplace) -> None:
    asked = [recipe(search={"training.learning_rate": [1e37, 1e38]})]
    with pytest.raises(TrainingError, match=r"all 2 trials failed, the first with: .*\.tuning"):
        tune_recipes(asked, Tuning("grid"), place)


def test_settings_that_do_not_go_together_are_a_failed_trial(place: Workplace) -> None:
    # Each value is sound alone, the pair is not.
    search = {"model.name": ["bpr-mf", "popularity"], "model.embedding_size": [4]}
    asked = recipe(model={"name": "bpr-mf"}, search=search)
    (tuned,) = tune_recipes([asked], Tuning("grid"), place)
    assert tuned.tried[0].value is not None
    assert "embedding_size is not a setting" in str(tuned.tried[1].error)


@pytest.mark.parametrize(
    ("changes", "tuning", "problem", "message"),
    [
        ({"search": {}}, Tuning("random", 3), ConfigError, "there is nothing to tune; add"),
        ({}, Tuning("random", 0), ConfigError, "--trials 0: at least one"),
        ({}, Tuning("random"), ConfigError, "needs --trials N"),
        ({}, Tuning("grid"), ConfigError, "a grid needs a list of values or a step"),
        ({"search": {"model.embedding_size": [2, 4]}}, Tuning("grid", 1), ConfigError, "2 points"),
        ({}, Tuning("random", 2, processes=0), ConfigError, "at least one process"),
        ({"dataset": "tini"}, Tuning("random", 2), ConfigError, 'Did you mean "tiny"'),
        (
            {
                "model": {"name": "vbpr"},
                "features": {"visual": "imported"},
                "search": {"features.visual": ["imported", "absent"]},
            },
            Tuning("random", 2),
            DataError,
            "absent",
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(
    place: Workplace,
    changes: dict[str, Any],
    tuning: Tuning,
    problem: type[Exception],
    message: str,
) -> None:
    with pytest.raises(problem, match=message):
        tune_recipes([recipe(**changes)], tuning, place)
    assert not list(place.runs_dir.glob("[!.]*"))
