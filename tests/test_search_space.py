from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mmbench.errors import ConfigError
from mmbench.recipe import Recipe
from mmbench.search_space import Dimension, n_points

RAW: dict[str, Any] = {
    "dataset": "tiny",
    "features": {"visual": "imported"},
    "model": {"name": "vbpr", "embedding_size": 4},
}


def recipe(search: Any, **changes: Any) -> Recipe:
    return Recipe({**RAW, "search": search, **changes}, "test.yaml")


@pytest.mark.parametrize(
    ("given", "size", "values"),
    [
        ([1, "a", None], 3, [1, "a", None]),
        ({"choices": [0.5]}, 1, [0.5]),
        ({"low": 2, "high": 4}, 3, [2, 3, 4]),
        ({"low": 1, "high": 8, "step": 3}, 3, [1, 4, 7]),
        ({"low": 0.0, "high": 0.3, "step": 0.1}, 4, [0.0, 0.1, 0.2, 0.3]),
        ({"low": 0.0, "high": 0.25, "step": 0.1}, 3, [0.0, 0.1, 0.2]),
        ({"low": 1e-4, "high": 0.1, "log": True}, None, []),
    ],
)
def test_a_dimension_is_a_list_or_a_range(given: Any, size: int | None, values: list[Any]) -> None:
    dimension = Dimension.model_validate(given)
    assert dimension.size == size
    assert [dimension.value(place) for place in range(len(values))] == values
    rng = np.random.default_rng(0)
    drawn = [dimension.draw(rng) for _ in range(200)]
    if size is None:
        assert all(1e-4 <= number <= 0.1 for number in drawn)
    else:
        assert {repr(number) for number in drawn} == {repr(number) for number in values}


def test_log_draws_factors_evenly_and_whole_numbers_are_each_met() -> None:
    rng = np.random.default_rng(1)
    rate = Dimension(low=1e-4, high=1.0, log=True)
    drawn = [rate.draw(rng) for _ in range(2000)]
    # The middle of the factors is 0.01; 2000 draws put the share within 0.5 +- 4 x 0.011.
    assert np.mean([number < 0.01 for number in drawn]) == pytest.approx(0.5, abs=0.045)
    assert all(number == float(f"{number:.4g}") for number in drawn)
    whole = Dimension(low=1, high=8, log=True)
    counts = np.bincount([whole.draw(rng) for _ in range(4000)], minlength=9)
    assert counts[0] == 0
    # 1 stands for 0.5 to 1.5, a factor of 3; all of them for 0.5 to 8.5.
    expected = math.log(3) / math.log(17)
    assert counts[1] / 4000 == pytest.approx(expected, abs=0.032)
    assert np.all(counts[1:] > 0)


def test_points_of_a_space_are_counted() -> None:
    a, b = Dimension(choices=(1, 2)), Dimension(low=1, high=3)
    assert n_points({"a": a, "b": b}) == 6
    assert n_points({}) == 1
    assert n_points({"a": a, "b": Dimension(low=0.0, high=1.0)}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "it lists no value"),
        ([1, 1], "lists a value twice"),
        (3, "write a list of values, or"),
        ({"low": 1}, "both low and high"),
        ({"low": 2, "high": 1}, "low 2 is not below high 1"),
        ({"low": 1, "high": 1}, "is not below"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0"),
        ({"low": 1, "high": 4, "step": 9}, "does not fit between"),
        ({"low": 1, "high": 4, "step": 0}, "does not fit between"),
        ({"low": 1, "high": 4, "step": 0.5}, "is not whole"),
        ({"low": 1, "high": 4, "step": 1, "log": True}, "exclude one another"),
        ({"choices": [1], "low": 1}, "choices stand alone"),
        ({"low": 0.0, "high": math.inf}, "finite number"),
    ],
)
def test_a_wrong_dimension_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dimension.model_validate(given)
    with pytest.raises(ConfigError, match=r"test.yaml: search.model.embedding_size"):
        recipe({"model.embedding_size": given})


@pytest.mark.parametrize(
    ("search", "changes", "message"),
    [
        ({"model.embeding_size": [1]}, {}, 'Did you mean "embedding_size"'),
        ({"training.learning_rate": [-1.0, 0.1]}, {}, "training.learning_rate: .*greater than 0"),
        ({"training.learning_rate": {"low": -1.0, "high": 1.0}}, {}, "greater than 0"),
        ({"seeds": [[0], [1]]}, {}, "search.seeds cannot be searched over"),
        ({"evaluation.depth": [10, 20]}, {}, "cannot be searched over"),
        ({"training.select_by": ["recall@20", "ndcg@20"]}, {}, "cannot be searched over"),
        ({"features.visuel": ["imported"]}, {}, 'Did you mean "visual"'),
        ({"model.embedding_size": {"low": 1, "hgih": 3}}, {}, 'Did you mean "high"'),
        (
            {"model.embedding_size": [4, 8]},
            {"grid": {"model.embedding_size": [4, 8]}},
            "model.embedding_size is under search and under grid",
        ),
    ],
)
def test_a_wrong_search_is_refused(
    search: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(search, **changes)


def test_a_search_moves_nothing_unless_it_is_asked_for() -> None:
    (plain,) = Recipe(RAW, "test.yaml").expand()
    (searched,) = recipe({"model.embedding_size": [2, 8]}).expand()
    assert searched.as_dict() == plain.as_dict()
    assert searched.identity() == plain.identity()
    assert searched.label == "vbpr"


def test_a_space_holds_what_the_recipe_has_and_a_grid_joins_it() -> None:
    search = {"features.visual": ["imported"], "features.textual": ["tfidf-svd"]}
    grid = {"training.learning_rate": [0.1, 0.01]}
    assert list(recipe(search, grid=grid).space) == ["features.visual", "training.learning_rate"]
    dropped = recipe(search).replace(features={})
    assert dropped.space == {}


def test_a_point_is_the_recipe_with_its_settings() -> None:
    plan = recipe({"model.embedding_size": [2, 8]}).at({"model.embedding_size": 8}, 3)
    assert (plan.seed, plan.label) == (3, "vbpr (embedding_size=8)")
    assert plan.as_dict()["model"]["embedding_size"] == 8
