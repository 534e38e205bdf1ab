"""MICRO: a learned graph of items for each modality, and fusion that keeps what they share.

Zhang, Zhu, Liu, Zhang, Wu and Wang, IEEE TKDE 2022. https://arxiv.org/abs/2111.00678

    1. Y_m   = X_m W_m + b_m                           learned view of the features
    2. G_m   = (1 - lambda) K(Y_m) + lambda K(X_m at the start)
               K: cosines of the k nearest, the item itself among them, D^-1/2 K D^-1/2 by row sums
    3. h_m   = G_m^n Q
    4. w_i   = softmax over m of q . tanh(A h_m,i + c)
    5. h_i   = sum_m w_im h_m,i
    6. [U ; I'] = mean of T^0 [P; Q] ... T^L [P; Q],   T = (D + I)^-1 (A + I)
    7. i_i   = i'_i + h_i / |h_i|,   score  x_ui = u_u . i_i
    8. C_m   = mean over items i of -log f(h_m,i, h_i) / (sum_j f(h_m,i, h_j)
               + sum over j other than i of f(h_m,i, h_m,j)),    f(a, b) = exp(cos(a, b) / tau)
    9. loss  mean over (u, i, j) of -log sigmoid(x_ui - x_uj)
             + regularization * (|u|^2 + |i_i|^2 + |i_j|^2) / 2B  +  gamma * sum_m C_m

The G_m are built anew, with gradient, for the first batch of an epoch; the others of the epoch
take them as constants, so that W_m and X_m move once per epoch. `rebuild: batch` builds them in
every batch. Ranking builds its own from the weights of that moment. Where encoders make the X_m
and learn, who is near whom is chosen when the engine computes the X_m anew and at the start of an
epoch, and the weights of these edges are computed with gradient in every batch, as in LATTICE.

Shapes: I items, N users and items, B batch, D = config.embedding_size, M modalities, k neighbours.
Departures: G_m is stored as the 2 k entries that a row can have. The penalty is over the rows of
the batch, a short last one too. With one modality h = h_m, and 8, which would only push items
apart, is left out; without features only 6 remains. `contrast_rows: batch` takes the batch's
positives as the i of 8. `integration: ensemble` adds scores u . (i' + h_m / |h_m|) of the
modalities by the weights w_i, instead of 7; h then serves 8 alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
from mmbench.models.fusion import FeatureTables, QueryAttention, unit_rows
from mmbench.models.graph import mean_adjacency
from mmbench.models.item_graphs import (
    LearnedGraphs,
    NeighbourGraph,
    joined_graph,
    raw_graph,
    table_similarities,
)

CONTRAST_BYTES = 8 * 2**20
"""Memory of the similarities that exist at once while all items are contrasted."""
TEMPERATURE_LOWEST = 0.02
"""e^(1 / tau) times the number of items must be a float32."""


class MICROConfig(ModelConfig):
    """Settings of MICRO."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    n_item_layers: PositiveInt = 1  # n
    k: PositiveInt = 10  # nearest items of an item
    raw_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9  # lambda
    regularization: NonNegativeFloat = 1e-5
    contrast_weight: NonNegativeFloat = 0.03  # gamma
    temperature: Annotated[float, Field(ge=TEMPERATURE_LOWEST)] = 0.5  # tau
    contrast_rows: Literal["all", "batch"] = "all"
    integration: Literal["fusion", "ensemble"] = "fusion"
    rebuild: Literal["epoch", "batch"] = "epoch"
    freeze_features: bool = False


