"""MMGCN: a graph convolution for each modality, joined at the end.

Wei, Wang, Nie, He, Hong and Chua, ACM Multimedia 2019. https://doi.org/10.1145/3343031.3351034

Per modality m, on all N nodes, mean over the neighbours j of a node:

    x^0  = unit rows of [T_m ; f_m],  f_visual = X W + b, any other f_m = X_m         (1)
    h    = leaky( mean_j x_j^(l-1) V_l ),  0 for a node without neighbours            (2)
    x'   = leaky( L_l x^(l-1) ) + E                                                   (3)
    x^l  = leaky( G_l [h ; x'] ),  l = 1, 2, 3                                        (4)
    score = r_u . r_i,  r = mean over modalities of x^3                               (5)
    loss  mean over (u, i, j) of -log sigmoid(score_ui - score_uj)
          + regularization * ( mean of E_u^2 + E_i^2 over pairs (u, i), (u, j)
                               + sum over modalities of mean(T_m^2) )                 (6)

Shapes: U users, I items, N = U + I, B batch, D = config.embedding_size, M modalities; x^0 is C_m
wide (config.visual_size for the image, else the columns of X_m), every later layer D. E is
[N, D], T_m is [U, C_m].
Departures: equation 4 concatenates, as the authors' code does whatever its switch says. That
code and the public toolbox leave E and T_m at their random start, where the paper learns them:
`freeze_tables` restores it. They also penalise T of the image alone, which
`penalize_visual_only` restores.
`integration: ensemble` averages the scores x_u^3 . x_i^3 of the modalities instead of x^3.
"""

from __future__ import annotations

import math
from typing import Literal

import scipy.sparse as sp
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
from mmbench.models.fusion import FeatureTables, split_columns, unit_rows
from mmbench.models.graph import SparseOperator, mean_adjacency, row_means

N_LAYERS = 3


class MMGCNConfig(ModelConfig):
    """Settings of MMGCN."""

    embedding_size: PositiveInt = 64  # D
    visual_size: PositiveInt = 256  # width of the projected image
    regularization: NonNegativeFloat = 1e-3
    freeze_tables: bool = False
    penalize_visual_only: bool = False
    integration: Literal["fusion", "ensemble"] = "fusion"


