"""LATTICE: graphs of items, learned from their features, beside the graph of interactions.

Zhang, Zhu, Liu, Wu, Wang and Wang, ACM MM 2021. https://arxiv.org/abs/2104.09036

    1. alpha = softmax(a)                              a weight for each modality m
    2. Y_m   = X_m W_m + b_m                           learned view of the features
    3. L_m   = cos(Y_m, Y_m), the k largest of each row kept, the item itself among them
    4. L     = D^-1/2 (sum_m alpha_m L_m) D^-1/2       D: sums of the rows
    5. G     = (1 - lambda) L + lambda sum_m alpha_m G_m,    G_m: 3. and 4. of X_m at the start
    6. h     = G^n Q
    7. [U ; I'] = mean of T^0 [P; Q] ... T^L [P; Q],   T = (D + I)^-1 (A + I)
    8. i_i   = i'_i + h_i / |h_i|,   score  x_ui = u_u . i_i
    9. loss  mean over (u, i, j) of -log sigmoid(x_ui - x_uj)
             + regularization * (|u|^2 + |i_i|^2 + |i_j|^2) / 2B

G is built anew, with gradient, for the first batch of an epoch; the others of the epoch take it
as a constant, so that a, W_m and X_m move once per epoch. `rebuild: batch` builds it in every
batch. Ranking builds its own from the weights of that moment.

Where encoders make the X_m and learn, h depends on them through G alone, so that a gradient per
epoch would teach them next to nothing: who is near whom in 3. is then chosen when the engine
computes the X_m anew and at the start of an epoch, and the weights of these edges are computed
with gradient in every batch. G_m stays what it was at the start, as 5. has it, also where rows of
features learn: with lambda of 0.9 nearly all of h, it would otherwise change under Q with each
new table.

Shapes: I items, N users and items, B batch, D = config.embedding_size, M modalities, k neighbours.
Departures: G is stored as the 2 k M entries that a row can have, never as I x I. 4. normalises
the mixture, as both public codes do, not each L_m. The penalty is over the rows of the batch, a
short last one too. Gradients are cleared between batches: a momentum that moves W_m on through
the batches without gradient, as older torch did, is not imitated. Without features only 7
remains. `integration: ensemble` gives each modality a graph G_m' = (1 - lambda) D^-1/2 L_m D^-1/2
+ lambda G_m and a score u . (i' + h_m / |h_m|) of its own, and adds the scores by alpha, which
then learns in every batch. `backbone: mf` leaves 7 out: U = P, I' = Q.
"""

from __future__ import annotations

from typing import Annotated, Literal

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
from mmbench.models.fusion import FeatureTables, unit_rows
from mmbench.models.graph import mean_adjacency
from mmbench.models.item_graphs import (
    LearnedGraphs,
    NeighbourGraph,
    joined_graph,
    raw_graph,
    table_similarities,
)


class LATTICEConfig(ModelConfig):
    """Settings of LATTICE."""

    embedding_size: PositiveInt = 64  # D
    feature_size: PositiveInt = 64  # columns of Y_m
    n_layers: PositiveInt = 2  # L
    n_item_layers: PositiveInt = 1  # n
    k: PositiveInt = 10
    raw_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9  # lambda
    regularization: NonNegativeFloat = 1e-4
    integration: Literal["fusion", "ensemble"] = "fusion"
    backbone: Literal["lightgcn", "mf"] = "lightgcn"
    rebuild: Literal["epoch", "batch"] = "epoch"
    freeze_features: bool = False


