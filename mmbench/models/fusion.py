"""Ways in which papers join the views that modalities give of a node.

Shapes: N rows, D columns, M views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.models.base import ItemFeatures


@dataclass
class _Live:
    """Rows of some items that carry gradient, until they are withdrawn.

    Attributes:
        items: whose rows they are, distinct, int64 [N]; None where they are the whole table.
        rows: [N, d_m] or [I, d_m], as the tables' `prepare` leaves them.
        table: the whole table with these rows in it, once it was asked for.
    """

    items: Tensor | None
    rows: Tensor
    table: Tensor | None = None


class FeatureTables(nn.Module):
    """The features X_m [I, d_m] of each modality given, in one of three ways.

        fixed     as given, for ever
        trained   parameters that start as what is given, which stays untouched
        encoded   by an encoder that learns: a table without gradient that the engine computes
                  anew from time to time (`refresh`), in which, during a step, the rows of some
                  items are those that were encoded for it, with gradient (`give`, `withdraw`)

    Args:
        frozen: whether what no encoder makes is fixed, unless it is marked as learning.
        prepare: what is done to rows, to each by itself, before anything reads them.

    Attributes:
        encoders: those that learn, by modality.
    """

    def __init__(
        self,
        given: Sequence[ItemFeatures],
        *,
        frozen: bool,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(features.modality for features in given)
        self._memory: dict[Any, Tensor] = {}
        self._prepare = prepare
        self._live: dict[str, _Live] = {}
        self.encoders = nn.ModuleDict()
        for features in given:
            name, matrix = features.modality, features.matrix.float()
            if features.encoder is not None:
                matrix = matrix.clone()  # to be overwritten, unlike what was given
                self.encoders[name] = features.encoder
                self.register_buffer(_present(name), features.present, persistent=False)
                if prepare is not None:
                    self.register_buffer(_encoded(name), matrix, persistent=False)
            if features.encoder is not None or (frozen and not features.learns):
                prepared = matrix if prepare is None else prepare(matrix)
                self.register_buffer(name, prepared, persistent=False)
            else:
                self.register_parameter(name, nn.Parameter(matrix.detach().clone()))

    def __getitem__(self, modality: str) -> Tensor:
        """X_m of one modality, [I, d_m]."""
        live, table = self._live.get(modality), self.table(modality)
        if live is None:
            return table
        if live.items is None:
            return live.rows
        if live.table is None:
            live.table = table.index_copy(0, live.items, live.rows.to(table.dtype))
        return live.table

    def table(self, modality: str) -> Tensor:
        """X_m, [I, d_m], without what was given for the present step."""
        table: Tensor = getattr(self, modality)
        if self._prepare is not None and isinstance(table, nn.Parameter):
            table = self._prepare(table)
        return table

    def rows(self, modality: str, items: Tensor) -> Tensor:
        """Rows of X_m of some items, [len(items), d_m]."""
        live, table = self._live.get(modality), self.table(modality)
        if live is None:
            return table.index_select(0, items)
        if live.items is None:
            return live.rows.index_select(0, items)
        # Not from a copy of the whole table: most of it belongs to other items.
        places = torch.full((len(table),), -1, device=items.device)
        places[live.items] = torch.arange(len(live.items), device=items.device)
        place = places.index_select(0, items)
        found = live.rows.index_select(0, place.clamp_min(0)).to(table.dtype)
        return torch.where((place < 0)[:, None], table.index_select(0, items), found)

    def encoded(self, modality: str) -> Tensor:
        """What the encoder of a modality last made of all items, unprepared, [I, d_m]."""
        table: Tensor = getattr(self, modality if self._prepare is None else _encoded(modality))
        return table

    def present(self, modality: str) -> Tensor:
        """Which items have the modality of an encoder, bool [I]."""
        present: Tensor = getattr(self, _present(modality))
        return present

    @torch.no_grad()
    def refresh(self, modality: str, table: Tensor) -> None:
        """Put another table [I, d_m] in place of what an encoder once made."""
        self.encoded(modality).copy_(table)
        if self._prepare is not None:
            getattr(self, modality).copy_(self._prepare(table))

    def give(self, modality: str, items: Tensor | None, rows: Tensor) -> None:
        """Let the rows of some distinct items, or the whole table, carry gradient until withdrawn.

        Args:
            items: int64 [N]; None for all.
            rows: as the encoder makes them, [N, d_m] or [I, d_m].
        """
        self._live[modality] = _Live(items, rows if self._prepare is None else self._prepare(rows))

    def withdraw(self) -> None:
        """Take back all that was given."""
        self._live.clear()

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


def _encoded(modality: str) -> str:
    return f"{modality}_encoded"


def _present(modality: str) -> str:
    return f"{modality}_present"


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
    modality; X, [I, F], learns where an encoder makes it.
    """

    def __init__(self, given: ItemFeatures, n_users: int, hidden_size: int, size: int) -> None:
        super().__init__()
        self.modality = given.modality
        self.features = FeatureTables([given], frozen=True)  # X
        self.preferences = nn.Parameter(torch.empty(n_users, size))  # T
        nn.init.xavier_normal_(self.preferences)
        self.hidden = nn.Linear(given.matrix.shape[1], hidden_size)  # W_1, b_1
        self.project = nn.Linear(hidden_size, size)  # W_2, b_2

    def forward(self) -> Tensor:
        """The start of users, then items, [U + I, D]."""
        features = self.features[self.modality]
        items = self.project(F.leaky_relu(self.hidden(features), 0.01, inplace=True))
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
