"""NextItNet: dilated causal convolutions over the items of a user.

Yuan, Karatzoglou, Arapakis, Jose and He, "A simple convolutional generative network for next item
recommendation", WSDM 2019. https://arxiv.org/abs/1808.05163

    e(i)   = E_i                                   a free vector for each item
    h      = NextItNetEncoder(e(s_1) .. e(s_L))    see sequence_encoders.py
    score  x_ui = h_L . e(i)
    loss   binary cross-entropy with one negative for each position, see base.py

Shapes: I items, L = config.max_length, D = config.embedding_size.
Departures: no linear layer after the blocks and no dropout, and the loss above in place of a
softmax over all items (`loss: softmax` gives that), as in the published comparisons.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import ItemTable, SequentialConfig, SequentialRecommender
from mmbench.models.sequential.sequence_encoders import NextItNetEncoder


class NextItNetConfig(SequentialConfig):
    """Settings of NextItNet."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2
    """Pairs of residual blocks with dilations 1 and 4; two pairs see the last 61 items."""


@register_model(
    "nextitnet",
    config=NextItNetConfig,
    citation="Yuan et al. A simple convolutional generative network for next item "
    "recommendation. WSDM 2019.",
)
class NextItNet(SequentialRecommender):
    """Dilated causal convolutions over the vectors of the last items."""

    config: NextItNetConfig

    def __init__(
        self, config: NextItNetConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        self.table = ItemTable(train.n_items, config.embedding_size)
        self.encoder = NextItNetEncoder(config.embedding_size, config.n_layers)

    def items(self, items: Tensor) -> Tensor:
        """Rows of E, [N, D]."""
        rows: Tensor = self.table(items)
        return rows

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        hidden: Tensor = self.encoder(inputs, real)
        return hidden
