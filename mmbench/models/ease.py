"""EASE^R: embarrassingly shallow autoencoders for sparse data.

Steck, WWW 2019. https://arxiv.org/abs/1905.03375

    G = R^T R + regularization I,  P = G^-1
    B_ij = -P_ij / P_jj for i != j,  B_jj = 0               (eq. 8)
    score  x_u = R_u B

Shapes: U users, I items, B users scored at once.
Departures: none. B is dense by nature: 4 I^2 bytes stored, 24 I^2 bytes while it is computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from mmbench.models.base import (
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)


class EASEConfig(ModelConfig):
    """Settings of EASE^R."""

    regularization: PositiveFloat = 400.0  # lambda


@register_model(
    "ease",
    config=EASEConfig,
    citation="Steck. Embarrassingly shallow autoencoders for sparse data. WWW 2019.",
)
class EASE(Recommender):
    """The linear model of items from items with a zero diagonal that has a closed form."""

    fitting = "closed-form"
    factors = False
    config: EASEConfig
    weights: Tensor  # B, [I, I]

    def __init__(self, config: EASEConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.interactions = train
        self.register_buffer("weights", torch.empty(0))

    def fit(self, generator: torch.Generator) -> None:
        """Invert the regularised Gram matrix in float64."""
        matrix = self.interactions.matrix
        gram = torch.from_numpy((matrix.T @ matrix).toarray())
        gram = gram.to(self.weights.device, torch.float64)
        gram.diagonal().add_(self.config.regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        del gram
        scale = inverse.diagonal().clone()
        weights = inverse.div_(-scale).float()  # column j over -P_jj
        weights.fill_diagonal_(0.0)
        self.weights = weights

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items, float32 [B, I]: sums of the rows of B of each history."""
        items, starts = self.interactions.histories(users)
        device = self.weights.device
        summed: Tensor = F.embedding_bag(
            items.to(device), self.weights, starts.to(device), mode="sum"
        )
        return summed
