"""Ways in which papers join the views that modalities give of a node.

Shapes: N rows, D columns, M views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.models.base import ItemFeatures


class FeatureTables(nn.Module):
    """The raw features X_m [I, d_m] of each modality given: trained, or kept as they are.

    Trained ones are parameters that start as what is given; the given matrices stay untouched.
    """

    def __init__(self, given: Sequence[ItemFeatures], *, frozen: bool) -> None:
        super().__init__()
        self.modalities = tuple(features.modality for features in given)
        self._memory: dict[Any, Tensor] = {}
        for features in given:
            if frozen:
                self.register_buffer(features.modality, features.matrix.float(), persistent=False)
            else:
                start = features.matrix.detach().float().clone()
                self.register_parameter(features.modality, nn.Parameter(start))

    def __getitem__(self, modality: str) -> Tensor:
        """X_m of one modality, [I, d_m]."""
        table: Tensor = getattr(self, modality)
        return table

    def projected(self, modality: str, layer: nn.Module) -> Tensor:
        """X_m W + b of all items by a linear layer, [I, D], with gradient to all three.

        On a CPU the gradient of X_m is written where the last one was, once nobody holds that:
        asking the system for new pages takes as long as the product itself.
        """
        assert isinstance(layer, nn.Linear)
        table = self[modality]
        if table.is_cuda or not table.requires_grad or torch.is_autocast_enabled("cpu"):
            projected: Tensor = layer(table)
        else:
            projected = _Projected.apply(table, layer.weight, layer.bias, self._memory)
        return projected

    def rows(self, modality: str, items: Tensor) -> Tensor:
        """Rows of X_m of some items, [len(items), d_m]."""
        return self[modality].index_select(0, items)


class _Projected(torch.autograd.Function):
    """X W' + b; the gradient of X goes into memory that is kept by shape."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, weight: Tensor, bias: Tensor, memory: dict[Any, Tensor]
    ) -> Tensor:
        ctx.save_for_backward(table, weight)
        ctx.memory = memory
        return torch.addmm(bias.detach(), table.detach(), weight.detach().T)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        (table, weight), gradient = ctx.saved_tensors, gradients[0]
        kept = ctx.memory.get((*table.shape, table.dtype))
        if kept is None or _is_shared(kept):
            kept = ctx.memory[(*table.shape, table.dtype)] = torch.empty_like(table)
        torch.mm(gradient, weight, out=kept)
        # Another tensor of the same memory: one that is held elsewhere would be copied.
        return kept.detach(), gradient.T @ table, gradient.sum(dim=0), None


def _is_shared(tensor: Tensor) -> bool:
    """Whether any other tensor has this one's memory, as a gradient not yet cleared does."""
    # Two are the tensor itself and the storage object that this call makes.
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)) > 2


class QueryAttention(nn.Module):
    """A weight for each view of each row: softmax over views of q' tanh(W x + b).

    MICRO (arXiv 2111.00678) and MGCN (arXiv 2308.03588) share it; one query serves all views.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)  # W, b
        self.query = nn.Linear(width, 1, bias=False)  # q

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The weighted sum of the views [N, D], and the weights [N, M]."""
        stacked = torch.stack(list(views), dim=1)  # [N, M, D]
        weights = self.query(torch.tanh(self.hidden(stacked))).softmax(dim=1)  # [N, M, 1]
        return (weights * stacked).sum(dim=1), weights.squeeze(2)


def split_columns(joined: Tensor, n_views: int) -> tuple[Tensor, ...]:
    """The views [N, D] that stand side by side in `joined` [N, M D].

    Views that go over one graph with the same depth go as one matrix: one sparse product reads
    the graph once, and the result is the same.
    """
    return joined.chunk(n_views, dim=1)


class PreferenceBranch(nn.Module):
    """One modality's start of all nodes: [T ; W_2 leaky(W_1 X + b_1) + b_2], rows of length one.

    DualGNN and DRAGON (arXiv 2301.12097) share it. T, [U, D], is what users think of the
    modality; X, [I, F], does not learn.
    """

    features: Tensor  # X

    def __init__(self, features: Tensor, n_users: int, hidden_size: int, size: int) -> None:
        super().__init__()
        self.register_buffer("features", features.float(), persistent=False)
        self.preferences = nn.Parameter(torch.empty(n_users, size))  # T
        nn.init.xavier_normal_(self.preferences)
        self.hidden = nn.Linear(features.shape[1], hidden_size)  # W_1, b_1
        self.project = nn.Linear(hidden_size, size)  # W_2, b_2

    def forward(self) -> Tensor:
        """The start of users, then items, [U + I, D]."""
        items = self.project(F.leaky_relu(self.hidden(self.features), 0.01, inplace=True))
        return unit_rows(torch.cat([self.preferences, items]))


def preference_penalty(branches: nn.ModuleDict, weights: Tensor | None, users: Tensor) -> Tensor:
    """Mean squares of some users' rows of every T, summed, and of all weights [U, M], a scalar.

    What DualGNN and DRAGON keep small.
    """
    tables: list[Tensor] = [branch.preferences for branch in branches.values()]  # type: ignore[misc]
    rows = torch.stack([table.index_select(0, users) for table in tables])  # [M, B, D]
    total = rows.square().mean(dim=(1, 2)).sum()
    return total if weights is None else total + weights.square().mean()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows x / |x| of every row x of [N, D], float32 of half precision; a row of zeros stays one.

    As `F.normalize`, but its backward pass writes a third as many tables of the size of `rows`,
    and the gradient at a row of zeros is zero, where that of x / max(|x|, 1e-12) is 1e12.
    """
    result: Tensor = _UnitRows.apply(rows)
    return result


class _UnitRows(torch.autograd.Function):
    """y = x / |x|; the gradient is (g - y (g . y)) / |x|."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.dtype = rows.dtype
        rows = rows.detach()
        rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        scale = torch.where(norms > 1e-12, norms.reciprocal(), 0.0)
        unit = rows * scale
        ctx.save_for_backward(unit, scale)
        return unit

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (unit, scale), gradient = ctx.saved_tensors, gradients[0]
        along = torch.linalg.vecdot(gradient, unit, dim=1).neg_().unsqueeze(1)
        result: Tensor = torch.addcmul(gradient, unit, along).mul_(scale).to(ctx.dtype)
        return result
