"""BERT4Rec: masked items, found from both sides.

Sun, Liu, Wu, Pei, Lin, Ou and Jiang, "BERT4Rec: sequential recommendation with bidirectional
encoder representations from transformer", CIKM 2019. https://arxiv.org/abs/1904.06690

    corruption  each real slot of s_1 .. s_{L+1} becomes MASK with probability rho; the last
                one if none did; with probability 1/11 the last one alone             (1)
    encoder     X^0 = drop(LN(E_s + P));  X^k = BERTblock_k(X^{k-1}), every real slot
                and MASK seen from every slot                                         (2)
    head        o_t = LN(gelu(W_p X^n_t + b_p));  logit(t, i) = o_t . E_i + b_i       (3)
    loss        at the masked slots alone, of the item that was there                 (4)
    score       s_1 .. s_L, then MASK:  x_ui = logit(L + 1, i)                        (5)

Shapes: I items, L = config.max_length, D = config.embedding_size; E [I, D] and one row for MASK,
P [L + 1, D] by absolute slot, n = config.n_layers.
Departures: the loss is binary cross-entropy with one negative for each masked slot, as every
model here; the authors' is `loss: softmax`. The corruption is drawn anew at each step, where the
authors write ten copies and one more, which is where 1/11 comes from. Weights start normal, not
normal cut off at two deviations. MASK is neither a candidate nor a negative.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import (
    SequenceBatch,
    SequentialConfig,
    SequentialRecommender,
    bert_normal_,
)
from mmbench.models.sequential.dropout import DropoutLayer
from mmbench.models.sequential.sequence_encoders import Dropout
from mmbench.models.sequential.transformer import BertBlock, padding_mask


class BERT4RecConfig(SequentialConfig):
    """Settings of BERT4Rec."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # n
    n_heads: PositiveInt = 2
    dropout: Dropout = 0.1
    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    """rho, the share of a sequence's items that are hidden."""
    last_only: Annotated[float, Field(ge=0, le=1)] = 1 / 11
    """The share of sequences of which the last item alone is hidden, as at evaluation."""
    head: bool = True
    """Whether (3) has its layer and biases b; without them the logit is X^n_t . E_i."""


@register_model(
    "bert4rec",
    config=BERT4RecConfig,
    citation="Sun et al. BERT4Rec: sequential recommendation with bidirectional encoder "
    "representations from transformer. CIKM 2019.",
)
class BERT4Rec(SequentialRecommender):
    """A bidirectional transformer that fills in masked items."""

    config: BERT4RecConfig

    def __init__(
        self, config: BERT4RecConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        size = config.embedding_size
        self.table = nn.Embedding(train.n_items + 1, size)  # E, and MASK in the last row
        self.positions = nn.Embedding(config.max_length + 1, size)  # P
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.drop = DropoutLayer(config.dropout)
        self.blocks = nn.ModuleList(
            BertBlock(size, config.n_heads, config.dropout) for _ in range(config.n_layers)
        )
        if config.head:
            self.head = nn.Linear(size, size)  # W_p, b_p
            self.head_norm = nn.LayerNorm(size, eps=1e-12)
            self.bias = nn.Parameter(torch.zeros(train.n_items))  # b
        bert_normal_(self)

    def items(self, items: Tensor) -> Tensor:
        """Rows of E, and with a head b_i behind them, [N, D] or [N, D + 1]."""
        rows = self.table.weight.index_select(0, items)
        if not self.config.head:
            return rows
        return torch.cat([rows, self.bias.index_select(0, items)[:, None]], dim=1)

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """What `items` is multiplied with at each slot, [B, S, D] or [B, S, D + 1].

        Args:
            inputs: rows of E or MASK [B, S, D]; what stands at padding does not matter.
            real: which slots hold an item or MASK, bool [B, S].
        """
        # Slots are counted from the newest, so a shorter array has the same positions.
        positions = self.positions.weight[-inputs.shape[1] :]
        x: Tensor = self.drop(self.norm(inputs + positions))
        mask = padding_mask(real)
        for block in self.blocks:
            x = block(x, mask)
        if not self.config.head:
            return x
        x = self.head_norm(F.gelu(self.head(x)))
        return F.pad(x, (0, 1), value=1.0)  # the one meets b_i

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        """The loss at the masked slots of a `SequenceBatch`, a scalar."""
        sequences = batch.sequences
        masked = self._corruption(sequences != self.padding)
        vectors = self._at_slots(sequences)
        inputs = vectors[:, :, : self.config.embedding_size]
        inputs = torch.where(masked[:, :, None], self._mask(), inputs)
        hidden = self.encode(inputs, sequences != self.padding)
        negatives = self._at_slots(batch.negatives) if self.config.loss == "bce" else None
        # Each slot is a target of its own: one slot of padding before them makes them so.
        shifted = SequenceBatch(
            batch.users,
            F.pad(sequences, (1, 0), value=self.padding),
            F.pad(batch.negatives, (1, 0), value=self.padding),
        )
        loss = self.next_item_loss(hidden, shifted, vectors, negatives, masked)
        return {self.config.loss: loss}

    def represent(self, catalogue: Tensor, sequences: Tensor) -> Tensor:
        """User vectors for what follows a sequence of int64 [B, L]: those of a MASK behind it."""
        rows, real = self.from_catalogue(catalogue, sequences)
        rows = rows[:, :, : self.config.embedding_size]
        inputs = torch.cat([rows, self._mask().expand(len(rows), 1, -1)], dim=1)
        return self.encode(inputs, F.pad(real, (0, 1), value=True))[:, -1]

    def _mask(self) -> Tensor:
        """The vector of MASK, [D]."""
        return self.table.weight[self.n_items]

    def _corruption(self, real: Tensor) -> Tensor:
        """Which slots are hidden, equation (1), bool [B, L + 1]."""
        draws = torch.rand(real.shape, device=real.device)
        masked = (draws < self.config.mask_ratio) & real
        last = torch.zeros_like(real)
        last[:, -1] = True
        alone = torch.rand(len(real), 1, device=real.device) < self.config.last_only
        return torch.where(alone | ~masked.any(dim=1, keepdim=True), last & real, masked)
