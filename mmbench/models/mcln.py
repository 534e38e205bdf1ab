"""MCLN: what an item's features would say anyway is taken out of its attention to other items.

Li, Guo, Liu, Hong and Xue, SIGIR 2023, pages 1539-1548.
Released code: https://github.com/hfutmars/MCLN

    1. ids        [U; I] = mean of H^0 [P; Q] ... H^L [P; Q],  H = (D + I)^-a (A + I) (D + I)^-b
    2. features   y_m = X_m W_m
    3. block      h_r = [I_r ; y_v,r ; y_t,r ; ...] of the items r of a block,
                  h*_r the same of one counterfactual item for each
    4. n times    T  = softmax over the block's rows of ((h Q)(h K)' - (h* Q*)(h* K*)') / sqrt(W)
                  h' = LN(T (h V) O + h),  h = LN(relu(relu(h' W_1 + b_1) W_2 + b_2) + h')
    5. branch     c_r = relu(h_r Z+)
    6. score      x_ui = U_u . (I_i + sum over m of w_m y_m,i + c_i)
                  w_m = visual_weight of pictures and 1 of others, in ranking only
    7. loss       the sum of BPR(U_u . z_i, U_u . z_j) over the branches z = I, y_m, c
                  + regularization * L2(p_u, q_i, q_j, y_m,i, y_m,j, c_i, c_j),
                  L2 = half the sum of squares of the batch's rows / B

In training the block is the batch: its positives, whose h* are items drawn uniformly among those
that the user does not have; and its negatives, with the same Q, K, V, O and feed-forward layers,
without the counterfactual term, and read out by Z- unless `share_readout`. In ranking all items
are dealt to blocks of `block_size` by a permutation of `permutation_seed`, with h* = h and Z+;
an item's c depends on its block, so the spread over a few permutations belongs to a result.
`block_size: all` makes one block.

Shapes: U users, I items, B batch, M modalities, D = config.embedding_size, W = (M + 1) D.
Departures: users are drawn with their interactions and not each once in a batch; the release
ranks 100 candidates, which are its block. `counterfactuals: negatives` takes the row's negative
as its counterfactual item and draws none. `integration: fusion` trains the one score of equation
6 in place of the branches' BPRs; the vectors are the same.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from mmbench.modality import MODALITIES
from mmbench.models import losses
from mmbench.models.base import (
    Batch,
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.fusion import FeatureTables
from mmbench.models.graph import powered_adjacency

_BLOCK_LOGITS = 1 << 22
"""Logits of the attention that exist at once in ranking."""


class MCLNConfig(ModelConfig):
    """Settings of MCLN."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 5  # L
    n_attention_layers: PositiveInt = 2  # n
    receiver_power: NonNegativeFloat = 0.5  # a
    sender_power: NonNegativeFloat = 0.4  # b
    visual_weight: NonNegativeFloat = 1.0
    regularization: NonNegativeFloat = 1e-2
    counterfactuals: Literal["drawn", "negatives"] = "drawn"
    share_readout: bool = False
    block_size: PositiveInt | Literal["all"] = 2048
    """Items of a block in ranking; the batch size of training fits."""
    permutation_seed: NonNegativeInt = 0
    integration: Literal["fusion", "ensemble"] = "ensemble"


