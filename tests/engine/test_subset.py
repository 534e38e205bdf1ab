"""Some of the users: nested, tested alike on every rung, and never learned from beyond them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mmbench.engine.inputs import Inputs, load_inputs
from mmbench.errors import ConfigError, DataError
from mmbench.recipe import Recipe, RunRecipe


def plan(raw: dict[str, Any]) -> RunRecipe:
    (found,) = Recipe(raw, "test").expand()
    return found


@pytest.fixture(scope="module")
def read(two_shops: Path, shops: ModuleType):  # type: ignore[no-untyped-def]
    def load(model: str = "mmsr", **subset: Any) -> Inputs:
        changes = {"subset": subset} if subset else {}
        return load_inputs(plan(shops.recipe(model, **changes)), two_shops)

    return load


def learners(inputs: Inputs) -> set[int]:
    return set(inputs.train.users.tolist())


def test_smaller_subsets_are_within_larger_ones_and_the_test_stays_the_same(read: Any) -> None:
    rungs = [read(train=n, test="all") for n in (5, 12, 36)]
    for small, large in pairwise(rungs):
        assert learners(small) < learners(large)
    assert [len(learners(rung)) for rung in rungs] == [5, 12, 36]
    whole = read()
    for rung in rungs:
        # Histories, what is hidden and what is to be found: the very same questions.
        for part in ("users", "relevant", "masked", "histories"):
            one, other = getattr(rung.test, part), getattr(whole.test, part)
            for a, b in zip(_arrays(one), _arrays(other), strict=True):
                np.testing.assert_array_equal(a, b)
        assert set(rung.valid.users.tolist()) == learners(rung)  # chosen by their own data
        assert rung.dataset.n_items == whole.dataset.n_items
    assert learners(read(train=12, test="all", seed=1)) != learners(rungs[1])
    # All users are as many as there are: nothing changes.
    assert np.array_equal(rungs[2].train.items, whole.train.items)


def _arrays(value: Any) -> list[Any]:
    return [value] if isinstance(value, np.ndarray) else [value.offsets, value.items]


def test_rows_of_others_are_not_learned_from(read: Any) -> None:
    few, whole = read(train=5, test="all"), read()
    for user in range(36):
        own = few.train.items[few.train.users == user]
        expected = whole.train.items[whole.train.users == user]
        assert np.array_equal(own, expected if user in learners(few) else expected[:0])
    own = [whole.train.histories(few.train.users.unique())[0].tolist()]
    assert sorted(own[0]) == sorted(few.train.items.tolist())
    assert len(few.train.chronological) == len(few.train.items)
    assert few.popularity.sum() == len(few.train.items)


@pytest.mark.parametrize("model", ["mmsr", "bpr-mf"])
def test_as_many_are_tested_as_are_asked_for(read: Any, model: str) -> None:
    one, more = read(model, train=8, test=4), read(model, train=20, test=4)
    np.testing.assert_array_equal(one.test.users, more.test.users)
    assert len(one.test.users) == 4
    assert set(one.test.users.tolist()) <= learners(one)
    assert set(read(model, train=8).test.users.tolist()) == learners(one)


def test_what_cannot_be_is_refused(read: Any, shops: ModuleType) -> None:
    with pytest.raises(DataError, match=r"shop-b has 36 users .* fewer than the 37 asked for"):
        read(train=37)
    with pytest.raises(DataError, match="fewer than the 50"):
        read(train=3, test=50)
    with pytest.raises(ConfigError, match=r"subset\.test: bpr-mf knows no user beyond the 5"):
        read("bpr-mf", train=5, test="all")
    for subset in ({"train": 0}, {"train": 5, "tests": 4}, {"train": 5, "test": "some"}, {}):
        with pytest.raises(ConfigError, match="subset"):
            plan(shops.recipe(subset=subset))


def test_the_identity_of_recipes_without_the_new_keys_is_what_it_was(shops: ModuleType) -> None:
    bare = plan(shops.recipe())
    assert "subset" not in bare.as_dict()
    assert "start_from" not in bare.as_dict()["training"]
    assert "start_from" not in bare.identity()["training"]
    few = plan(shops.recipe(subset={"train": 5}))
    assert few.identity()["subset"] == {"train": 5, "test": None, "seed": 0}
    assert {k: v for k, v in few.identity().items() if k != "subset"} == bare.identity()
    raw = shops.recipe()
    raw["training"] = {**raw["training"], "start_from": "runs/a-s{seed}"}
    started = plan(raw)
    assert started.training.start_from.run == "runs/a-s0"
    own = {**bare.identity()["training"], "start_from": {"train": True}}
    assert started.identity()["training"] == own
    # Where nothing is trained, how it would be trained moves nothing.
    raw["training"] |= {"start_from": {"run": "x", "train": False}}
    assert plan(raw).identity()["training"] == {"start_from": {"train": False}}
    for wrong in ({"train": True}, {"run": ""}, {"run": "x", "same_space": ["visul"]}, 3):
        raw["training"] |= {"start_from": wrong}
        with pytest.raises(ConfigError, match=r"start_from|visual"):
            plan(raw)
