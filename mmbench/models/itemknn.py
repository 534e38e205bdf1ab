"""ItemKNN: a user is shown items similar to those chosen before.

Sarwar, Karypis, Konstan and Riedl, WWW 2001; settings and similarities as in Ferrari Dacrema,
Cremonesi and Jannach, RecSys 2019. https://arxiv.org/abs/1907.06902

    s(x, y) = x . y / (|x| |y| + shrinkage)             columns of R, optionally weighted
    score   x_uj = sum over i in N_u of R_ui s(j, i) [i is among the k nearest items of j]

Shapes: U users, I items, B users scored at once.
Departures: none of substance; scores are not divided by the sum of similarities.
`neighbourhood: history` keeps the k nearest of the item in the history instead: the term
counts where j is among the k nearest items of i.
"""

from __future__ import annotations

from typing import Literal

import scipy.sparse as sp
import torch
from torch import Tensor

from mmbench.models.base import Interactions, ItemFeatures, Recommender, register_model
from mmbench.models.neighbours import (
    NeighbourConfig,
    SparseTable,
    nearest,
    product_rows,
    weigh,
)


class ItemKNNConfig(NeighbourConfig):
    """Settings of ItemKNN."""

    neighbourhood: Literal["target", "history"] = "target"


@register_model(
    "itemknn",
    config=ItemKNNConfig,
    citation=(
        "Sarwar, Karypis, Konstan and Riedl. Item-based collaborative filtering recommendation "
        "algorithms. WWW 2001."
    ),
)
class ItemKNN(Recommender):
    """The nearest items of a user's history, by who chose them."""

    fitting = "closed-form"
    factors = False
    config: ItemKNNConfig

    def __init__(
        self, config: ItemKNNConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        documents = weigh(sp.csr_array(train.matrix.T), config.weighting)  # items are documents
        self.choices = sp.csr_array(documents.T)  # R, [U, I]
        self.similarities = SparseTable(train.n_items, train.n_items)  # history by target

    def fit(self, generator: torch.Generator) -> None:
        """Find the nearest items of every item."""
        similarities = nearest(sp.csr_array(self.choices.T), self.config, generator)
        if self.config.neighbourhood == "target":
            similarities = sp.csr_array(similarities.T)
        self.similarities.store(similarities)

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items, float32 [B, I]."""
        return product_rows(self.choices, users, self.similarities.matrix())
