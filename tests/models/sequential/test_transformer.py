"""Attention, its blocks and masks, against loops over their equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmbench.errors import ConfigError
from mmbench.models.sequential.transformer import (
    HIDDEN,
    Attention,
    BertBlock,
    SRBlock,
    causal_mask,
    padding_mask,
    through,
    through_to_last,
)

SIZE, LENGTH = 4, 5


def real_slots():
    return torch.arange(LENGTH) >= LENGTH - torch.tensor([5, 2, 0])[:, None]


def noisy(module):
    """In float64, with norms that are not the identity and biases that are not zero."""
    for key, parameter in module.double().named_parameters():
        if "norm" in key or key.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return module


@pytest.mark.parametrize("kind", ["sr", "bert"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_heads", [1, 2])
def test_a_block_equals_its_loops(kind, causal, n_heads, literal):
    torch.manual_seed(0)
    block = noisy((SRBlock if kind == "sr" else BertBlock)(SIZE, n_heads, 0.0))
    activation, epsilon = (literal.relu, 1e-6) if kind == "sr" else (literal.gelu, 1e-12)
    real = real_slots()
    mask = causal_mask(real) if causal else padding_mask(real)
    x = torch.randn(3, LENGTH, SIZE).double().requires_grad_()
    free, w = x.detach().clone().requires_grad_(), literal.leaves(block)
    found = block(x, mask)
    weights = torch.randn_like(found) * real[:, :, None]
    (found * weights).sum().backward()
    total = 0.0
    for row in range(3):
        there = real[row].tolist()

        def sees(t, s, there=there):
            return there[s] and (s <= t or not causal)

        named = {f"block.{key}": value for key, value in w.items()}
        out = literal.block(named, "block", list(free[row]), sees, n_heads, activation, epsilon)
        for slot in range(LENGTH):
            if there[slot]:
                torch.testing.assert_close(found[row, slot], out[slot], rtol=1e-9, atol=1e-10)
                total = total + out[slot] @ weights[row, slot]
    total.backward()
    torch.testing.assert_close(x.grad, free.grad, rtol=1e-8, atol=1e-10)
    for key, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, w[key].grad, rtol=1e-8, atol=1e-10, msg=key)


def test_attention_over_a_context_of_another_length(literal):
    torch.manual_seed(0)
    attention = noisy(Attention(SIZE, 2, 0.0, bias=True))
    x, context = torch.randn(1, 2, SIZE).double(), torch.randn(1, 7, SIZE).double()
    real = torch.tensor([[True, False, True, True, False, True, True]])
    found = attention(x, padding_mask(real), context)
    # The loops know self-attention: the context with each query in front, which nothing sees.
    w = {f"a.{key}": value for key, value in literal.leaves(attention).items()}
    for query in range(2):
        joined = [x[0, query], *context[0]]
        (out, *_) = literal.attention(
            w, "a", joined, lambda t, s: s > 0 and bool(real[0, s - 1]), 2
        )
        torch.testing.assert_close(found[0, query], out, rtol=1e-10, atol=1e-11)


def test_the_masks_slot_by_slot():
    real = real_slots()
    causal, both = causal_mask(real), padding_mask(real)
    assert causal.shape == (3, 1, LENGTH, LENGTH)
    for row in range(3):
        for t in range(LENGTH):
            for s in range(LENGTH):
                there = bool(real[row, s])
                assert float(causal[row, 0, t, s]) == (0.0 if there and s <= t else HIDDEN)
                assert float(both[row, 0, 0, s]) == (0.0 if there else HIDDEN)


def test_a_row_that_sees_nothing_is_finite_in_half_precision_and_in_float64():
    real = torch.zeros(1, LENGTH).bool()
    for dtype in (torch.float32, torch.float64):
        block = SRBlock(SIZE, 2, 0.0).to(dtype)
        x = torch.randn(1, LENGTH, SIZE, dtype=dtype)
        assert torch.isfinite(block(x, causal_mask(real))).all()
    block = SRBlock(SIZE, 2, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = block(torch.randn(1, LENGTH, SIZE, requires_grad=True), causal_mask(real))
    hidden.float().sum().backward()
    assert torch.isfinite(hidden).all()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.parametrize(("kind", "width"), [("sr", 32), ("bert", 32)])
def test_the_number_of_weights(kind, width):
    block = (SRBlock if kind == "sr" else BertBlock)(width, 2, 0.1)
    biases_of_attention = 4 * width if kind == "bert" else 0
    assert sum(p.numel() for p in block.parameters()) == (
        12 * width**2 + 9 * width + biases_of_attention
    )


def test_dropout_is_of_training_alone():
    torch.manual_seed(0)
    block, x = SRBlock(SIZE, 2, 0.5), torch.randn(2, LENGTH, SIZE)
    mask = causal_mask(torch.ones(2, LENGTH).bool())
    assert not torch.equal(block(x, mask), block(x, mask))
    block.eval()
    assert torch.equal(block(x, mask), block(x, mask))


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ConfigError, match="do not divide into 3 heads"):
        Attention(4, 3, 0.0, bias=False)


@pytest.mark.parametrize("block", [SRBlock, BertBlock])
def test_the_last_slot_alone_is_the_last_of_all_slots(block: type[nn.Module]) -> None:
    torch.manual_seed(4)
    blocks = nn.ModuleList(block(8, 2, 0.3) for _ in range(3)).eval()
    x = torch.randn(5, 6, 8)
    real = torch.arange(6) >= torch.tensor([0, 2, 3, 5, 6])[:, None]  # the last row is empty
    mask = causal_mask(real)
    found = through_to_last(blocks, x, mask)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, through(blocks, x, mask)[:, -1], atol=1e-6)


def test_one_kernel_and_the_products_written_out_agree() -> None:
    torch.manual_seed(5)
    attention = Attention(8, 2, 0.3, bias=True).eval()
    x = torch.randn(3, 5, 8)
    real = torch.arange(5) >= torch.tensor([0, 2, 5])[:, None]
    mask = causal_mask(real)
    exact = attention.double()(x.double(), mask.double())
    found = attention.float()(x, mask)
    assert torch.isfinite(found).all()  # slots that see nothing as well
    assert torch.allclose(found.double()[real], exact[real], atol=1e-5)
