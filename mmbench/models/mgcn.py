"""MGCN: item views purified by behaviour, and what each user prefers among them.

Yu, Tan, Lu and Bao, ACM MM 2023. https://arxiv.org/abs/2308.03588

    1. purify     y_m = Q (.) gate_m(X_m W_m + b_m),     gate_m(z) = sigmoid(V_m z + c_m)
    2. behaviour  C = mean of S^0 [P; Q] ... S^L [P; Q],  S = D^-1/2 A D^-1/2
    3. views      I_m = G_m^l y_m,  U_m = S_ui I_m,  E_m = [U_m ; I_m]
    4. common     sum over m of w_m (.) E_m,  w = softmax over m of q' tanh(W E_m + b)
    5. separate   s_m = prefer_m(C) (.) (E_m - common),  prefer_m(z) = sigmoid(...)
    6. side = (common + sum over m of s_m) / (M + 1)
    7. final = C + side,  score x_ui = final_u . final_i
    8. loss  BPR + regularization * (|final_u|^2 + |final_i|^2 + |final_j|^2) / 2B
             + contrast_weight * (NCE(side_i, C_i) + NCE(side_u, C_u)),  i of the positives

G_m joins every item to the k nearest by the features that X_m starts from, and stays; S_ui is
the block of S that users receive from items.

Shapes: U users, I items, N = U + I, B batch, M modalities, D = config.embedding_size.
Departures: the penalty of a short last batch divides by its own rows. One modality has no
separate part (s_1 = 0), and side = E_1 / 2; without features this is LightGCN with that penalty.
`integration: ensemble` lets every modality score by itself, as the MGCN that has it alone, with
the behaviour view shared: x_ui = mean over m of (C + E_m / 2)_u . (C + E_m / 2)_i, and `side` in
the contrast becomes E_m / 2, averaged over m.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

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
from mmbench.models.fusion import FeatureTables, QueryAttention, split_columns
from mmbench.models.graph import SparseOperator, normalised_adjacency, normalised_matrix
from mmbench.models.item_graphs import knn_graph


class MGCNConfig(ModelConfig):
    """Settings of MGCN."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    n_item_layers: PositiveInt = 1  # l
    k: PositiveInt = 10  # nearest items of an item
    regularization: NonNegativeFloat = 1e-4
    contrast_weight: NonNegativeFloat = 0.01
    temperature: PositiveFloat = 0.2
    freeze_features: bool = False
    integration: Literal["fusion", "ensemble"] = "fusion"


@register_model(
    "mgcn",
    config=MGCNConfig,
    citation=(
        "Yu, Tan, Lu and Bao. Multi-view graph convolutional network for multimedia "
        "recommendation. ACM Multimedia 2023."
    ),
)
class MGCN(Recommender):
    """LightGCN beside views of items that their own behaviour gates."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: MGCNConfig

    def __init__(self, config: MGCNConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.n_users, size = train.n_users, config.embedding_size
        self.nodes = nn.Parameter(torch.empty(train.n_users + train.n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = normalised_adjacency(train)  # S
        self.given = tuple(features.modality for features in given)
        if not given:
            return
        self.to_users = SparseOperator(normalised_matrix(train))  # S_ui
        self.features = FeatureTables(given, frozen=config.freeze_features)  # X_m
        self.project, self.gate = nn.ModuleDict(), nn.ModuleDict()
        self.item_graphs = nn.ModuleDict()  # G_m
        for features in given:
            name = features.modality
            self.project[name] = nn.Linear(features.matrix.shape[1], size)  # W_m, b_m
            self.gate[name] = nn.Linear(size, size)  # V_m, c_m
            graph = knn_graph(features, config.k, "cosine")
            self.item_graphs[name] = SparseOperator(graph)
        if len(given) > 1 and config.integration == "fusion":
            self.attention = QueryAttention(size)
            self.prefer = nn.ModuleDict({name: nn.Linear(size, size) for name in self.given})

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' [U, D] and items' [I, D] rows of `final`; of an ensemble [., M D]."""
        behaviour, seen = self._propagated()
        views: list[Tensor] = []
        if seen is not None:
            views = self._split(torch.cat([self.to_users(seen), seen]))
        final = self._joined(behaviour, self._sides(behaviour, views))
        return final[: self.n_users], final[self.n_users :]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 8 for B triples, scalars."""
        behaviour, seen = self._propagated()
        # From here on a row needs no other, so those of the batch suffice.
        items = torch.cat([batch.positives, batch.negatives])
        rows = torch.cat([batch.users, items + self.n_users])  # [3 B]
        behaviour = behaviour.index_select(0, rows)
        views: list[Tensor] = []
        if seen is not None:
            views = self._split(self.to_users.rows_beside(seen, batch.users, items))
        sides = self._sides(behaviour, views)
        users, positives, negatives = self._joined(behaviour, sides).chunk(3)
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.regularization:
            penalty = losses.squared(users, positives, negatives)
            terms["regularization"] = self.config.regularization * penalty
        if self.config.contrast_weight and sides:
            own_users, own_items, _ = behaviour.chunk(3)
            contrast = torch.zeros((), device=users.device)
            for side in sides:
                side_users, side_items, _ = side.chunk(3)
                for view, own in ((side_items, own_items), (side_users, own_users)):
                    contrast = contrast + losses.info_nce(view, own, self.config.temperature)
            terms["contrast"] = self.config.contrast_weight * contrast / len(sides)
        return terms

    def _propagated(self) -> tuple[Tensor, Tensor | None]:
        """C [N, D], and the items' E_m of all modalities side by side, [I, M D]."""
        behaviour = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        if not self.given:
            return behaviour, None
        items = self.nodes[self.n_users :]  # Q
        seen = []
        for name in self.given:
            gate = torch.sigmoid(self.gate[name](self.features.projected(name, self.project[name])))
            graph = self.item_graphs[name]
            assert isinstance(graph, SparseOperator)
            seen.append(graph.last_power(items * gate, self.config.n_item_layers))  # I_m
        return behaviour, torch.cat(seen, dim=1)  # one product with S_ui for all modalities

    def _split(self, views: Tensor) -> list[Tensor]:
        """E_m [R, D] of each modality, of those side by side [R, M D]."""
        return list(split_columns(views, len(self.given)))

    def _sides(self, behaviour: Tensor, views: list[Tensor]) -> list[Tensor]:
        """`side` [R, D] of some rows of C and E_m: one that is fused, or one of each modality."""
        if len(views) < 2 or self.config.integration == "ensemble":
            return [view / 2 for view in views]
        common, _ = self.attention(views)
        total = common
        for name, view in zip(self.given, views, strict=True):
            total = total + torch.sigmoid(self.prefer[name](behaviour)) * (view - common)
        return [total / (len(views) + 1)]

    def _joined(self, behaviour: Tensor, sides: list[Tensor]) -> Tensor:
        """`final` [R, D]; of an ensemble the vectors side by side, whose product is the mean."""
        if len(sides) < 2:
            return behaviour + sides[0] if sides else behaviour
        return torch.cat([behaviour + side for side in sides], dim=1) / math.sqrt(len(sides))
