"""Vectors of two datasets: comparable, not comparable, unknown."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mmbench.encoders.base import ENCODERS
from mmbench.engine.inputs import load_inputs
from mmbench.engine.spaces import check_shared, check_space, check_spaces
from mmbench.errors import ConfigError, DataError
from mmbench.recipe import Recipe

N_ITEMS = {"shop-a": 32, "shop-b": 28}
STEPS = {"l2": {"step": "l2"}, "random": {"step": "project", "kind": "random", "dim": 3, "seed": 0},
         "pca": {"step": "project", "kind": "pca", "dim": 3},
         "zca": {"step": "whiten", "kind": "zca", "epsilon": 1e-12}}  # fmt: skip


@pytest.fixture(scope="module")
def data(shops: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shops with sets of every kind, of the same names in both."""
    folder: Path = shops.write_shops(tmp_path_factory.mktemp("spaces"))
    built_in = {"dim": 3, "version": 1}
    for name, n_items in N_ITEMS.items():
        rng = np.random.default_rng(n_items)

        def add(
            encoder: str, settings: dict[str, Any], width: int = 3, modality: str = "visual",
            name: str = name, n_items: int = n_items, rng: np.random.Generator = rng,
        ) -> None:  # fmt: skip
            matrix = 1 + rng.random((n_items, width))
            shops.add(folder, name, modality, encoder, matrix, settings)

        weights = {"weights_sha256": "ab", "variant": "cls"}
        add("same", {"encoder": weights, "inputs_sha256": name, "text": {"fields": [name]}})
        add("weights", {"encoder": {**weights, "weights_sha256": name}})
        add("variant", {"encoder": {**weights, "variant": name}})
        add("wide", {"encoder": weights}, width=3 + (name == "shop-b"))
        add("imported", {"file": "x.npy", "file_sha256": name})
        add("colour-edge", {"encoder": built_in, "seed": 0})
        add("renamed", {"encoder": built_in, "seed": 0})
        add("tfidf-svd", {"encoder": built_in, "seed": 0}, modality="textual")
        for step, what in STEPS.items():
            add(step, {"source": "visual__same", "steps": [what]})
        add("of-imported", {"source": "visual__imported", "steps": [STEPS["l2"]]})
        add("of-zca", {"source": "visual__zca", "steps": [STEPS["l2"]]})
    return folder


def check(data: Path, key: str, said: tuple[str, ...] = (), theirs: str = "") -> None:
    check_space("here", data / "shop-a", theirs or key, data / "shop-b", key, said)


def test_one_encoder_of_fixed_weights_is_one_space_whatever_it_read(data: Path) -> None:
    check(data, "visual__same")
    check(data, "visual__colour-edge")
    check(data, "visual__l2")
    check(data, "visual__random")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("textual__tfidf-svd", "tfidf-svd is fitted to the items of shop-a"),
        ("visual__zca", "zca is fitted"),
        ("visual__pca", "pca is fitted"),
        ("visual__of-zca", "of-zca is fitted"),
        ("visual__weights", "different encoders, weights or settings .weights_sha256: shop-a"),
        ("visual__variant", "variant: shop-a and shop-b"),
        ("visual__wide", "has 3 columns there, visual__wide 4 here"),
    ],
)
def test_what_shows_a_difference_is_believed_whatever_is_said(
    data: Path, key: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check(data, key, said=("visual", "textual"))


@pytest.mark.parametrize("key", ["visual__imported", "visual__renamed", "visual__of-imported"])
def test_of_what_nobody_knows_the_user_has_to_say_it(data: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"what made {key}.*--same-space visual"):
        check(data, key)
    with pytest.raises(ConfigError, match="--same-space visual"):
        check(data, key, said=("textual",))
    check(data, key, said=("visual",))
    with pytest.raises(ConfigError, match="what made visual__imported"):
        check(data, "visual__same", theirs="visual__imported")


def test_a_missing_manifest_is_named(data: Path) -> None:
    with pytest.raises(DataError, match="visual__gone is needed, to see that its vectors"):
        check(data, "visual__same", theirs="visual__gone")


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"share no modality: .* visual of a and textual"):
        check_shared("a", ["visual"], "b", ["textual"])
    check_shared("a", ["visual", "textual"], "b", ["textual", "acoustic"])
    check_shared("a", [], "b", [])  # a model of IDs reads none


def test_sets_and_learning_encoders_are_no_one_space(data: Path, shops: ModuleType) -> None:
    (plan,) = Recipe(shops.recipe(), "test").expand()
    inputs = load_inputs(plan, data)
    there = {"dataset": {"name": "shop-a"}, "features": [], "encoders": []}
    live = {"modality": "visual", "encoder": "clip", "weights_sha256": "x", "settings_sha256": "y"}
    with pytest.raises(ConfigError, match="an encoder that learns there, the stored set visual__e"):
        check_spaces({**there, "encoders": [live]}, inputs)
    stored = {"modality": "visual", "key": "visual__eye", "sha256": "another"}
    check_spaces({**there, "features": [stored]}, inputs)


def test_encoders_say_whether_they_are_fitted() -> None:
    fitted = {name for name in ENCODERS.names() if ENCODERS.get(name).obj.fitted}
    assert fitted == {"tfidf-svd"}
