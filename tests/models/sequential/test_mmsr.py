"""MMSR against loops over the equations of arXiv 2403.17372, on stored states and live encoders."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.base import ItemFeatures
from mmbench.models.sequential.item_fusion import AttentionFusion, Fusion
from mmbench.models.sequential.mmsr import MMSR, MMSRConfig

spec = importlib.util.spec_from_file_location(
    "literal_content", Path(__file__).with_name("literal_content.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

D, HEADS, L = 4, 2, 4
SMALL = {"embedding_size": D, "max_length": L, "n_heads": HEADS, "fusion_heads": HEADS}


def features(kind, *modalities):
    """Stored vectors, stored tokens or live encoders of some modalities."""
    widths = {"textual": 3, "visual": 5, "acoustic": 2, "joint": 4}
    make = {
        "pooled": lambda m: literal.pooled_features(m, widths[m]),
        "tokens": lambda m: literal.token_features(m, widths[m], 2 + (m == "textual")),
        "live": lambda m: literal.live_features(m, widths[m], 2 + (m == "textual")),
    }[kind]
    return [make(modality) for modality in modalities]


def made(given, seed=0, **settings):
    torch.manual_seed(seed)
    config = MMSRConfig(**{**SMALL, "n_layers": 1, **settings})
    model = MMSR(config, literal.interactions(), given).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def literal_item(model, given, p, item):
    """e(i) of one item by the equations."""
    by_modality = {f.modality: f for f in given}
    order = [m for m in ("textual", "joint", "acoustic", "visual") if m in by_modality]
    tokens, real = [], []
    for modality in order:
        states, there = literal.states_of(by_modality[modality], p, item)
        tokens.append([literal.linear(p, f"project.{modality}", v) for v in states])
        real.append(there)
    name = model.config.fusion
    if len(order) > 1 and name == "merge-attention":
        n_blocks = model.config.n_fusion_blocks
        return literal.merge_attention(p, "fusion", tokens, real, n_blocks, HEADS)
    if len(order) > 1 and name == "co-attention":
        return literal.co_attention(p, "fusion", tokens, real, HEADS)
    pooled = [literal.mean_of_real(x, w) for x, w in zip(tokens, real, strict=True)]
    return pooled[0] if len(pooled) == 1 else literal.coarse(p, "fusion", name, pooled)


def literal_loss(model, given, p):
    known = {}

    def vector(item):
        if item not in known:
            known[item] = literal_item(model, given, p, item)
        return known[item]

    batch = literal.batch()
    return literal.loss(
        batch.sequences.tolist(),
        batch.negatives.tolist(),
        literal.N_ITEMS,
        vector,
        lambda v: literal.sasrec(p, "encoder", v, model.config.n_layers, HEADS),
    )


CASES = [
    ("live", ("visual", "textual"), {"fusion": "merge-attention"}),
    ("live", ("textual", "visual"), {"fusion": "co-attention"}),
    ("live", ("textual", "visual"), {"fusion": "gate"}),
    ("live", ("textual",), {}),
    ("live", ("joint",), {}),
    ("tokens", ("textual", "visual"), {"fusion": "merge-attention", "type_embeddings": True}),
    ("tokens", ("visual", "textual"), {"fusion": "film+dnn"}),
    ("tokens", ("visual",), {"n_layers": 2}),
    ("pooled", ("visual", "acoustic"), {"fusion": "concat"}),
    ("pooled", ("visual", "acoustic", "textual"), {"fusion": "sum"}),
]


@pytest.mark.parametrize(("kind", "modalities", "settings"), CASES)
def test_values_and_gradients_are_those_of_the_equations(kind, modalities, settings):
    given = features(kind, *modalities)
    model = made(given, **settings)
    p = literal.parameters(model)
    expected = np.stack([literal_item(model, given, p, i) for i in range(literal.N_ITEMS)])
    np.testing.assert_allclose(model.catalogue().detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    (term,) = model.training_step(literal.batch()).values()
    assert float(term.detach()) == pytest.approx(literal_loss(model, given, p), rel=1e-5)
    term.backward()
    literal.check_gradients(model, lambda p: literal_loss(model, given, p))


@pytest.mark.parametrize("sequence_encoder", ["grurec", "nextitnet"])
def test_every_sequence_encoder_trains_every_parameter(sequence_encoder):
    model = made(features("live", "textual", "visual"), sequence_encoder=sequence_encoder)
    (term,) = model.training_step(literal.batch()).values()
    term.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # What every query gives all keys alike does not change a softmax.
        if not name.endswith("key.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_the_published_depths_are_the_defaults():
    train = literal.interactions()
    for name, n_matrices in (("sasrec", 12), ("grurec", 4 * 3), ("nextitnet", 8)):
        config = MMSRConfig(sequence_encoder=name, embedding_size=8)
        encoder = MMSR(config, train, features("pooled", "textual")).encoder
        matrices = [p for n, p in encoder.named_parameters() if p.dim() > 1 and "position" not in n]
        assert sum(p.numel() for p in matrices) == 24 * 8 * 8, n_matrices


def test_scores_are_products_with_the_vector_of_the_last_slot():
    given = features("tokens", "textual", "visual")
    model = made(given)
    p = literal.parameters(model)
    x = literal.N_ITEMS
    vectors = [literal_item(model, given, p, i) for i in range(x)]
    scores = model.score(model.catalogue(), torch.tensor([[x, 2, 0, 6], [x, x, x, 3]]))
    for row, history in zip(scores.detach().numpy(), ([2, 0, 6], [3]), strict=True):
        user = literal.sasrec(p, "encoder", [vectors[i] for i in history], 1, HEADS)[-1]
        np.testing.assert_allclose(row, [user @ v for v in vectors], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "fusion"), [("live", "merge-attention"), ("tokens", "co-attention"), ("pooled", "sum")]
)
def test_encoding_once_equals_encoding_each_slot(kind, fusion):
    """Acceptance check 6 of the specification: values, and gradients with all noise off."""
    given = features(kind, "textual", "visual")
    model, slots = made(given, fusion=fusion), literal.batch().sequences
    weights = torch.randn(*slots.shape, D, generator=torch.Generator().manual_seed(4)).double()
    once = model._at_slots(slots)
    (once * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    real = slots != literal.N_ITEMS
    total = 0.0
    for place in real.nonzero():
        row, slot = place.tolist()
        alone = model.items(slots[row, slot].view(1))[0]
        torch.testing.assert_close(alone, once[row, slot], rtol=1e-6, atol=1e-7)
        total = total + (alone * weights[row, slot]).sum()
    total.backward()
    assert (once[~real] == 0).all()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6)


def test_each_distinct_item_is_encoded_once_and_padding_never():
    given = features("live", "textual")
    made(given).training_step(literal.batch())
    assert given[0].encoder.asked == [list(range(literal.N_ITEMS))]


def test_the_order_of_given_sets_does_not_matter():
    for fusion in ("film", "concat", "co-attention"):
        both = features("tokens", "visual", "textual")
        first, second = made(both, fusion=fusion), made(both[::-1], fusion=fusion)
        assert first.state_dict().keys() == second.state_dict().keys()
        torch.testing.assert_close(first.catalogue(), second.catalogue(), rtol=0, atol=0)


def test_a_dropped_modality_leaves_no_parameter():
    both = features("live", "textual", "visual")
    names = [name for name, _ in made(both).named_parameters()]
    assert any("fusion" in name for name in names)
    for kept, gone in ((0, "visual"), (1, "textual")):
        alone = [name for name, _ in made([both[kept]]).named_parameters()]
        assert not [name for name in alone if gone in name or "fusion" in name]


def test_stored_states_and_vectors_are_not_stored_with_the_weights():
    model = made(features("tokens", "textual", "visual"))
    assert not [name for name in model.state_dict() if name.startswith("states")]


def test_a_catalogue_in_chunks_is_the_whole(monkeypatch):
    given = features("live", "textual", "visual")
    model = made(given)
    whole = model.items(torch.arange(literal.N_ITEMS))
    monkeypatch.setattr("mmbench.models.sequential.item_states.CHUNK_LIVE", 3)
    given[0].encoder.asked.clear()
    torch.testing.assert_close(model.catalogue(), whole, rtol=1e-6, atol=1e-7)
    assert given[0].encoder.asked == [[0, 1, 2], [3, 4, 5], [6]]


def test_no_modality_and_two_sets_of_one_are_refused():
    train = literal.interactions()
    with pytest.raises(ConfigError, match="mmsr reads items by their content and is given none"):
        MMSR(MMSRConfig(), train, [])
    twice = features("pooled", "textual") + features("live", "textual")
    with pytest.raises(ConfigError, match="one feature set for each modality"):
        MMSR(MMSRConfig(), train, twice)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_size": 9}, "9 does not divide into n_heads 2"),
        ({"fusion_heads": 3}, "64 does not divide into 3 heads of attention fusion"),
        ({"embedding_size": 200}, "200 does not divide into 3 heads of attention"),
        ({"fusion": "gated"}, "merge-attention"),
        ({"fusion_dropout": 1.0}, "less than 1"),
        ({"n_fusion_blocks": 0}, "greater than 0"),
        ({"sequence_encoder": "lstm"}, "grurec"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MMSRConfig(**settings)


def test_every_fusion_can_be_chosen():
    given = features("pooled", "textual", "visual")
    for name in get_args(Fusion):
        model = made(given, fusion=name)
        assert isinstance(model.fusion, AttentionFusion) == name.endswith("attention")
        assert torch.isfinite(model.catalogue()).all()


def test_heads_of_the_fusion_are_berts_unless_given():
    assert [MMSRConfig(embedding_size=size).n_fusion_heads for size in (768, 64, 32)] == [12, 1, 1]
    assert MMSRConfig(embedding_size=63, sequence_encoder="grurec").n_fusion_heads == 1


def test_dropout_of_the_fusion_follows_the_paper_unless_given():
    given = features("pooled", "textual", "visual")
    drop = {
        name: made(given, fusion=name, dropout=0.5).fusion.drop.p
        for name in ("gate+dnn", "co-attention")
    }
    assert drop == {"gate+dnn": 0.5, "co-attention": 0.1}
    assert made(given, fusion="co-attention", fusion_dropout=0.3).fusion.drop.p == 0.3


@pytest.mark.parametrize("fusion", ["gate", "concat+dnn", "co-attention", "merge-attention"])
def test_it_learns_what_features_say(fusion):
    """Items of a group follow each other; after training a user's next item is of their group."""
    torch.manual_seed(0)
    group = torch.arange(literal.N_ITEMS) % 2
    matrix = torch.nn.functional.one_hot(group, 2).float() + 0.05 * torch.randn(literal.N_ITEMS, 2)
    there = torch.ones(literal.N_ITEMS).bool()
    given = [ItemFeatures(f"{m}__x", m, matrix, there) for m in ("textual", "visual")]
    config = MMSRConfig(embedding_size=16, max_length=L, dropout=0.0, fusion=fusion)
    model = MMSR(config, literal.interactions(), given)
    x = literal.N_ITEMS
    sequences = torch.tensor([[x, 0, 2, 4, 6], [x, x, 1, 3, 5], [x, 4, 0, 6, 2], [x, x, 5, 1, 3]])
    other = torch.tensor([[x, 1, 3, 5, 1], [x, x, 0, 2, 4], [x, 3, 5, 1, 3], [x, x, 6, 4, 0]])
    batch = type(literal.batch())(torch.arange(4), sequences, other)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        (term,) = model.training_step(batch).values()
        term.backward()
        optimizer.step()
    assert float(term.detach()) < 1.0
    model.eval()
    scores = model.score(model.catalogue(), torch.tensor([[x, x, 0, 2], [x, x, 1, 3]])).detach()
    for row, own in zip(scores, (0, 1), strict=True):
        assert row[group == own].min() > row[group != own].max()
