"""How MMSR joins the modalities of an item, arXiv 2403.17372.

Coarse fusion takes one vector for each modality, v_1 .. v_M (x = v_1 the text's, y = v_2 the
picture's); a single layer norm LN, with epsilon 1e-6, serves them all: v^ = LN(v).

    sum       f = sum_m (W_m v^_m + b_m)                                                 (F.1)
    concat    f = W_o [v^_1 ; .. ; v^_M] + b_o                                           (F.2)
    film      [g ; s] = W_f x^ + b_f;   f = W_o (g * y^ + s) + b_o                       (F.3)
    gate      f = W_o (sigmoid(W_x x^ + b_x) * (W_y y^ + b_y)) + b_o                     (F.4)
    +dnn      g_3(g_2(g_1(f))),  g_j(v) = relu(W_j drop(v) + b_j)                        (F.5)

Attention fusion takes the tokens of each modality, X_m with masks w_m.

    merge-attention   U^0 = [X_1 ; .. ; X_M];  U^k = BertBlock_k(U^{k-1});
                      f = the mean of the real tokens of U^n                             (F.6)
    co-attention      each token plus its modality's type vector; then                   (F.7)
                      (a) A = LN(X + drop(MHA(X, Y))), B = LN(Y + drop(MHA(Y, X))), both from
                          the same inputs and with one shared set of weights
                      (b, c) BertBlock_1(A), BertBlock_2(B): self-attention and inner layers
                      (d) f = W_o [mean of A's real tokens ; mean of B's] + b_o

Shapes: N items, T tokens, D width, M modalities.
Coarse maps start Xavier normal, attention's weights from N(0, 0.02); biases at zero. The last
relu of `+dnn` stays, so its item vectors are not negative. Merge-attention knows no positions and,
unless `type_embeddings` is set, no modalities, as the public code.
Departures: film, gate and co-attention are of two modalities, as published; the other ones take
any number. Hidden tokens get -1e9 where the public code has -10,000: both are zero after softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.models.sequential.base import xavier_normal_
from mmbench.models.sequential.dropout import DropoutLayer
from mmbench.models.sequential.item_states import masked_pool
from mmbench.models.sequential.transformer import Attention, BertBlock, padding_mask

Fusion = Literal[
    "sum",
    "concat",
    "film",
    "gate",
    "sum+dnn",
    "concat+dnn",
    "film+dnn",
    "gate+dnn",
    "co-attention",
    "merge-attention",
]


class Sum(nn.Module):
    """F.1, of any number of modalities."""

    def __init__(self, size: int, n_modalities: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.maps = nn.ModuleList(nn.Linear(size, size) for _ in range(n_modalities))  # W_m, b_m
        xavier_normal_(self)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """[N, D] of M vectors [N, D]."""
        mapped = [layer(self.norm(v)) for layer, v in zip(self.maps, vectors, strict=True)]
        total: Tensor = torch.stack(mapped).sum(dim=0)
        return total


class Concat(nn.Module):
    """F.2, of any number of modalities."""

    def __init__(self, size: int, n_modalities: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.output = nn.Linear(n_modalities * size, size)  # W_o, b_o
        xavier_normal_(self)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """[N, D] of M vectors [N, D]."""
        joined: Tensor = self.output(torch.cat([self.norm(v) for v in vectors], dim=1))
        return joined


class FiLM(nn.Module):
    """F.3: the first modality scales and shifts the second."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.film = nn.Linear(size, 2 * size)  # W_f, b_f
        self.output = nn.Linear(size, size)  # W_o, b_o
        xavier_normal_(self)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """[N, D] of two vectors [N, D]."""
        x, y = (self.norm(v) for v in vectors)
        scale, shift = self.film(x).chunk(2, dim=1)
        joined: Tensor = self.output(scale * y + shift)
        return joined


class Gate(nn.Module):
    """F.4: the first modality opens and closes the columns of the second."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.gate = nn.Linear(size, size)  # W_x, b_x
        self.value = nn.Linear(size, size)  # W_y, b_y
        self.output = nn.Linear(size, size)  # W_o, b_o
        xavier_normal_(self)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """[N, D] of two vectors [N, D]."""
        x, y = (self.norm(v) for v in vectors)
        joined: Tensor = self.output(torch.sigmoid(self.gate(x)) * self.value(y))
        return joined


class WithDNN(nn.Module):
    """F.5: three layers behind a coarse fusion, a relu after each, the last one too."""

    def __init__(self, coarse: nn.Module, size: int, dropout: float) -> None:
        super().__init__()
        self.coarse = coarse
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(3))  # W_j, b_j
        self.drop = DropoutLayer(dropout)
        xavier_normal_(self.layers)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """[N, D] of M vectors [N, D]."""
        joined: Tensor = self.coarse(vectors)
        for layer in self.layers:
            joined = F.relu(layer(self.drop(joined)))
        return joined


class AttentionFusion(nn.Module):
    """A fusion that reads tokens, not pooled vectors."""

    def forward(self, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Item vectors [N, D].

        Args:
            states: of the tokens of each modality, [N, T_m, D] each.
            masks: which tokens are real, bool [N, T_m] each.
        """
        raise NotImplementedError


