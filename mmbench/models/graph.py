"""Constant graphs of users and items, and what propagates over them.

Shapes: U users, I items, N = U + I nodes (users first), E training interactions, D columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmbench.models.base import Interactions
from mmbench.models.losses import full_precision


class SparseOperator(nn.Module):
    """A constant sparse matrix G [R, C] that multiplies dense ones [C, D].

    It is rebuilt from what the model is given, so it moves with the module but is not among the
    stored weights. Indices are int32, which halves what is read of them. The backward pass
    multiplies by the transpose, which is kept beside G.
    """

    pointers: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, matrix: sp.csr_array, *, with_transpose: bool = True) -> None:
        super().__init__()
        matrix = sp.csr_array(matrix)
        matrix.sort_indices()
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        for name, array in (("pointers", matrix.indptr), ("columns", matrix.indices)):
            self.register_buffer(name, _tensor(array, np.int32), persistent=False)
        self.register_buffer("values", _tensor(matrix.data, np.float32), persistent=False)
        self.other = self._transpose(matrix) if with_transpose else None

    def _transpose(self, matrix: sp.csr_array) -> SparseOperator | None:
        return SparseOperator(sp.csr_array(matrix.T), with_transpose=False)

    @property
    def transposed(self) -> SparseOperator:
        """G', for the backward pass."""
        assert self.other is not None
        return self.other

    def matrix(self) -> Tensor:
        """G as a sparse CSR tensor that shares this module's memory."""
        return csr_tensor(self.pointers, self.columns, self.values, self.shape)

    def forward(self, dense: Tensor) -> Tensor:
        """The product G X, [R, D], with gradient to X."""
        product: Tensor = _Product.apply(self, dense)
        return product

    def rows_beside(self, dense: Tensor, rows: Tensor, own: Tensor) -> Tensor:
        """Some rows of G X above some rows of X itself, [A + B, D], with gradient to X.

        What a batch reads of users, who see X through the graph, and of items: neither the whole
        product nor a table of all nodes is written.

        Args:
            dense: X, [C, D].
            rows: of G X, int64 [A].
            own: rows of X, int64 [B].
        """
        joined: Tensor = _RowsBeside.apply(self, dense, rows, own)
        return joined

    def some_rows(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Some rows of the product G X, [len(rows), D], without gradient."""
        if dense.is_cuda:  # the number of their entries would make the host wait
            return self.multiply(dense).index_select(0, rows)
        starts, ends = self.pointers[rows], self.pointers[rows + 1]
        lengths = (ends - starts).long()
        bounds = F.pad(lengths.cumsum(0), (1, 0))
        places = torch.arange(int(bounds[-1])) + torch.repeat_interleave(
            starts - bounds[:-1], lengths
        )
        return F.embedding_bag(
            self.columns.index_select(0, places),
            dense,
            bounds.to(self.columns.dtype),
            mode="sum",
            per_sample_weights=self.values.index_select(0, places),
            include_last_offset=True,
        )

    def powers(self, dense: Tensor, weights: Sequence[float]) -> Tensor:
        """The sum w_0 X + w_1 G X + ... + w_L G^L X of a square G, [N, D], with gradient to X."""
        product: Tensor = _PowerSum.apply(self, dense, tuple(weights))
        return product

    def mean_of_powers(self, dense: Tensor, n_layers: int) -> Tensor:
        """(X + G X + ... + G^L X) / (L + 1), [N, D], with gradient to X."""
        return self.powers(dense, (1.0 / (n_layers + 1),) * (n_layers + 1))

    def sum_of_powers(self, dense: Tensor, n_layers: int) -> Tensor:
        """X + G X + ... + G^L X, [N, D], with gradient to X."""
        return self.powers(dense, (1.0,) * (n_layers + 1))

    def last_power(self, dense: Tensor, n_layers: int) -> Tensor:
        """G^L X, [N, D], with gradient to X."""
        return self.powers(dense, (*(0.0,) * n_layers, 1.0))

    def multiply(self, dense: Tensor) -> Tensor:
        """The product G X, [R, D], without gradient."""
        if dense.is_cuda:
            return self.matrix() @ dense
        return self._gathered_sum(dense, 1.0)

    def multiply_add(self, dense: Tensor, scale: float, addend: Tensor, weight: float) -> Tensor:
        """The sum scale * G X + weight * Y, [R, D], without gradient."""
        if dense.is_cuda:
            # addmm and not `@`: the latter takes a path through torch that is slower.
            return torch.addmm(addend, self.matrix(), dense, beta=weight, alpha=scale)
        product = self._gathered_sum(dense, scale)
        return product.add_(addend, alpha=weight) if weight else product

    def _gathered_sum(self, dense: Tensor, scale: float) -> Tensor:
        # A row of G X is a weighted sum of rows of X. As such a sum it is three times as fast
        # as the CSR product of MKL: the kernel fetches rows ahead, and the gathers are what waits.
        return F.embedding_bag(
            self.columns,
            dense,
            self.pointers,
            mode="sum",
            per_sample_weights=self.values if scale == 1.0 else self.values * scale,
            include_last_offset=True,
        )


class SymmetricOperator(SparseOperator):
    """A `SparseOperator` of a symmetric matrix, which is its own transpose."""

    def _transpose(self, matrix: sp.csr_array) -> SparseOperator | None:
        return None

    @property
    def transposed(self) -> SparseOperator:
        """G itself."""
        return self


class _Product(torch.autograd.Function):
    """G X; the gradient is G' times the one that comes in."""

    @staticmethod
    def forward(ctx: Any, operator: SparseOperator, dense: Tensor) -> Tensor:
        ctx.operator, ctx.dtype = operator, dense.dtype
        # Autocast would lower the sparse product of a GPU, and its gradient would not fit G.
        with torch.autocast(dense.device.type, enabled=False):
            return operator.multiply(full_precision(dense.detach()))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor]:
        gradient = ctx.operator.transposed.multiply(gradients[0].contiguous())
        return None, gradient.to(ctx.dtype)


