"""Blocks of attention that sequence encoders and fusion modules share.

    attention  softmax(Q K' / sqrt(D / H) + M) V by head, M = 0 where visible, else a large
               negative constant
    SR block   x' = LN(x + drop(MHA(x)));  LN(x' + drop(W_2 relu(W_1 x' + b_1) + b_2))
               no biases in the attention; LN with epsilon 1e-6           (SASRec as in MoRec)
    BERT block the same with biases, the exact GELU, LN with epsilon 1e-12      (Devlin et al.)

Shapes: B sequences, L slots, D width, H heads. Masks hold finite constants and stay in float32:
a row that sees nothing must not become NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.models.losses import full_precision
from mmbench.models.sequential.dropout import DropoutLayer, dropout

HIDDEN = -1e9


class Attention(nn.Module):
    """Multi-head attention of queries x over a context y, both [B, L, D]."""

    def __init__(self, size: int, n_heads: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        if size % n_heads:
            raise ConfigError(
                f"model.n_heads: vectors of {size} numbers do not divide into {n_heads} heads; "
                "choose a number of heads that divides the size"
            )
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(size, size, bias=bias)
        self.key = nn.Linear(size, size, bias=bias)
        self.value = nn.Linear(size, size, bias=bias)
        self.output = nn.Linear(size, size, bias=bias)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """The attention's output [B, L_q, D].

        Args:
            x: queries [B, L_q, D].
            mask: additive, float32, [B, 1, L_q, L_k] or what broadcasts to it.
            context: keys and values [B, L_k, D]; the queries themselves unless given.
        """
        context = x if context is None else context
        query, key, value = (
            layer(rows).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for layer, rows in ((self.query, x), (self.key, context), (self.value, context))
        )
        if query.dtype == torch.float32 and not (self.training and self.dropout):
            # One kernel that writes no weights; it has no dropout on a processor.
            heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            logits = full_precision(query @ key.transpose(2, 3)) / math.sqrt(query.shape[3]) + mask
            weights = dropout(logits.softmax(dim=3), self.dropout, self.training)
            heads = weights.to(value.dtype) @ value
        joined: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return joined


class SRBlock(nn.Module):
    """The post-norm block of SASRec as the public multimodal code has it."""

    def __init__(self, size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(size, n_heads, dropout, bias=False)
        self.first_norm = nn.LayerNorm(size, eps=1e-6)
        self.inner = nn.Linear(size, 4 * size)  # W_1, b_1
        self.outer = nn.Linear(4 * size, size)  # W_2, b_2
        self.second_norm = nn.LayerNorm(size, eps=1e-6)
        self.drop = DropoutLayer(dropout)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, L, D] of the same; with a `context` [B, L_k, D] that is what x attends to."""
        x = self.first_norm(x + self.drop(self.attention(x, mask, context)))
        result: Tensor = self.second_norm(x + self.drop(self.outer(F.relu(self.inner(x)))))
        return result


class BertBlock(nn.Module):
    """The post-norm block of BERT."""

    def __init__(self, size: int, n_heads: int, dropout: float, inner: int | None = None) -> None:
        super().__init__()
        self.attention = Attention(size, n_heads, dropout, bias=True)
        self.first_norm = nn.LayerNorm(size, eps=1e-12)
        self.inner = nn.Linear(size, inner or 4 * size)
        self.outer = nn.Linear(inner or 4 * size, size)
        self.second_norm = nn.LayerNorm(size, eps=1e-12)
        self.drop = DropoutLayer(dropout)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, L, D] of the same; with a `context` [B, L_k, D] that is what x attends to."""
        x = self.first_norm(x + self.drop(self.attention(x, mask, context)))
        result: Tensor = self.second_norm(x + self.drop(self.outer(F.gelu(self.inner(x)))))
        return result


def through(blocks: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    """The last of some blocks' outputs, [B, L, D]."""
    for block in blocks:
        x = block(x, mask)
    return x


def through_to_last(blocks: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    """The same at the last slot alone, [B, D]: of the last block no other slot is computed."""
    *earlier, final = blocks
    for block in earlier:
        x = block(x, mask)
    last: Tensor = final(x[:, -1:], mask[:, :, -1:], x)
    return last[:, 0]


def causal_mask(real: Tensor) -> Tensor:
    """Additive mask by which a slot sees real slots up to its own, float32 [B, 1, L, L]."""
    length = real.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    return torch.where(earlier & real[:, None, None, :], 0.0, HIDDEN)


def padding_mask(real: Tensor) -> Tensor:
    """Additive mask by which every slot sees all real slots, float32 [B, 1, 1, L]."""
    return torch.where(real[:, None, None, :], 0.0, HIDDEN)
