"""The data of a benchmark, and this project's side of it: the engine, called as a run calls it.

Each piece of work is prepared (model, optimiser, sampler, ranker are built) and then run as often
as one likes; a run is one evaluation or one training epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from mmbench import seeding
from mmbench.data.prepared import load_dataset
from mmbench.engine.device import Compute
from mmbench.engine.inputs import Ragged, Target, to_device
from mmbench.engine.ranking import Ranker
from mmbench.engine.training import TrainingLoop
from mmbench.errors import DataError
from mmbench.metrics.base import Metric
from mmbench.models.base import MODELS, Interactions, ItemFeatures, Recommender
from mmbench.recipe import Recipe, RunRecipe

BATCH, WIDTH, DEPTH = 2048, 64, 50
CUT_OFFS = (5, 10, 20, 50)
METRICS = [Metric(name, k) for name in ("recall", "ndcg", "precision", "map") for k in CUT_OFFS]
MODEL_OF = {"evaluation": "bpr-mf", "BPR-MF": "bpr-mf", "LightGCN": "lightgcn", "VBPR": "vbpr"}
"""Each piece of work and the model it uses; all but the evaluation are one training epoch."""
SETTINGS = {
    "bpr-mf": {"embedding_size": WIDTH, "regularization": 0.1},
    "lightgcn": {"embedding_size": WIDTH, "n_layers": 2, "regularization": 1e-4},
    "vbpr": {"embedding_size": WIDTH, "regularization": 0.1},
}

Run = Callable[[], dict[str, float]]
"""Does a piece of work once; returns metrics or mean losses."""


@dataclass(frozen=True)
class Workload:
    """Interactions, labelled 0 train, 1 validation, 2 test, and two feature files.

    Attributes:
        source: where the data come from, for the table's caption.
        users, items, labels: one entry per interaction.
        features: .npy file of each modality, float32 [n_items, width].
    """

    source: str
    n_users: int
    n_items: int
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    labels: NDArray[np.int8]
    features: dict[str, Path]

    def part(self, label: int) -> Ragged:
        """Items of each user in one part of the split."""
        rows = self.labels == label
        return Ragged.group(self.users[rows], self.items[rows], self.n_users)

    @cached_property
    def train(self) -> Interactions:
        """The training interactions, on the CPU."""
        part = self.part(0)
        users = np.repeat(np.arange(self.n_users), part.counts)
        return Interactions(
            self.n_users, self.n_items, torch.from_numpy(users), torch.from_numpy(part.items)
        )

    @cached_property
    def target(self) -> Target:
        """The validation part; training items are masked."""
        train, valid = self.part(0), self.part(1)
        ranked = np.flatnonzero((train.counts > 0) & (valid.counts > 0))
        if not len(ranked):
            raise DataError(f"{self.source} has no user with training and validation items")
        return Target(ranked, valid.take(ranked), train.take(ranked))

    def load_features(self) -> list[ItemFeatures]:
        """The feature sets, read from their files."""
        present = torch.ones(self.n_items, dtype=torch.bool)
        return [
            ItemFeatures(f"{modality}__random", modality, torch.from_numpy(np.load(path)), present)
            for modality, path in self.features.items()
        ]

    def ranker(self, compute: Compute) -> Ranker:
        """Ranks the validation part, as in training."""
        order = seeding.stream(0, "ties").permutation(self.n_items)
        popularity = np.bincount(self.train.items.numpy(), minlength=self.n_items)
        activity = np.bincount(self.train.users.numpy(), minlength=self.n_users)
        return Ranker(self.target, popularity, activity, order, compute.device)


def prepare(work: str, workload: Workload, compute: Compute) -> tuple[Run, Recommender]:
    """Build all that a piece of work needs, and return what runs it, and its model."""
    name = MODEL_OF[work]
    recipe = recipe_of(name, SETTINGS[name])
    model = build_model(recipe, workload, compute)
    if work == "evaluation":
        return evaluation(model, workload.ranker(compute)), model
    loop = training_loop(recipe, model, workload, compute)
    return lambda: dict(loop._epoch(1)["losses"]), model


def recipe_of(name: str, settings: dict[str, Any], weight_decay: float = 0.0) -> RunRecipe:
    """The recipe of a model with some settings: Adam, batches of 2048."""
    training = {"batch_size": BATCH, "weight_decay": weight_decay}
    raw = {"model": {"name": name, **settings}, "training": training}
    return Recipe(raw, "benchmark").expand()[0]


def build_model(recipe: RunRecipe, workload: Workload, compute: Compute) -> Recommender:
    """The model of a recipe on its device, freshly initialised; features if it knows any."""
    kind = MODELS.get(recipe.model).obj
    given = workload.load_features() if kind.modalities else []
    seeding.seed_globals(0, "init")
    model: Recommender = kind(recipe.settings, workload.train, given)
    return model.to(compute.device)


def training_loop(
    recipe: RunRecipe, model: Recommender, workload: Workload, compute: Compute
) -> TrainingLoop:
    """The engine's loop around a model."""
    train = to_device(workload.train, compute.device)
    return TrainingLoop(recipe, model, train, workload.ranker(compute), compute)


