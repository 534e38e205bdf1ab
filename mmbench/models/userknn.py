"""UserKNN: a user is shown what the most similar users chose.

Herlocker, Konstan, Borchers and Riedl, SIGIR 1999; settings and similarities as in Ferrari
Dacrema, Cremonesi and Jannach, RecSys 2019. https://arxiv.org/abs/1907.06902

    s(x, y) = x . y / (|x| |y| + shrinkage)             rows of R, optionally weighted
    score   x_uj = sum over w in the k nearest users of u of s(u, w) R_wj

Shapes: U users, I items, B users scored at once.
Departures: `neighbourhood: reverse` sums over the users who have u among *their* k nearest, as
the public framework does; the textbook's own neighbours are the default.
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


class UserKNNConfig(NeighbourConfig):
    """Settings of UserKNN."""

    neighbourhood: Literal["own", "reverse"] = "own"


@register_model(
    "userknn",
    config=UserKNNConfig,
    citation=(
        "Herlocker, Konstan, Borchers and Riedl. An algorithmic framework for performing "
        "collaborative filtering. SIGIR 1999."
    ),
)
class UserKNN(Recommender):
    """The choices of the nearest users, weighted by their similarity."""

    fitting = "closed-form"
    factors = False
    config: UserKNNConfig

    def __init__(
        self, config: UserKNNConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.choices = weigh(train.matrix, config.weighting)  # R, documents are users
        self.similarities = SparseTable(train.n_users, train.n_users)  # s, [U, U]

    def fit(self, generator: torch.Generator) -> None:
        """Find the nearest users of every user."""
        similarities = nearest(self.choices, self.config, generator)
        if self.config.neighbourhood == "reverse":
            similarities = sp.csr_array(similarities.T)
        self.similarities.store(similarities)

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items, float32 [B, I]."""
        return product_rows(self.similarities.matrix(), users, self.choices)
