"""Losses and penalties that several papers share exactly.

Shapes: B rows of a batch, D vector width.
"""

from __future__ import annotations

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
        logits = unit_a @ unit_b.T / temperature
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def full_precision(dense: Tensor) -> Tensor:
    """Half precision, as autocast hands it over, as float32; anything else as it is."""
    return dense.float() if dense.dtype in (torch.bfloat16, torch.float16) else dense