class _RowsBeside(torch.autograd.Function):
    """[(G X)_rows ; X_own]; the gradient is G' of the first part's rows, plus the second's."""

    @staticmethod
    def forward(
        ctx: Any, operator: SparseOperator, dense: Tensor, rows: Tensor, own: Tensor
    ) -> Tensor:
        ctx.operator, ctx.rows, ctx.own = operator, rows, own
        dense = dense.detach()
        ctx.dtype, dense = dense.dtype, full_precision(dense)
        with torch.autocast(dense.device.type, enabled=False):
            seen = operator.some_rows(dense, rows)
        return torch.cat([seen, dense.index_select(0, own)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None, None]:
        seen, own = gradients[0].split([len(ctx.rows), len(ctx.own)])
        spread = seen.new_zeros(ctx.operator.shape[0], seen.shape[1])
        spread.index_add_(0, ctx.rows, seen)
        gradient = ctx.operator.transposed.multiply(spread).index_add_(0, ctx.own, own)
        return None, gradient.to(ctx.dtype), None, None


class _PowerSum(torch.autograd.Function):
    """w_0 X + w_1 G X + ... + w_L G^L X by Horner's rule: L products and no stored layer.

    The backward pass is the same polynomial of G' at the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, operator: SparseOperator, dense: Tensor, weights: tuple[float, ...]
    ) -> Tensor:
        ctx.operator, ctx.weights, ctx.dtype = operator, weights, dense.dtype
        return _horner(operator, full_precision(dense.detach()), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None]:
        gradient = _horner(ctx.operator.transposed, gradients[0].contiguous(), ctx.weights)
        return None, gradient.to(ctx.dtype), None


def _horner(operator: SparseOperator, dense: Tensor, weights: tuple[float, ...]) -> Tensor:
    if len(weights) == 1:
        return dense * weights[0]
    # Autocast would lower the sparse product of a GPU, and its gradient would not fit G.
    with torch.autocast(dense.device.type, enabled=False):
        total = operator.multiply_add(dense, weights[-1], dense, weights[-2])
        for weight in reversed(weights[:-2]):
            total = operator.multiply_add(total, 1.0, dense, weight)
    return total


def csr_tensor(pointers: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse CSR tensor of these parts, which it shares."""
    with warnings.catch_warnings():
        # Said once per process about the whole layout; the products used here are tested.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            pointers, columns, values, size=shape, check_invariants=False
        )


