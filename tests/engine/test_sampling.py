from __future__ import annotations

import numpy as np
import pytest
import torch

from mmbench.engine.sampling import TripleSampler
from mmbench.errors import DataError
from mmbench.models.base import Interactions


def interactions(pairs: list[tuple[int, int]], n_users: int, n_items: int) -> Interactions:
    users, items = zip(*sorted(pairs), strict=True)
    return Interactions(n_users, n_items, torch.tensor(users), torch.tensor(items))


def random_interactions(seed: int, n_users: int, n_items: int, share: float) -> Interactions:
    chosen = np.random.default_rng(seed).random((n_users, n_items)) < share
    return interactions([(int(u), int(i)) for u, i in np.argwhere(chosen)], n_users, n_items)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("candidates", ["seen", "all"])
def test_negatives_are_never_training_items_and_always_candidates(
    seed: int, candidates: str
) -> None:
    train = random_interactions(seed, 30, 20, 0.05 + 0.1 * seed)
    sampler = TripleSampler(train, candidates)
    batch = sampler.epoch(torch.Generator().manual_seed(seed))
    known = set(zip(train.users.tolist(), train.items.tolist(), strict=True))
    drawn = set(zip(batch.users.tolist(), batch.negatives.tolist(), strict=True))
    assert not known & drawn
    allowed = set(train.items.tolist()) if candidates == "seen" else set(range(20))
    assert {item for _, item in drawn} <= allowed


def test_an_epoch_holds_every_interaction_once() -> None:
    train = random_interactions(3, 25, 40, 0.2)
    batch = TripleSampler(train).epoch(torch.Generator().manual_seed(0))
    pairs = sorted(zip(batch.users.tolist(), batch.positives.tolist(), strict=True))
    assert pairs == list(zip(train.users.tolist(), train.items.tolist(), strict=True))


def test_negatives_are_uniform_over_what_the_user_does_not_have() -> None:
    # User 0 has items 1 and 4 of 0..6; item 6 occurs nowhere, so "seen" leaves 0, 2, 3 and 5.
    train = interactions([(0, 1), (0, 4), (1, 0), (1, 2), (1, 3), (1, 5)], 2, 7)
    users = torch.zeros(40_000, dtype=torch.int64)
    drawn = TripleSampler(train).negatives.draw(users, torch.Generator().manual_seed(1))
    counts = np.bincount(drawn.numpy(), minlength=7)
    assert counts[[1, 4, 6]].sum() == 0
    expected = 10_000
    chi_square = ((counts[[0, 2, 3, 5]] - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 99.9 % quantile of chi-square with 3 degrees of freedom


def test_a_user_with_every_item_is_left_out() -> None:
    train = interactions([(0, 0), (0, 1), (0, 2), (1, 1)], 2, 3)
    sampler = TripleSampler(train)
    assert sampler.users.tolist() == [1]


def test_nobody_with_a_negative_is_an_error() -> None:
    with pytest.raises(DataError, match="no negative to draw"):
        TripleSampler(interactions([(0, 0), (1, 0)], 2, 1))


def test_equal_generators_draw_equal_epochs() -> None:
    sampler = TripleSampler(random_interactions(5, 20, 30, 0.2))
    first, second = (sampler.epoch(torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(first.negatives, second.negatives)
    assert torch.equal(first.users, second.users)