class CounterfactualAttention(nn.Module):
    """One round of equation 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.query, self.key, self.value = (_linear(width, width) for _ in range(3))  # Q, K, V
        self.other_query, self.other_key = (_linear(width, width) for _ in range(2))  # Q*, K*
        self.output = _linear(width, width)  # O
        self.widen = _linear(width, 4 * width, bias=True)  # W_1, b_1
        self.narrow = _linear(4 * width, width, bias=True)  # W_2, b_2
        self.norm_attended, self.norm_fed = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, rows: Tensor, others: Tensor | None) -> Tensor:
        """The new h [R, W] of a block from h and h* [R, W]; None leaves the second term out."""
        queries, keys = self.query(rows), self.key(rows)
        if others is not None:  # one product of twice the width is the difference of two
            queries = torch.cat([queries, self.other_query(others)], dim=1)
            keys = torch.cat([keys, -self.other_key(others)], dim=1)
        attended = self._attend(queries, keys, self.value(rows))
        rows = self.norm_attended(self.output(attended) + rows)
        fed: Tensor = self.norm_fed(F.relu(self.narrow(F.relu(self.widen(rows)))) + rows)
        return fed

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries = queries / self.width**0.5
        if torch.is_grad_enabled():
            return (queries @ keys.T).softmax(dim=1) @ values
        n_rows = max(1, _BLOCK_LOGITS // len(keys))
        parts = [queries[start : start + n_rows] for start in range(0, len(queries), n_rows)]
        return torch.cat([(part @ keys.T).softmax(dim=1) @ values for part in parts])


@register_model(
    "mcln",
    config=MCLNConfig,
    citation=(
        "Li, Guo, Liu, Hong and Xue. Multimodal counterfactual learning network for "
        "multimedia-based recommendation. SIGIR 2023."
    ),
)
class MCLN(Recommender):
    """Scores from ids, from each modality and from an attention among items, added."""

    integration = "ensemble"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: MCLNConfig
    order: Tensor
    _gap_keys: Tensor
    _pointers: Tensor

    def __init__(self, config: MCLNConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.n_users, self.n_items, size = train.n_users, train.n_items, config.embedding_size
        self.nodes = nn.Parameter(torch.empty(self.n_users + self.n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = powered_adjacency(train, config.receiver_power, config.sender_power)  # H
        self.given = tuple(features.modality for features in given)
        self.features = FeatureTables(given, frozen=True)  # X_m
        self.project = nn.ModuleDict(  # W_m
            {f.modality: _linear(f.matrix.shape[1], size) for f in given}
        )
        width = (len(given) + 1) * size  # W
        self.attention = nn.ModuleList(
            CounterfactualAttention(width) for _ in range(config.n_attention_layers)
        )
        self.read = _linear(width, size)  # Z+
        if not config.share_readout:
            self.read_negatives = _linear(width, size)  # Z-
        generator = torch.Generator().manual_seed(config.permutation_seed)
        order = torch.randperm(self.n_items, generator=generator)
        self.register_buffer("order", order, persistent=False)
        # For drawing an item that a user does not have, see `_counterfactuals`.
        users, place = train.users, torch.arange(len(train.users), device=train.users.device)
        gaps = train.items - (place - train.pointers.to(place.device)[users])
        keys = users * (self.n_items + 1) + gaps
        self.register_buffer("_gap_keys", keys, persistent=False)
        self.register_buffer("_pointers", train.pointers, persistent=False)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """U [U, D] and I_i + sum of w_m y_m,i + c_i [I, D] of equation 6."""
        users, ids = self._propagated()
        views = {name: self.project[name](self.features[name]) for name in self.given}
        joined = torch.cat([ids, *views.values()], dim=1)  # [I, W]
        size = self.n_items if self.config.block_size == "all" else self.config.block_size
        blocks = []
        for start in range(0, self.n_items, size):
            rows = joined[self.order[start : start + size]]
            blocks.append(self._attended(rows, rows, self.read))
        causal = torch.zeros_like(ids).index_copy(0, self.order, torch.cat(blocks).to(ids.dtype))
        return users, self._summed([ids, *views.values(), causal])

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 7 for B triples, scalars."""
        all_users, all_ids = self._propagated()
        users = all_users.index_select(0, batch.users)
        others = (
            batch.negatives
            if self.config.counterfactuals == "negatives"
            else self._counterfactuals(batch.users)
        )
        items = torch.cat([batch.positives, batch.negatives, others])  # [3 B]
        ids = all_ids.index_select(0, items)
        views = [self.project[name](self.features.rows(name, items)) for name in self.given]
        own, of_negatives, counterfactual = torch.cat([ids, *views], dim=1).chunk(3)  # [B, W]
        read = self.read if self.config.share_readout else self.read_negatives
        causal = torch.cat(
            [
                self._attended(own, counterfactual, self.read),
                self._attended(of_negatives, None, read),
            ]
        )
        pairs = 2 * len(batch.users)
        branches = [ids[:pairs], *(view[:pairs] for view in views), causal]
        names = ("ids", *self.given, "causal")
        if self.config.integration == "fusion":
            terms = {"bpr": _bpr(users, self._summed(branches))}
        else:
            terms = {
                f"bpr_{name}": _bpr(users, branch)
                for name, branch in zip(names, branches, strict=True)
            }
        if self.config.regularization:
            # Rows of level 0; the last block tells `squared` how many rows a batch has.
            rows = self.nodes.index_select(0, items[:pairs] + self.n_users)
            penalty = losses.squared(rows, *branches[1:], self.nodes.index_select(0, batch.users))
            terms["regularization"] = self.config.regularization * penalty
        return terms

    def _propagated(self) -> tuple[Tensor, Tensor]:
        """U [U, D] and I [I, D] of equation 1."""
        final = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        return final[: self.n_users], final[self.n_users :]

    def _attended(self, rows: Tensor, others: Tensor | None, read: nn.Module) -> Tensor:
        """The branch c of a block, [R, D], from h and h* [R, W]."""
        for layer in self.attention:
            rows = layer(rows, others)
        return F.relu(read(rows))

    def _summed(self, branches: list[Tensor]) -> Tensor:
        """The items' side of equation 6, [R, D]."""
        total = torch.zeros_like(branches[0])
        for name, branch in zip(("ids", *self.given, "causal"), branches, strict=True):
            total = total + branch * (self.config.visual_weight if name == "visual" else 1.0)
        return total

    def _counterfactuals(self, users: Tensor) -> Tensor:
        """One item for each of some users, uniform among those that the user does not have, [B].

        Between the sorted items of a user t_0 < t_1 < ... there are t_k - k items of others below
        t_k. So the r-th of them is r plus the number of k with t_k - k <= r.
        """
        starts = self._pointers[users]
        n_free = self.n_items - (self._pointers[users + 1] - starts)
        rank = (torch.rand(len(users), device=users.device) * n_free).long()
        rank = torch.minimum(rank, (n_free - 1).clamp_min(0))
        keys = users * (self.n_items + 1) + rank
        below = torch.searchsorted(self._gap_keys, keys, right=True) - starts
        # Whoever has every item gets the last one.
        return (rank + below).clamp_max(self.n_items - 1)


def _linear(width_in: int, width_out: int, *, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(width_in, width_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _bpr(users: Tensor, pairs: Tensor) -> Tensor:
    """BPR of users [B, D] with the rows [2 B, D] of positives and negatives."""
    positives, negatives = pairs.chunk(2)
    return losses.bpr((users * positives).sum(1), (users * negatives).sum(1))
