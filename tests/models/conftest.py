"""Tiny worlds for models: random interactions, the checkerboard, and ways to build and fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmbench.models.base import MODELS, Batch, Interactions, ItemFeatures, Recommender

N_USERS, N_ITEMS = 12, 9


def interactions(dense: np.ndarray) -> Interactions:
    users, items = np.nonzero(dense)
    return Interactions(
        dense.shape[0], dense.shape[1], torch.from_numpy(users), torch.from_numpy(items)
    )


def feature_set(modality: str, matrix: np.ndarray) -> ItemFeatures:
    values = torch.from_numpy(matrix.astype(np.float32))
    return ItemFeatures(f"{modality}__made", modality, values, torch.ones(len(matrix)).bool())


@pytest.fixture(scope="session")
def dense() -> np.ndarray:
    """A random 12 x 9 matrix; user 3 and item 5 have no interaction."""
    matrix = (np.random.default_rng(7).random((N_USERS, N_ITEMS)) < 0.4).astype(float)
    matrix[3] = 0
    matrix[:, 5] = 0
    return matrix


@pytest.fixture(scope="session")
def train(dense: np.ndarray) -> Interactions:
    return interactions(dense)


@pytest.fixture(scope="session")
def given() -> list[ItemFeatures]:
    """Visual, textual and acoustic features of the nine items; one row is all zeros."""
    rng = np.random.default_rng(8)
    sets = [
        feature_set(name, rng.standard_normal((N_ITEMS, width)))
        for name, width in (("visual", 4), ("textual", 3), ("acoustic", 2))
    ]
    sets[0].matrix[2] = 0.0
    return sets


@pytest.fixture(scope="session")
def batch(train: Interactions, dense: np.ndarray) -> Batch:
    """Seven triples, some users and items more than once."""
    rng = np.random.default_rng(9)
    rows = rng.integers(0, len(train.users), 7)
    users, positives = train.users[rows], train.items[rows]
    negatives = [rng.choice(np.flatnonzero(dense[user] == 0)) for user in users.tolist()]
    return Batch(users, positives, torch.tensor(negatives))


@pytest.fixture(scope="session")
def checkerboard() -> tuple[Interactions, np.ndarray]:
    """Even users like even items, odd users odd ones; one liked item of each user is hidden."""
    users, items = np.indices((20, 12))
    matrix = ((users + items) % 2 == 0).astype(float)
    hidden = np.array([(user % 2) + 2 * (user // 2 % 6) for user in range(20)])
    matrix[np.arange(20), hidden] = 0
    return interactions(matrix), hidden


Build = Callable[..., Recommender]


@pytest.fixture(scope="session")
def build() -> Build:
    """`build(name, train, given, seed=0, **settings)` makes a model as the engine does."""

    def make(
        name: str,
        train: Interactions,
        given: list[ItemFeatures],
        seed: int = 0,
        **settings: object,
    ) -> Recommender:
        torch.manual_seed(seed)
        entry = MODELS.get(name)
        model: Recommender = entry.obj(entry.info["config"](**settings), train, given)
        return model

    return make


@pytest.fixture(scope="session")
def fit() -> Callable[..., Recommender]:
    """`fit(model, train, seed=0, epochs=100)` trains a model by whichever way it has."""

    def run(
        model: Recommender, train: Interactions, seed: int = 0, epochs: int = 100
    ) -> Recommender:
        generator = torch.Generator().manual_seed(seed)
        if model.fitting == "closed-form":
            model.fit(generator)
            return model
        if model.fitting == "epochs":
            for _ in range(epochs):
                model.fit_epoch(generator)
            return model
        disliked = torch.from_numpy(train.matrix.toarray() == 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(epochs):
            negatives = torch.multinomial(disliked[train.users].double(), 1, generator=generator)
            terms = model.training_step(Batch(train.users, train.items, negatives[:, 0]))
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
        return model

    return run


@pytest.fixture(scope="session")
def all_scores() -> Callable[[Recommender, Interactions], np.ndarray]:
    """`all_scores(model, train)` is the score matrix [U, I]."""

    def score(model: Recommender, train: Interactions) -> np.ndarray:
        with torch.no_grad():
            return model.scores(torch.arange(train.n_users)).numpy()

    return score