@register_model(
    "micro",
    config=MICROConfig,
    citation=(
        "Zhang, Zhu, Liu, Zhang, Wu and Wang. Latent structure mining with contrastive modality "
        "fusion for multimedia recommendation. IEEE TKDE 2022."
    ),
)
class MICRO(Recommender):
    """LightGCN whose items hear from similar items, modality by modality."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: MICROConfig

    def __init__(self, config: MICROConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.n_users, n_nodes = train.n_users, train.n_users + train.n_items
        self.nodes = nn.Parameter(torch.empty(n_nodes, config.embedding_size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = mean_adjacency(train, self_loops=True)  # T
        self.features = FeatureTables(given, frozen=config.freeze_features)  # X_m
        self.project = nn.ModuleDict(
            {g.modality: nn.Linear(g.matrix.shape[1], config.embedding_size) for g in given}
        )  # W_m, b_m
        if len(given) > 1:  # one view needs no weight
            self.attention = QueryAttention(config.embedding_size)  # A, c, q
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
            views = [g.propagate(self._q, self.config.n_item_layers) for g in self.build()]
            items = items + self._content(views)[0]
        return users, items

    def on_epoch_start(self, epoch: int) -> None:
        """Let the first batch build the item graphs anew."""
        self.item_graphs.forget()
        self._chosen = {}

    def on_features_change(self) -> None:
        """Let the next batch choose the neighbours by Y_m anew."""
        self._chosen = {}

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """BPR of B triples, the penalty of their vectors and the contrast, scalars."""
        config = self.config
        all_users, all_items = self._collaborative()
        contrasts: list[Tensor] = []
        if self.features.modalities:
            keep = config.rebuild == "epoch" and not len(self.features.encoders)
            views = self.item_graphs.propagate(self._q, config.n_item_layers, self.build, keep=keep)
            content, fused = self._content(views)
            all_items = all_items + content
            if config.contrast_weight and len(views) > 1:
                rows = batch.positives if config.contrast_rows == "batch" else None
                contrasts = [contrast(view, fused, config.temperature, rows) for view in views]
        users = all_users.index_select(0, batch.users)  # [B, D]
        positives = all_items.index_select(0, batch.positives)
        negatives = all_items.index_select(0, batch.negatives)
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if config.regularization:
            penalty = losses.squared(users, positives, negatives)
            terms["regularization"] = config.regularization * penalty
        if contrasts:
            terms["contrast"] = config.contrast_weight * torch.stack(contrasts).sum()
        return terms

    def build(self) -> list[NeighbourGraph]:
        """G_m of each modality, with gradient to W_m and X_m."""
        share = self.config.raw_weight
        graphs = []
        for name, raw in zip(self.features.modalities, self.item_graphs.raw(), strict=True):
            learned = self._learned(name).normalised()
            graphs.append(joined_graph(learned.scaled(1 - share), raw.scaled(share)))
        return graphs

    def _learned(self, name: str) -> NeighbourGraph:
        """K(Y_m) of equation 2, before it is normalised."""
        stays = self.training and len(self.features.encoders) and self.config.rebuild == "epoch"
        chosen = self._chosen if stays else None
        return table_similarities(self.features, name, self.project[name], self.config.k, chosen)

    @property
    def _q(self) -> Tensor:
        return self.nodes[self.n_users :]

    def _collaborative(self) -> tuple[Tensor, Tensor]:
        """U [U, D] and I' [I, D] of equation 6."""
        mean = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        return mean[: self.n_users], mean[self.n_users :]

    def _content(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What equation 7 adds to I', and h, [I, D] each, from the h_m."""
        if len(views) == 1:
            return unit_rows(views[0]), views[0]
        fused, weights = self.attention(views)
        if self.config.integration == "fusion":
            return unit_rows(fused), fused
        unit = torch.stack([unit_rows(view) for view in views], dim=1)  # [I, M, D]
        return (weights[:, :, None] * unit).sum(dim=1), fused


def contrast(view: Tensor, fused: Tensor, temperature: float, rows: Tensor | None = None) -> Tensor:
    """C_m of h_m and h [I, D] each, equation 8, over all items i or over some rows, a scalar."""
    with torch.autocast(view.device.type, enabled=False):
        if rows is None:
            rows = torch.arange(len(view), device=view.device)
        value: Tensor = _Contrast.apply(unit_rows(view), unit_rows(fused), rows, temperature)
        return value


class _Contrast(torch.autograd.Function):
    """The contrast and its gradient in one pass over blocks of rows, nothing I x I at any time.

    A block of softmax weights serves the value and the gradient while it is there, so that the
    backward pass has nothing to compute again.
    """

    @staticmethod
    def forward(ctx: Any, view: Tensor, fused: Tensor, rows: Tensor, temperature: float) -> Tensor:
        n_items = len(view)
        view, fused, n_items = view.detach(), fused.detach(), len(view)
        both = torch.cat([fused, view])  # [2 I, D]
        anchors, partners = view.index_select(0, rows) / temperature, fused.index_select(0, rows)
        right = (anchors * partners).sum(dim=1)
        of_anchors, of_both = -partners, torch.zeros_like(both)
        of_both.index_add_(0, rows, anchors, alpha=-temperature)
        total = -right.sum()
        wanted = any(ctx.needs_input_grad[:2])
        height = max(1, min(len(rows), CONTRAST_BYTES // (2 * n_items * both.element_size())))
        # The same memory for every block: new pages cost more than what is written to them.
        memory = both.new_empty(height, 2 * n_items)
        for start in range(0, len(rows), height):
            block = slice(start, min(start + height, len(rows)))
            own, place = rows[block], torch.arange(block.stop - start, device=rows.device)
            # Not shifted by the largest logit: TEMPERATURE_LOWEST keeps e^(1 / tau) in range.
            weights = torch.mm(anchors[block], both.T, out=memory[: len(own)]).exp_()
            weights[place, n_items + own] = 0.0  # j other than i
            sums = weights.sum(dim=1, keepdim=True)
            total += sums.log().sum()
            if wanted:
                of_anchors[block] += (weights @ both) / sums
                of_both.addmm_(weights.T, anchors[block] / sums, alpha=temperature)
        of_view = of_both[n_items:].index_add_(0, rows, of_anchors)
        scale = 1.0 / (len(rows) * temperature)
        ctx.save_for_backward(of_view * scale, of_both[:n_items] * scale)
        return total / len(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        of_view, of_fused = ctx.saved_tensors
        return of_view * gradients[0], of_fused * gradients[0], None, None
