"""Dropout whose draws cost a processor less than those of the framework.

    y = x * keep / (1 - q),    keep_i = 1 with probability 1 - q, drawn for each number apart

The framework draws a mask on one core, and that is what dropout takes where there is no GPU. Here
64 random bits serve four numbers, so that q is `rate` in steps of 2^-16: 0.1 becomes 0.100006, and
the mean of y stays exactly x. On a GPU the framework's own kernel is called, with `rate` itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16
"""Values of the 16 bits that decide about a number."""


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Numbers of x set to zero with probability `rate`, the others scaled up; else x itself.

    Draws from torch's global generator of the device.
    """
    dropped = round(rate * _LEVELS)
    if not training or not dropped:
        return x
    if x.device.type != "cpu" or dropped == _LEVELS:
        return F.dropout(x, rate, training)
    result: Tensor = _Dropped.apply(x, dropped)
    return result


class _Dropped(torch.autograd.Function):
    """x without the numbers whose 16 bits are among the lowest; keeps a byte for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        bits.random_(torch.iinfo(torch.int64).min, None)
        lanes = bits.view(torch.int16)[: x.numel()].view(x.shape)
        gone, ctx.scale = lanes < dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped)
        ctx.save_for_backward(gone)
        return _thinned(x, gone, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gone,) = ctx.saved_tensors
        return _thinned(gradients[0], gone, ctx.scale), None


def _thinned(x: Tensor, gone: Tensor, scale: float) -> Tensor:
    return (x * scale).masked_fill_(gone, 0.0)


class DropoutLayer(nn.Module):
    """`dropout` as a layer; without parameters. `p` is the rate, as torch calls it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """The rate, as `repr` shows it."""
        return f"{self.p:g}"