@register_model(
    "lattice",
    config=LATTICEConfig,
    citation=(
        "Zhang, Zhu, Liu, Wu, Wang and Wang. Mining latent structures for multimedia "
        "recommendation. ACM MM 2021."
    ),
)
class LATTICE(Recommender):
    """LightGCN whose items also hear from items with similar features."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: LATTICEConfig

    def __init__(
        self, config: LATTICEConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.n_users, n_nodes = train.n_users, train.n_users + train.n_items
        self.nodes = nn.Parameter(torch.empty(n_nodes, config.embedding_size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = mean_adjacency(train, self_loops=True)  # T
        self.features = FeatureTables(given, frozen=config.freeze_features)  # X_m
        self.project = nn.ModuleDict(
            {g.modality: nn.Linear(g.matrix.shape[1], config.feature_size) for g in given}
        )  # W_m, b_m
        if len(given) > 1:  # one modality has the weight 1
            self.modal_logits = nn.Parameter(torch.full((len(given),), 0.5))  # a
        self.item_graphs = LearnedGraphs([raw_graph(g, config.k) for g in given])
        self._chosen: dict[str, Tensor] = {}  # neighbours of Y_m where encoders learn, [I, k]
        if len(self.features.encoders) and config.raw_weight == 1:
            raise ConfigError(
                "model.raw_weight: 1 leaves nothing of the graph that an encoder learns by, as "
                "the rest is made of its vectors at the start; take less, or stored features"
            )

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors u [U, D] and i [I, D], over item graphs built from the weights of now."""
        users, items = self._collaborative()
        if self.features.modalities:
            items = items + self._content(
                [graph.propagate(self._q, self.config.n_item_layers) for graph in self.build()]
            )
        return users, items

    def user_vectors(self) -> Tensor:
        """Users' u, [U, D]."""
        return self.vectors()[0]

    def item_vectors(self) -> Tensor:
        """Items' i, [I, D]."""
        return self.vectors()[1]

    def on_epoch_start(self, epoch: int) -> None:
        """Let the first batch build the item graph anew."""
        self.item_graphs.forget()
        self._chosen = {}

    def on_features_change(self) -> None:
        """Let the next batch choose the neighbours by Y_m anew; G_m stays."""
        self._chosen = {}

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples and the penalty of their vectors, scalars."""
        all_users, all_items = self._collaborative()
        if self.features.modalities:
            all_items = all_items + self._content(
                self.item_graphs.propagate(
                    self._q,
                    self.config.n_item_layers,
                    self.build,
                    keep=self.config.rebuild == "epoch" and not len(self.features.encoders),
                )
            )
        users = all_users.index_select(0, batch.users)  # [B, D]
        positives = all_items.index_select(0, batch.positives)
        negatives = all_items.index_select(0, batch.negatives)
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.regularization:
            penalty = losses.squared(users, positives, negatives)
            terms["regularization"] = self.config.regularization * penalty
        return terms

    def build(self) -> list[NeighbourGraph]:
        """G with gradient to a, W_m and X_m; for an ensemble G_m' of each modality."""
        share, alpha = self.config.raw_weight, self._alpha()
        raw = self.item_graphs.raw()
        learned = [self._learned(name) for name in self.features.modalities]
        if self.config.integration == "ensemble":
            return [
                joined_graph(similar.normalised().scaled(1 - share), start.scaled(share))
                for similar, start in zip(learned, raw, strict=True)
            ]
        # Normalised after mixing: an item that is near by picture and by sound stands twice in a
        # row, and its weight is the sum.
        mixed = joined_graph(*(graph.scaled(alpha[m]) for m, graph in enumerate(learned)))
        return [
            joined_graph(
                mixed.normalised().scaled(1 - share),
                *(graph.scaled(share * alpha[m]) for m, graph in enumerate(raw)),
            )
        ]

    def _learned(self, name: str) -> NeighbourGraph:
        """L_m of equation 3."""
        stays = self.training and len(self.features.encoders) and self.config.rebuild == "epoch"
        chosen = self._chosen if stays else None
        return table_similarities(self.features, name, self.project[name], self.config.k, chosen)

    @property
    def _q(self) -> Tensor:
        return self.nodes[self.n_users :]

    def _alpha(self) -> Tensor:
        """Equation 1, [M]."""
        if len(self.features.modalities) == 1:
            return self.nodes.new_ones(1)
        return self.modal_logits.softmax(dim=0)

    def _collaborative(self) -> tuple[Tensor, Tensor]:
        """U [U, D] and I' [I, D] of equation 7."""
        nodes: Tensor = self.nodes
        if self.config.backbone == "lightgcn":
            nodes = self.graph.mean_of_powers(nodes, self.config.n_layers)
        return nodes[: self.n_users], nodes[self.n_users :]

    def _content(self, views: list[Tensor]) -> Tensor:
        """What equation 8 adds to I', [I, D], from h or from the h_m."""
        unit = [unit_rows(view) for view in views]
        if self.config.integration == "fusion":
            return unit[0]
        alpha = self._alpha()
        return (torch.stack(unit, dim=2) * alpha).sum(dim=2)
