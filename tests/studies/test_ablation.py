from __future__ import annotations

from typing import Any

import pytest

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.recipe import Recipe
from mmbench.studies.ablation import Asked, Design, design

FEATURES = {"visual": "imported", "textual": "tfidf-svd", "acoustic": "imported"}


def recipe(**changes: Any) -> Recipe:
    raw = {"dataset": "tiny", "model": {"name": "vbpr"}, "features": FEATURES, "seeds": [3, 4]}
    return Recipe({**raw, **changes}, "test.yaml")


def drops(*modalities: str) -> list[Asked]:
    return [Asked("drop", each) for each in modalities]


def kept(plan: Design) -> list[tuple[str, list[str]]]:
    return [(variant.label, list(variant.recipe.shape.features)) for variant in plan.variants]


def test_each_drop_leaves_out_its_features_and_changes_nothing_else() -> None:
    plan = design([recipe()], drops("visual", "acoustic"))
    assert kept(plan) == [
        ("vbpr", ["visual", "textual", "acoustic"]),
        ("vbpr -visual", ["textual", "acoustic"]),
        ("vbpr -acoustic", ["visual", "textual"]),
    ]
    full, *reduced = plan.recipes
    for variant in reduced:
        for one, other in zip(full.expand(), variant.expand(), strict=True):
            first, second = one.as_dict(), other.as_dict()
            for key in ("label", "features"):
                del first[key], second[key]
            assert first == second


def test_modalities_joined_by_commas_are_taken_together_and_only_once() -> None:
    plan = design([recipe(label="mine")], drops("acoustic, visual", "visual,acoustic"))
    assert kept(plan)[1:] == [("mine -visual -acoustic", ["textual"])]


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        (Asked("drop", "each"), ["vbpr -visual", "vbpr -textual", "vbpr -acoustic"]),
        (Asked("keep", "each"), ["vbpr visual only", "vbpr textual only", "vbpr acoustic only"]),
        (Asked("keep", "acoustic,visual"), ["vbpr visual+acoustic only"]),
        (Asked("id-only"), ["vbpr IDs only"]),
        (Asked("shuffle", "visual"), ["vbpr visual shuffled"]),
        (Asked("noise", "each"), [f"vbpr {name} noise" for name in FEATURES]),
        (Asked("missing", "textual", 0.25, True), ["vbpr textual missing 25%"]),
    ],
)
def test_every_condition_has_its_label(asked: Asked, labels: list[str]) -> None:
    assert [label for label, _ in kept(design([recipe()], [asked]))[1:]] == labels


def test_kept_alone_and_ids_only_are_what_they_say() -> None:
    asked = [Asked("keep", "textual"), Asked("id-only")]
    assert [features for _, features in kept(design([recipe()], asked))[1:]] == [["textual"], []]


def test_what_is_spoilt_keeps_its_features_and_other_corruptions() -> None:
    given = recipe(corruptions={"textual": "noise"})
    plan = design([given], [Asked("shuffle", "visual", 0.5)])
    (_, spoilt) = plan.recipes
    assert list(spoilt.shape.features) == list(FEATURES)
    found = {m: (c.kind, c.share) for m, c in spoilt.shape.corruptions.items()}
    assert found == {"textual": ("noise", 1.0), "visual": ("shuffle", 0.5)}


def test_what_trains_encoders_leaves_with_the_last_of_them() -> None:
    given = recipe(
        features={"visual": "imported"},
        encoders={"textual": "bert"},
        training={"encoder": {"mode": "batch"}, "epochs": 7},
    )
    plan = design([given], [*drops("textual", "visual"), Asked("id-only")])
    trained = {v.label: v.recipe.shape.training for v in plan.variants}
    assert {name: section.encoder is None for name, section in trained.items()} == {
        "vbpr": False,
        "vbpr -textual": True,
        "vbpr -visual": False,
        "vbpr IDs only": True,
    }
    assert {section.epochs for section in trained.values()} == {7}


def test_a_corruption_leaves_with_its_modality() -> None:
    given = recipe(corruptions={"visual": "noise", "textual": "shuffle"})
    (_, without) = design([given], drops("visual")).recipes
    assert list(without.shape.corruptions) == ["textual"]


