from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmbench.engine.corruption import corrupted
from mmbench.engine.inputs import load_inputs
from mmbench.errors import ConfigError
from mmbench.recipe import Recipe
from mmbench.recipe_keys import Corruption

N = 40


@pytest.fixture
def made() -> tuple[np.ndarray, np.ndarray]:
    matrix = np.random.default_rng(0).normal(3.0, 2.0, (N, 5)).astype(np.float32)
    present = np.ones(N, dtype=bool)
    present[[4, 9]] = False
    return matrix, present


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_shuffled_vectors_are_those_of_other_items(made, share):
    matrix, present = made
    spoilt, still = corrupted("visual", matrix, present, Corruption(kind="shuffle", share=share))
    moved = (spoilt != matrix).any(axis=1)
    assert moved.sum() == round(share * 38)
    assert not moved[[4, 9]].any()
    assert sorted(map(tuple, spoilt)) == sorted(map(tuple, matrix))
    assert np.array_equal(still, present)


def test_noise_has_the_moments_of_each_column():
    rng = np.random.default_rng(1)
    matrix = (rng.standard_normal((4000, 3)) * [1.0, 5.0, 0.1] + [0.0, 9.0, -2.0]).astype("f4")
    spoilt, _ = corrupted("visual", matrix, np.ones(4000, dtype=bool), Corruption(kind="noise"))
    assert not (spoilt == matrix).any()
    assert np.allclose(spoilt.mean(axis=0), matrix.mean(axis=0), atol=0.3)
    assert np.allclose(spoilt.std(axis=0), matrix.std(axis=0), rtol=0.1)
    correlation = np.corrcoef(spoilt[:, 1], matrix[:, 1])[0, 1]
    assert abs(correlation) < 0.1


@pytest.mark.parametrize(("share", "gone"), [(0.5, 19), (1.0, 37)])
def test_missing_items_count_as_having_none_and_one_always_stays(made, share, gone):
    matrix, present = made
    spoilt, still = corrupted("visual", matrix, present, Corruption(kind="missing", share=share))
    assert (present & ~still).sum() == gone
    assert not (still & ~present).any()
    assert np.array_equal(spoilt, matrix)


def test_the_draw_belongs_to_seed_and_modality(made):
    def spoil(modality, **how):
        return corrupted(modality, *made, Corruption(kind="shuffle", share=0.5, **how))[0]

    assert np.array_equal(spoil("visual"), spoil("visual"))
    assert not np.array_equal(spoil("visual"), spoil("textual"))
    assert not np.array_equal(spoil("visual"), spoil("visual", seed=1))


def recipe(**changes) -> Recipe:
    raw = {"dataset": "tiny", "model": {"name": "vbpr"}, "features": {"visual": "imported"}}
    return Recipe({**raw, **changes}, "test")


def test_a_recipe_spoils_what_its_model_is_given(tiny_data: Path):
    (plain,) = recipe().expand()
    (spoilt,) = recipe(corruptions={"visual": "shuffle"}).expand()
    assert plain.identity() != spoilt.identity()
    before, after = (load_inputs(plan, tiny_data).features[0].matrix for plan in (plain, spoilt))
    assert before.shape == after.shape
    assert (before != after).any(dim=1).float().mean() > 0.8


def test_what_is_not_there_cannot_be_spoilt():
    with pytest.raises(ConfigError, match="features names no textual set"):
        recipe(corruptions={"textual": {"kind": "noise"}})
    with pytest.raises(ConfigError, match=r"corruptions\.visual\.share"):
        recipe(corruptions={"visual": {"kind": "noise", "share": 1.5}})
