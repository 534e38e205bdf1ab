"""A finished run's model, opened again: the same data, the same settings, the stored weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmbench.engine.building import build_model, make_ranker
from mmbench.engine.device import Compute
from mmbench.engine.end_to_end import refresh
from mmbench.engine.inputs import Inputs, load_inputs
from mmbench.engine.start import read_weights
from mmbench.errors import ConfigError, DataError
from mmbench.models.base import Recommender
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run

SAME_LISTS = 0.9
"""Share of the first ten items that must be as stored; rounding on another device moves a few."""
FIRST = 10


@dataclass(frozen=True)
class Trained:
    """A finished run with its model in evaluation mode, and what the model was built from.

    Attributes:
        agreement: share of the stored lists' first ten items that the model ranks there again.
    """

    run: Run
    recipe: RunRecipe
    inputs: Inputs
    model: Recommender
    agreement: float


def load_trained(run: Run, data_dir: Path, compute: Compute) -> Trained:
    """Build a finished run's model anew and load its weights.

    The data must be those that the manifest tells of, and the model must rank the test users as
    the run did; a model that ranks otherwise is not the one that was trained.

    Raises:
        DataError: the dataset, a feature set or the run is missing, damaged or another one; or
            this version's code computes something else from the weights.
    """
    recipe = stored_recipe(run)
    inputs = load_inputs(recipe, data_dir)
    _check_facts(run, inputs.facts(), data_dir)
    model = build_model(recipe, inputs, compute)
    model.load_state(read_weights(run))
    model.to(compute.device).eval()
    refresh(model, compute)
    return Trained(run, recipe, inputs, model, _agreement(run, recipe, inputs, model, compute))


def stored_recipe(run: Run) -> RunRecipe:
    """The resolved recipe of a run, checked against this version's settings.

    Raises:
        DataError: it is missing, or this version does not know a setting of it.
    """
    file = run.path / "recipe.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise DataError(f"{file} cannot be read ({problem}); train the run again") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} is no recipe; the run folder is damaged, train it again")
    try:
        return Recipe(values, str(file)).expand()[0]
    except ConfigError as problem:
        raise DataError(
            f"{run.path} was trained with settings that this version does not know; train it "
            f"again, or use that version. {problem}"
        ) from None


def _check_facts(run: Run, found: Mapping[str, Any], data_dir: Path) -> None:
    """Refuse data other than those of the run."""
    differing = []
    for what, name in (("dataset", "the dataset"), ("split", "the split")):
        stored = run.manifest.get(what)
        if not isinstance(stored, Mapping) or stored.get("fingerprint") != found[what].get(
            "fingerprint"
        ):
            differing.append(name)
    for section, word, name in (
        ("features", "feature set", "key"),
        ("encoders", "encoder of modality", "modality"),
    ):
        before, now = (
            {str(each.get(name)): dict(each) for each in facts.get(section) or []}
            for facts in (run.manifest, found)
        )
        differing += [
            f"{word} {key}"
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key)
        ]
    if differing:
        raise DataError(
            f"{run.path} was trained on other data than lie in {data_dir}: {', '.join(differing)} "
            "changed since. Name the right --data-dir, or train the run again"
        )


def _agreement(
    run: Run, recipe: RunRecipe, inputs: Inputs, model: Recommender, compute: Compute
) -> float:
    """Share of the first ten stored items that the model ranks there again.

    Raises:
        DataError: it is too small.
    """
    stored = run.lists("test")
    # As deep as stored: which of many equal scores come first depends on the depth.
    found = make_ranker(recipe, inputs, inputs.test, compute).rank(model, stored.items.shape[1])
    same = 0.0
    if np.array_equal(found.users, stored.users):
        again, first = found.items[:, :FIRST], stored.items[:, :FIRST]
        # As sets: two items of almost equal score may change places.
        hit = (again[:, :, None] == first[:, None, :]).any(axis=2)
        same = float(hit.mean())
    if same < SAME_LISTS:
        raise DataError(
            f"{run.path}: the stored weights give other lists than the stored ones ({same:.0%} of "
            "the first ten items agree), so this version computes the model otherwise; train it "
            "again, or use the version that its manifest names"
        )
    return same
