"""MoRec against loops over the equations of arXiv 2303.13835."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.sequential.morec import MoRec, MoRecConfig

spec = importlib.util.spec_from_file_location(
    "literal_content", Path(__file__).with_name("literal_content.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

D, HEADS, L, WIDTH = 4, 2, 4, 3


def features(kind, modality):
    make = getattr(literal, f"{kind}_features")
    return make(modality, WIDTH) if kind == "pooled" else make(modality, WIDTH, 3)


def made(given, **settings):
    torch.manual_seed(0)
    config = MoRecConfig(embedding_size=D, max_length=L, n_layers=2, n_heads=HEADS, **settings)
    model = MoRec(config, literal.interactions(), given).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def literal_item(given, p, item, first):
    states, real = literal.states_of(given, p, item)
    state = states[0] if first else literal.mean_of_real(states, real)
    return literal.gelu(literal.linear(p, "vector.project", state))


def literal_loss(given, p, first):
    batch = literal.batch()
    return literal.loss(
        batch.sequences.tolist(),
        batch.negatives.tolist(),
        literal.N_ITEMS,
        lambda item: literal_item(given, p, item, first),
        lambda v: literal.sasrec(p, "encoder", v, 2, HEADS),
    )


@pytest.mark.parametrize(
    ("kind", "modality", "settings", "first"),
    [
        ("live", "textual", {}, True),
        ("token", "textual", {"visual_state": "mean"}, True),
        ("live", "visual", {}, False),
        ("token", "visual", {"visual_state": "first"}, True),
        ("token", "acoustic", {"visual_state": "first"}, False),
        ("pooled", "joint", {}, False),
    ],
)
def test_values_and_gradients_are_those_of_the_equations(kind, modality, settings, first):
    given = features(kind, modality)
    model = made([given], **settings)
    p = literal.parameters(model)
    expected = [literal_item(given, p, item, first) for item in range(literal.N_ITEMS)]
    np.testing.assert_allclose(model.catalogue().detach().numpy(), expected, rtol=1e-5, atol=1e-7)
    (term,) = model.training_step(literal.batch()).values()
    assert float(term.detach()) == pytest.approx(literal_loss(given, p, first), rel=1e-5)
    term.backward()
    literal.check_gradients(model, lambda p: literal_loss(given, p, first))


def test_tokens_behind_a_mask_are_inert():
    tokens = literal.token_features("visual", WIDTH, 3)
    before = made([tokens]).catalogue()
    tokens.tokens[~tokens.token_mask] = 1e3
    torch.testing.assert_close(made([tokens]).catalogue(), before)


def test_encoding_once_equals_encoding_each_slot():
    model, slots = made([features("live", "textual")]), literal.batch().sequences
    once = model._at_slots(slots)
    for row, slot in (slots != literal.N_ITEMS).nonzero().tolist():
        torch.testing.assert_close(model.items(slots[row, slot].view(1))[0], once[row, slot])
    assert (once[slots == literal.N_ITEMS] == 0).all()


def test_text_starts_as_the_framework_has_it_and_pictures_xavier_normal():
    train, config = literal.interactions(), MoRecConfig(embedding_size=256)
    text = MoRec(config, train, [literal.pooled_features("textual", 128)]).vector.project
    bound = 1 / 128**0.5
    assert float(text.weight.detach().abs().max()) <= bound
    assert float(text.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert text.bias.detach().abs().max() > 0
    picture = MoRec(config, train, [literal.pooled_features("visual", 128)]).vector.project
    assert float(picture.weight.detach().std()) == pytest.approx((2 / 384) ** 0.5, rel=0.05)
    assert (picture.bias == 0).all()


def test_two_modalities_or_none_are_refused():
    both = [features("pooled", "textual"), features("pooled", "visual")]
    with pytest.raises(ConfigError, match="morec reads one modality, but is given textual, visual"):
        made(both)
    with pytest.raises(ConfigError, match="morec reads items by their content"):
        made([])


def test_heads_must_divide():
    with pytest.raises(ValueError, match="9 does not divide into n_heads 2"):
        MoRecConfig(embedding_size=9)