def test_an_encoder_that_learns_can_be_dropped_and_is_not_spoilt() -> None:
    changes = {"features": {"visual": "imported"}, "encoders": {"textual": "minilm-l6"}}
    plan = design([recipe(**changes)], [Asked("drop", "each"), Asked("noise", "each")])
    assert [variant.label for variant in plan.variants] == [
        "vbpr",
        "vbpr -visual",
        "vbpr -textual",
        "vbpr visual noise",
    ]
    assert plan.variants[2].recipe.shape.encoders == {}
    with pytest.raises(ConfigError, match="textual encoder learns with vbpr"):
        design([recipe(**changes)], [Asked("noise", "textual")])


def test_one_system_under_two_names_is_trained_once_and_told() -> None:
    asked = [*drops("acoustic"), Asked("keep", "visual,textual")]
    plan = design([recipe()], asked)
    assert len(plan.variants) == 3
    assert [r.shape.label for r in plan.recipes] == ["vbpr", "vbpr -acoustic"]
    assert plan.places == (0, 1, 1)
    assert plan.notes == (
        "vbpr visual+textual only and vbpr -acoustic are one system: trained once",
    )


def test_forms_sizes_and_conditions_are_crossed() -> None:
    given = recipe(model={"name": "mgcn"}, features={"visual": "a", "textual": "b"})
    plan = design([given], drops("visual"), forms=["fusion", "ensemble"], sizes=[16, 32])
    assert [variant.label for variant in plan.variants] == [
        f"mgcn {form} d={size}{drop}"
        for form in ("fusion", "ensemble")
        for size in (16, 32)
        for drop in ("", " -visual")
    ]
    last = plan.variants[-1].recipe.expand()[0].as_dict()["model"]
    assert (last["integration"], last["embedding_size"]) == ("ensemble", 32)


def test_several_recipes_keep_their_own_settings_and_lists_can_be_deeper() -> None:
    other = recipe(model={"name": "bpr-mf"}, features={}, seeds=[0])
    plan = design([recipe(), other], [], sizes=[8], depth=500)
    assert [(v.model, v.label) for v in plan.variants] == [(0, "vbpr d=8"), (1, "bpr-mf d=8")]
    assert {r.shape.evaluation.depth for r in plan.recipes} == {500}
    assert plan.recipes[1].shape.seeds == (0,)


@pytest.mark.parametrize(
    ("changes", "asked", "problem", "message"),
    [
        ({}, Asked("drop", "visuel"), UnknownNameError, 'Did you mean "visual"'),
        ({}, Asked("drop", "joint"), ConfigError, "not use 'joint', so it cannot be dropped"),
        ({}, Asked("keep", "joint"), ConfigError, "not use 'joint', so it cannot be kept"),
        ({}, Asked("noise", "joint"), ConfigError, "not use 'joint', so it cannot be spoilt"),
        ({"features": {}}, Asked("drop", "visual"), ConfigError, "no modality to drop; give .*"),
        (
            {"features": {}, "model": {"name": "ease"}},
            Asked("id-only"),
            ConfigError,
            "it uses IDs alone",
        ),
        ({"grid": {"model.embedding_size": [8]}}, Asked("id-only"), ConfigError, "remove grid:"),
        (
            {"features": {"visual": "a"}, "model": {"name": "itemknn-cbf"}},
            Asked("drop", "each"),
            ConfigError,
            "undefined without any feature set, so '-visual'",
        ),
    ],
)
def test_conditions_that_make_no_sense_are_refused(
    changes: dict[str, Any], asked: Asked, problem: type[Exception], message: str
) -> None:
    with pytest.raises(problem, match=message):
        design([recipe(**changes)], [asked])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forms": ["ensemble"]}, r"vbpr has no choice of a form of .*models that have: .*mgcn"),
        ({"forms": ["ensemble"], "model": "ease"}, "ease has no choice of a form"),
        ({"sizes": [8], "model": "ease"}, r"no choice of a size .*model.embedding_size.*vbpr"),
        ({"forms": ["fusio"], "model": "mgcn"}, "integration: .*'fusion' or 'ensemble'"),
    ],
)
def test_forms_and_sizes_that_a_model_lacks_are_refused(
    options: dict[str, Any], message: str
) -> None:
    given = recipe(model={"name": options.pop("model", "vbpr")}, features={})
    with pytest.raises(ConfigError, match=message):
        design([given], [], **options)
