"""Item vectors of finished runs, opened again and laid out in two dimensions for a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmbench.engine.device import Compute
from mmbench.engine.representations import representations
from mmbench.engine.trained import load_trained, stored_recipe
from mmbench.errors import ConfigError
from mmbench.models.base import MODELS
from mmbench.report.systems import group_runs
from mmbench.report.tsne import Panels, Vectors, draw, flatten, geometry, owned_matrix
from mmbench.runs import Run

ITEMS, USERS, ITEMS_OF_USER = 600, 6, 60
"""Few enough points that a page of many systems stays small, and as many users as colours."""


def check_pictured(runs: Sequence[Run]) -> None:
    """Refuse, before any work, runs of which none has vectors.

    Raises:
        ConfigError: every model scores without vectors.
    """
    if not any(_has_vectors(run) for run in runs):
        raise ConfigError(
            "--tsne draws vectors of items, and none of these runs has any; name runs of factor "
            "models too, for example of bpr-mf or vbpr"
        )


def lay_out(runs: Sequence[Run], data_dir: Path, compute: Compute, *, seed: int = 0) -> Panels:
    """The vectors of each system's first run, in two dimensions.

    Args:
        runs: finished runs over the same data and split.
        data_dir: where the prepared dataset lies.
        compute: on what the models are built.
        seed: of the drawn items and users, and of t-SNE.

    Raises:
        ConfigError: none has vectors.
        DataError: data or weights are missing, damaged or others, or there is too little to draw.
    """
    check_pictured(runs)
    systems = group_runs(runs)
    able = [system for system in systems if _has_vectors(system.runs[0])]
    found, owned = [], None
    for system in able:
        trained = load_trained(system.runs[0], data_dir, compute)
        made = representations(trained)
        popularity = trained.inputs.popularity
        owned = owned_matrix(made.owned.offsets, made.owned.items, len(popularity))
        found.append(Vectors(system.label, made.items, popularity))
    assert owned is not None
    sample = draw(owned, items=ITEMS, users=USERS, seed=seed)
    places, items = (part for part in sample.pairs)
    first = np.concatenate([np.flatnonzero(places == place)[:ITEMS_OF_USER] for place in
                            range(len(sample.users))])  # fmt: skip
    places, items = places[first], items[first]
    distinct, row = np.unique(items, return_inverse=True)  # an item of two users has one place
    return Panels(
        labels=tuple(each.label for each in found),
        popularity=found[0].popularity[sample.items],
        by_item=tuple(flatten(each.items[sample.items], seed=seed) for each in found),
        users=sample.users,
        owner=places,
        by_user=tuple(flatten(each.items[distinct], seed=seed)[row] for each in found),
        numbers=tuple(geometry(each, owned, seed=seed) for each in found),
        without=tuple(system.label for system in systems if system not in able),
    )


def _has_vectors(run: Run) -> bool:
    return MODELS.get(stored_recipe(run).model).obj.factors
