"""Nearest neighbours in sparse rows, and sparse matrices as stored results of a fit.

Source of the similarities: Ferrari Dacrema, Cremonesi and Jannach, RecSys 2019,
https://arxiv.org/abs/1907.06902.

Shapes: n rows to compare, t columns (terms), k neighbours kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mmbench.models.base import ModelConfig

BLOCK_PRODUCTS = 4_000_000
"""Products of stored entries in one block of similarities; bounds the memory of a block."""


class NeighbourConfig(ModelConfig):
    """Which rows are neighbours, and how near.

    `asymmetric_alpha`, `tversky_alpha` and `tversky_beta` belong to the similarity that they
    are named for.
    """

    k: PositiveInt = 50  # nearest items of an item, or users of a user
    shrinkage: NonNegativeFloat = 100.0  # h
    similarity: Literal["cosine", "asymmetric", "jaccard", "dice", "tversky"] = "cosine"
    weighting: Literal["none", "tf-idf", "bm25"] = "none"
    normalize: bool = True
    asymmetric_alpha: NonNegativeFloat = 0.5
    tversky_alpha: NonNegativeFloat = 1.0
    tversky_beta: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _fits_together(self) -> NeighbourConfig:
        if self.similarity in ("jaccard", "dice", "tversky"):
            if self.weighting != "none":
                raise ValueError(
                    f"weighting {self.weighting} needs similarity cosine or asymmetric; "
                    f"{self.similarity} compares sets"
                )
            if not self.normalize:
                raise ValueError(f"normalize: false has no meaning for {self.similarity}")
        return self


def weigh(matrix: sp.csr_array, weighting: str) -> sp.csr_array:
    """A matrix of documents [n, t] with its entries weighted by "tf-idf", "bm25" or "none".

    tf-idf: sqrt(r) ln(n / (1 + df)); bm25: r (K + 1) / (K (1 - b + b length / mean length) + r)
    ln(n / (1 + df)) with K = 1.2 and b = 0.75; df counts the documents of a term.
    """
    if weighting == "none":
        return matrix
    coordinates = matrix.tocoo()
    rows, columns = coordinates.coords
    entries = coordinates.data.astype(np.float64)
    frequency = np.bincount(columns, minlength=matrix.shape[1])
    rarity = np.log(matrix.shape[0] / (1.0 + frequency))
    if weighting == "tf-idf":
        weights = np.sqrt(entries)
    else:
        length = np.bincount(rows, weights=entries, minlength=matrix.shape[0])
        saturation = 1.2 * (0.25 + 0.75 * length / max(length.mean(), 1e-12))
        weights = entries * 2.2 / (saturation[rows] + entries)
    return sp.csr_array((weights * rarity[columns], (rows, columns)), shape=matrix.shape)


def nearest(
    rows: sp.csr_array, config: NeighbourConfig, generator: torch.Generator
) -> sp.csr_array:
    """The similarities of each row to its k nearest other rows, sparse float32 [n, n].

    Row x of the result holds s(x, y) of the k largest y; zeros are left out. Equals are chosen
    between by a random order of all rows, since an order by index would make the first ones
    everybody's neighbours.
    """
    priority = random_priority(rows.shape[0], generator)
    rows = rows.astype(np.float64)
    other = sp.csr_array(rows.T)
    similarity = _similarity(rows, config)
    parts = []
    for start, stop in _blocks(rows):
        overlap = sp.csr_array(rows[start:stop] @ other)
        overlap.sort_indices()
        left = np.repeat(np.arange(start, stop), np.diff(overlap.indptr))
        values = similarity(overlap.data, left, overlap.indices)
        values[left == overlap.indices] = 0.0
        block = sp.csr_array((values, overlap.indices, overlap.indptr), shape=overlap.shape)
        block.eliminate_zeros()
        parts.append(largest_per_row(block, config.k, priority))
    return sp.csr_array(sp.vstack(parts, format="csr").astype(np.float32))


def _blocks(rows: sp.csr_array) -> Iterator[tuple[int, int]]:
    """Runs of rows whose products with all rows stay below `BLOCK_PRODUCTS`, or single rows."""
    frequency = np.bincount(rows.indices, minlength=rows.shape[1])
    work = np.add.reduceat(
        np.append(frequency[rows.indices], 0), np.minimum(rows.indptr[:-1], rows.nnz)
    ) * (np.diff(rows.indptr) > 0)
    total, start = np.cumsum(work), 0
    while start < rows.shape[0]:
        done = total[start - 1] if start else 0
        stop = int(np.searchsorted(total, done + BLOCK_PRODUCTS, side="right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _similarity(
    rows: sp.csr_array, config: NeighbourConfig
) -> Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float64]]:
    """A function of x.y and of the indices of x and y; all denominators have 1e-6 added."""
    size = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()  # squared norms; counts, if binary
    norm = np.sqrt(size)
    shrinkage = config.shrinkage + 1e-6
    alpha, beta = config.tversky_alpha, config.tversky_beta
    if not config.normalize:
        return lambda dot, x, y: dot / (config.shrinkage or 1.0)
    if config.similarity == "cosine":
        return lambda dot, x, y: dot / (norm[x] * norm[y] + shrinkage)
    if config.similarity == "asymmetric":
        with np.errstate(divide="ignore"):  # a row without entries has no product to divide
            first = size**config.asymmetric_alpha
            second = size ** (1.0 - config.asymmetric_alpha)
        return lambda dot, x, y: dot / (first[x] * second[y] + shrinkage)
    if config.similarity == "jaccard":
        return lambda dot, x, y: dot / (size[x] + size[y] - dot + shrinkage)
    if config.similarity == "dice":
        return lambda dot, x, y: dot / (size[x] + size[y] + shrinkage)
    return lambda dot, x, y: (
        dot / (dot + alpha * (size[x] - dot) + beta * (size[y] - dot) + shrinkage)
    )


def random_priority(n: int, generator: torch.Generator) -> NDArray[np.int64]:
    """A random order of n things: which of equals comes first."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    priority: NDArray[np.int64] = order.cpu().numpy()
    return priority


