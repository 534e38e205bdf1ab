"""Graphs of users and items, and what propagates over them.

Shapes: U users, I items, N = U + I nodes (users first), E training interactions, D columns.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmbench.models.base import Interactions

BLOCK_ROWS = 512
"""Rows of an item-by-item matrix that exist at once."""


class SymmetricOperator(nn.Module):
    """A constant symmetric sparse matrix G [N, N] that multiplies dense ones [N, D].

    It is rebuilt from the training interactions, so it moves with the module but is not
    among the stored weights. Indices are int32, which halves what is read of them.
    """

    pointers: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, matrix: sp.csr_array) -> None:
        super().__init__()
        matrix = sp.csr_array(matrix)
        matrix.sort_indices()
        self.size = int(matrix.shape[0])
        for name, array in (("pointers", matrix.indptr), ("columns", matrix.indices)):
            self.register_buffer(name, _tensor(array, np.int32), persistent=False)
        self.register_buffer("values", _tensor(matrix.data, np.float32), persistent=False)

    def matrix(self) -> Tensor:
        """G as a sparse CSR tensor that shares this module's memory."""
        with warnings.catch_warnings():
            # Said once per process about the whole layout; the one product used here is tested.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self.pointers,
                self.columns,
                self.values,
                size=(self.size, self.size),
                check_invariants=False,
            )

    def forward(self, dense: Tensor) -> Tensor:
        """The product G X, [N, D], with gradient to X."""
        product: Tensor = _PowerSum.apply(self, dense, (0.0, 1.0))
        return product

    def mean_of_powers(self, dense: Tensor, n_layers: int) -> Tensor:
        """(X + G X + ... + G^L X) / (L + 1), [N, D], with gradient to X."""
        weights = (1.0 / (n_layers + 1),) * (n_layers + 1)
        product: Tensor = _PowerSum.apply(self, dense, weights)
        return product

    def multiply_add(self, dense: Tensor, scale: float, addend: Tensor, weight: float) -> Tensor:
        """The sum scale * G X + weight * Y, [N, D], without gradient."""
        if dense.is_cuda:
            # addmm and not `@`: the latter takes a path through torch that is slower.
            return torch.addmm(addend, self.matrix(), dense, beta=weight, alpha=scale)
        # A row of G X is a weighted sum of rows of X. As such a sum it is three times as fast
        # as the CSR product of MKL: the kernel fetches rows ahead, and the gathers are what waits.
        product = F.embedding_bag(
            self.columns,
            dense,
            self.pointers,
            mode="sum",
            per_sample_weights=self.values if scale == 1.0 else self.values * scale,
            include_last_offset=True,
        )
        return product.add_(addend, alpha=weight) if weight else product


class _PowerSum(torch.autograd.Function):
    """w_0 X + w_1 G X + ... + w_L G^L X by Horner's rule: L products and no stored layer.

    G is symmetric, so is this polynomial of it, and the backward pass is the same function
    of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, operator: SymmetricOperator, dense: Tensor, weights: tuple[float, ...]
    ) -> Tensor:
        ctx.operator, ctx.weights = operator, weights
        return _horner(operator, dense.detach(), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None]:
        return None, _horner(ctx.operator, gradients[0].contiguous(), ctx.weights), None


def _horner(operator: SymmetricOperator, dense: Tensor, weights: tuple[float, ...]) -> Tensor:
    if len(weights) == 1:
        return dense * weights[0]
    # Autocast would lower the sparse product of a GPU, and its gradient would not fit G.
    with torch.autocast(dense.device.type, enabled=False):
        total = operator.multiply_add(dense, weights[-1], dense, weights[-2])
        for weight in reversed(weights[:-2]):
            total = operator.multiply_add(total, 1.0, dense, weight)
    return total


def normalised_adjacency(train: Interactions) -> SymmetricOperator:
    """S = D^-1/2 A D^-1/2 of the user-item graph, without self loops.

    A user or an item without interactions has a row of zeros.
    """
    matrix = train.matrix
    scale_users = inverse_root(np.asarray(matrix.sum(axis=1)).ravel())
    scale_items = inverse_root(np.asarray(matrix.sum(axis=0)).ravel())
    block = sp.diags_array(scale_users) @ matrix @ sp.diags_array(scale_items)
    return SymmetricOperator(sp.csr_array(sp.block_array([[None, block], [block.T, None]])))


def item_neighbours(
    features: Tensor, k: int, *, shrinkage: float = 0.0, include_self: bool = True
) -> tuple[Tensor, Tensor]:
    """The k items with the most similar features, for every item.

    s_ij = f_i . f_j / (|f_i| |f_j| + shrinkage), and 0 where a row is all zeros. The item
    itself counts as one of the k unless `include_self` is false. Among equals the lowest index
    wins. Blocks of `BLOCK_ROWS` rows are compared with all at once.

    Returns:
        indices int64 [I, k], ascending in each row, and similarities float32 [I, k]; k is at
        most the number of items there are to choose from.
    """
    n_items = len(features)
    k = min(k, n_items if include_self else n_items - 1)
    norms = torch.linalg.vector_norm(features, dim=1)
    indices = torch.empty(n_items, k, dtype=torch.int64, device=features.device)
    values = torch.empty(n_items, k, dtype=features.dtype, device=features.device)
    for start in range(0, n_items, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, n_items))
        scale = torch.outer(norms[rows], norms) + shrinkage
        block = (features[rows] @ features.T) / scale.clamp_min(1e-12)
        if not include_self:
            block.diagonal(start).fill_(-torch.inf)
        indices[rows] = largest_columns(block, k)
        values[rows] = block.gather(1, indices[rows])
    return indices, values


def largest_columns(block: Tensor, k: int) -> Tensor:
    """Columns of the k largest values of each row, int64 [B, k], ascending.

    Among equals the lowest columns win, which `torch.topk` does not promise.
    """
    smallest = block.topk(k, dim=1).values[:, -1:]
    above, equal = block > smallest, block == smallest
    room = k - above.sum(dim=1, keepdim=True)
    keep = above | (equal & (equal.cumsum(dim=1) <= room))
    return keep.nonzero()[:, 1].view(len(block), k)


def inverse_root(degrees: NDArray[Any]) -> NDArray[np.float64]:
    """d^-1/2, and 0 where d is 0."""
    result = np.zeros(len(degrees))
    result[degrees > 0] = 1.0 / np.sqrt(degrees[degrees > 0])
    return result


def _tensor(array: NDArray[Any], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
