"""BPR-MF: matrix factorisation by Bayesian personalised ranking.

Rendle, Freudenthaler, Gantner and Schmidt-Thieme, UAI 2009. https://arxiv.org/abs/1205.2618

    score  x_ui = p_u . q_i
    loss   mean over (u, i, j) of -log sigmoid(x_ui - x_uj)
           + regularization * (|P_B| + |Q_i| + |Q_j|) / B        (Frobenius norms, not squared)

Shapes: U users, I items, B batch, D = config.embedding_size.
Departures: no biases, and the penalty is the one of the public toolbox, whose numbers are the
published ones for this data; the paper squares the norms.
"""

from __future__ import annotations

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


class BPRMFConfig(ModelConfig):
    """Settings of BPR-MF."""

    embedding_size: PositiveInt = 64  # D
    regularization: NonNegativeFloat = 0.1


@register_model(
    "bpr-mf",
    config=BPRMFConfig,
    citation=(
        "Rendle, Freudenthaler, Gantner and Schmidt-Thieme. BPR: Bayesian personalized ranking "
        "from implicit feedback. UAI 2009."
    ),
)
class BPRMF(Recommender):
    """A vector for each user and item; an item that was chosen outranks one that was not."""

    config: BPRMFConfig

    def __init__(self, config: BPRMFConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.users = nn.Parameter(torch.empty(train.n_users, config.embedding_size))  # P
        self.items = nn.Parameter(torch.empty(train.n_items, config.embedding_size))  # Q
        nn.init.xavier_normal_(self.users)
        nn.init.xavier_normal_(self.items)

    def user_vectors(self) -> Tensor:
        """P, [U, D]."""
        return self.users

    def item_vectors(self) -> Tensor:
        """Q, [I, D]."""
        return self.items

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples and the penalty of their vectors, scalars."""
        users = self.users.index_select(0, batch.users)  # [B, D]
        pairs = self.items.index_select(0, torch.cat([batch.positives, batch.negatives]))
        positives, negatives = pairs.chunk(2)  # [B, D] each
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.regularization:
            penalty = losses.frobenius(users, positives, negatives)
            terms["regularization"] = self.config.regularization * penalty
        return terms
