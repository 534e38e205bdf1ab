"""The encoder that SLMRec and MMGCL share: a branch of ids and one of each modality.

    branch 0   mean of S^0 E ... S^L E,  E = [P; Q],    S = D^-1/2 A D^-1/2 without self loops
    branch m   the same of E = [P; y_m],  y_m = (X_m with rows of length one) W_m + b_m
    read-out   users [x_0 ; x_1 ; ...] W_U + b_U,  items [x_0 ; x_1 ; ...] W_I + b_I

The user table P starts every branch. S joins users to items alone, so what starts at the users
never meets what starts at the items: S^l [P; Y] = S^l [P; 0] + S^l [0; Y], and at each level one
half of either part is zero. The first part is the same in all branches. Both go through the
blocks of S apart, which takes M + 2 halves of a product for each level instead of 2 (M + 1).

Shapes: U users, I items, E training interactions, M modalities, D = size, C = M + 1 branches.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.models.base import Interactions, ItemFeatures
from mmbench.models.fusion import FeatureTables, unit_rows
from mmbench.models.graph import SparseOperator, normalised_matrix
from mmbench.models.losses import full_precision

ORDER = ("visual", "acoustic", "textual", "joint")
"""The order of branches, which is that of the steps of SLMRec's contrast."""


@dataclasses.dataclass(frozen=True)
class Halves:
    """The two blocks of S: to users [U, I] and to items [I, U], each other's transpose."""

    to_users: SparseOperator
    to_items: SparseOperator

    def users_from(self, items: Tensor) -> Tensor:
        """S_ui Y, [U, D], with gradient to Y [I, D]."""
        product: Tensor = _HalfProduct.apply(self.to_users, self.to_items, items)
        return product

    def items_from(self, users: Tensor) -> Tensor:
        """S_iu X, [I, D], with gradient to X [U, D]."""
        product: Tensor = _HalfProduct.apply(self.to_items, self.to_users, users)
        return product


class _HalfProduct(torch.autograd.Function):
    """G X; the gradient is G' times the one that comes in."""

    @staticmethod
    def forward(ctx: Any, there: SparseOperator, back: SparseOperator, dense: Tensor) -> Tensor:
        ctx.back, ctx.dtype = back, dense.dtype
        # Autocast would lower the sparse product of a GPU, and its gradient would not fit G.
        with torch.autocast(dense.device.type, enabled=False):
            return there.multiply(full_precision(dense.detach()).contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None, Tensor]:
        return None, None, ctx.back.multiply(gradients[0].contiguous()).to(ctx.dtype)


class HalvedGraph(nn.Module):
    """S of the user-item graph in two blocks, whole or without some of its edges.

    A graph without some edges keeps their places with the weight 0: nothing is sorted or moved
    to the host, and the product reads a few zeros more.
    """

    users: Tensor
    items: Tensor
    by_item: Tensor

    def __init__(self, train: Interactions) -> None:
        super().__init__()
        block = normalised_matrix(train)
        self.to_users = SparseOperator(block, with_transpose=False)
        self.to_items = SparseOperator(sp.csr_array(block.T), with_transpose=False)
        self.n_users, self.n_items = train.n_users, train.n_items
        # Users and items of the edges as `to_users` holds them, and where `to_items` has each.
        order = torch.argsort(train.users * train.n_items + train.items)
        users, items = train.users[order], train.items[order]
        self.register_buffer("users", users, persistent=False)
        self.register_buffer("items", items, persistent=False)
        by_item = torch.argsort(items * train.n_users + users)
        self.register_buffer("by_item", by_item, persistent=False)

    def whole(self) -> Halves:
        """S of all edges."""
        return Halves(self.to_users, self.to_items)

    def of_edges(self, kept: Tensor) -> Halves:
        """S of some edges, degrees counted on them alone.

        Args:
            kept: 1 for each edge that stays and 0 for others, [E].
        """
        users = kept.new_zeros(self.n_users).index_add_(0, self.users, kept)
        items = kept.new_zeros(self.n_items).index_add_(0, self.items, kept)
        # Edges that stay have degrees of one and more; the others' weight is 0 in any case.
        scale = users.clamp_min(1)[self.users] * items.clamp_min(1)[self.items]
        values = kept * scale.rsqrt()
        return Halves(
            _reweighted(self.to_users, values), _reweighted(self.to_items, values[self.by_item])
        )

    def without_edges(self, rate: float) -> Halves:
        """S of floor((1 - rate) E) edges drawn uniformly."""
        kept = torch.ones_like(self.to_users.values)
        return self.of_edges(_with_zeros(kept, len(kept) - math.floor((1 - rate) * len(kept))))

    def without_nodes(self, rate: float) -> Halves:
        """S without floor(rate U) users and floor(rate I) items, drawn uniformly."""
        ones = torch.ones_like(self.to_users.values[:1])
        users = _with_zeros(ones.repeat(self.n_users), math.floor(rate * self.n_users))
        items = _with_zeros(ones.repeat(self.n_items), math.floor(rate * self.n_items))
        return self.of_edges(users[self.users] * items[self.items])


