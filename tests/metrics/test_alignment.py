"""Against loops over pairs, written from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmbench.errors import DataError
from mmbench.metrics import alignment


def slow(first, second, ks):
    n = len(first)

    def cosine(x, y):
        return math.fsum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(
            math.fsum(p * p for p in x) * math.fsum(q * q for q in y)
        )

    def recall(rows, others, k):
        hits = 0
        for i in range(n):
            order = sorted(range(n), key=lambda j: -cosine(rows[i], others[j]))
            hits += i in order[:k]
        return hits / n

    def scaled(x):
        return [v / math.sqrt(math.fsum(p * p for p in x)) for v in x]

    def even(rows):
        unit = [scaled(row) for row in rows]
        terms = [
            math.exp(-2 * math.fsum((p - q) ** 2 for p, q in zip(unit[i], unit[j], strict=True)))
            for i in range(n)
            for j in range(i + 1, n)
        ]
        return math.log(math.fsum(terms) / len(terms))

    unit = [[scaled(row) for row in rows] for rows in (first, second)]
    means = [[math.fsum(column) / n for column in zip(*rows, strict=True)] for rows in unit]
    return {
        "recall_first": {k: recall(first, second, k) for k in ks},
        "recall_second": {k: recall(second, first, k) for k in ks},
        "paired": math.fsum(cosine(first[i], second[i]) for i in range(n)) / n,
        "unpaired": math.fsum(
            cosine(first[i], second[j]) for i in range(n) for j in range(n) if i != j
        )
        / (n * (n - 1)),
        "gap": math.sqrt(math.fsum((p - q) ** 2 for p, q in zip(*means, strict=True))),
        "uniformity_first": even(first),
        "uniformity_second": even(second),
    }


@pytest.mark.parametrize("seed", range(5))
def test_all_measures_equal_the_loops(seed, monkeypatch) -> None:
    monkeypatch.setattr(alignment, "_BLOCK", 4)
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((11, 5)) + 0.5
    second = first * rng.uniform(0.5, 2, (11, 1)) + rng.standard_normal((11, 5))
    found = alignment.measure(first, second, (1, 3, 20))
    for name, value in slow(first.tolist(), second.tolist(), (1, 3, 20)).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12), name
    assert found.n_items == 11
    values = [*found.recall_first.values(), *found.recall_second.values()]
    assert found.recall == pytest.approx(sum(values) / 6)


def test_by_hand() -> None:
    first = np.array([[2.0, 0], [0, 3], [-1, 0]])
    second = np.array([[1.0, 0], [0, 1], [0, 5]])
    found = alignment.measure(first, second, (1, 2))
    # The second and third of `second` are equal: item 1 shares its first place with item 2. To
    # item 2, both are at cosine 0 and the first at -1.
    assert found.recall_first == {1: (1 + 0.5 + 0.5) / 3, 2: 1.0}
    # From (0, 1) the second of `first` is nearest; from (0, 5) items 0 and 2 share what is left.
    assert found.recall_second == {1: 2 / 3, 2: pytest.approx((1 + 1 + 0.5) / 3)}
    assert found.paired == pytest.approx((1 + 1 + 0) / 3)
    assert found.unpaired == pytest.approx((0 + 0 + 0 + 1 - 1 + 0) / 6)
    assert found.gap == pytest.approx(math.hypot(0 - 1 / 3, 1 / 3 - 2 / 3))
    assert found.rank_second <= 2


def test_constant_vectors_score_as_chance_and_equal_sets_perfectly() -> None:
    same = np.ones((20, 4), dtype=np.float32)
    found = alignment.measure(same, same)
    assert found.recall_first == pytest.approx({1: 0.05, 5: 0.25, 10: 0.5})
    assert found.uniformity_first == pytest.approx(0, abs=1e-12)
    assert found.rank_first == pytest.approx(1, abs=1e-3)
    rows = np.random.default_rng(0).standard_normal((30, 16))
    found = alignment.measure(rows, 3 * rows)
    assert found.recall == 1
    assert (found.paired, found.gap) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    axes = np.eye(6)
    assert alignment.effective_rank(axes) == pytest.approx(6)
    assert alignment.uniformity(axes) == pytest.approx(-4)


def test_the_order_of_items_and_the_lengths_of_vectors_change_nothing() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 25, 6))
    order = rng.permutation(25)
    found = alignment.measure(first, second)
    other = alignment.measure(7 * first[order], 0.01 * second[order])
    assert other.recall_first == pytest.approx(found.recall_first)
    assert other.gap == pytest.approx(found.gap)
    assert other.uniformity_second == pytest.approx(found.uniformity_second)
    ends = [alignment.recall_at(first, second, k).mean() for k in (1, 5, 24, 25)]
    assert ends == sorted(ends)
    assert ends[-1] == 1


def test_of_many_items_some_are_measured() -> None:
    rows = np.random.default_rng(2).standard_normal((50, 3))
    found = alignment.measure(rows, rows, most=10)
    assert found.n_items == 10


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (np.ones((3, 2)), np.ones((3, 4)), "no common space"),
        (np.ones((1, 2)), np.ones((1, 2)), "two items at least"),
        (np.zeros((3, 2)), np.ones((3, 2)), "row 0"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "not finite"),
        (np.ones(3), np.ones(3), "a matrix"),
    ],
)
def test_bad_input(first, second, says) -> None:
    with pytest.raises(DataError, match=says):
        alignment.measure(first, second)
    with pytest.raises(DataError, match="a K from 1"):
        alignment.recall_at(np.eye(2), np.eye(2), 0)


def test_huge_and_tiny_numbers_keep_their_direction() -> None:
    rows = np.array([[1e38, 1e38], [1e-38, -1e-38]], dtype=np.float32)
    assert np.allclose(np.abs(alignment.unit(rows)), math.sqrt(0.5))
