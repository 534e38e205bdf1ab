from __future__ import annotations

from typing import Any

import pytest

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.recipe import Recipe
from mmbench.studies.ablation import ablations

FEATURES = {"visual": "imported", "textual": "tfidf-svd", "acoustic": "imported"}


def recipe(**changes: Any) -> Recipe:
    raw = {"dataset": "tiny", "model": {"name": "vbpr"}, "features": FEATURES, "seeds": [3, 4]}
    return Recipe({**raw, **changes}, "test.yaml")


def kept(recipes: list[Recipe]) -> list[tuple[str, list[str]]]:
    return [(str(each.shape.label), list(each.shape.features)) for each in recipes]


def test_each_drop_leaves_out_its_features_and_changes_nothing_else() -> None:
    full, *reduced = ablations(recipe(), ["visual", "acoustic"])
    assert kept([full, *reduced]) == [
        ("vbpr", ["visual", "textual", "acoustic"]),
        ("vbpr -visual", ["textual", "acoustic"]),
        ("vbpr -acoustic", ["visual", "textual"]),
    ]
    for variant in reduced:
        for one, other in zip(full.expand(), variant.expand(), strict=True):
            first, second = one.as_dict(), other.as_dict()
            for key in ("label", "features"):
                del first[key], second[key]
            assert first == second


def test_modalities_joined_by_commas_are_dropped_together_and_only_once() -> None:
    variants = ablations(recipe(label="mine"), ["acoustic, visual", "visual,acoustic"])
    assert kept(variants)[1:] == [("mine -visual -acoustic", ["textual"])]


def test_without_a_drop_each_modality_is_left_out_in_turn() -> None:
    assert [label for label, _ in kept(ablations(recipe(), []))] == [
        "vbpr",
        "vbpr -visual",
        "vbpr -textual",
        "vbpr -acoustic",
    ]


def test_dropping_everything_leaves_the_model_without_features() -> None:
    assert kept(ablations(recipe(), ["visual,textual,acoustic"]))[1][1] == []


@pytest.mark.parametrize(
    ("changes", "drops", "problem", "message"),
    [
        ({}, ["visuel"], UnknownNameError, 'Did you mean "visual"'),
        ({}, ["joint"], ConfigError, "does not use 'joint'.*visual, textual, acoustic"),
        ({"features": {}}, ["visual"], ConfigError, "no modality to drop; give .* feature sets"),
        ({"features": {}, "model": {"name": "ease"}}, [], ConfigError, "it uses IDs alone"),
        ({"grid": {"model.embedding_size": [8]}}, ["visual"], ConfigError, "remove grid:"),
    ],
)
def test_drops_that_make_no_sense_are_refused(
    changes: dict[str, Any], drops: list[str], problem: type[Exception], message: str
) -> None:
    with pytest.raises(problem, match=message):
        ablations(recipe(**changes), drops)
