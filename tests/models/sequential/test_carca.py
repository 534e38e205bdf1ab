"""CARCA against loops over its equations."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

spec = importlib.util.spec_from_file_location(
    "literal_side", Path(__file__).with_name("literal_side.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

SETS = [(), ("visual",), ("visual", "textual"), ("visual", "textual", "acoustic")]
SCALES = (math.sqrt(6), 1.0)  # of a slot and of a candidate


@pytest.mark.parametrize("modalities", SETS)
@pytest.mark.parametrize("use_res", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_the_loss_is_that_of_the_equations(modalities, use_res, causal):
    kinds = {"n_layers": 2, "use_res": use_res, "causal": causal}
    model = literal.build("carca", modalities, **kinds)
    expected = literal.carca_loss(*literal.arrays(model), modalities, SCALES, **kinds)
    assert model.training_step(literal.batch())["bce"].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("modalities", "use_res"), [(("visual", "textual"), True), ((), False)])
def test_gradients_are_those_of_the_equations(modalities, use_res):
    model = literal.build("carca", modalities, use_res=use_res, regularization=0.1)
    loss = sum(model.training_step(literal.batch()).values())
    literal.check_gradients(
        model,
        loss,
        lambda p, a: literal.carca_loss(
            p, a, modalities, SCALES, regularization=0.1, use_res=use_res, causal=False
        ),
    )


def test_the_penalty_is_half_the_square_of_the_whole_table():
    model = literal.build("carca", regularization=0.5)
    terms = model.training_step(literal.batch())
    expected = 0.25 * (model.table.weight.detach().numpy() ** 2).sum()
    assert terms["regularization"].item() == pytest.approx(expected)
    assert list(literal.build("carca", regularization=0.0).training_step(literal.batch())) == [
        "bce"
    ]


@pytest.mark.parametrize("modalities", SETS)
def test_scores_are_those_of_the_equations(modalities):
    model = literal.build("carca", modalities, n_layers=2).eval()
    histories = [[0, 3, 1, 7, 2], [4], [8, 2, 2]]
    with torch.no_grad():
        scores = model.score(model.catalogue(), literal.padded(histories, literal.LENGTH)).numpy()
    p, a = literal.arrays(model)
    for row, history in zip(scores, histories, strict=True):
        asked = [[]] * (len(history) - 1) + [range(literal.N_ITEMS)]
        expected = literal.carca_logits(
            p, a, modalities, history, asked, SCALES, n_layers=2, causal=False
        )
        np.testing.assert_allclose(row, expected[-1], atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
def test_sampled_softmax_is_cross_entropy_over_the_drawn_items(causal):
    modalities = ("visual", "textual")
    model = literal.build("carca", loss="sampled-softmax", n_negatives=6, causal=causal).eval()
    torch.manual_seed(4)
    drawn = torch.randint(literal.N_ITEMS, (6,)).tolist()
    torch.manual_seed(4)
    loss = model.training_step(literal.batch())["sampled-softmax"]

    def expected(p, a):
        return literal.carca_sampled(p, a, modalities, SCALES, drawn, causal=causal)

    assert loss.item() == pytest.approx(expected(*literal.arrays(model)), abs=1e-9)
    loss.backward()
    p, a = literal.arrays(model)
    for name, parameter in model.named_parameters():
        slope = parameter.grad.view(-1)
        place = int(slope.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            p[name].reshape(-1)[place] += step
            values.append(expected(p, a))
            p[name].reshape(-1)[place] -= step
        difference = (values[0] - values[1]) / 2e-5
        assert difference == pytest.approx(float(slope[place]), abs=1e-5), name


def test_items_without_anything_are_scored_too():
    model = literal.build("carca").eval()  # item 2 has features of zeros, nobody has item 5
    with torch.no_grad():
        scores = model.score(model.catalogue(), literal.padded([[2, 5], [2]], literal.LENGTH))
    assert torch.isfinite(scores).all()
    model.train()
    sum(model.training_step(literal.batch()).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
