"""Dropout against what its definition says of shares, means, gradients and generators."""

import pytest
import torch

from mmbench.models.sequential.dropout import DropoutLayer, dropout

N = 400_000


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_share_and_scale(rate):
    torch.manual_seed(3)
    y = dropout(torch.ones(N), rate, training=True)
    gone = (y == 0).double().mean().item()
    # Five standard deviations of a binomial share.
    assert abs(gone - rate) < 5 * (rate * (1 - rate) / N) ** 0.5
    kept = y[y != 0]
    assert torch.equal(kept, torch.full_like(kept, kept[0].item()))
    # An expectation of exactly x: the scale is the reciprocal of the share truly kept.
    share_kept = 1 - round(rate * 2**16) / 2**16
    assert kept[0].item() == pytest.approx(1 / share_kept, rel=1e-6)


def test_the_four_numbers_of_a_draw_are_independent():
    torch.manual_seed(4)
    lanes = (dropout(torch.ones(N), 0.5, training=True) == 0).double().view(-1, 4)
    assert (lanes.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / (N / 4) ** 0.5
    correlation = torch.corrcoef(lanes.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / (N / 4) ** 0.5
    after = (lanes[1:, 0] - 0.5) * (lanes[:-1, 3] - 0.5)
    assert after.mean().abs() < 5 * 0.25 / (N / 4) ** 0.5


def test_gradient_passes_where_the_value_did():
    torch.manual_seed(5)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4, training=True)
    y.sum().backward()
    scale = torch.tensor(2**16 / (2**16 - round(0.4 * 2**16)), dtype=torch.float64)
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, scale))


def test_drawn_from_the_global_generator():
    x = torch.ones(1001)
    torch.manual_seed(6)
    first, second = dropout(x, 0.3, training=True), dropout(x, 0.3, training=True)
    torch.manual_seed(6)
    assert torch.equal(first, dropout(x, 0.3, training=True))
    assert not torch.equal(first, second)


def test_rests():
    x = torch.randn(5)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert DropoutLayer(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_everything_dropped_and_nothing_given():
    assert torch.equal(dropout(torch.ones(9), 1.0, training=True), torch.zeros(9))
    assert dropout(torch.ones(0, 4), 0.5, training=True).shape == (0, 4)


def test_half_precision_stays():
    y = dropout(torch.ones(64, dtype=torch.bfloat16), 0.25, training=True)
    assert y.dtype == torch.bfloat16
    assert set(y.tolist()) <= {0.0, y.max().item()}


def test_as_a_layer():
    layer = DropoutLayer(0.5)
    assert not list(layer.parameters())
    assert repr(layer) == "DropoutLayer(0.5)"
    assert (layer(torch.ones(1000)) == 0).any()
