from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.engine.inputs import Ragged, Target
from mmbench.engine.ranking import GROUPING, Ranker, _top_k
from mmbench.errors import TrainingError
from mmbench.metrics.base import parse_metric
from mmbench.models.base import Recommender


class Fixed(Recommender):
    """Scores that are given."""

    factors = False

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def scores(self, users: Tensor) -> Tensor:
        return self.table[users]


class Factors(Recommender):
    """The same scores as products of vectors."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        super().__init__()
        self.given = users, items

    def user_vectors(self) -> Tensor:
        return self.given[0]

    def item_vectors(self) -> Tensor:
        return self.given[1]


def random_target(rng: np.random.Generator, n_users: int, n_items: int) -> Target:
    relevant = rng.random((n_users, n_items)) < 0.1
    relevant[np.arange(n_users), rng.integers(n_items, size=n_users)] = True
    masked = (rng.random((n_users, n_items)) < 0.3) & ~relevant
    users = np.sort(rng.choice(n_users, size=n_users // 2, replace=False))
    return Target(
        users,
        Ragged.group(*np.nonzero(relevant), n_users).take(users),
        Ragged.group(*np.nonzero(masked), n_users).take(users),
    )


def ranker(target: Target, n_users: int, n_items: int, seed: int = 0, **options: int) -> Ranker:
    order = np.random.default_rng(seed).permutation(n_items)
    popularity, activity = np.ones(n_items, np.int64), np.ones(n_users, np.int64)
    return Ranker(target, popularity, activity, order, torch.device("cpu"), **options)


@pytest.mark.parametrize("seed", range(6))
def test_lists_equal_a_plain_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_users, n_items, depth = 40, int(rng.integers(5, 400)), 10
    target = random_target(rng, n_users, n_items)
    table = torch.from_numpy(
        rng.permuted(np.arange(n_users * n_items)).reshape(n_users, -1)
    ).float()
    lists = ranker(target, n_users, n_items).rank(Fixed(table), depth)
    for row, user in enumerate(target.users):
        span = slice(target.masked.offsets[row], target.masked.offsets[row + 1])
        masked = set(target.masked.items[span].tolist())
        span = slice(target.relevant.offsets[row], target.relevant.offsets[row + 1])
        relevant = set(target.relevant.items[span].tolist())
        free = [item for item in range(n_items) if item not in masked]
        best = sorted(free, key=lambda item: -float(table[user, item]))[:depth]
        found = lists.items[row].tolist()
        assert found == best + [-1] * (len(found) - len(best))
        assert lists.hits[row].tolist() == [item in relevant for item in found]


def test_factors_and_scores_rank_alike_and_the_block_size_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    target = random_target(rng, 60, 500)
    users, items = torch.randn(60, 8), torch.randn(500, 8)
    whole = ranker(target, 60, 500).rank(Factors(users, items), 20)
    scored = ranker(target, 60, 500).rank(Fixed(users @ items.T), 20)
    narrow = ranker(target, 60, 500, block_bytes=3 * 4 * 500)
    assert narrow.block == 3
    np.testing.assert_array_equal(whole.items, scored.items)
    np.testing.assert_array_equal(whole.items, narrow.rank(Factors(users, items), 20).items)


def test_masked_items_and_padding_never_enter_a_list() -> None:
    # Three of four items are masked: one candidate is left for a list of four.
    target = Target(
        np.array([0]),
        Ragged(np.array([0, 1]), np.array([2])),
        Ragged(np.array([0, 3]), np.array([0, 1, 3])),
    )
    lists = ranker(target, 1, 4).rank(Fixed(torch.full((1, 4), 5.0)), 4)
    assert lists.items.tolist() == [[2, -1, -1, -1]]
    assert lists.hits.tolist() == [[True, False, False, False]]


def test_lists_are_as_long_as_asked_for_in_a_catalogue_that_is_shorter() -> None:
    target = Target(
        np.array([0]),
        Ragged(np.array([0, 2]), np.array([0, 2])),
        Ragged(np.array([0, 1]), np.array([1])),
    )
    lists = ranker(target, 1, 3).rank(Fixed(torch.tensor([[1.0, 3.0, 2.0]])), 5)
    assert lists.items.tolist() == [[2, 0, -1, -1, -1]]
    assert lists.hits.tolist() == [[True, True, False, False, False]]
    assert parse_metric("recall@5").values(lists).tolist() == [1.0]
    assert parse_metric("precision@5").values(lists).tolist() == [0.4]


def test_a_constant_scorer_scores_as_chance_wherever_the_relevant_item_stands() -> None:
    n_users, n_items, k = 50, 200, 20
    recall = parse_metric(f"recall@{k}")
    for place in (0, n_items - 1):
        every = np.arange(n_users)
        target = Target(
            every,
            Ragged(np.arange(n_users + 1), np.full(n_users, place)),
            Ragged(np.zeros(n_users + 1, np.int64), np.empty(0, np.int64)),
        )
        model = Fixed(torch.zeros(n_users, n_items))
        means = [
            recall.values(ranker(target, n_users, n_items, seed).rank(model, k)).mean()
            for seed in range(400)
        ]
        chance = k / n_items
        error = (chance * (1 - chance) / 400) ** 0.5
        assert abs(np.mean(means) - chance) < 4 * error


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_the_ranking(bad: float) -> None:
    rng = np.random.default_rng(2)
    target = random_target(rng, 10, 30)
    users, items = torch.randn(10, 4), torch.randn(30, 4)
    table = users @ items.T
    table[target.users[0], 7] = bad
    with pytest.raises(TrainingError, match="NaN or infinite"):
        ranker(target, 10, 30).rank(Fixed(table), 5)
    items[3, 0] = bad
    with pytest.raises(TrainingError, match="NaN or infinite"):
        ranker(target, 10, 30).rank(Factors(users, items), 5)


def test_ranking_uses_evaluation_mode_and_restores_the_training_mode() -> None:
    class Modal(Fixed):
        def scores(self, users: Tensor) -> Tensor:
            assert not self.training
            return super().scores(users)

    target = random_target(np.random.default_rng(3), 10, 30)
    model = Modal(torch.randn(10, 30))
    model.train()
    ranker(target, 10, 30).rank(model, 5)
    assert model.training


@pytest.mark.parametrize("k", [1, 5, 20])
def test_two_step_selection_equals_one_step(k: int) -> None:
    scores = torch.randn(13, GROUPING * 4 * 20)
    scores[:, ::3] = -torch.inf
    values, places = _top_k(scores, k)
    expected = torch.topk(scores, k, dim=1)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)


@pytest.mark.parametrize("block_bytes", [None, 2000])
def test_candidates_are_put_in_order_by_their_scores_with_ties_in_the_seeded_order(
    block_bytes: int | None,
) -> None:
    rng = np.random.default_rng(3)
    n_users, n_items, n = 30, 50, 9
    target = random_target(rng, n_users, n_items)
    # Small whole numbers: many ties, and products without rounding.
    users = torch.from_numpy(rng.integers(-2, 3, (n_users, 2))).float()
    items = torch.from_numpy(rng.integers(-2, 3, (n_items, 2))).float()
    table = users @ items.T
    candidates = np.stack([rng.permutation(n_items)[:n] for _ in target.users])
    candidates[3, 5:] = -1
    candidates[4] = -1
    options = {} if block_bytes is None else {"block_bytes": block_bytes}
    made = ranker(target, n_users, n_items, seed=8, **options)
    place = np.argsort(np.random.default_rng(8).permutation(n_items))
    for model in (Factors(users, items), Fixed(table)):
        found = made.reranked(model, candidates)
        for row, user in enumerate(target.users):
            given = [i for i in candidates[row].tolist() if i >= 0]
            best = sorted(given, key=lambda i: (-float(table[user, i]), place[i]))
            assert found[row].tolist() == best + [-1] * (n - len(best))


def test_a_candidate_without_a_finite_score_is_refused() -> None:
    target = random_target(np.random.default_rng(0), 10, 20)
    table = torch.zeros(10, 20)
    table[:, 7] = torch.nan
    candidates = np.tile(np.arange(10), (len(target.users), 1))
    with pytest.raises(TrainingError, match="NaN or infinite"):
        ranker(target, 10, 20).reranked(Fixed(table), candidates)
    ranker(target, 10, 20).reranked(Fixed(table), candidates[:, :5])