@register_model(
    "mmgcn",
    config=MMGCNConfig,
    citation=(
        "Wei, Wang, Nie, He, Hong and Chua. MMGCN: multi-modal graph convolution network for "
        "personalized recommendation of micro-video. ACM Multimedia 2019."
    ),
)
class MMGCN(Recommender):
    """Three layers of averaging over neighbours, with weights, for each modality apart."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    requires_modality = True
    config: MMGCNConfig
    nodes: Tensor  # E

    def __init__(self, config: MMGCNConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        if not given:
            raise ConfigError(
                "mmgcn has a graph convolution for each modality and was given none; name at least "
                "one under `features`"
            )
        self.config = config
        self.n_users = train.n_users
        self.graph = mean_adjacency(train, self_loops=False)  # [N, N]
        self.to_users = SparseOperator(row_means(train.matrix))  # [U, I]
        self.to_items = SparseOperator(row_means(sp.csr_array(train.matrix.T)))  # [I, U]
        nodes = torch.empty(train.n_users + train.n_items, config.embedding_size)
        nn.init.xavier_normal_(nodes)
        if config.freeze_tables:
            self.register_buffer("nodes", nodes)
        else:
            self.nodes = nn.Parameter(nodes)
        self.branches = nn.ModuleDict(
            {g.modality: _Branch(config, g, train.n_users, self.to_items) for g in given}
        )

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The vectors r of users [U, D] and of items [I, D]; with `ensemble` [., M D]."""
        final = self._final(None)
        return final[: self.n_users], final[self.n_users :]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples and the penalty of E and T, scalars."""
        items = torch.cat([batch.positives, batch.negatives]) + self.n_users
        rows = torch.cat([batch.users, items])  # [3 B]
        users, positives, negatives = self._final(rows).chunk(3)
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        # Of tables that do not learn the penalty would be a constant.
        if self.config.regularization and not self.config.freeze_tables:
            terms["regularization"] = self.config.regularization * self._penalty(rows)
        return terms

    def _branches(self) -> list[_Branch]:
        return list(self.branches.values())  # type: ignore[arg-type]

    def _penalty(self, rows: Tensor) -> Tensor:
        """The bracket of (6) for the nodes of users, positives and negatives, [3 B]."""
        of_users, *of_items = self.nodes.index_select(0, rows).square().chunk(3)
        total = (2 * of_users + sum(of_items)).mean() / 2  # a user stands in two pairs
        for modality, branch in zip(self.branches, self._branches(), strict=True):
            if modality == "visual" or not self.config.penalize_visual_only:
                # Not square().mean(), which would write a table of squares as large as T.
                total = total + (
                    torch.linalg.vector_norm(branch.preferences).square()
                    / branch.preferences.numel()
                )
        return total

    def _final(self, rows: Tensor | None) -> Tensor:
        """The vectors r of some nodes or all, [., D] or with `ensemble` [., M D]."""
        branches = self._branches()
        states = [
            branch.first(self.to_users, self.to_items, self.nodes)  # [N, D] each
            for branch in branches
        ]
        for layer in range(1, N_LAYERS):
            joined = torch.cat(states, dim=1)  # one product for all modalities
            means: Tensor = self.graph(joined)
            ids = self.nodes
            if layer == N_LAYERS - 1 and rows is not None:
                # Beyond the last product a row depends on no other one.
                means, joined, ids = (x.index_select(0, rows) for x in (means, joined, ids))
            states = [
                branch.following(layer, mean, state, ids)
                for branch, mean, state in zip(
                    branches,
                    split_columns(means, len(branches)),
                    split_columns(joined, len(branches)),
                    strict=True,
                )
            ]
        if self.config.integration == "ensemble":
            return torch.cat(states, dim=1) / math.sqrt(len(states))
        return torch.stack(states).mean(dim=0)


class _Layer(nn.Module):
    """Equations 2 to 4 for one layer of one modality, C columns in and D out."""

    def __init__(self, width: int, size: int, *, first: bool) -> None:
        super().__init__()
        self.received = nn.Linear(width, width, bias=False)  # V
        self.own = nn.Linear(width, size)  # L
        self.join = nn.Linear(width + size, size)  # G
        nn.init.xavier_normal_(self.received.weight)
        nn.init.xavier_normal_(self.own.weight)
        if first:
            nn.init.xavier_normal_(self.join.weight)

    def forward(self, means: Tensor, states: Tensor, ids: Tensor) -> Tensor:
        """x^l [R, D] of R nodes from x^(l-1) [R, C], its means over neighbours and E [R, D]."""
        received = _leaky(self.received(means))
        return _leaky(self.joined(received) + self.identified(self.own(states), ids))

    def joined(self, received: Tensor) -> Tensor:
        """The part of G [h ; x'] that reads h, with the bias, [R, D]."""
        width = self.received.in_features
        return F.linear(received, self.join.weight[:, :width], self.join.bias)

    def identified(self, own: Tensor, ids: Tensor) -> Tensor:
        """The part of G [h ; x'] that reads x' = leaky(own) + E, [R, D]."""
        width = self.received.in_features
        return F.linear(_leaky(own) + ids, self.join.weight[:, width:])


class _Branch(nn.Module):
    """What one modality adds to the parameters: T, W and b, and its layers.

    Args:
        to_items: the mean over an item's users, [I, U].
    """

    preferences: Tensor  # T; unit rows of T where it does not learn, [U, C]
    of_users: Tensor | None  # their mean over each item's users where neither learns, [I, C]

    def __init__(
        self, config: MMGCNConfig, given: ItemFeatures, n_users: int, to_items: SparseOperator
    ) -> None:
        super().__init__()
        n_items, width = given.matrix.shape
        self.project: nn.Linear | None = None
        if given.modality == "visual":
            self.project, width = nn.Linear(width, config.visual_size), config.visual_size
        # Rows that are not projected are of length one from the start.
        prepare = unit_rows if self.project is None else None
        self.tables = FeatureTables([given], frozen=True, prepare=prepare)  # X
        preferences = torch.empty(n_users, width)
        nn.init.xavier_normal_(preferences)
        self.items_are_fewer = n_items <= n_users
        of_users = None
        if config.freeze_tables:
            preferences = unit_rows(preferences)
            self.register_buffer("preferences", preferences)
            of_users = to_items.multiply(preferences) if self.items_are_fewer else None
        else:
            self.preferences = nn.Parameter(preferences)
        # Stored like the random table that it is the mean of.
        self.register_buffer("of_users", of_users)
        size = config.embedding_size
        self.layers = nn.ModuleList(
            _Layer(width if n == 0 else size, size, first=n == 0) for n in range(N_LAYERS)
        )

    @property
    def features(self) -> Tensor:
        """X; unit rows of X where it is not projected, [I, F]."""
        return self.tables[self.tables.modalities[0]]

    def following(self, layer: int, means: Tensor, states: Tensor, ids: Tensor) -> Tensor:
        """The next x of some nodes [R, D], by a layer counted from 0; arguments as `_Layer`'s."""
        result: Tensor = self.layers[layer](means, states, ids)
        return result

    def first(self, to_users: SparseOperator, to_items: SparseOperator, ids: Tensor) -> Tensor:
        """x^1 of all nodes, [N, D].

        This layer is C wide, so it is where the time goes. The mean over neighbours and V commute:
        the product with V is taken where there are fewer rows, on the items' side of both
        directions (or the users', where they are fewer), and what does not learn is not
        differentiated.
        """
        layer: _Layer = self.layers[0]  # type: ignore[assignment]
        users, items = self.preferences, self.features
        if isinstance(users, nn.Parameter):
            users = unit_rows(users)
        if self.project is not None:
            items = unit_rows(self.project(items))
        if self.items_are_fewer:
            from_users = to_items(users) if self.of_users is None else self.of_users
            to_user, to_item = to_users(layer.received(items)), layer.received(from_users)
        else:
            to_user, to_item = layer.received(to_users(items)), to_items(layer.received(users))
        received = [layer.joined(_leaky(side)) for side in (to_user, to_item)]
        own = torch.cat([layer.own(users), layer.own(items)])
        return _leaky(torch.cat(received) + layer.identified(own, ids))


def _leaky(values: Tensor) -> Tensor:
    """Leaky ReLU in place of the values, which are a product of which no gradient needs them."""
    return F.leaky_relu(values, negative_slope=0.01, inplace=True)
