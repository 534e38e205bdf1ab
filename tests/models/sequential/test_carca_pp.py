"""CARCA++ against loops over its equations."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.models.sequential.carca_pp import CARCAPlusPlusConfig

spec = importlib.util.spec_from_file_location(
    "literal_side", Path(__file__).with_name("literal_side.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

SETS = [(), ("textual",), ("visual", "textual"), ("visual", "textual", "acoustic")]
SCALES = (math.sqrt(6), math.sqrt(6))


def test_it_is_causal_and_without_positions_unless_asked():
    settings = CARCAPlusPlusConfig()
    assert settings.causal
    assert settings.positions == "none"
    with pytest.raises(ValueError, match="positions"):
        CARCAPlusPlusConfig(positions="sinusoidal")


@pytest.mark.parametrize("modalities", SETS)
@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize(("use_res", "causal"), [(True, True), (False, True), (True, False)])
def test_the_loss_is_that_of_the_equations(modalities, positions, use_res, causal):
    kinds = {"n_layers": 2, "use_res": use_res, "causal": causal}
    model = literal.build("carca-pp", modalities, positions=positions, **kinds)
    expected = literal.carca_loss(*literal.arrays(model), modalities, SCALES, **kinds)
    assert model.training_step(literal.batch())["bce"].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("modalities", "positions", "use_res"),
    [(("visual", "textual"), "learned", True), (("textual",), "none", False)],
)
def test_gradients_are_those_of_the_equations(modalities, positions, use_res):
    model = literal.build("carca-pp", modalities, positions=positions, use_res=use_res)
    loss = model.training_step(literal.batch())["bce"]
    literal.check_gradients(
        model,
        loss,
        lambda p, a: literal.carca_loss(p, a, modalities, SCALES, use_res=use_res),
    )


@pytest.mark.parametrize("modalities", SETS)
def test_scores_are_those_of_the_equations(modalities):
    model = literal.build("carca-pp", modalities, n_layers=2, positions="learned").eval()
    histories = [[0, 3, 1, 7, 2], [4], [8, 2, 2]]
    with torch.no_grad():
        scores = model.score(model.catalogue(), literal.padded(histories, literal.LENGTH)).numpy()
    p, a = literal.arrays(model)
    for row, history in zip(scores, histories, strict=True):
        asked = [[]] * (len(history) - 1) + [range(literal.N_ITEMS)]
        expected = literal.carca_logits(p, a, modalities, history, asked, SCALES, n_layers=2)
        np.testing.assert_allclose(row, expected[-1], atol=1e-9)


def test_positions_belong_to_slots_counted_from_the_newest():
    model = literal.build("carca-pp", positions="learned").eval()
    longer = literal.build("carca-pp", positions="learned", max_length=8).eval()
    state = model.state_dict()
    more = torch.randn(3, 6, dtype=torch.float64)
    state["positions.weight"] = torch.cat([more, state["positions.weight"]])
    longer.load_state_dict(state)
    histories = [[0, 3, 1, 7, 2], [4]]
    with torch.no_grad():
        torch.testing.assert_close(
            longer.score(longer.catalogue(), literal.padded(histories, 8)),
            model.score(model.catalogue(), literal.padded(histories, literal.LENGTH)),
        )
        turned = literal.padded([[2, 7, 1, 3, 0]], literal.LENGTH)
        there = model.score(model.catalogue(), turned.flip(1))
        assert not torch.allclose(model.score(model.catalogue(), turned), there)


def test_without_positions_or_causality_the_order_does_not_matter():
    model = literal.build("carca-pp", causal=False, n_layers=2).eval()
    sequences = literal.padded([[2, 7, 1, 3, 0]], literal.LENGTH)
    with torch.no_grad():
        catalogue = model.catalogue()
        torch.testing.assert_close(
            model.score(catalogue, sequences), model.score(catalogue, sequences.flip(1))
        )


def test_an_item_that_nobody_has_is_scored_from_its_features():
    model = literal.build("carca-pp").eval()
    sequences = literal.padded([[0, 3, 1]], literal.LENGTH)
    with torch.no_grad():
        before = model.score(model.catalogue(), sequences)[0]
        model.features.visual[5] += 10.0
        after = model.score(model.catalogue(), sequences)[0]
    changed = (after - before).abs() > 1e-9
    assert changed.nonzero().flatten().tolist() == [5]


def test_items_without_anything_are_scored_too():
    model = literal.build("carca-pp").eval()  # item 2 has features of zeros, nobody has item 5
    with torch.no_grad():
        scores = model.score(model.catalogue(), literal.padded([[2, 5], [2]], literal.LENGTH))
    assert torch.isfinite(scores).all()
    model.train()
    sum(model.training_step(literal.batch()).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