def bipartite(matrix: sp.csr_array) -> sp.csr_array:
    """The adjacency [[0, R], [R', 0]] of a user-item matrix R [U, I], [N, N]."""
    blocks: list[list[Any]] = [[None, matrix], [matrix.T, None]]
    return sp.csr_array(sp.block_array(blocks))


def normalised_matrix(train: Interactions) -> sp.csr_array:
    """The block D_u^-1/2 R D_i^-1/2 of S, [U, I]."""
    return _normalised(train.matrix)


def _normalised(matrix: sp.csr_array) -> sp.csr_array:
    scale_users = inverse_root(np.asarray(matrix.sum(axis=1)).ravel())
    scale_items = inverse_root(np.asarray(matrix.sum(axis=0)).ravel())
    return sp.csr_array(sp.diags_array(scale_users) @ matrix @ sp.diags_array(scale_items))


def normalised_adjacency(train: Interactions) -> SymmetricOperator:
    """S = D^-1/2 A D^-1/2 of the user-item graph, without self loops.

    A user or an item without interactions has a row of zeros.
    """
    return SymmetricOperator(bipartite(normalised_matrix(train)))


def mean_adjacency(train: Interactions, *, self_loops: bool) -> SparseOperator:
    """The mean over neighbours: D^-1 A, or with self loops (D + I)^-1 (A + I).

    Without self loops a node without interactions has a row of zeros.
    """
    adjacency = bipartite(train.matrix)
    if self_loops:
        adjacency = sp.csr_array(adjacency + sp.eye_array(adjacency.shape[0]))
    return SparseOperator(row_means(adjacency))


def row_means(matrix: sp.csr_array) -> sp.csr_array:
    """D^-1 R: every row of a matrix over its sum; a row of zeros stays one."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros(len(sums)), where=sums > 0)
    return sp.csr_array(sp.diags_array(scale) @ matrix)


def powered_adjacency(train: Interactions, a: float, b: float) -> SparseOperator:
    """H(a, b) = (D + I)^-a (A + I) (D + I)^-b: a for the receiving node, b for the sending one."""
    adjacency = bipartite(train.matrix)
    adjacency = sp.csr_array(adjacency + sp.eye_array(adjacency.shape[0]))
    degrees = np.asarray(adjacency.sum(axis=1)).ravel()
    return SparseOperator(
        sp.csr_array(sp.diags_array(degrees**-a) @ adjacency @ sp.diags_array(degrees**-b))
    )


def adjacency_of_edges(
    users: Tensor, items: Tensor, n_users: int, n_items: int
) -> SymmetricOperator:
    """S of a graph of some edges, degrees counted on them alone; for graphs drawn in training.

    Args:
        users, items: user and item of each kept edge, int64 [E'].
    """
    rows, columns = users.cpu().numpy(), items.cpu().numpy()
    ones = np.ones(len(rows), dtype=np.float32)
    matrix = sp.csr_array((ones, (rows, columns)), shape=(n_users, n_items))
    return SymmetricOperator(bipartite(_normalised(matrix))).to(users.device)


def weighted_subset(weights: Tensor, n: int) -> Tensor:
    """Indices of n of the E entries, drawn without replacement by weight, int64 [n].

    The n smallest of Exp(1) / w have the distribution of successive draws (Efraimidis and
    Spirakis 2006), for any number of entries; torch's own draw stops at 2^24.
    """
    race = torch.empty_like(weights).exponential_() / weights
    return race.topk(n, largest=False).indices


def inverse_root(degrees: NDArray[Any]) -> NDArray[np.float64]:
    """d^-1/2, and 0 where d is 0."""
    result = np.zeros(len(degrees))
    result[degrees > 0] = 1.0 / np.sqrt(degrees[degrees > 0])
    return result


def _tensor(array: NDArray[Any], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
