"""DualGNN: modalities over the user-item graph, joined as each user weighs them, then over users.

Wang, Wei, Yin, Wu, Song and Nie, IEEE Transactions on Multimedia 2021.
https://doi.org/10.1109/TMM.2021.3138298

    x_m    = unit rows of [T_m ; W_2 leaky(W_1 X_m + b_1) + b_2]                      (1)
    rep_m  = x_m + S x_m + ... + S^L x_m,  S = D^-1/2 A D^-1/2                        (2)
    r_i    = sum over modalities of rep_m[i]                                          (3)
    z_u    = sum over modalities of omega_um rep_m[u]
    z'_u   = z_u + sum over users w of beta_uw z_w                                    (4)
    score  x_ui = z'_u . r_i                                                          (5)
    loss   mean over (u, i, j) of -log2 sigmoid(x_ui - x_uj)
           + regularization * ( sum over modalities of mean(T_m[u]^2) + mean(omega^2) )  (6)

beta_u is the softmax of the numbers of common items over the K users with whom u shares most.

Shapes: U users, I items, B batch, M modalities, D = config.embedding_size, L = config.n_layers,
K = config.user_k; T_m [U, D], omega [U, M]. There is no table of item ids.
Departures: the softmax runs over the neighbours that there are; the public code fills lists
shorter than K with draws from themselves in each epoch, which `pad: resample` restores. The public
toolbox adds the other modalities to the first one's tensor in place, so that its equation 4 sees
their sum in place of rep of the first: `alias_bug` restores that. Of one modality omega is 1.
`integration: ensemble` sums the scores of the modalities, each (omega_um rep_m[u] + its sum over
users) . rep_m[i], in place of the dot product of the sums.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.modality import MODALITIES
from mmbench.models import losses
from mmbench.models.base import (
    Batch,
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.fusion import PreferenceBranch, preference_penalty
from mmbench.models.graph import normalised_adjacency
from mmbench.models.user_graphs import STORED, UserGraph


class DualGNNConfig(ModelConfig):
    """Settings of DualGNN."""

    embedding_size: PositiveInt = 64  # D
    hidden_size: PositiveInt = 256  # rows of W_1
    n_layers: PositiveInt = 2  # L
    user_k: int = Field(40, ge=1, le=STORED)  # K, nearest users of a user
    regularization: NonNegativeFloat = 1e-2
    pad: Literal["none", "resample"] = "none"
    alias_bug: bool = False
    integration: Literal["fusion", "ensemble"] = "fusion"

    @model_validator(mode="after")
    def _alias_needs_fusion(self) -> DualGNNConfig:
        if self.alias_bug and self.integration == "ensemble":
            raise ValueError(
                "alias_bug mixes the modalities that integration: ensemble keeps apart"
            )
        return self


@register_model(
    "dualgnn",
    config=DualGNNConfig,
    citation=(
        "Wang, Wei, Yin, Wu, Song and Nie. DualGNN: dual graph neural network for multimedia "
        "recommendation. IEEE Transactions on Multimedia 2021."
    ),
)
class DualGNN(Recommender):
    """Users weigh the modalities, and then follow the users who chose what they chose."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    requires_modality = True
    config: DualGNNConfig

    def __init__(
        self, config: DualGNNConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        if not given:
            raise ConfigError(
                "dualgnn knows items by their features alone and was given none; name at least "
                "one modality under `features`"
            )
        self.config = config
        self.n_users = train.n_users
        self.graph = normalised_adjacency(train)  # S
        self.user_graph = UserGraph(train, config.user_k, config.pad)  # beta
        self.branches = nn.ModuleDict(
            {
                g.modality: PreferenceBranch(
                    g, train.n_users, config.hidden_size, config.embedding_size
                )
                for g in given
            }
        )
        self.weights: nn.Parameter | None = None  # omega
        if len(given) > 1:
            weights = torch.empty(train.n_users, len(given))
            self.weights = nn.Parameter(nn.init.xavier_normal_(weights).softmax(dim=1))

    def on_epoch_start(self, epoch: int) -> None:
        """With `pad: resample`, fill the short lists of neighbours anew."""
        self.user_graph.draw()

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The z' of users [U, D] and r of items [I, D]; with `ensemble` [., M D]."""
        users, items = self._parts()
        return users + self.user_graph(users), self._joined(items)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples, in bits, and the penalty of T and omega, scalars."""
        all_users, all_items = self._parts()
        users = all_users.index_select(0, batch.users) + self.user_graph(all_users, batch.users)
        pairs = torch.cat([batch.positives, batch.negatives])
        positives, negatives = self._joined(all_items.index_select(0, pairs)).chunk(2)
        bpr = losses.bpr((users * positives).sum(1), (users * negatives).sum(1))
        terms = {"bpr": bpr / math.log(2)}
        if self.config.regularization:
            penalty = preference_penalty(self.branches, self.weights, batch.users)
            terms["regularization"] = self.config.regularization * penalty
        return terms

    def _parts(self) -> tuple[Tensor, Tensor]:
        """The z of users, [U, D] or with `ensemble` [U, M D], and rep of items, [I, M D]."""
        starts = torch.cat([branch() for branch in self.branches.values()], dim=1)  # [N, M D]
        # One product for all modalities: they go over the same graph.
        propagated = self.graph.sum_of_powers(starts, self.config.n_layers)
        users, items = propagated[: self.n_users], propagated[self.n_users :]
        if self.weights is None:
            return users, items
        views = users.reshape(self.n_users, len(self.branches), -1)  # [U, M, D]
        if self.config.alias_bug:
            views = torch.cat([views.sum(dim=1, keepdim=True), views[:, 1:]], dim=1)
        weighted = views * self.weights.unsqueeze(2)
        ensemble = self.config.integration == "ensemble"
        return weighted.flatten(1) if ensemble else weighted.sum(dim=1), items

    def _joined(self, items: Tensor) -> Tensor:
        """The r of some items, [., D] or with `ensemble` [., M D], from their rep [., M D]."""
        if self.config.integration == "ensemble":
            return items
        return items.reshape(len(items), len(self.branches), -1).sum(dim=1)
