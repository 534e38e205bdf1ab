"""Losses and penalties that several papers share exactly.

Shapes: B rows of a batch, D vector width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking: mean of -log sigmoid(s+ - s-) over scores [B], a scalar.

    Source: Rendle et al., UAI 2009, arXiv 1205.2618.
    """
    # softplus(-x) and not -log(sigmoid(x)): the latter is infinite for a very negative margin.
    return F.softplus(negative - positive).mean()


def frobenius(*blocks: Tensor) -> Tensor:
    """Sum of the Frobenius norms, *not squared*, over the rows of the last block, a scalar.

    The gradient of each norm has length one whatever the block's size, so weights of this
    penalty (0.1 to 2 are usual) do not compare with those of a squared one.
    """
    # vector_norm has the gradient 0 at 0, where norm / sqrt(sum of squares) has NaN.
    return torch.stack([torch.linalg.vector_norm(block) for block in blocks]).sum() / len(
        blocks[-1]
    )


def squared(*blocks: Tensor) -> Tensor:
    """Half the sum of squares of all blocks over the rows of the last block, a scalar."""
    return torch.stack([block.square().sum() for block in blocks]).sum() / (2 * len(blocks[-1]))


def info_nce(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """In-batch contrast of rows a_r, b_r by cosine, one direction, a scalar.

    mean over r of -log( exp(cos(a_r, b_r) / t) / sum_s exp(cos(a_r, b_s) / t) )

    Source: van den Oord et al. 2018, arXiv 1807.03748. Rows that are equal stay in each other's
    denominator. Never in half precision: bfloat16 has steps of 0.06 near 1 / 0.05.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        unit_a = F.normalize(full_precision(anchors), dim=1, eps=1e-12)
        unit_b = F.normalize(full_precision(others), dim=1, eps=1e-12)
        unit_a = unit_a / temperature
        return (summed_logsumexp(unit_a, unit_b) - (unit_a * unit_b).sum()) / len(unit_a)


def summed_logsumexp(anchors: Tensor, keys: Tensor) -> Tensor:
    """The sum over anchors of log of the sum over keys of exp(a_r . k_s), a scalar.

    The denominators of a contrast with all users or items. Blocks of `_BLOCK_LOGITS` logits are
    all that exists at once. Since the result is one number, its gradient is known but for a
    factor when the blocks pass, so that none of them is computed again.

    Args:
        anchors: [B, D], divided by the temperature by the caller.
        keys: [K, D], K at least 1.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        total: Tensor = _SummedLogSumExp.apply(full_precision(anchors), full_precision(keys))
    return total


_BLOCK_LOGITS = 1 << 20
"""Logits of a contrast with all that exist at once: 4 MiB in float32, which caches hold."""


class _SummedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        anchors, columns = anchors.detach(), keys.detach().T.contiguous()  # [B, D], [D, K]
        total = anchors.new_zeros(())
        of_anchors, of_columns = torch.empty_like(anchors), torch.zeros_like(columns)
        n_rows = max(1, _BLOCK_LOGITS // len(keys))
        memory = anchors.new_empty(min(n_rows, len(anchors)), len(keys))
        for start in range(0, len(anchors), n_rows):
            block = anchors[start : start + n_rows]
            logits = torch.mm(block, columns, out=memory[: len(block)])
            largest = logits.amax(dim=1, keepdim=True)
            shares = logits.sub_(largest).exp_()
            sums = shares.sum(dim=1, keepdim=True)
            total = total + (largest + sums.log()).sum()
            if wanted:  # products with few rows instead of few columns: several times as fast
                of_anchors[start : start + n_rows] = (columns @ shares.T).T / sums
                of_columns.addmm_((block / sums).T, shares)
        ctx.save_for_backward(of_anchors, of_columns)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        of_anchors, of_columns = ctx.saved_tensors
        return gradients[0] * of_anchors, gradients[0] * of_columns.T


def full_precision(dense: Tensor) -> Tensor:
    """Half precision, as autocast hands it over, as float32; anything else as it is."""
    return dense.float() if dense.dtype in (torch.bfloat16, torch.float16) else dense
