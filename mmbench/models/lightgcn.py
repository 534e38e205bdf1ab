"""LightGCN: vectors of users and items, smoothed over the graph of their interactions.

He, Deng, Wang, Li, Zhang and Wang, SIGIR 2020. https://arxiv.org/abs/2002.02126

    E^0 = [P; Q],  E^l = S E^(l-1),  S = D^-1/2 A D^-1/2          (eq. 3 and 7)
    E   = (E^0 + ... + E^L) / (L + 1)                             (eq. 4)
    score  x_ui = e_u . e_i                                       (eq. 5)
    loss   mean over (u, i, j) of -log sigmoid(x_ui - x_uj)
           + regularization * (|P_B| + |Q_i| + |Q_j|) / B         (rows of E^0)

Shapes: U users, I items, N = U + I, B batch, D = config.embedding_size, L = config.n_layers.
Departures: Xavier uniform instead of a normal with deviation 0.1; the norms of the penalty are
not squared, as in the public toolbox. `penalty: squared` restores the paper's
(|P_B|^2 + |Q_i|^2 + |Q_j|^2) / 2B.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from mmbench.models import losses
from mmbench.models.base import (
    Batch,
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.graph import normalised_adjacency


class LightGCNConfig(ModelConfig):
    """Settings of LightGCN."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 3  # L
    regularization: NonNegativeFloat = 1e-4
    penalty: Literal["frobenius", "squared"] = "frobenius"


@register_model(
    "lightgcn",
    config=LightGCNConfig,
    citation=(
        "He, Deng, Wang, Li, Zhang and Wang. LightGCN: simplifying and powering graph "
        "convolution network for recommendation. SIGIR 2020."
    ),
)
class LightGCN(Recommender):
    """The mean of L steps of averaging over neighbours, without weights or activations."""

    config: LightGCNConfig

    def __init__(
        self, config: LightGCNConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.n_users, n_nodes = train.n_users, train.n_users + train.n_items
        # One table, so that no step has to join users and items: P above Q.
        self.nodes = nn.Parameter(torch.empty(n_nodes, config.embedding_size))  # E^0
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = normalised_adjacency(train)  # S

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' [U, D] and items' [I, D] rows of E, from one propagation."""
        final = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        return final[: self.n_users], final[self.n_users :]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples and the penalty of their rows of E^0, scalars."""
        items = torch.cat([batch.positives, batch.negatives]) + self.n_users
        rows = torch.cat([batch.users, items])  # [3 B]
        final = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        users, positives, negatives = final.index_select(0, rows).chunk(3)
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.regularization:
            measure = losses.frobenius if self.config.penalty == "frobenius" else losses.squared
            penalty = measure(*self.nodes.index_select(0, rows).chunk(3))
            terms["regularization"] = self.config.regularization * penalty
        return terms
