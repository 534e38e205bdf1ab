"""GRCN: the graph of interactions, refined by what the features say of each edge.

Wei, Wang, Nie, He and Chua, ACM Multimedia 2020. https://arxiv.org/abs/2111.02036

Per modality m; N_u and N_i are neighbours in the training data, k any node, l its neighbours:

    f = unit rows of leaky(X_m W_m + b_m),  p = unit rows of T_m                      (1)
    n times:  a_ui = softmax over i in N_u of p_u . f_i,
              p_u <- unit length of p_u + sum over i of a_ui f_i                      (2)
    y = [p ; f],  alpha^m_kl = softmax over l of y_k . y_l,
              z^m_k = y_k + sum over l of alpha^m_kl y_l                              (3)
    w_kl = relu( max over m of alpha^m_kl C_lm )                                      (4)
    e^0 = unit rows of E,  e^j_k = sum over l of w_kl e^(j-1)_l,  id = e^0 + ... + e^L  (5)
    score  x_ui = r_u . r_i,  r = [id ; z^1 ; z^2 ; ...]                              (6)
    loss   mean over (u, i, j) of -log sigmoid(x_ui - x_uj) + regularization *
           ( mean of E_u^2 + E_i^2 over pairs (u, i), (u, j) + mean(T_visual^2)
             + sum over modalities of mean(T_m[u]^2) )                                (7)

Everything carries gradient, the weights of the edges too.

Shapes: U users, I items, N = U + I, B batch, M modalities, D = config.embedding_size,
L = config.n_layers, n = config.n_routings; T_m [U, D], E [N, D], C [N, M].
Departures: in the authors' code and the public toolbox the messages of (2) reach items alone, so
that it does nothing; `routing: off` restores that. The mean of T_visual^2 is the toolbox's
addition. `pruning: off` leaves the relu of (4) out, as the authors do on TikTok.
`integration: ensemble` refines a graph for each modality by its own alpha and sums the scores
[id^m ; z^m] of the modalities.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
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
from mmbench.models.edge_graph import EdgeGraph
from mmbench.models.fusion import FeatureTables, preference_penalty, unit_rows


class GRCNConfig(ModelConfig):
    """Settings of GRCN."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    routing: bool = True
    n_routings: PositiveInt = 3  # n
    pruning: bool = True
    regularization: NonNegativeFloat = 1e-3
    integration: Literal["fusion", "ensemble"] = "fusion"