def evaluation(model: Recommender, ranker: Ranker) -> Run:
    """Ranks the validation part and computes the 16 metrics."""

    def evaluate() -> dict[str, float]:
        lists = ranker.rank(model, DEPTH)
        return {str(metric): float(metric.values(lists).mean()) for metric in METRICS}

    return evaluate


def from_dataset(name: str, data_dir: Path) -> tuple[str, NDArray[np.int64]]:
    """Where a prepared dataset comes from, and its columns user, item, label [3, N]."""
    dataset = load_dataset(name, data_dir)
    label = dataset.split().label
    return f"{name} (prepared)", np.stack([dataset.user, dataset.item, label]).astype(np.int64)


def from_inter(path: Path) -> tuple[str, NDArray[np.int64]]:
    """Where a file in the MMRec layout comes from, and its columns user, item, label [3, N].

    Raises:
        DataError: the file is missing or lacks a column.
    """
    columns = ["userID", "itemID", "x_label"]
    try:
        table = pl.read_csv(path, separator="\t", columns=columns)
        return path.name, np.stack([table[c].to_numpy() for c in columns]).astype(np.int64)
    except (OSError, pl.exceptions.PolarsError, ValueError) as problem:
        first = str(problem).partition("\n")[0]
        raise DataError(f"{path}: {first}; name a .inter file with {', '.join(columns)}") from None


def synthetic(n_users: int, n_items: int, n_pairs: int) -> tuple[str, NDArray[np.int64]]:
    """A dataset of a given size with skewed item popularity; columns as above."""
    rng = seeding.stream(0, "benchmark")
    popularity = 1.0 / (np.arange(n_items) + 20.0)
    activity = 1.0 / (np.arange(n_users) + 200.0)
    # Six draws for every user, so that each has something in every part; the rest is skewed.
    users = np.concatenate(
        [
            np.repeat(np.arange(n_users), 6),
            rng.choice(n_users, size=2 * n_pairs, p=activity / activity.sum()),
        ]
    )
    items = rng.choice(n_items, size=len(users), p=popularity / popularity.sum())
    _, first = np.unique(users * n_items + items, return_index=True)
    first = np.sort(first)[:n_pairs]
    order = first[np.lexsort((rng.random(len(first)), users[first]))]
    users, items = users[order], items[order]
    begins = np.r_[0, np.flatnonzero(np.diff(users)) + 1]
    rank = np.arange(len(users)) - np.repeat(begins, np.diff(np.r_[begins, len(users)]))
    labels = np.where(rank % 8 == 1, 1, np.where(rank % 8 == 2, 2, 0))
    return f"synthetic, {len(users):,} pairs", np.stack([users, items, labels])


def build(
    source: str, columns: NDArray[np.int64], widths: tuple[int, int], folder: Path
) -> Workload:
    """A workload with random features of the given widths, whose files go to `folder`."""
    users, items, labels = columns
    n_users, n_items = int(users.max()) + 1, int(items.max()) + 1
    rng = np.random.default_rng(0)
    features = {}
    # Text first: the public toolbox joins them in this order, so weights can be compared.
    for modality, width in (("textual", widths[1]), ("visual", widths[0])):
        features[modality] = folder / f"{modality}.npy"
        np.save(features[modality], rng.standard_normal((n_items, width), dtype=np.float32))
    return Workload(source, n_users, n_items, users, items, labels.astype(np.int8), features)
