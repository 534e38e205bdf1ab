"""FREEDOM: a frozen graph of items, and a graph of interactions that is thinned in training.

Zhou and Shen, ACM MM 2023. https://arxiv.org/abs/2211.06924

    1. G     = sum_m w_m G_m,   G_m: 1 / k from each item to its k nearest by X_m at the start
    2. E'    = (1 - rho) |E| of the interactions, drawn once per epoch without replacement with
               probability in proportion to 1 / sqrt(d_u d_i)
       S'    = D'^-1/2 A' D'^-1/2 of E', degrees counted on E' alone
    3. h     = G^n Q
    4. [U ; I'] = mean of T^0 [P; Q] ... T^L [P; Q],   T = S' in training, S for ranking
    5. i_i   = i'_i + h_i,   score  x_ui = u_u . i_i
    6. loss  BPR(x_ui, x_uj) + feature_weight * sum_m BPR(u_u . F_m,i, u_u . F_m,j)
             F_m = X_m W_m,   BPR(s, t) = mean over (u, i, j) of -log sigmoid(s - t)

Shapes: U users, I items, N = U + I, B batch, D = config.embedding_size, L = config.n_layers.
Departures: W_m has no bias, which would cancel in every difference of 6. The visual graph has
`visual_weight`, the others share the rest equally; a single modality has weight 1. Without
features h = 0. With n = 1 adding up graphs or scores is the same, u . (sum_m w_m G_m Q) =
sum_m w_m (u . G_m Q), so there is no option to integrate in another way. Until the first epoch
starts no interaction is dropped.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
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
from mmbench.models.fusion import FeatureTables
from mmbench.models.graph import (
    SparseOperator,
    SymmetricOperator,
    adjacency_of_edges,
    normalised_adjacency,
    weighted_subset,
)
from mmbench.models.item_graphs import knn_graph, mix_graphs, mixing_weights


class FREEDOMConfig(ModelConfig):
    """Settings of FREEDOM."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    n_item_layers: PositiveInt = 1  # n
    k: PositiveInt = 10  # nearest items of an item
    visual_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1  # w_visual
    pruning: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.8  # rho
    feature_weight: NonNegativeFloat = 1e-3
    freeze_features: bool = False


@register_model(
    "freedom",
    config=FREEDOMConfig,
    citation=(
        "Zhou and Shen. A tale of two graphs: freezing and denoising graph structures for "
        "multimodal recommendation. ACM MM 2023."
    ),
)
class FREEDOM(Recommender):
    """LightGCN over a thinned graph, whose items also hear from similar ones."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "batch"
    config: FREEDOMConfig
    edges: Tensor  # users and items, int64 [2, E]
    edge_weights: Tensor  # 1 / sqrt(d_u d_i), [E]
    item_graph: SparseOperator | None  # G
    pruned: SymmetricOperator | None  # S'; None before the first epoch

    def __init__(
        self, config: FREEDOMConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.n_users, self.n_items = train.n_users, train.n_items
        self.nodes = nn.Parameter(torch.empty(self.n_users + self.n_items, config.embedding_size))
        nn.init.xavier_uniform_(self.nodes[: self.n_users])  # P
        nn.init.xavier_uniform_(self.nodes[self.n_users :])  # Q
        self.graph = normalised_adjacency(train)  # S
        self.pruned = None
        self.register_buffer("edges", torch.stack([train.users, train.items]), persistent=False)
        product = train.user_degrees[train.users] * train.item_degrees[train.items]
        self.register_buffer("edge_weights", product.float().rsqrt(), persistent=False)
        self.item_graph = None
        if given:
            graphs = {g.modality: knn_graph(g, config.k, "uniform") for g in given}
            mixed = mix_graphs(graphs, mixing_weights(list(graphs), config.visual_weight))
            self.item_graph = SparseOperator(mixed)
        # With weight 0 the features act through G alone, and nothing would ever move these.
        trained = given if config.feature_weight else []
        self.features = FeatureTables(trained, frozen=config.freeze_features)  # X_m
        self.project = nn.ModuleDict(
            {
                g.modality: nn.Linear(g.matrix.shape[1], config.embedding_size, bias=False)
                for g in trained
            }
        )  # W_m

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors u [U, D] and i [I, D] over the whole graph of interactions."""
        return self._propagated(self.graph)

    def on_epoch_start(self, epoch: int) -> None:
        """Draw the interactions of this epoch."""
        if not self.config.pruning:
            return
        n_edges = len(self.edge_weights)
        # In decimals, as it is written: 1 - 0.8 in binary would keep 199 of 1000 edges, not 200.
        n_kept = int((1 - Decimal(str(self.config.pruning))) * n_edges)
        kept = self.edges[:, weighted_subset(self.edge_weights, n_kept)]
        pruned = adjacency_of_edges(kept[0], kept[1], self.n_users, self.n_items)
        self.pruned = pruned.to(self.nodes.dtype)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples, of the scores and of each modality's view, scalars."""
        graph = self.graph if self.pruned is None else self.pruned
        all_users, all_items = self._propagated(graph)
        users = all_users.index_select(0, batch.users)  # [B, D]
        pairs = torch.cat([batch.positives, batch.negatives])
        terms = {"bpr": _bpr(users, all_items.index_select(0, pairs))}
        distinct, place = pairs, None
        if self.features.modalities and not pairs.is_cuda:
            # Project each item once, however often it is in the batch. On an accelerator the
            # count of distinct items would make the host wait.
            distinct, place = torch.unique(pairs, return_inverse=True)
        for modality in self.features.modalities:
            view = self.project[modality](self.features.rows(modality, distinct))  # F_m
            view = view if place is None else view.index_select(0, place)
            terms[f"bpr_{modality}"] = self.config.feature_weight * _bpr(users, view)
        return terms

    def _propagated(self, graph: SparseOperator) -> tuple[Tensor, Tensor]:
        mean = graph.mean_of_powers(self.nodes, self.config.n_layers)
        users, items = mean[: self.n_users], mean[self.n_users :]
        if self.item_graph is not None:
            own = self.nodes[self.n_users :]  # Q
            items = items + self.item_graph.last_power(own, self.config.n_item_layers)
        return users, items


def _bpr(users: Tensor, items: Tensor) -> Tensor:
    """BPR of users [B, D] with positive items above negative ones, [2 B, D]."""
    positives, negatives = items.chunk(2)
    return losses.bpr((users * positives).sum(1), (users * negatives).sum(1))
