"""Popularity: every user is shown the items with the most training interactions.

    score  x_ui = d_i, the training interactions of item i

Shapes: U users, I items.
Source: the folklore baseline of every comparison; see Cremonesi, Koren and Turrin, RecSys 2010.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmbench.models.base import (
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)


class PopularityConfig(ModelConfig):
    """Popularity has no settings."""


@register_model(
    "popularity",
    config=PopularityConfig,
    citation=(
        "Cremonesi, Koren and Turrin. Performance of recommender algorithms on top-n "
        "recommendation tasks. RecSys 2010."
    ),
)
class Popularity(Recommender):
    """The same list for everyone: items by their number of training interactions."""

    fitting = "closed-form"
    counts: Tensor  # d, [I]

    def __init__(
        self, config: PopularityConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.interactions = train
        self.register_buffer("counts", torch.zeros(train.n_items))

    def fit(self, generator: torch.Generator) -> None:
        """Count the interactions of each item."""
        self.counts.copy_(self.interactions.item_degrees)

    def user_vectors(self) -> Tensor:
        """One for every user, [U, 1]."""
        return self.counts.new_ones(self.interactions.n_users, 1)

    def item_vectors(self) -> Tensor:
        """The counts, [I, 1]."""
        return self.counts[:, None]
