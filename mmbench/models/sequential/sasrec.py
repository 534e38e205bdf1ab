"""SASRec: self-attentive sequential recommendation.

Kang and McAuley, ICDM 2018. https://arxiv.org/abs/1808.09781

    e(i)   = E_i                                a free vector for each item
    h      = SASRecEncoder(e(s_1) .. e(s_L))    see sequence_encoders.py
    score  x_ui = h_L . e(i)
    loss   binary cross-entropy with one negative for each position, see base.py

Shapes: I items, L = config.max_length, D = config.embedding_size.
Departures: the encoder is the one of the public multimodal code (post-norm, absolute slots, no
scaling by sqrt(D), no last norm), which the published comparisons use, not the one of 2018.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import ItemTable, SequentialConfig, SequentialRecommender
from mmbench.models.sequential.sequence_encoders import Dropout, SASRecEncoder


class SASRecConfig(SequentialConfig):
    """Settings of SASRec."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2
    n_heads: PositiveInt = 2
    dropout: Dropout = 0.1


@register_model(
    "sasrec",
    config=SASRecConfig,
    citation="Kang and McAuley. Self-attentive sequential recommendation. ICDM 2018.",
)
class SASRec(SequentialRecommender):
    """Self-attention over the vectors of the last items."""

    config: SASRecConfig

    def __init__(
        self, config: SASRecConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        self.table = ItemTable(train.n_items, config.embedding_size)
        self.encoder = SASRecEncoder(
            config.embedding_size,
            config.max_length,
            config.n_layers,
            config.n_heads,
            config.dropout,
        )

    def items(self, items: Tensor) -> Tensor:
        """Rows of E, [N, D]."""
        rows: Tensor = self.table(items)
        return rows

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        hidden: Tensor = self.encoder(inputs, real)
        return hidden

    def encode_last(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The user vector after the last slot, [B, D]."""
        return self.encoder.last(inputs, real)
