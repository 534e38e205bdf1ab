"""Cold start: how well models find items that training never saw, or hardly ever.

items      models are trained without a fifth of the items (split `cold-items`), the rows of
           the others being split as usual, so that seen and unseen items are measured side
           by side. Negatives are drawn from the items that occur in training alone.
sequences  the regular models of leave-one-out are judged on histories that end in an item of
           fewer than `below` training rows (split `cold-sequences`; arXiv 2403.17372). Scope
           `heldout` asks for held-out rows alone; `complete`, the literal reading of the
           paper, for training rows too, which the model was trained on. Warm items are
           measured in the first: in the second their rows are training rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmbench.data.cold import cases_of
from mmbench.data.prepare import prepare
from mmbench.data.prepared import TRAIN, PreparedDataset, load_dataset
from mmbench.engine.cold_start import (
    Judged,
    check_same_labels,
    is_judged,
    judge,
    truncated_histories,
    unseen_items,
)
from mmbench.engine.inputs import Inputs, load_inputs
from mmbench.engine.trained import load_trained, stored_recipe
from mmbench.errors import ConfigError, DataError, UnknownNameError
from mmbench.metrics.lists import BoolArray
from mmbench.models.base import MODELS
from mmbench.recipe import Recipe
from mmbench.report.cold_start import BEST, ColdTable, Scope, compare_cold
from mmbench.runs import Run
from mmbench.studies.training import Events, Trained, Workplace, train_recipes

Definition = Literal["items", "sequences"]
COLD_BELOW = 10
HELDOUT, COMPLETE = "heldout", "complete"
SCOPES = (HELDOUT, COMPLETE)
METRICS = {"items": ("recall@20", "ndcg@20"), "sequences": ("hr@10", "ndcg@10")}
"""What the papers report of each definition."""


@dataclass(frozen=True)
class ColdStart:
    """What is asked for.

    Attributes:
        definition: which items are cold, and what is asked about them.
        below: `sequences`: training rows from which on an item is no longer cold.
        scopes: `sequences`: "heldout", "complete", or both.
        split_seed: `items`: draws the cold items; None for the dataset's own.
    """

    definition: Definition = "items"
    below: int = COLD_BELOW
    scopes: tuple[str, ...] = SCOPES
    split_seed: int | None = None


@dataclass(frozen=True)
class Result:
    """The runs of a study and what they are compared in."""

    runs: list[Run]
    scopes: list[Scope]
    n_cold: int


def cold_start(
    recipes: Sequence[Recipe], how: ColdStart, place: Workplace, events: Events | None = None
) -> Result:
    """Train (or take as they are) the runs of some recipes, and judge them on cold items.

    Missing splits are added to the prepared dataset.

    Raises:
        ConfigError: the recipes are of several datasets, or a model cannot do what is asked.
        DataError: the dataset is missing or has no order in time, no item is cold, or a folder
            cannot be written to.
    """
    planned = plan(recipes, how, place)
    return judge_all(planned, how, place, train_recipes(planned, place, events))


def plan(recipes: Sequence[Recipe], how: ColdStart, place: Workplace) -> list[Recipe]:
    """The recipes on the split of a study, which is added to the dataset where it lacks it.

    Raises:
        ConfigError, DataError: as of `cold_start`, before any training.
    """
    (name, *others) = dict.fromkeys(recipe.shape.dataset for recipe in recipes)
    if others:
        raise ConfigError(
            f"the recipes are of several datasets ({name}, {', '.join(others)}); name one with "
            "--dataset"
        )
    dataset = add_missing(name, needed_splits(recipes, how), place)
    if how.definition == "sequences":
        _refuse_no_cases(dataset, how)
    return [on_split(recipe, how, _training_split(recipes, how)) for recipe in recipes]


def judge_all(
    planned: Sequence[Recipe], how: ColdStart, place: Workplace, trained: Sequence[Trained]
) -> Result:
    """Rank what a study asks for, with the chosen runs of its recipes.

    Args:
        planned: the recipes, as `plan` returns them.
        how: what is asked for.
        place: where data and runs lie.
        trained: what became of the recipes; of a search or a grid the chosen trial counts.
    """
    runs = list(
        {run.path: run for result in trained for run in result.chosen.runs}.values()
    )  # equal recipes under two names are the same runs
    scopes: list[Scope] = []
    for run in runs:
        found = _judge(run, how, place)
        scopes = scopes or found
    dataset = load_dataset(planned[0].shape.dataset, place.data_dir)
    cold = dataset.cold(needed_splits(planned, how)[-1])["cold_items"]
    return Result(runs, scopes, len(cold))


def stored_tables(
    runs: Sequence[Run], data_dir: Path, *, baseline: str | None = None
) -> tuple[list[ColdTable], str]:
    """What was judged already of finished runs, a table per definition that all of them share.

    Nothing is trained and nothing ranked.

    Args:
        runs: finished runs over the same data and split.
        data_dir: where the prepared dataset lies.
        baseline: label of the reference; the best of each column unless given.

    Returns:
        the tables, and why there is none where there might be one, else "".
    """
    tables: list[ColdTable] = []
    parts = [{path.name for path in (run.path / "lists").glob("cold-*")} for run in runs]
    for how in _judged_by(set.intersection(*parts)):
        try:
            tables.append(_stored_table(runs, how, data_dir, baseline))
        except (DataError, ConfigError) as problem:  # a page without them is better than none
            return tables, str(problem)
    return tables, ""


def _judged_by(parts: set[str]) -> list[ColdStart]:
    """The requests that parts of runs stand for."""
    found = [ColdStart()] if {"cold-items", "cold-items-among-cold"} <= parts else []
    thresholds: dict[int, list[str]] = {}
    for part in sorted(parts):
        match = re.fullmatch(r"cold-sequences-(heldout|complete)(?:-below-(\d+))?", part)
        if match:
            below = int(match[2]) if match[2] else COLD_BELOW
            thresholds.setdefault(below, []).append(match[1])
    for below, scopes in thresholds.items():
        kept = tuple(scope for scope in SCOPES if scope in scopes)
        found.append(ColdStart("sequences", below, kept))
    return found


def _stored_table(
    runs: Sequence[Run], how: ColdStart, data_dir: Path, baseline: str | None
) -> ColdTable:
    scopes: list[Scope] = []
    for run in runs:
        inputs, parts = _parts(run, how, data_dir)
        if not all(is_judged(run, judged) for judged, _ in parts):
            raise DataError(f"{run.path} was judged on other cold items; judge it again")
        scopes = scopes or [scope for _, found in parts for scope in found]
    split = inputs.split.name if how.definition == "items" else _cases_split(how, how.scopes[-1])
    result = Result(list(runs), scopes, len(inputs.dataset.cold(split)["cold_items"]))
    return compare_cold(
        runs,
        scopes,
        METRICS[how.definition],
        definition=how.definition,
        notes=notes(result, how),
        baseline=baseline,
    )


def check_request(recipes: Sequence[Recipe], baseline: str | None, deepest: int) -> None:
    """Refuse before any training what could not be printed after it.

    Raises:
        UnknownNameError: no recipe has the baseline's label.
        ConfigError: a recipe stores shorter lists than are asked for.
    """
    labels = list(dict.fromkeys(plan.label for recipe in recipes for plan in recipe.expand()))
    # Labels that several recipes share are told apart once the runs are there.
    known = any(baseline == label or f"{baseline}".startswith(f"{label} (") for label in labels)
    if baseline not in (None, BEST) and not known:
        raise UnknownNameError(
            "baseline", str(baseline), labels, hint=f'Or "{BEST}": the best of each column.'
        )
    for recipe in recipes:
        depth = recipe.shape.evaluation.depth
        if deepest > depth:
            raise ConfigError(
                f"{recipe.source}: a metric at {deepest} needs lists of {deepest} items, but "
                f"evaluation.depth is {depth}; give --set evaluation.depth={deepest}"
            )


def notes(result: Result, how: ColdStart) -> list[str]:
    """What the tables must say of their columns."""
    general = any(run.manifest["model"]["family"] == "general" for run in result.runs)
    if how.definition == "items":
        return [
            f"{result.n_cold:,} items (a fifth) are cold: no row of them trains. Half of them "
            "validate, half are tested.",
            "overall, warm, cold: all items are candidates, and relevant are all held-out items, "
            "those seen in training, or those unseen. cold among cold: unseen items are ranked "
            "among themselves.",
            "IDs alone cannot tell unseen items apart, so cold among cold they score as chance. "
            "Among all items they may lie above or below it: training moves the seen items, and "
            "with them the unseen ones as a group.",
        ]
    lines = [
        f"{result.n_cold:,} items with fewer than {how.below} training rows are cold. A case: the "
        "item at a position of a user's history, to be found after those before it; candidates are "
        "all items but these."
    ]
    if HELDOUT in how.scopes:
        lines.append("overall, warm, cold: scope heldout, no case was trained on.")
    if COMPLETE in how.scopes:
        lines.append(
            "cold, complete: scope complete, every position; most cases are training rows, so it "
            "measures memory too."
        )
    if general:
        lines.append(
            "A general model reads no history: it knows a user by all of the training rows."
        )
    return lines


def needed_splits(recipes: Sequence[Recipe], how: ColdStart) -> list[str]:
    """The splits of a study: what models are trained on first, then what names cold items.

    Where a sequential model takes part, the last rows of a user in time are held out.
    """
    if how.definition == "items":
        return [_training_split(recipes, how)]
    return [_training_split(recipes, how), *(_cases_split(how, scope) for scope in SCOPES)]


def on_split(recipe: Recipe, how: ColdStart, split: str) -> Recipe:
    """A recipe on the split of a study; all else stays, but for who is a negative."""
    protocol = recipe.shape.protocol
    changes: dict[str, object] = {} if protocol.split == split else {"split": split}
    if how.definition == "items" and protocol.negatives != "seen":
        # An item that does not exist yet cannot be drawn as one that nobody wanted.
        changes["negatives"] = "seen"
    if not changes:
        return recipe
    return recipe.replace(protocol={**protocol.model_dump(mode="json"), **changes})


def add_missing(name: str, splits: Sequence[str], place: Workplace) -> PreparedDataset:
    """The dataset with these splits; those it lacks are made from what is prepared.

    Raises:
        DataError: it is not prepared, a split does not fit it, or it cannot be written to.
    """

    def add() -> None:
        dataset = load_dataset(name, place.data_dir)
        missing = [split for split in splits if split not in dataset.split_names]
        if not missing:
            return
        asked = " ".join(f"--split {request_text(split)}" for split in missing)
        try:
            prepare(name, data_dir=place.data_dir, splits=[request_text(s) for s in missing])
        except DataError as problem:
            raise DataError(
                f"{name} lacks the split{'s' * (len(missing) > 1)} {', '.join(missing)}, and "
                f"adding did not succeed: {problem}. The command is: mmbench prepare {name} {asked}"
            ) from None

    place.compute.ranks.together(add, first_only=True)
    return load_dataset(name, place.data_dir)


def request_text(split: str) -> str:
    """The request that makes a split of this name: "cold-sequences:below=5"."""
    rule, *params = split.split(".")
    keys = (param.partition("-") for param in params)
    return rule + (":" + ",".join(f"{key}={value}" for key, _, value in keys) if params else "")


def _training_split(recipes: Sequence[Recipe], how: ColdStart) -> str:
    if how.definition == "sequences":
        return "leave-one-out"
    in_order = any(
        MODELS.get(str(recipe.shape.model["name"])).obj.family == "sequential" for recipe in recipes
    )
    seed = [] if how.split_seed is None else [f"seed-{how.split_seed}"]
    warm = "leave-one-out" if in_order else "random-per-user"
    return ".".join(["cold-items", *seed, f"warm-{warm}"])


def _cases_split(how: ColdStart, scope: str) -> str:
    below = [] if how.below == COLD_BELOW else [f"below-{how.below}"]
    positions = ["positions-all"] if scope == COMPLETE else []
    return ".".join(["cold-sequences", *below, *positions])


def _refuse_no_cases(dataset: PreparedDataset, how: ColdStart) -> None:
    """Refuse before hours of training."""
    for scope in how.scopes:
        if not len(dataset.cold(_cases_split(how, scope))["cold_cases"]):
            raise DataError(
                f"{dataset.name} has no cold item in scope {scope}: none with fewer than "
                f"{how.below} training rows stands behind another item of its user"
                f"{' among the held-out rows' if scope == HELDOUT else ''}. Give a larger --below"
                + (", or --scope complete" if scope == HELDOUT else "")
            )


def _judge(run: Run, how: ColdStart, place: Workplace) -> list[Scope]:
    """Rank what is asked for with one run, where that was not done before."""
    _, parts = _parts(run, how, place.data_dir)
    # What the first of several processes finds lacking, all of them rank.
    lacking = place.compute.ranks.say([not is_judged(run, judged) for judged, _ in parts])
    if any(lacking):
        trained = load_trained(run, place.data_dir, place.compute)
        for judged in (judged for (judged, _), lacks in zip(parts, lacking, strict=True) if lacks):
            judge(trained, judged, place.compute)
    return [scope for _, scopes in parts for scope in scopes]


def _parts(
    run: Run, how: ColdStart, data_dir: Path
) -> tuple[Inputs, list[tuple[Judged, list[Scope]]]]:
    """What a run is judged by, and the columns of each part."""
    recipe = stored_recipe(run)
    inputs = load_inputs(recipe, data_dir)
    if how.definition == "items":
        return inputs, _parts_of_items(inputs)
    return inputs, _parts_of_sequences(inputs, how, getattr(recipe.settings, "max_length", 0))


def _parts_of_items(inputs: Inputs) -> list[tuple[Judged, list[Scope]]]:
    cold_items = inputs.dataset.cold(inputs.split.name)["cold_items"]
    if not len(cold_items):
        raise DataError(
            f"{inputs.dataset.name} has too few items ({inputs.dataset.n_items}) to hold a fifth "
            "of them out"
        )
    cold = _members(cold_items, inputs.dataset.n_items)
    every = unseen_items(inputs, cold_items, among_cold=False)
    among = unseen_items(inputs, cold_items, among_cold=True)
    return [
        (every, _three(every, cold)),
        (among, [Scope("cold among cold", among.part, None, among.n_candidates, is_cold=True)]),
    ]


def _parts_of_sequences(
    inputs: Inputs, how: ColdStart, max_length: int
) -> list[tuple[Judged, list[Scope]]]:
    dataset = inputs.dataset
    length = max_length if inputs.test.histories is not None else None
    suffix = "" if how.below == COLD_BELOW else f"-below-{how.below}"
    parts: list[tuple[Judged, list[Scope]]] = []
    for scope in how.scopes:
        split = _cases_split(how, scope)
        check_same_labels(inputs, split)
        stored = dataset.cold(split)
        facts = {
            "scope": scope, "below": how.below,
            "split": inputs.split.fingerprint, "cases": dataset.split(split).fingerprint,
        }  # fmt: skip
        name = f"cold-sequences-{scope}{suffix}"
        if scope == COMPLETE:
            judged = truncated_histories(inputs, stored["cold_cases"], name, facts, length)
            one = Scope("cold, complete", name, None, judged.n_candidates, is_cold=True)
            parts.append((judged, [one]))
            continue
        # Warm held-out rows too: the same model, the same users, the other items.
        heldout = np.asarray(inputs.split.label) != TRAIN
        cases, _ = cases_of(np.asarray(dataset.user), heldout)
        judged = truncated_histories(inputs, cases, name, facts, length)
        cold = _members(stored["cold_items"], dataset.n_items)
        parts.append((judged, _three(judged, cold)))
    return parts


def _three(judged: Judged, cold: BoolArray) -> list[Scope]:
    """All items, the warm and the cold ones, out of the same lists."""
    return [
        Scope("overall", judged.part, None, judged.n_candidates),
        Scope("warm", judged.part, ~cold, judged.n_candidates),
        Scope("cold", judged.part, cold, judged.n_candidates, is_cold=True),
    ]


def _members(items: NDArray[np.int32], n_items: int) -> BoolArray:
    found = np.zeros(n_items, dtype=bool)
    found[items] = True
    return found
