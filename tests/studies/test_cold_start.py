from __future__ import annotations

import pytest

from mmbench.data.split_requests import SplitRequest
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.recipe import Recipe
from mmbench.studies.cold_start import (
    ColdStart,
    check_request,
    needed_splits,
    on_split,
    request_text,
)


def recipe(model: str, protocol: str = "standard") -> Recipe:
    return Recipe({"dataset": "x", "protocol": protocol, "model": {"name": model}}, "test")


def test_splits_of_the_two_definitions() -> None:
    general, sequential = [recipe("bpr-mf")], [recipe("bpr-mf"), recipe("sasrec", "mmsr")]
    items = ColdStart("items")
    assert needed_splits(general, items) == ["cold-items.warm-random-per-user"]
    assert needed_splits(sequential, items) == ["cold-items.warm-leave-one-out"]
    assert needed_splits(general, ColdStart("sequences", below=5)) == [
        "leave-one-out",
        "cold-sequences.below-5",
        "cold-sequences.below-5.positions-all",
    ]


@pytest.mark.parametrize("seed", [None, 7])
def test_a_missing_split_is_asked_for_by_the_request_of_its_name(seed: int | None) -> None:
    for definition in ("items", "sequences"):
        for name in needed_splits([recipe("bpr-mf")], ColdStart(definition, 3, split_seed=seed)):  # type: ignore[arg-type]
            assert SplitRequest.parse(request_text(name)).name == name


def test_the_regular_model_of_the_next_item_stays_as_it_is() -> None:
    regular = recipe("sasrec", "mmsr")
    assert on_split(regular, ColdStart("sequences"), "leave-one-out") is regular
    moved = on_split(recipe("bpr-mf"), ColdStart("sequences"), "leave-one-out")
    assert moved.shape.protocol.split == "leave-one-out"
    # What no row of training holds cannot be drawn as unwanted.
    unseen = on_split(regular, ColdStart("items"), "cold-items.warm-leave-one-out")
    assert unseen.shape.protocol.negatives == "seen"
    assert regular.shape.protocol.negatives == "all"


def test_what_cannot_be_printed_is_refused_before_training() -> None:
    with pytest.raises(UnknownNameError, match='Did you mean "bpr-mf"'):
        check_request([recipe("bpr-mf")], "bpr-fm", 20)
    with pytest.raises(ConfigError, match=r"evaluation\.depth=200"):
        check_request([recipe("bpr-mf")], None, 200)
    check_request([recipe("bpr-mf")], "best", 100)
