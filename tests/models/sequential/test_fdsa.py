"""FDSA against loops over its equations, and what must not matter to it."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmbench.errors import ConfigError
from mmbench.models.base import ItemEncoder, ItemFeatures
from mmbench.models.sequential import fdsa
from mmbench.models.sequential.fdsa import FDSA, FDSAConfig

spec = importlib.util.spec_from_file_location(
    "literal_side", Path(__file__).with_name("literal_side.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

SETS = [(), ("textual",), ("visual", "textual"), ("visual", "textual", "acoustic")]


def hidden(model, sequences):
    inputs = F.embedding(sequences, F.pad(model.table.weight, (0, 0, 0, 1)))
    if model.fields is not None:
        mixed = model.fields(torch.arange(literal.N_ITEMS))
        inputs = torch.cat([inputs, F.embedding(sequences, F.pad(mixed, (0, 0, 0, 1)))], dim=2)
    return model.encode(inputs, sequences != literal.N_ITEMS)


@pytest.mark.parametrize("modalities", SETS)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_loss_is_that_of_the_equations(modalities, n_layers):
    model = literal.build("fdsa", modalities, n_layers=n_layers)
    expected = literal.fdsa_loss(*literal.arrays(model), modalities, n_layers=n_layers)
    assert model.training_step(literal.batch())["bce"].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("modalities", SETS[1:3])
def test_gradients_are_those_of_the_equations(modalities):
    model = literal.build("fdsa", modalities)
    loss = model.training_step(literal.batch())["bce"]
    literal.check_gradients(model, loss, lambda p, a: literal.fdsa_loss(p, a, modalities))


@pytest.mark.parametrize("modalities", SETS)
def test_scores_are_products_of_the_last_vector_with_ids(modalities):
    model = literal.build("fdsa", modalities, n_layers=2).eval()
    histories = [[0, 3, 1, 7, 2], [4], [8, 2, 2]]
    with torch.no_grad():
        scores = model.score(model.catalogue(), literal.padded(histories, literal.LENGTH))
    p, a = literal.arrays(model)
    for row, history in zip(scores.numpy(), histories, strict=True):
        h = literal.fdsa_hidden(p, a, modalities, history, n_layers=2)[-1]
        np.testing.assert_allclose(row, p["table.weight"] @ h, atol=1e-9)


@pytest.mark.parametrize("modalities", SETS)
def test_no_slot_sees_a_later_item(modalities):
    model = literal.build("fdsa", modalities, n_layers=2)
    sequences = literal.padded([[0, 3, 1, 7, 2], [4, 0, 6]], literal.LENGTH)
    before = hidden(model, sequences)
    for slot in range(2, literal.LENGTH):
        changed = sequences.clone()
        changed[:, slot] = 8
        change = (hidden(model, changed) - before).abs().amax(dim=2)
        assert change[0, :slot].max() < 1e-12
        assert change[1, 2:slot].sum() < 1e-12  # before its slot 2 there is padding
        assert (change[:, slot:] > 1e-4).all()


def test_a_longer_slot_array_changes_nothing_when_positions_shift_with_it():
    model = literal.build("fdsa")
    longer = literal.build("fdsa", max_length=8)
    state = model.state_dict()
    state["positions.weight"] = torch.cat([torch.randn(3, 6).double(), state["positions.weight"]])
    longer.load_state_dict(state)
    histories = [[0, 3, 1, 7, 2], [4]]
    torch.testing.assert_close(
        hidden(longer, literal.padded(histories, 8))[:, -1],
        hidden(model, literal.padded(histories, literal.LENGTH))[:, -1],
    )


def test_zero_logits_cost_two_log_two():
    model = literal.build("fdsa")
    torch.nn.init.zeros_(model.table.weight)
    loss = model.training_step(literal.batch())["bce"].item()
    assert loss == pytest.approx(2 * math.log(2), abs=1e-9)


def test_users_are_encoded_alike_in_any_block_and_order():
    model = literal.build("fdsa").eval()
    sequences = literal.padded([[0, 3, 1, 7, 2], [4], [8, 2, 2], []], literal.LENGTH)
    with torch.no_grad():
        catalogue = model.catalogue()
        together = model.score(catalogue, sequences)
        alone = torch.cat([model.score(catalogue, row[None]) for row in sequences])
        turned = model.score(catalogue, sequences.flip(0)).flip(0)
    assert torch.isfinite(together).all()  # of the empty history too
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-12)


def test_features_remembered_with_a_catalogue_are_those_computed_anew(monkeypatch):
    monkeypatch.setattr(fdsa, "CHUNK", 4)  # so the catalogue of nine takes three blocks
    model = literal.build("fdsa").eval()
    sequences = literal.padded([[0, 3, 1], [8]], literal.LENGTH)
    with torch.no_grad():
        catalogue = model.catalogue()
        remembered = model.represent(catalogue, sequences)
        torch.testing.assert_close(model.represent(catalogue.clone(), sequences), remembered)
        model.fields.project["visual"].bias.add_(1.0)  # another step of training
        moved = model.represent(model.catalogue(), sequences)
        torch.testing.assert_close(model.represent(catalogue.clone(), sequences), moved)
        assert not torch.allclose(moved, remembered)
        del catalogue
    assert not model._mixed
    twin = copy.deepcopy(model)
    torch.testing.assert_close(hidden(twin, sequences), hidden(model, sequences))


def test_an_item_that_nobody_has_is_ranked_by_its_id_alone():
    model = literal.build("fdsa").eval()
    sequences = literal.padded([[0, 3, 1]], literal.LENGTH)
    with torch.no_grad():
        before = model.score(model.catalogue(), sequences)
        model.fields.features.visual[5] += 10.0
        after = model.score(model.catalogue(), sequences)
        torch.testing.assert_close(after, before)
        model.fields.features.visual[3] += 10.0
        assert not torch.allclose(model.score(model.catalogue(), sequences), before)


@pytest.mark.parametrize("loss", ["softmax", "sampled-softmax", "in-batch"])
def test_the_other_losses_reach_every_parameter(loss):
    model = literal.build("fdsa", loss=loss, n_negatives=4)
    (value,) = model.training_step(literal.batch()).values()
    value.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


def test_half_precision_and_dropout_give_a_finite_step():
    model = literal.build("fdsa", dropout=0.5).float()
    losses = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (loss,) = model.training_step(literal.batch()).values()
        loss.backward()
        losses.append(loss.item())
    assert loss.dtype == torch.float32
    assert losses[0] != losses[1]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_it_starts_as_the_paper_code_does():
    entry = FDSA(FDSAConfig(embedding_size=64), literal.train(), literal.given("visual"))
    assert entry.positions.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert entry.join.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert entry.table.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not entry.join.bias.any()
    assert entry.norm.eps == 1e-12


def test_what_it_cannot_be_built_from_is_refused():
    with pytest.raises(ConfigError, match="do not divide into 4 heads"):
        literal.build("fdsa", n_heads=4)
    learning = ItemFeatures(
        "e", "textual", torch.empty(9, 0), torch.ones(9).bool(), encoder=ItemEncoder()
    )
    with pytest.raises(ConfigError, match=r"encoders\.textual: fdsa reads stored features alone"):
        FDSA(FDSAConfig(), literal.train(), [learning])
