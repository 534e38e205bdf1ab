from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.search_space import Dimension
from mmbench.studies.samplers import ROUND, Sampler, make_sampler

SPACE = {
    "model.embedding_size": Dimension(choices=(8, 16, 32)),
    "training.learning_rate": Dimension(low=1e-4, high=0.1, log=True),
    "model.n_layers": Dimension(low=1, high=4),
    "model.dropout": Dimension(low=0.0, high=0.5, step=0.25),
}
FINITE = {"a": Dimension(choices=("x", "y")), "b": Dimension(low=1, high=3)}


def value(point: Mapping[str, Any]) -> float:
    """Best near a learning rate of 0.01."""
    return -abs(math.log10(point["training.learning_rate"]) + 2) + point["model.dropout"] / 10


def sequence(sampler: Sampler, count: int) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    while len(points) < count:
        asked = sampler.propose(sampler.round_size or count)
        sampler.tell([value(point) for point in asked])
        points += asked
    return points[:count]


def test_a_grid_is_every_point_once_in_the_order_of_the_recipe() -> None:
    points = make_sampler("grid", FINITE, 0).propose(100)
    assert points == [{"a": a, "b": b} for a in "xy" for b in (1, 2, 3)]
    assert make_sampler("grid", FINITE, 0).propose(2) == points[:2]


def test_random_points_are_each_of_a_finite_space_once() -> None:
    points = make_sampler("random", FINITE, 3).propose(100)
    assert sorted(map(repr, points)) == sorted(
        map(repr, make_sampler("grid", FINITE, 0).propose(9))
    )


def test_systems_share_the_values_of_the_keys_they_share() -> None:
    without = {key: SPACE[key] for key in SPACE if key != "model.embedding_size"}
    full = make_sampler("random", SPACE, 5).propose(30)
    part = make_sampler("random", without, 5).propose(30)
    assert [{key: point[key] for key in without} for point in full] == part


def test_a_larger_budget_goes_on_where_a_smaller_one_stopped() -> None:
    few, many = make_sampler("random", SPACE, 7), make_sampler("random", SPACE, 7)
    assert few.propose(10) == many.propose(25)[:10]


@pytest.mark.parametrize("method", ["random", "optuna", "optuna:cmaes", "optuna:gp", "optuna:qmc"])
def test_equal_seeds_give_equal_points_and_others_give_others(method: str) -> None:
    count = 3 * ROUND
    first = sequence(make_sampler(method, SPACE, 1), count)
    assert first == sequence(make_sampler(method, SPACE, 1), count)
    assert first != sequence(make_sampler(method, SPACE, 2), count)
    for point in first:
        assert list(point) == list(SPACE)
        assert point["model.embedding_size"] in (8, 16, 32)
        assert 1e-4 <= point["training.learning_rate"] <= 0.1
        assert point["model.n_layers"] in (1, 2, 3, 4)
        assert point["model.dropout"] in (0.0, 0.25, 0.5)


def test_optuna_learns_from_what_it_is_told() -> None:
    points = sequence(make_sampler("optuna:tpe", SPACE, 0), 28)
    values = [value(point) for point in points]
    assert sum(values[-8:]) > sum(values[:8])


def test_optuna_goes_on_after_trials_that_failed() -> None:
    sampler = make_sampler("optuna:tpe", SPACE, 0)
    for _ in range(4):
        sampler.propose(ROUND)
        sampler.tell([None] * ROUND)
    assert len(sampler.propose(ROUND)) == ROUND


def test_a_space_without_keys_has_one_point() -> None:
    for method in ("grid", "random", "optuna"):
        assert make_sampler(method, {}, 0).propose(5) == [{}]


def test_what_cannot_be_searched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"training\.learning_rate: a grid needs a list"):
        make_sampler("grid", SPACE, 0)
    with pytest.raises(ConfigError, match="40001 points, more than 10000"):
        make_sampler("grid", {"a": Dimension(low=0, high=40_000)}, 0)
    with pytest.raises(UnknownNameError, match='Did you mean "random"'):
        make_sampler("randon", SPACE, 0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'mmbench\[tune\]'"):
        make_sampler("optuna", SPACE, 0)
