"""DRAGON: dyadic relations and, with them, graphs of users and of items alone.

Zhou, Zhou, Zhang and Shen, ECAI 2023. https://arxiv.org/abs/2301.12097

    x_m    = unit rows of [T_m ; W_2 leaky(W_1 X_m + b_1) + b_2]                      (1)
    rep_m  = x_m + S x_m + ... + S^L x_m,  S = D^-1/2 A D^-1/2                        (2)
    r_i    = [rep_1[i] ; rep_2[i] ; ...],   r'  = r + G^n r                           (3)
    z_u    = [omega_u1 rep_1[u] ; omega_u2 rep_2[u] ; ...]
    z'_u   = z_u + sum over users w of beta_uw z_w                                    (4)
    score  x_ui = z'_u . r'_i                                                         (5)
    loss   mean over (u, i, j) of -log2 sigmoid(x_ui - x_uj)
           + regularization * ( sum over modalities of mean(T_m[u]^2) + mean(omega^2) )  (6)

G = sum over modalities of w_m G_m, where G_m gives 1/k to each of the k items whose X_m is nearest
by cosine at the start, the item itself included. beta_u is the softmax of the numbers of common
items over the K users with whom u shares most.

Shapes: U users, I items, B batch, M modalities, D = config.embedding_size, L = config.n_layers,
n = config.n_item_layers, k = config.k, K = config.user_k; T_m [U, D], omega [U, M]; z and r
are M D wide. There is no table of item ids.
Departures: the softmax runs over the neighbours that there are; the public code fills lists
shorter than K with draws from themselves in each epoch, which `pad: resample` restores. With
`n_user_layers` above 1 the sum of (4) is taken of the sums again. Of one modality omega is 1.
`integration: ensemble` lets each modality's part of r go over its own graph G_m in place of the
mixture, so that the score is the sum of M scores that share nothing but the users' weights.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
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
from mmbench.models.graph import SparseOperator, normalised_adjacency
from mmbench.models.item_graphs import knn_graph, mix_graphs, mixing_weights
from mmbench.models.user_graphs import STORED, UserGraph


class DRAGONConfig(ModelConfig):
    """Settings of DRAGON."""

    embedding_size: PositiveInt = 64  # D
    hidden_size: PositiveInt = 256  # rows of W_1
    n_layers: PositiveInt = 2  # L
    k: PositiveInt = 10  # nearest items of an item
    visual_weight: float = Field(0.1, ge=0.0, le=1.0)  # w of the image, the others share the rest
    n_item_layers: PositiveInt = 1  # n
    user_k: int = Field(40, ge=1, le=STORED)  # K, nearest users of a user
    n_user_layers: PositiveInt = 1
    regularization: NonNegativeFloat = 1e-3
    pad: Literal["none", "resample"] = "none"
    integration: Literal["fusion", "ensemble"] = "fusion"


@register_model(
    "dragon",
    config=DRAGONConfig,
    citation=(
        "Zhou, Zhou, Zhang and Shen. Enhancing dyadic relations with homogeneous graphs for "
        "multimodal recommendation. ECAI 2023."
    ),
)
class DRAGON(Recommender):
    """Modalities side by side, over users and items, then over items alone and users alone."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    requires_modality = True
    config: DRAGONConfig

    def __init__(
        self, config: DRAGONConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        if not given:
            raise ConfigError(
                "dragon knows items by their features alone and was given none; name at least "
                "one modality under `features`"
            )
        self.config = config
        self.n_users = train.n_users
        self.graph = normalised_adjacency(train)  # S
        self.user_graph = UserGraph(train, config.user_k, config.pad)  # beta
        graphs = {g.modality: knn_graph(g, config.k, "uniform") for g in given}
        if config.integration == "fusion":
            shares = mixing_weights(list(graphs), config.visual_weight)
            graphs = {"all": mix_graphs(graphs, shares)}
        self.item_graphs = nn.ModuleList(map(SparseOperator, graphs.values()))  # G
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
        """The z' of users, [U, M D], and r' of items, [I, M D]."""
        users, items = self._parts()
        return self._followed(users, None), items

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples, in bits, and the penalty of T and omega, scalars."""
        all_users, all_items = self._parts()
        users = self._followed(all_users, batch.users)
        pairs = torch.cat([batch.positives, batch.negatives])
        positives, negatives = all_items.index_select(0, pairs).chunk(2)
        bpr = losses.bpr((users * positives).sum(1), (users * negatives).sum(1))
        terms = {"bpr": bpr / math.log(2)}
        if self.config.regularization:
            penalty = preference_penalty(self.branches, self.weights, batch.users)
            terms["regularization"] = self.config.regularization * penalty
        return terms

    def _parts(self) -> tuple[Tensor, Tensor]:
        """The z of users, [U, M D], and r' of items, [I, M D]."""
        starts = torch.cat([branch() for branch in self.branches.values()], dim=1)  # [N, M D]
        # One product for all modalities: they go over the same graph.
        propagated = self.graph.sum_of_powers(starts, self.config.n_layers)
        users, items = propagated[: self.n_users], propagated[self.n_users :]
        if self.weights is not None:
            views = users.reshape(self.n_users, len(self.branches), -1)  # [U, M, D]
            users = (views * self.weights.unsqueeze(2)).flatten(1)
        weights = (1.0, *(0.0,) * (self.config.n_item_layers - 1), 1.0)  # of r, G r, ..., G^n r
        parts = items.chunk(len(self.item_graphs), dim=1)
        items = torch.cat(
            [
                graph.powers(part.contiguous(), weights)  # type: ignore[operator]
                for graph, part in zip(self.item_graphs, parts, strict=True)
            ],
            dim=1,
        )
        return users, items

    def _followed(self, users: Tensor, rows: Tensor | None) -> Tensor:
        """The z' of some users or all, [., M D], from z of all, [U, M D]."""
        summed = users
        for _ in range(self.config.n_user_layers - 1):
            summed = self.user_graph(summed)
        own = users if rows is None else users.index_select(0, rows)
        following: Tensor = self.user_graph(summed, rows)
        return own + following