def _reweighted(operator: SparseOperator, values: Tensor) -> SparseOperator:
    """A matrix with other values at the same places, whose indices it shares."""
    other = copy.copy(operator)
    other._buffers = {**operator._buffers, "values": values}
    return other


def _with_zeros(ones: Tensor, n: int) -> Tensor:
    """The vector with n places, drawn uniformly without replacement, set to 0."""
    places = torch.randperm(len(ones), device=ones.device)[:n]
    return ones.index_fill_(0, places, 0.0)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length one; of rows that learn with a gradient that is none at a row of zeros."""
    return unit_rows(rows) if rows.requires_grad else F.normalize(rows, dim=1)


class BranchEncoder(nn.Module):
    """The branches of ids and of each modality given, propagated over S."""

    def __init__(
        self, train: Interactions, given: Sequence[ItemFeatures], size: int, n_layers: int
    ) -> None:
        super().__init__()
        given = sorted(given, key=lambda features: ORDER.index(features.modality))
        self.size, self.n_layers = size, n_layers
        self.modalities = tuple(features.modality for features in given)
        self.n_branches = len(given) + 1
        self.graph = HalvedGraph(train)
        self.users = nn.Parameter(torch.empty(train.n_users, size))  # P
        self.items = nn.Parameter(torch.empty(train.n_items, size))  # Q
        nn.init.xavier_uniform_(self.users)
        nn.init.xavier_uniform_(self.items)
        self.features = FeatureTables(given, frozen=True, prepare=_unit)
        self.project = nn.ModuleDict()  # W_m, b_m
        for features in given:
            project = nn.Linear(features.matrix.shape[1], size)
            nn.init.xavier_uniform_(project.weight)
            self.project[features.modality] = project

    def starts(self) -> Tensor:
        """[Q ; y_1 ; y_2 ; ...] of all items, [I, C D]."""
        views = [self.project[name](self.features[name]) for name in self.modalities]
        return torch.cat([self.items, *views], dim=1)

    def propagate(self, starts: Tensor, halves: Halves | None = None) -> tuple[Tensor, Tensor]:
        """The mean over levels 0 to L of every branch: users [U, C D] and items [I, C D].

        Args:
            starts: item rows that some branches start from, side by side, [I, C D].
            halves: the graph; S of all edges unless given.
        """
        halves = halves or self.graph.whole()
        # Level by level, what started at the users and what started at the items.
        users: Tensor = self.users
        items: Tensor = starts
        shared_users, own_items = users, items
        shared_items: Tensor | None = None
        own_users: Tensor | None = None
        for level in range(1, self.n_layers + 1):
            if level % 2:
                users, items = halves.items_from(users), halves.users_from(items)
                shared_items = users if shared_items is None else shared_items + users
                own_users = items if own_users is None else own_users + items
            else:
                users, items = halves.users_from(users), halves.items_from(items)
                shared_users, own_items = shared_users + users, own_items + items
        assert shared_items is not None
        assert own_users is not None
        n_branches, share = starts.shape[1] // self.size, 1 / (self.n_layers + 1)
        return (
            (own_users + shared_users.repeat(1, n_branches)) * share,
            (own_items + shared_items.repeat(1, n_branches)) * share,
        )


class ReadOut(nn.Module):
    """Users' or items' vectors from their branches.

    Of a fusion one map of all branches together, [N, C D] to [N, D]. Of an ensemble one map of
    each branch, [N, C D] to [N, C D] / sqrt(C), so that the score is the mean of the branches'.
    """

    def __init__(self, n_branches: int, size: int, *, fused: bool) -> None:
        super().__init__()
        shapes = [(n_branches * size, size)] if fused else [(size, size)] * n_branches
        self.maps = nn.ModuleList(nn.Linear(*shape) for shape in shapes)
        for layer in self.maps:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, branches: Tensor) -> Tensor:
        """Vectors of some rows."""
        if len(self.maps) == 1:
            vectors: Tensor = self.maps[0](branches)
            return vectors
        parts = branches.chunk(len(self.maps), dim=1)
        mapped = [layer(part) for layer, part in zip(self.maps, parts, strict=True)]
        return torch.cat(mapped, dim=1) / math.sqrt(len(mapped))
