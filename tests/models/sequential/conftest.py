"""A tiny world in the order of time: histories with repeats, of one item, of none, and too long."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.models.base import MODELS, Interactions, ItemFeatures
from mmbench.models.sequential.base import SequenceBatch, SequentialRecommender

N_ITEMS, LENGTH = 10, 5  # I, and L; item 9 is in nobody's training
HISTORIES = [[0, 3, 5, 1, 7, 2, 8], [4, 2], [], [6], [1, 2, 1, 3, 1], [8, 0, 4, 6], [5, 7, 3]]
WIDTHS = {"textual": 6, "visual": 4, "acoustic": 3, "joint": 5}


def interactions(histories: list[list[int]], n_items: int) -> Interactions:
    pairs = sorted((user, item) for user, items in enumerate(histories) for item in items)
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    in_order = torch.tensor([item for items in histories for item in items])
    return Interactions(len(histories), n_items, users, items, in_order)


def padded(histories: list[list[int]], n_slots: int, padding: int) -> Tensor:
    """The last items of each history, padded on the left."""
    rows = [[padding] * n_slots + items for items in histories]
    return torch.tensor([row[-n_slots:] for row in rows])


def sequence_batch(histories: list[list[int]], n_items: int, n_slots: int) -> SequenceBatch:
    """Each user's last slots, and a negative that the user has not at each real one."""
    rng = np.random.default_rng(1)
    sequences = padded(histories, n_slots, n_items)
    negatives = torch.full_like(sequences, n_items)
    for row, items in enumerate(sequences.tolist()):
        others = [item for item in range(n_items) if item not in items]
        for slot, item in enumerate(items):
            if item != n_items:
                negatives[row, slot] = int(rng.choice(others))
    return SequenceBatch(torch.arange(len(histories)), sequences, negatives)


def content(n_items: int, modalities: list[str], seed: int = 8) -> list[ItemFeatures]:
    rng = np.random.default_rng(seed)
    return [
        ItemFeatures(
            f"{modality}__made",
            modality,
            torch.from_numpy(rng.standard_normal((n_items, WIDTHS[modality])).astype(np.float32)),
            torch.ones(n_items).bool(),
        )
        for modality in modalities
    ]


@pytest.fixture(scope="session")
def train() -> Interactions:
    return interactions(HISTORIES, N_ITEMS)


@pytest.fixture(scope="session")
def batch() -> SequenceBatch:
    """The five users with two items or more, L + 1 slots each."""
    return sequence_batch([h for h in HISTORIES if len(h) > 1], N_ITEMS, LENGTH + 1)


@pytest.fixture(scope="session")
def given() -> Callable[..., list[ItemFeatures]]:
    """`given(["textual", "visual"], n_items=10)` makes feature sets of some modalities."""
    return lambda modalities, n_items=N_ITEMS: content(n_items, modalities)


@pytest.fixture(scope="session")
def sequences() -> Tensor:
    """Inputs of all seven users at evaluation, [7, L]: one is empty, one has a single item."""
    return padded(HISTORIES, LENGTH, N_ITEMS)


@pytest.fixture(scope="session")
def build() -> Callable[..., SequentialRecommender]:
    """`build(name, train, given, seed=0, **settings)` makes a model as the engine does."""

    def make(
        name: str,
        train: Interactions,
        given: list[ItemFeatures],
        seed: int = 0,
        **settings: object,
    ) -> SequentialRecommender:
        torch.manual_seed(seed)
        entry = MODELS.get(name)
        model: SequentialRecommender = entry.obj(entry.info["config"](**settings), train, given)
        return model

    return make


@pytest.fixture(scope="session")
def literal() -> ModuleType:
    """The file literal_sequence.py."""
    path = Path(__file__).with_name("literal_sequence.py")
    spec = importlib.util.spec_from_file_location("literal_sequence", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cycle() -> tuple[Interactions, SequenceBatch]:
    """A world where the next item is the one after, of 12 in a circle; and all its sequences."""
    n_items = 12
    # Every start with every length, so that each item is the last of some history.
    histories = [[(user + step) % 12 for step in range(3 + user // 12)] for user in range(48)]
    train = interactions(histories, n_items)
    return train, sequence_batch(histories, n_items, LENGTH + 1)


@pytest.fixture(scope="session")
def positions() -> Callable[..., list[tuple[Tensor, int, int, set[int], int]]]:
    """`positions(batch, hidden)`: what the literal losses read, of hidden[row][slot] vectors."""

    def gather(batch, hidden, n_items=N_ITEMS):  # type: ignore[no-untyped-def]
        found = []
        n_slots = batch.sequences.shape[1]
        for row, items in enumerate(batch.sequences.tolist()):
            own = {item for item in items if item != n_items}
            for slot in range(n_slots - 1):
                if items[slot] != n_items:
                    negative = int(batch.negatives[row, slot + 1])
                    place = row * n_slots + slot + 1
                    found.append((hidden[row][slot], items[slot + 1], negative, own, place))
        return found

    return gather


@pytest.fixture(scope="session")
def equals_the_loops(literal: ModuleType, positions: Callable[..., Any]) -> Callable[..., None]:
    """`check(model, w, hidden, loss, batch, sequences)`: loss, gradients and scores of ids alone.

    `w` are the model's weights as `literal.leaves` gives them, `hidden` the loops over its
    equations: vectors of all slots of the items in one row.
    """

    def check(  # type: ignore[no-untyped-def]
        model, w, hidden, loss: str, batch: SequenceBatch, sequences: Tensor
    ) -> None:
        found = model.training_step(batch)[loss]
        found.backward()
        every = [hidden(items) for items in batch.inputs.tolist()]
        table = w["table.weight"]
        expected = literal.loss(loss, positions(batch, every), lambda i: table[i], N_ITEMS)
        expected.backward()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, w[key].grad, rtol=1e-8, atol=1e-11, msg=key)
        model.eval()
        scores = model.score(model.catalogue(), sequences)
        for row, items in enumerate(sequences.tolist()):
            if items[-1] != N_ITEMS:
                torch.testing.assert_close(
                    scores[row], table @ hidden(items)[-1], rtol=1e-9, atol=1e-11
                )

    return check
