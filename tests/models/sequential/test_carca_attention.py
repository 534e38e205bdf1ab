"""The attention of candidates over a profile: two products, blocks, masks, losses.

What the equations say is held to loops in test_carca.py and test_carca_pp.py.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.base import ItemEncoder, ItemFeatures
from mmbench.models.sequential import carca_attention
from mmbench.models.sequential.carca import CARCA, CARCAConfig
from mmbench.recipe import load_recipe

spec = importlib.util.spec_from_file_location(
    "literal_side", Path(__file__).with_name("literal_side.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

NAMES = ["carca", "carca-pp"]
HISTORIES = [[0, 3, 1, 7, 2], [4], [8, 2, 2], [1, 1], [6, 5, 4, 3]]


def direct(model, sequences):
    """Logits of all items by the equation as it stands, in one piece."""
    profile = model.profiles(model.catalogue(), sequences)
    every = model.items(torch.arange(literal.N_ITEMS)).expand(len(sequences), -1, -1)
    visible = (sequences != literal.N_ITEMS)[:, None].expand(-1, literal.N_ITEMS, -1)
    return model.logits(every, profile, visible)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("use_res", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_two_products_equal_the_direct_form(name, use_res, causal):
    model = literal.build(name, use_res=use_res, causal=causal, n_layers=2).eval()
    sequences = literal.padded(HISTORIES, literal.LENGTH)
    with torch.no_grad():
        scores = model.score(model.catalogue(), sequences)
        torch.testing.assert_close(scores, direct(model, sequences), rtol=0, atol=1e-10)


@pytest.mark.parametrize("use_res", [True, False])
@pytest.mark.parametrize(("block", "chunk", "users"), [(1, 1, 1), (70, 4, 2), (10**6, 9, 3)])
def test_blocks_of_items_and_users_change_nothing(monkeypatch, use_res, block, chunk, users):
    model = literal.build("carca-pp", use_res=use_res).eval()
    sequences = literal.padded(HISTORIES, literal.LENGTH)
    with torch.no_grad():
        whole = model.score(model.catalogue(), sequences)
        monkeypatch.setitem(carca_attention.BLOCK_LOGITS, "cpu", block)
        monkeypatch.setattr(carca_attention, "CHUNK", chunk)
        monkeypatch.setitem(carca_attention.USERS, "cpu", users)
        monkeypatch.setattr(carca_attention, "PROFILES", 3)
        catalogue = model.catalogue()
        torch.testing.assert_close(model.score(catalogue, sequences), whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            model.item_vectors(), model.items(torch.arange(literal.N_ITEMS)), rtol=0, atol=1e-12
        )


def test_no_block_is_larger_than_stated(monkeypatch):
    seen = []
    products = carca_attention._products

    def watch(*arguments):
        result = products(*arguments)
        seen.append(result[0].numel())
        return result

    monkeypatch.setattr(carca_attention, "_products", watch)
    monkeypatch.setitem(carca_attention.BLOCK_LOGITS, "cpu", 64)
    model = literal.build("carca-pp").eval()
    with torch.no_grad():
        model.score(model.catalogue(), literal.padded(HISTORIES, literal.LENGTH))
    assert max(seen) <= 64
    assert len(seen) < len(HISTORIES) * literal.N_ITEMS
    assert sum(seen) == 2 * literal.LENGTH * len(HISTORIES) * literal.N_ITEMS


@pytest.mark.parametrize("name", NAMES)
def test_users_are_scored_alike_in_any_block_and_order(name):
    model = literal.build(name).float().eval()
    sequences = literal.padded([*HISTORIES, []], literal.LENGTH)
    with torch.no_grad():
        catalogue = model.catalogue()
        together = model.score(catalogue, sequences)
        alone = torch.cat([model.score(catalogue, row[None]) for row in sequences])
        turned = model.score(catalogue, sequences.flip(0)).flip(0)
    assert together.dtype == torch.float32
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_who_has_no_history_scores_every_item_alike(name):
    model = literal.build(name).eval()
    with torch.no_grad():
        scores = model.score(model.catalogue(), literal.padded([[], [3]], literal.LENGTH))
    assert (scores[0] == model.output.bias).all()
    assert scores[1].std() > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slots", [5, 8])
def test_padding_does_nothing(name, slots):
    model = literal.build(name, max_length=8, n_layers=2).eval()
    with torch.no_grad():
        catalogue = model.catalogue()
        short = model.score(catalogue, literal.padded([[0, 3, 1]], 3))
        long = model.score(catalogue, literal.padded([[0, 3, 1]], slots))
    torch.testing.assert_close(long, short, rtol=0, atol=1e-12)


def positions(model, history, candidate):
    """The logit of one candidate after each slot."""
    inputs = literal.padded([history], literal.LENGTH)
    real = inputs != literal.N_ITEMS
    profile = model.profiles(model.catalogue(), inputs)
    asked = model.items(torch.tensor([candidate])).expand(1, literal.LENGTH, -1)
    return model.logits(asked, profile, model._visible(real))[0]


@pytest.mark.parametrize("name", NAMES)
def test_causal_positions_see_no_later_item_and_the_others_do(name):
    history = [0, 3, 1, 7, 2]
    for causal in (True, False):
        model = literal.build(name, causal=causal, n_layers=2).eval()
        before = positions(model, history, 6)
        for slot in range(1, literal.LENGTH):
            changed = list(history)
            changed[slot] = 8
            change = (positions(model, changed, 6) - before).abs()
            assert (change[slot:] > 1e-5).all()
            if causal:
                assert change[:slot].max() < 1e-12
            else:
                assert (change[:slot] > 1e-5).all()


@pytest.mark.parametrize("name", NAMES)
def test_zero_logits_cost_two_log_two(name):
    model = literal.build(name)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
    loss = model.training_step(literal.batch())["bce"].item()
    assert loss == pytest.approx(2 * math.log(2), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["softmax", "in-batch"])
def test_losses_over_many_items_are_refused_when_the_recipe_is_read(name, loss):
    with pytest.raises(ConfigError, match=r"model\.loss: a candidate's logit is an attention .* c"):
        load_recipe(f"movielens-100k/{name}", settings=[f"model.loss={loss}"])


def test_a_later_slot_with_a_huge_logit_does_not_hide_the_earlier_ones():
    values = torch.tensor([[0.0, 1.0, 300.0]], dtype=torch.float64)
    shares = (values - values.amax(dim=1, keepdim=True)).exp()
    found = carca_attention._up_to(shares * torch.tensor([[1.0, 2.0, 3.0]]), True)
    total = carca_attention._up_to(shares, True)
    expected = [1.0, (1 + 2 * math.e) / (1 + math.e), 3.0]
    np.testing.assert_allclose((found / total)[0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["bce", "sampled-softmax"])
def test_half_precision_and_dropout_give_a_finite_step(name, loss):
    model = literal.build(name, dropout=0.5, loss=loss, n_negatives=4).float()
    values = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = model.training_step(literal.batch())
        terms[loss].backward()
        values.append(terms[loss].item())
    assert terms[loss].dtype == torch.float32
    assert values[0] != values[1]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_it_starts_as_the_authors_code_does():
    torch.manual_seed(0)
    model = CARCA(CARCAConfig(), literal.train(), literal.given("visual"))
    for layer in (model.project, model.combine, model.output):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert not layer.bias.any()
    bound = math.sqrt(6 / (literal.N_ITEMS + 1 + 90))
    assert 0.95 * bound < model.table.weight.abs().max() <= bound
    bound = math.sqrt(6 / 180)
    for layer in (model.cross.query, model.blocks[2].inner, model.blocks[0].attention.value):
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert model.project.out_features == 5 * 90


@pytest.mark.parametrize("name", NAMES)
def test_what_it_cannot_be_built_from_is_refused(name):
    with pytest.raises(ConfigError, match="do not divide into 4 heads"):
        literal.build(name, n_heads=4)
    model = type(literal.build(name))
    learning = ItemFeatures(
        "e", "visual", torch.empty(9, 0), torch.ones(9).bool(), encoder=ItemEncoder()
    )
    with pytest.raises(ConfigError, match=rf"encoders\.visual: {name} reads stored features"):
        model(literal.build(name).config, literal.train(), [learning])
