"""MoRec++ against loops: MoRec's vectors of each modality, joined by one linear map."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.sequential.morec import MoRec, MoRecConfig
from mmbench.models.sequential.morec_pp import MoRecPlusPlus

spec = importlib.util.spec_from_file_location(
    "literal_content", Path(__file__).with_name("literal_content.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

D, HEADS, L = 4, 2, 4
CONFIG = MoRecConfig(embedding_size=D, max_length=L, n_layers=1, n_heads=HEADS)


def made(given, config=CONFIG):
    torch.manual_seed(0)
    model = MoRecPlusPlus(config, literal.interactions(), given).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def literal_item(given, p, item):
    """Text by its first token, the others by the mean; text first, pictures last."""
    by_modality = {features.modality: features for features in given}
    parts = []
    for modality in ("textual", "joint", "acoustic", "visual"):
        if modality in by_modality:
            states, real = literal.states_of(by_modality[modality], p, item)
            state = states[0] if modality == "textual" else literal.mean_of_real(states, real)
            mapped = literal.linear(p, f"vectors_of.{modality}.project", state)
            parts.append(literal.gelu(mapped))
    return parts[0] if len(parts) == 1 else literal.linear(p, "merge", np.concatenate(parts))


def literal_loss(given, p):
    batch = literal.batch()
    return literal.loss(
        batch.sequences.tolist(),
        batch.negatives.tolist(),
        literal.N_ITEMS,
        lambda item: literal_item(given, p, item),
        lambda v: literal.sasrec(p, "encoder", v, 1, HEADS),
    )


GIVEN = {
    "live": lambda: [
        literal.live_features("visual", 3, 2),
        literal.live_features("textual", 2, 3),
    ],
    "tokens": lambda: [
        literal.token_features("textual", 3, 3),
        literal.token_features("visual", 5, 2),
    ],
    "three": lambda: [
        literal.pooled_features("textual", 2),
        literal.pooled_features("visual", 3),
        literal.pooled_features("acoustic", 4),
    ],
    "one": lambda: [literal.live_features("visual", 3, 2)],
}


@pytest.mark.parametrize("kind", GIVEN)
def test_values_and_gradients_are_those_of_the_equations(kind):
    given = GIVEN[kind]()
    model = made(given)
    p = literal.parameters(model)
    expected = [literal_item(given, p, item) for item in range(literal.N_ITEMS)]
    np.testing.assert_allclose(model.catalogue().detach().numpy(), expected, rtol=1e-5, atol=1e-7)
    (term,) = model.training_step(literal.batch()).values()
    assert float(term.detach()) == pytest.approx(literal_loss(given, p), rel=1e-5)
    term.backward()
    literal.check_gradients(model, lambda p: literal_loss(given, p))


def test_a_dropped_modality_leaves_morec():
    both = GIVEN["live"]()
    for kept in both:
        torch.manual_seed(5)
        alone = MoRecPlusPlus(CONFIG, literal.interactions(), [kept])
        torch.manual_seed(5)
        plain = MoRec(CONFIG, literal.interactions(), [kept])
        size = {name: p.shape for name, p in plain.named_parameters()}
        renamed = {
            name.replace(f"vectors_of.{kept.modality}", "vector"): p.shape
            for name, p in alone.named_parameters()
        }
        assert renamed == size
        torch.testing.assert_close(alone.catalogue(), plain.catalogue())


def test_encoding_once_equals_encoding_each_slot():
    model, slots = made(GIVEN["live"]()), literal.batch().sequences
    once = model._at_slots(slots)
    for row, slot in (slots != literal.N_ITEMS).nonzero().tolist():
        torch.testing.assert_close(model.items(slots[row, slot].view(1))[0], once[row, slot])


def test_the_map_starts_xavier_normal():
    sets = [literal.pooled_features("textual", 8), literal.pooled_features("visual", 8)]
    model = MoRecPlusPlus(MoRecConfig(embedding_size=128), literal.interactions(), sets)
    weight = model.merge.weight.detach()
    assert weight.shape == (128, 256)
    assert float(weight.std()) == pytest.approx((2 / 384) ** 0.5, rel=0.05)
    assert (model.merge.bias == 0).all()


def test_no_modality_is_refused():
    with pytest.raises(ConfigError, match="morec-pp reads items by their content"):
        made([])