@register_model(
    "grcn",
    config=GRCNConfig,
    citation=(
        "Wei, Wang, Nie, He and Chua. Graph-refined convolutional network for multimedia "
        "recommendation with implicit feedback. ACM Multimedia 2020."
    ),
)
class GRCN(Recommender):
    """Edges weigh as much as the modality that speaks for them most says."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    requires_modality = True
    config: GRCNConfig

    def __init__(self, config: GRCNConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        if not given:
            raise ConfigError(
                "grcn weighs interactions by the features of their items and was given none; name "
                "at least one modality under `features`"
            )
        self.config = config
        self.n_users, n_nodes = train.n_users, train.n_users + train.n_items
        self.to_users = EdgeGraph(train.users, train.items, train.n_users, train.n_items)
        # From the edges above, so that its `order` is over them.
        ends = self.to_users.senders, self.to_users.receivers
        self.to_items = EdgeGraph(*ends, train.n_items, train.n_users)
        self.nodes = nn.Parameter(torch.empty(n_nodes, config.embedding_size))  # E
        self.confidence = nn.Parameter(torch.empty(n_nodes, len(given)))  # C
        nn.init.xavier_normal_(self.nodes)
        nn.init.xavier_normal_(self.confidence)
        self.branches = nn.ModuleDict(
            {g.modality: _Branch(g, train.n_users, config.embedding_size) for g in given}
        )

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The r of users, [U, (M + 1) D], and of items; with `ensemble` 2 M D wide."""
        users, items = self._parts()
        return torch.cat(users, dim=1), torch.cat(items, dim=1)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples and the penalty of E and T, scalars."""
        all_users, all_items = self._parts()
        pairs = torch.cat([batch.positives, batch.negatives])
        users = torch.cat([part.index_select(0, batch.users) for part in all_users], dim=1)
        items = torch.cat([part.index_select(0, pairs) for part in all_items], dim=1)
        positives, negatives = items.chunk(2)
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.regularization:
            terms["regularization"] = self.config.regularization * self._penalty(batch)
        return terms

    def _penalty(self, batch: Batch) -> Tensor:
        """The bracket of (7)."""
        items = torch.cat([batch.positives, batch.negatives]) + self.n_users
        rows = self.nodes.index_select(0, torch.cat([batch.users, items])).square()
        of_users, of_positives, of_negatives = rows.chunk(3)
        total = (2 * of_users + of_positives + of_negatives).mean() / 2  # a user is in two pairs
        total = total + preference_penalty(self.branches, None, batch.users)
        if "visual" in self.branches:
            total = total + self._branch("visual").preferences.square().mean()
        return total

    def _branch(self, modality: str) -> _Branch:
        return self.branches[modality]  # type: ignore[return-value]

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """What stands side by side in r of users, [U, D] each, and of items, [I, D] each."""
        to_users, to_items = self.to_users, self.to_items
        users, items, for_users, for_items = [], [], [], []
        for modality in self.branches:
            branch = self._branch(modality)
            likes, looks = unit_rows(branch.preferences), branch()  # p, f
            for _ in range(self.config.n_routings if self.config.routing else 0):
                shares = to_users.softmax(to_users.dots(likes, looks))
                likes = unit_rows(likes + to_users(shares, looks))
            logits = to_users.dots(likes, looks)  # the same seen from either end
            for_users.append(to_users.softmax(logits))
            for_items.append(to_items.softmax(logits.index_select(0, to_items.order)))
            users.append(likes + to_users(for_users[-1], looks))
            items.append(looks + to_items(for_items[-1], likes))
        # The confidence is the sender's: items' where users receive.
        of_users, of_items = self.confidence[: self.n_users], self.confidence[self.n_users :]
        weights = zip(
            self._refined(to_users, for_users, of_items),
            self._refined(to_items, for_items, of_users),
            strict=True,
        )
        start = unit_rows(self.nodes)
        for weights_to_users, weights_to_items in weights:
            of_user, of_item = start[: self.n_users], start[self.n_users :]
            total_of_users, total_of_items = of_user, of_item
            for _ in range(self.config.n_layers):
                of_user, of_item = (
                    to_users(weights_to_users, of_item),
                    to_items(weights_to_items, of_user),
                )
                total_of_users, total_of_items = total_of_users + of_user, total_of_items + of_item
            users.append(total_of_users)
            items.append(total_of_items)
        return users, items

    def _refined(
        self, edges: EdgeGraph, shares: list[Tensor], confidence: Tensor
    ) -> tuple[Tensor, ...]:
        """The weights w of the edges [E], one set, or with `ensemble` one for each modality."""
        trusted = torch.stack(shares, dim=1) * confidence.index_select(0, edges.senders)  # [E, M]
        if self.config.pruning:  # relu and max commute
            trusted = F.relu(trusted)
        if self.config.integration == "ensemble":
            return tuple(weights.contiguous() for weights in trusted.unbind(dim=1))
        return (trusted.amax(dim=1),)


class _Branch(nn.Module):
    """One modality's table T of users and its view f of items.

    Called, it gives f, [I, D].
    """

    def __init__(self, given: ItemFeatures, n_users: int, size: int) -> None:
        super().__init__()
        self.modality = given.modality
        self.features = FeatureTables([given], frozen=True)  # X, [I, F]
        self.preferences = nn.Parameter(torch.empty(n_users, size))  # T
        nn.init.xavier_normal_(self.preferences)
        self.project = nn.Linear(given.matrix.shape[1], size)  # W, b
        nn.init.xavier_normal_(self.project.weight)

    def forward(self) -> Tensor:
        features = self.features[self.modality]
        return unit_rows(F.leaky_relu(self.project(features), 0.01, inplace=True))
