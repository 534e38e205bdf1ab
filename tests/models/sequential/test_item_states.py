"""Items read through one face: stored vectors, stored tokens, encoders that learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.base import ItemFeatures
from mmbench.models.sequential.item_states import (
    CHUNK_LIVE,
    CHUNK_STORED,
    ContentStates,
    ItemStates,
    masked_pool,
)

spec = importlib.util.spec_from_file_location(
    "literal_content", Path(__file__).with_name("literal_content.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

ITEMS = torch.tensor([4, 0, 4, 6])


def test_a_stored_vector_is_one_real_token():
    features = literal.pooled_features("visual", 3)
    states = ItemStates(features)
    found, mask = states(ITEMS)
    assert (states.width, states.learns, states.modality) == (3, False, "visual")
    assert found.shape == (4, 1, 3)
    assert mask.dtype == torch.bool
    assert mask.all()
    torch.testing.assert_close(found[:, 0], features.matrix[ITEMS])


def test_stored_tokens_come_with_their_mask_in_full_precision():
    features = literal.token_features("textual", 3, 4)
    half = ItemFeatures(
        features.name,
        features.modality,
        features.matrix,
        features.present,
        features.tokens.half(),
        features.token_mask,
    )
    found, mask = ItemStates(half)(ITEMS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, features.tokens[ITEMS].half().float())
    assert torch.equal(mask, features.token_mask[ITEMS])
    without = ItemFeatures("x", "textual", features.matrix, features.present, features.tokens)
    assert ItemStates(without)(ITEMS)[1].all()


def test_a_model_made_double_stays_double():
    states = ItemStates(literal.token_features("textual", 3, 2)).double()
    assert states(ITEMS)[0].dtype == torch.float64


def test_an_encoder_is_asked_for_the_items_themselves_and_learns():
    features = literal.live_features("textual", 3, 2)
    states = ItemStates(features)
    found, mask = states(ITEMS)
    assert states.learns
    assert states.width == 3
    assert features.encoder.asked == [ITEMS.tolist()]
    assert torch.equal(mask, features.encoder.mask[ITEMS])
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in states.parameters())
    assert list(states.state_dict()) == [f"encoder.{n}" for n in features.encoder.state_dict()]


@pytest.mark.parametrize("kind", ["pooled", "token", "live"])
def test_what_is_stored_with_the_weights(kind):
    make = getattr(literal, f"{kind}_features")
    features = make("visual", 3) if kind == "pooled" else make("visual", 3, 2)
    kept = ItemStates(features).state_dict()
    assert bool(kept) == (kind == "live")


def test_the_mean_is_of_real_tokens_alone():
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, -100.0]], [[5.0, 5.0]] * 3])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    expected = torch.tensor([[2.0, 4.0], [5.0, 5.0]])  # (1 + 3) / 2, (2 + 6) / 2; the third one
    torch.testing.assert_close(masked_pool(states, mask), expected)
    nothing = masked_pool(states, torch.zeros(2, 3, dtype=torch.bool))
    assert (nothing == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_in_full(dtype):
    states = torch.full((1, 300, 1), 300.0, dtype=dtype)  # whose sum is no float16
    pooled = masked_pool(states, torch.ones(1, 300, dtype=torch.bool))
    assert pooled.dtype == torch.float32
    assert float(pooled) == 300.0
    none = masked_pool(states, torch.zeros(1, 300, dtype=torch.bool))
    assert float(none) == 0.0


def test_modalities_stand_in_the_order_of_fusion():
    sets = [literal.pooled_features(m, 2) for m in ("visual", "acoustic", "joint", "textual")]
    content = ContentStates(sets, "model")
    assert content.modalities == ("textual", "joint", "acoustic", "visual")
    assert content.widths == dict.fromkeys(content.modalities, 2)
    states, mask = content.read("visual", ITEMS)
    torch.testing.assert_close(states[:, 0], sets[0].matrix[ITEMS])
    assert mask.all()


def test_none_and_two_of_a_modality_are_refused():
    with pytest.raises(ConfigError, match="model reads items by their content and is given none"):
        ContentStates([], "model")
    sets = [literal.pooled_features("visual", 2), literal.live_features("visual", 2, 2)]
    with pytest.raises(ConfigError, match=r"one feature set for each modality.*visual__live"):
        ContentStates(sets, "model")


def test_many_items_are_encoded_some_at_a_time():
    asked = []

    def encode(items):
        asked.append(len(items))
        return items[:, None] * torch.tensor([1.0, 2.0])

    n_items = 2 * CHUNK_LIVE + 5
    mixed = [literal.pooled_features("visual", 2), literal.live_features("textual", 2, 2)]
    found = ContentStates(mixed, "model").in_chunks(encode, torch.arange(n_items))
    assert asked == [CHUNK_LIVE, CHUNK_LIVE, 5]
    np.testing.assert_array_equal(found[:, 1], 2 * np.arange(n_items))


def test_the_chunk_of_stored_states_falls_with_their_size():
    small = ItemStates(literal.pooled_features("visual", 2)).chunk
    large = ItemStates(literal.token_features("visual", 64, 32)).chunk
    assert small == CHUNK_STORED // 2
    assert large == CHUNK_STORED // (64 * 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_standardized_states_have_mean_nought_and_deviation_one(dtype):
    made = literal.token_features("textual", 3, 4)
    tokens = 5 + 0.1 * made.tokens
    tokens[:, :, 2] = 7.0  # a column that says nothing
    present = torch.arange(literal.N_ITEMS) != 2
    features = ItemFeatures("x", "textual", made.matrix, present, tokens.to(dtype), made.token_mask)
    states, mask = ItemStates(features, standardize=True)(torch.arange(literal.N_ITEMS))
    real = states[mask & present[:, None]]
    loose = 1e-5 if dtype == torch.float32 else 0.1
    np.testing.assert_allclose(real[:, :2].mean(dim=0), 0, atol=loose)
    np.testing.assert_allclose(real[:, :2].std(dim=0, correction=0), 1, atol=loose)
    assert (states[:, :, 2] == 0).all()
    assert (states[~mask] == 0).all()
    pooled = ItemStates(literal.pooled_features("visual", 3), standardize=True)(ITEMS)[0]
    matrix = literal.pooled_features("visual", 3).matrix.numpy()
    expected = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    np.testing.assert_allclose(pooled[:, 0], expected[ITEMS], atol=1e-6)


def test_what_an_encoder_makes_is_not_standardized():
    features = literal.live_features("textual", 3, 2)
    plain, scaled = ItemStates(features), ItemStates(features, standardize=True)
    torch.testing.assert_close(scaled(ITEMS)[0], plain(ITEMS)[0])