def largest_per_row(matrix: sp.csr_array, k: int, priority: NDArray[np.int64]) -> sp.csr_array:
    """The k largest entries of each row; among equals those of the lowest column priority."""
    lengths = np.diff(matrix.indptr)
    if not (lengths > k).any():
        return matrix
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)
    long = np.flatnonzero(lengths[rows] > k)
    order = long[np.lexsort((priority[matrix.indices[long]], -matrix.data[long], rows[long]))]
    within = (
        np.arange(len(order))
        - np.flatnonzero(np.diff(rows[order], prepend=-1))[
            np.cumsum(np.diff(rows[order], prepend=-1) > 0) - 1
        ]
    )
    keep = np.ones(matrix.nnz, dtype=bool)
    keep[order[within >= k]] = False
    pointers = np.concatenate([[0], np.cumsum(np.minimum(lengths, k))])
    return sp.csr_array((matrix.data[keep], matrix.indices[keep], pointers), shape=matrix.shape)


class SparseTable(nn.Module):
    """A sparse matrix that `fit` stores: three buffers, empty before.

    It stays on the CPU when the model moves, since SciPy multiplies it there.
    """

    pointers: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, n_rows: int, n_columns: int) -> None:
        super().__init__()
        self.shape = (n_rows, n_columns)
        for name, dtype in (
            ("pointers", torch.int32),
            ("columns", torch.int32),
            ("values", torch.float32),
        ):
            self.register_buffer(name, torch.empty(0, dtype=dtype))

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> SparseTable:
        return self

    def store(self, matrix: sp.csr_array) -> None:
        """Keep `matrix`, in float32."""
        matrix = sp.csr_array(matrix)
        matrix.sort_indices()
        # Pointers and columns of one type, or SciPy would copy both at every use.
        index = np.int32 if matrix.nnz < 2**31 else np.int64
        for name, array, dtype in (
            ("pointers", matrix.indptr, index),
            ("columns", matrix.indices, index),
            ("values", matrix.data, np.float32),
        ):
            self.register_buffer(name, torch.from_numpy(np.array(array, dtype=dtype)))

    def matrix(self) -> sp.csr_array:
        """The matrix, sharing this module's memory."""
        parts = (self.values.numpy(), self.columns.numpy(), self.pointers.numpy())
        return sp.csr_array(parts, shape=self.shape)


def product_rows(left: sp.csr_array, users: Tensor, right: sp.csr_array) -> Tensor:
    """Some rows of a sparse product as a dense block on the users' device, float32 [B, I]."""
    block = (left[users.cpu().numpy()] @ right).toarray()
    return torch.from_numpy(block.astype(np.float32, copy=False)).to(users.device)
