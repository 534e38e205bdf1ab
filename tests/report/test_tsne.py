"""Numbers of vectors by hand and by slow loops; pictures from the same draw every time."""

from __future__ import annotations

import csv
import io
import json
from itertools import combinations, product

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr

from mmbench.errors import DataError
from mmbench.report.tsne import (
    Vectors,
    draw,
    flatten,
    geometry,
    geometry_table,
    geometry_text,
    owned_matrix,
)


def owned(lists: list[list[int]], n_items: int):
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])])
    return owned_matrix(offsets, np.concatenate(lists).astype(np.int64), n_items)


def slow(vectors: np.ndarray, lists: list[list[int]]) -> tuple[float, float]:
    """The two mean cosines, pair by pair."""

    def cosine(i: int, j: int) -> float:
        a, b = vectors[i], vectors[j]
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    users = [sorted(set(items)) for items in lists if len(set(items)) >= 2]
    same = [np.mean([cosine(i, j) for i, j in combinations(items, 2)]) for items in users]
    other = []
    for u, v in combinations(range(len(users)), 2):
        pairs = [cosine(i, j) for i, j in product(users[u], users[v]) if i != j]
        if pairs:
            other.append(np.mean(pairs))
    return float(np.mean(same)), float(np.mean(other))


def test_cosines_and_correlation_equal_the_loops():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(15, 4)) * rng.uniform(0.1, 5, size=(15, 1))
    lists = [rng.choice(15, size, replace=False).tolist() for size in (2, 5, 1, 7, 3, 3)]
    popularity = rng.integers(0, 50, 15)
    found = geometry(Vectors("x", vectors, popularity), owned(lists, 15))
    same, other = slow(vectors, lists)
    assert found.same_user == pytest.approx(same)
    assert found.different_users == pytest.approx(other)
    assert found.gap == pytest.approx(same - other)
    assert found.n_users == 5  # one has a single item
    norms = np.sqrt((vectors**2).sum(axis=1))
    assert found.norm_popularity == pytest.approx(spearmanr(norms, popularity).statistic)


def test_by_hand():
    # Users 0 and 1 have two equal vectors each, at a right angle to the other's.
    vectors = np.array([[1.0, 0], [3, 0], [0, 1], [0, 2]])
    found = geometry(Vectors("x", vectors, np.array([1, 30, 2, 20])), owned([[0, 1], [2, 3]], 4))
    assert (found.same_user, found.different_users, found.gap) == (1.0, 0.0, 1.0)
    # Norms 1 3 1 2, counts 1 30 2 20; ranks 1.5 4 1.5 3 and 1 4 2 3: r = 4.5 / sqrt(4.5 * 5)
    assert found.norm_popularity == pytest.approx(4.5 / np.sqrt(22.5))


def test_an_item_listed_twice_counts_once_and_zero_vectors_have_no_direction():
    vectors = np.array([[1.0, 0], [1, 1], [0, 0], [0, 1], [1, 0.5]])
    lists = [[0, 1, 1, 2], [3, 4, 2]]
    found = geometry(Vectors("x", vectors, np.arange(5)), owned(lists, 5))
    same, other = slow(vectors, [[0, 1], [3, 4]])
    assert found.same_user == pytest.approx(same)
    assert found.different_users == pytest.approx(other)


def test_what_is_not_defined_is_nan_and_shown_so():
    unit = np.eye(6)
    found = geometry(Vectors("x", unit, np.arange(6)), owned([[0, 1]], 6))
    assert np.isnan(found.different_users)
    assert np.isnan(found.norm_popularity)  # all norms are 1
    assert json.loads(geometry_text([found], "json"))[0]["gap"] is None
    (row,) = csv.DictReader(io.StringIO(geometry_text([found], "csv")))
    assert row["norm_popularity"] == ""
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(geometry_table([found]))
    assert "where it is not defined" in captured.get()
    assert max(map(len, captured.get().splitlines())) <= 80


def test_every_format_has_one_row_for_each_system():
    vectors = np.random.default_rng(0).normal(size=(8, 3))
    lists = owned([[0, 1], [2, 3, 4]], 8)
    rows = [geometry(Vectors(name, vectors, np.arange(8)), lists) for name in ("a", "b_2")]
    for form in ("github", "latex"):
        text = geometry_text(rows, form)
        assert "norm" in text
        assert text.count("3") >= 2
    assert [row["label"] for row in json.loads(geometry_text(rows, "json"))] == ["a", "b_2"]


def test_the_draw_is_the_same_for_a_seed_and_another_for_another():
    rng = np.random.default_rng(1)
    lists = owned([rng.choice(500, 4, replace=False).tolist() for _ in range(60)] + [[7]], 500)
    one, again, other = draw(lists, seed=1), draw(lists, seed=1), draw(lists, seed=2)
    assert len(one.items) == 500  # all, where there are no 1000
    assert one.users.tolist() == again.users.tolist() != other.users.tolist()
    assert len(one.users) == 10
    assert 60 not in one.users  # has one item only
    few = draw(lists, items=30, users=3)
    assert len(few.items) == 30
    place, item = few.pairs
    assert np.bincount(place).tolist() == [4, 4, 4]
    for row, user in enumerate(few.users):
        assert set(item[place == row]) == set(lists[[user]].indices)


def test_too_little_to_draw_is_said():
    with pytest.raises(DataError, match="5 items or more"):
        draw(owned([[0, 1]], 3))
    with pytest.raises(DataError, match="no user has two items"):
        draw(owned([[0], [1]], 9))


def test_tsne_keeps_planted_clusters_and_is_repeatable():
    rng = np.random.default_rng(5)
    centres = np.repeat(10 * np.eye(3), 20, axis=0)
    points = flatten(centres + rng.normal(scale=0.1, size=(60, 3)))
    assert points.shape == (60, 2)
    group = np.repeat(np.arange(3), 20)
    nearest = np.argsort(((points[:, None] - points[None]) ** 2).sum(axis=2), axis=1)[:, 1]
    assert (group[nearest] == group).all()
    again = flatten(centres + np.random.default_rng(5).normal(scale=0.1, size=(60, 3)))
    np.testing.assert_array_equal(points, again)


@pytest.mark.parametrize("vectors", [np.random.default_rng(0).normal(size=(7, 1)), np.eye(5)])
def test_few_points_and_one_column_are_drawn(vectors):
    assert np.isfinite(flatten(vectors)).all()


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(DataError, match="5 vectors or more"):
        flatten(np.eye(4))
    with pytest.raises(DataError, match="all vectors are equal"):
        flatten(np.ones((20, 3)))
