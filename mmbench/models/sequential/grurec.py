"""GRURec: gated recurrent units over the items of a user.

Hidasi, Karatzoglou, Baltrunas and Tikk, "Session-based recommendations with recurrent neural
networks", ICLR 2016. https://arxiv.org/abs/1511.06939

    e(i)   = E_i                                a free vector for each item
    h      = GRURecEncoder(e(s_1) .. e(s_L))    see sequence_encoders.py
    score  x_ui = h_L . e(i)
    loss   binary cross-entropy with one negative for each position, see base.py

Shapes: I items, L = config.max_length, D = config.embedding_size.
Departures: the 2016 model trains on parallel sessions with a ranking loss against the items of
its batch. Here, as in the published comparisons, a user is one sequence, the layers are four,
without biases, and no dense layer follows them.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import ItemTable, SequentialConfig, SequentialRecommender
from mmbench.models.sequential.sequence_encoders import Dropout, GRURecEncoder


class GRURecConfig(SequentialConfig):
    """Settings of GRURec."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 4
    dropout: Dropout = 0.1
    """Of the item vectors; there is none between the layers."""


@register_model(
    "grurec",
    config=GRURecConfig,
    citation="Hidasi et al. Session-based recommendations with recurrent neural networks. "
    "ICLR 2016.",
)
class GRURec(SequentialRecommender):
    """Stacked gated recurrent units over the vectors of the last items."""

    config: GRURecConfig

    def __init__(
        self, config: GRURecConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        self.table = ItemTable(train.n_items, config.embedding_size)
        self.encoder = GRURecEncoder(config.embedding_size, config.n_layers, config.dropout)

    def items(self, items: Tensor) -> Tensor:
        """Rows of E, [N, D]."""
        rows: Tensor = self.table(items)
        return rows

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        hidden: Tensor = self.encoder(inputs, real)
        return hidden
