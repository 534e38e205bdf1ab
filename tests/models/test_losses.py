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


@pytest.mark.parametrize("block", [1, 12, 1 << 20])
def test_summed_denominators_in_blocks_and_their_gradients(block, monkeypatch):
    monkeypatch.setattr(losses, "_BLOCK_LOGITS", block)
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    keys = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    by_hand = sum(math.log(sum(math.exp(float((a @ k).detach())) for k in keys)) for a in anchors)
    assert float(losses.summed_logsumexp(anchors, keys).detach()) == pytest.approx(by_hand)
    assert torch.autograd.gradcheck(lambda a, k: 3 * losses.summed_logsumexp(a, k), (anchors, keys))


def test_summed_denominators_stay_finite_where_exponentials_would_not():
    anchors = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    total = losses.summed_logsumexp(anchors, torch.tensor([[1.0], [2.0]]))
    total.backward()
    assert float(total.detach()) == pytest.approx(600 - 300)
    assert anchors.grad.tolist() == [[2.0], [1.0]]


def test_summed_denominators_take_half_precision_in_full():
    anchors = torch.randn(3, 2, dtype=torch.bfloat16, requires_grad=True)
    total = losses.summed_logsumexp(anchors, torch.randn(4, 2))
    total.backward()
    assert total.dtype == torch.float32
    assert anchors.grad.dtype == torch.bfloat16
