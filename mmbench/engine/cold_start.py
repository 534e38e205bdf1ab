"""Judging a finished run on cold items: what is ranked, and the lists kept in the run's folder.

    items      every row of a cold item is held out of training. A user's held-out rows are
               ranked among all items, and those of cold items among the cold ones alone.
    sequences  the model is the regular one. A case is a user and a position of that user's
               history in the order of time: the item there is to be found from those before it.

In all of them the candidates are the same for every model: all items, or the cold ones, without
those of the user that are no question: under `items` the other training and validation rows,
under `sequences` what comes before the case. A sequential model reads the last of these.

What was ranked is kept as a further part of the run, `lists/<part>/`, with `cold.json` beside
the arrays that says what it is; a folder is complete or not there. `Run.lists(part)` reads it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench import seeding
from mmbench.data.prepared import TEST, TRAIN, VALID
from mmbench.engine.device import Compute
from mmbench.engine.inputs import Inputs, Ragged, Target
from mmbench.engine.ranking import Ranker
from mmbench.engine.trained import Trained
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.lists import BoolArray, IntArray, RankedLists
from mmbench.runs import Run, write_json, write_lists

CARD = "cold.json"


@dataclass(frozen=True)
class Judged:
    """One part that runs are judged by.

    Attributes:
        part: its name below `lists/` of a run.
        target: rows to be ranked; a user may have several, one after the other.
        candidates: the items that can be recommended [I]; None for all.
        n_candidates: how many there are for each row, after masking [rows].
        facts: what it is, for the card beside the lists.
    """

    part: str
    target: Target
    candidates: BoolArray | None
    n_candidates: IntArray
    facts: Mapping[str, Any]


def unseen_items(inputs: Inputs, cold: NDArray[Any], *, among_cold: bool) -> Judged:
    """The held-out rows of a `cold-items` split, one list per user.

    Args:
        inputs: of a run on that split.
        cold: the cold items.
        among_cold: whether only cold items are relevant, and candidates; else all items are.

    Raises:
        DataError: nobody with a training row has such a row.
    """
    dataset, label = inputs.dataset, np.asarray(inputs.split.label)
    user, item = np.asarray(dataset.user), np.asarray(dataset.item)
    is_cold = _among(cold, dataset.n_items)
    asked = label == TEST
    if among_cold:
        asked &= is_cold[item]
    shown = (label == TRAIN) | (label == VALID)
    trained = np.bincount(user[label == TRAIN], minlength=dataset.n_users) > 0
    relevant = Ragged.group(user[asked], item[asked], dataset.n_users)
    users = np.flatnonzero(trained & (relevant.counts > 0))
    if not len(users):
        raise DataError(
            f"split {inputs.split.name!r} of {dataset.name} has no user with training rows and a "
            "cold item to be found; draw other items with --split-seed"
        )
    relevant = relevant.take(users)
    histories = Ragged.in_order(user[shown], item[shown], dataset.n_users).take(users)
    masked = _without(histories, relevant, dataset.n_items)
    candidates = is_cold if among_cold else None
    return Judged(
        part="cold-items-among-cold" if among_cold else "cold-items",
        target=Target(
            users, relevant, masked, histories if inputs.test.histories is not None else None
        ),
        candidates=candidates,
        n_candidates=_count_candidates(masked, candidates, dataset.n_items),
        facts={
            "definition": "items",
            "candidates": "cold" if among_cold else "all",
            "split": inputs.split.fingerprint,
        },
    )


def truncated_histories(
    inputs: Inputs,
    cases: NDArray[Any],
    part: str,
    facts: Mapping[str, Any],
    max_length: int | None = None,
) -> Judged:
    """Histories cut off before a position, whose item is to be found among all items.

    Args:
        inputs: of the run.
        cases: user and position [K, 2]; positions count from 0 and are 1 or more.
        part: name of the part.
        facts: what the cases are.
        max_length: how many items a sequential model reads; None for a general model, which
            reads no history.

    Raises:
        DataError: there is no case.
    """
    dataset = inputs.dataset
    if not len(cases):
        raise DataError(
            f"{dataset.name} has no case of {part}; a larger --below makes more items cold"
        )
    cases = cases[np.lexsort((cases[:, 1], cases[:, 0]))].astype(np.int64)
    item = np.asarray(dataset.item).astype(np.int64)
    rows = Ragged.in_order(np.asarray(dataset.user), item, dataset.n_users)
    users, position = cases[:, 0], cases[:, 1]
    first = rows.offsets[users]
    relevant = Ragged(np.arange(len(users) + 1), item[first + position])
    before = _slices(item, first, position)
    masked = _without(before, relevant, dataset.n_items)
    histories = None
    if max_length is not None:
        read = np.minimum(position, max_length)
        histories = _slices(item, first + position - read, read)
    return Judged(
        part=part,
        target=Target(users, relevant, masked, histories),
        candidates=None,
        n_candidates=_count_candidates(masked, None, dataset.n_items),
        facts={"definition": "sequences", "candidates": "all", **facts},
    )


def judge(trained: Trained, judged: Judged, compute: Compute) -> RankedLists:
    """Rank a part with a finished run's model, and keep the lists in the run's folder.

    Several processes (`compute.ranks`) share the rows; the first one writes.

    Raises:
        DataError: the run's folder cannot be written to.
        TrainingError: a score is NaN or infinite.
    """
    lists = rank(trained, judged, compute)
    if compute.ranks.is_first:
        _store(trained.run, judged, lists)
    compute.ranks.say("written")
    return lists


def rank(trained: Trained, judged: Judged, compute: Compute) -> RankedLists:
    """The lists of a part, with the run's own order of items to break ties.

    Raises:
        TrainingError: a score is NaN or infinite.
    """
    recipe, inputs = trained.recipe, trained.inputs
    order = seeding.stream(recipe.seed, "ties").permutation(inputs.dataset.n_items)
    ranker = Ranker(
        judged.target,
        inputs.popularity,
        inputs.activity,
        order,
        compute.device,
        ranks=compute.ranks,
        candidates=judged.candidates,
    )
    return ranker.rank(trained.model, recipe.evaluation.depth)


def is_judged(run: Run, judged: Judged) -> bool:
    """Whether a run's folder holds the lists of a part already, of the very same cases."""
    try:
        card = json.loads((run.path / "lists" / judged.part / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(card == _card(run, judged))


def _store(run: Run, judged: Judged, lists: RankedLists) -> None:
    folder = run.path / "lists" / judged.part
    partial = folder.with_name(f".{judged.part}.partial-{os.getpid()}")
    try:
        try:
            write_lists(partial, lists)
            write_json(partial / CARD, _card(run, judged))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as problem:
        raise DataError(
            f"{folder} cannot be written ({problem.strerror or problem}); free space or choose "
            "another --runs-dir"
        ) from None


def _card(run: Run, judged: Judged) -> dict[str, Any]:
    """What the lists of a part depend on, beside the run itself."""
    return {
        **judged.facts,
        "part": judged.part,
        "system": run.system,
        "seed": run.seed,
        "rows": len(judged.target.users),
    }


def check_same_labels(inputs: Inputs, split: str) -> None:
    """Check that a run was trained on what the cases of a `cold-sequences` split suppose.

    Raises:
        ConfigError: it was not.
    """
    theirs = inputs.dataset.split(split)
    if not np.array_equal(np.asarray(theirs.label), np.asarray(inputs.split.label)):
        raise ConfigError(
            f"split {inputs.split.name!r} of {inputs.dataset.name} holds other rows out than "
            f"{split!r}; the regular model of this study is trained on leave-one-out"
        )


def _among(items: NDArray[Any], n_items: int) -> BoolArray:
    found = np.zeros(n_items, dtype=bool)
    found[items] = True
    return found


def _slices(items: IntArray, starts: IntArray, lengths: IntArray) -> Ragged:
    """The stretches of `items` that begin at `starts`, one list each."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(
        offsets, items[np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, lengths)]
    )


def _without(histories: Ragged, relevant: Ragged, n_items: int) -> Ragged:
    """Each row's distinct items that are not relevant to it, ascending."""
    n_rows = len(histories.counts)
    keys = np.unique(np.repeat(np.arange(n_rows), histories.counts) * n_items + histories.items)
    asked = np.repeat(np.arange(n_rows), relevant.counts) * n_items + relevant.items
    keys = np.setdiff1d(keys, asked, assume_unique=False)
    return Ragged.group(keys // n_items, keys % n_items, n_rows)


def _count_candidates(masked: Ragged, candidates: BoolArray | None, n_items: int) -> IntArray:
    if candidates is None:
        return n_items - masked.counts
    rows = np.repeat(np.arange(len(masked.counts)), masked.counts)
    inside = np.bincount(rows[candidates[masked.items]], minlength=len(masked.counts))
    return int(candidates.sum()) - inside
