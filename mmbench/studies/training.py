"""Training several recipes: which runs they stand for, and which trial of a grid is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmbench.engine.device import Compute
from mmbench.engine.folder import run_path
from mmbench.engine.inputs import Inputs, check_modalities, load_inputs
from mmbench.engine.train import CostListener, train_run
from mmbench.engine.training import EpochListener
from mmbench.models.base import MODELS
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run, read_manifest


@dataclass(frozen=True)
class Workplace:
    """Where data lie, where runs go, and on what they are computed."""

    data_dir: Path
    runs_dir: Path
    compute: Compute
    checkpoint_every_s: float = 30.0


@dataclass(frozen=True)
class Events:
    """What a study tells while it works; a front end shows it."""

    planned: Callable[[Sequence[RunRecipe]], None] = lambda plans: None
    begun: Callable[[RunRecipe], None] = lambda plan: None
    epoch: EpochListener = lambda plan, record, progress: None
    done: Callable[[RunRecipe, Run, bool], None] = lambda plan, run, was_finished: None
    cost: CostListener = lambda plan, cost: None


@dataclass(frozen=True)
class Trial:
    """One point of a grid: its runs, one per seed, and its value on validation."""

    label: str
    runs: list[Run]
    select_by: str
    value: float
    """Mean over seeds of the selection metric on validation; test plays no part in it."""


@dataclass(frozen=True)
class Trained:
    """The runs of one recipe, by trial in grid order; without a grid there is one trial."""

    recipe: Recipe
    trials: list[Trial] = field(default_factory=list)

    @property
    def chosen(self) -> Trial:
        """The trial with the best validation value; the first of equal ones."""
        return max(self.trials, key=lambda trial: trial.value)


def train_recipes(
    recipes: Sequence[Recipe], place: Workplace, events: Events | None = None
) -> list[Trained]:
    """Train every run that the recipes stand for; finished ones are taken as they are.

    All recipes, datasets and feature sets are checked before the first run begins.

    Raises:
        ConfigError, DataError: as `load_inputs` and `train_run` raise.
    """
    events = events or Events()
    plans = [(recipe, recipe.expand()) for recipe in recipes]
    cache: dict[str, Inputs] = {}
    for _, expanded in plans:
        for plan in expanded:
            check_modalities(plan)
            if (key := data_key(plan)) not in cache:
                cache[key] = load_inputs(plan, place.data_dir)
    events.planned([plan for _, expanded in plans for plan in expanded])
    results = []
    for recipe, expanded in plans:
        by_trial: dict[str, list[Run]] = {}
        for plan in expanded:
            inputs = cache[data_key(plan)]
            path, _ = run_path(plan, inputs, place.runs_dir)
            began = (path / "manifest.json").exists()
            was_finished = began and read_manifest(path).get("status") == "complete"
            events.begun(plan)
            run = train_run(
                plan,
                data_dir=place.data_dir,
                runs_dir=place.runs_dir,
                compute=place.compute,
                on_epoch=events.epoch,
                checkpoint_every_s=place.checkpoint_every_s,
                inputs=inputs,
                on_cost=events.cost,
            )
            events.done(plan, run, was_finished)
            by_trial.setdefault(plan.label, []).append(run)
        select_by = recipe.shape.training.select_by
        results.append(
            Trained(
                recipe,
                [
                    Trial(label, runs, select_by, validation_value(runs, select_by))
                    for label, runs in by_trial.items()
                ],
            )
        )
    return results


def validation_value(runs: Sequence[Run], select_by: str) -> float:
    """Mean over runs of a metric's mean over the validation users."""
    from mmbench.metrics.base import parse_metric

    metric = parse_metric(select_by)
    return float(np.mean([np.nanmean(run.values(metric, "valid")) for run in runs]))


def data_key(plan: RunRecipe) -> str:
    """What `load_inputs` reads and makes of it; models for which it is the same share it."""
    model = MODELS.get(plan.model).obj
    made = [
        plan.dataset,
        plan.protocol.model_dump_json(),
        plan.features,
        {name: encoder.model_dump() for name, encoder in plan.encoders.items()},
        {name: corruption.model_dump() for name, corruption in plan.corruptions.items()},
        None if plan.subset is None else plan.subset.model_dump(),
        model.family,
        model.reads_tokens,
        getattr(plan.settings, "max_length", None),  # of a protocol that masks the last L + 1
    ]
    return repr(made)