class MergeAttention(AttentionFusion):
    """F.6: BERT blocks over the tokens of all modalities together."""

    def __init__(
        self,
        size: int,
        n_modalities: int,
        n_blocks: int,
        n_heads: int,
        dropout: float,
        *,
        type_embeddings: bool,
    ) -> None:
        super().__init__()
        self.types = nn.Embedding(n_modalities, size) if type_embeddings else None
        self.blocks = nn.ModuleList(BertBlock(size, n_heads, dropout) for _ in range(n_blocks))
        _bert_normal_(self)

    def forward(self, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Item vectors [N, D]."""
        if self.types is not None:
            states = [x + self.types.weight[m] for m, x in enumerate(states)]
        merged, real = torch.cat(list(states), dim=1), torch.cat(list(masks), dim=1)
        hidden = padding_mask(real)
        for block in self.blocks:
            merged = block(merged, hidden)
        return masked_pool(merged, real)


class CoAttention(AttentionFusion):
    """F.7: each of two modalities looks at the other, then at itself."""

    def __init__(self, size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.types = nn.Embedding(2, size)
        self.cross = Attention(size, n_heads, dropout, bias=True)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.drop = DropoutLayer(dropout)
        self.blocks = nn.ModuleList(BertBlock(size, n_heads, dropout) for _ in range(2))
        self.output = nn.Linear(2 * size, size)  # W_o, b_o
        _bert_normal_(self)

    def forward(self, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Item vectors [N, D]."""
        x, y = (state + self.types.weight[m] for m, state in enumerate(states))
        hidden = [padding_mask(mask) for mask in masks]
        looked = (self._look(x, y, hidden[1]), self._look(y, x, hidden[0]))
        pooled = [
            masked_pool(block(tokens, unseen), mask)
            for block, tokens, unseen, mask in zip(self.blocks, looked, hidden, masks, strict=True)
        ]
        joined: Tensor = self.output(torch.cat(pooled, dim=1))
        return joined

    def _look(self, x: Tensor, context: Tensor, hidden: Tensor) -> Tensor:
        looked: Tensor = self.norm(x + self.drop(self.cross(x, hidden, context)))
        return looked


def make_fusion(
    name: Fusion,
    size: int,
    modalities: Sequence[str],
    *,
    n_blocks: int = 1,
    n_heads: int = 1,
    coarse_dropout: float = 0.1,
    attention_dropout: float = 0.1,
    type_embeddings: bool = False,
) -> nn.Module:
    """The fusion of some modalities: an `AttentionFusion`, or one of pooled vectors.

    Args:
        size: D.
        modalities: two or more, in the order of their vectors.
        n_blocks: of merge-attention; co-attention has one layer.
        n_heads: of attention fusion.
        coarse_dropout: of `+dnn`.

    Raises:
        ConfigError: the fusion is of two modalities, and there are more.
    """
    n_modalities = len(modalities)
    coarse = name.removesuffix("+dnn")
    if n_modalities != 2 and coarse in ("film", "gate", "co-attention"):
        raise ConfigError(
            f"fusion {name} is of two modalities, but {n_modalities} are given "
            f"({', '.join(modalities)}); leave one out or choose sum, concat or merge-attention"
        )
    if name == "merge-attention":
        return MergeAttention(
            size,
            n_modalities,
            n_blocks,
            n_heads,
            attention_dropout,
            type_embeddings=type_embeddings,
        )
    if name == "co-attention":
        return CoAttention(size, n_heads, attention_dropout)
    module: nn.Module
    if coarse == "sum":
        module = Sum(size, n_modalities)
    elif coarse == "concat":
        module = Concat(size, n_modalities)
    else:
        module = FiLM(size) if coarse == "film" else Gate(size)
    return WithDNN(module, size, coarse_dropout) if name.endswith("+dnn") else module


def _bert_normal_(module: nn.Module) -> None:
    """Weights from N(0, 0.02) and zero biases, as BERT begins."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
