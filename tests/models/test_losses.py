import math

import pytest
import torch

from mmbench.models import losses


def test_bpr_is_minus_log_sigmoid_of_the_margin():
    positive, negative = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 2.0])
    by_hand = (-math.log(1 / (1 + math.exp(-1.0))) - math.log(1 / (1 + math.exp(1.5)))) / 2
    assert float(losses.bpr(positive, negative)) == pytest.approx(by_hand, rel=1e-6)


def test_bpr_stays_finite_for_a_hopeless_margin():
    positive = torch.tensor([-1e4], requires_grad=True)
    loss = losses.bpr(positive, torch.tensor([0.0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1e4)
    assert float(positive.grad) == pytest.approx(-1.0)


def test_frobenius_doubles_and_squared_quadruples_with_its_matrices():
    one = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    two = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    by_hand = (math.sqrt(float((one**2).sum())) + math.sqrt(float((two**2).sum()))) / 4
    assert float(losses.frobenius(one, two)) == pytest.approx(by_hand)
    assert float(losses.frobenius(2 * one, 2 * two)) == pytest.approx(2 * by_hand)
    half = float((one**2).sum() + (two**2).sum()) / 2 / 4
    assert float(losses.squared(one, two)) == pytest.approx(half)
    assert float(losses.squared(2 * one, 2 * two)) == pytest.approx(4 * half)


def test_frobenius_has_a_gradient_at_zero():
    zero = torch.zeros(2, 3, requires_grad=True)
    losses.frobenius(zero).backward()
    assert torch.equal(zero.grad, torch.zeros(2, 3))
