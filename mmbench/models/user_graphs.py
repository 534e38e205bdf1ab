"""The graph of users who chose the same items: who shares how much, and the sums over them.

Shapes: U users, I items, K neighbours, D columns. Nothing of size U x U exists: the products
R R' are taken in blocks of rows and all but the largest counts of a row are dropped.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmbench.models.base import Interactions
from mmbench.models.losses import full_precision

STORED = 200
"""Neighbours of a user that are kept, those with the largest counts."""
BLOCK_PRODUCTS = 1 << 22
"""Multiplications of R R' whose results exist at once; one user may need more."""
_KEPT = 4
"""How many graphs are kept for later models of this process."""
_graphs: OrderedDict[str, CommonItems] = OrderedDict()


@dataclass(frozen=True)
class CommonItems:
    """The users with whom each user shares items, most items first, then lowest index.

    Attributes:
        pointers: where each user's neighbours start and the last one's end, int64 [U + 1].
        neighbours: int32 [pointers[-1]], at most `STORED` a user.
        counts: c_uw, the number of items that both chose, int32 [pointers[-1]].
    """

    pointers: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    counts: NDArray[np.int32]

    def slots(self, k: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The first k neighbours and counts, [U, K] each; a slot without neighbour counts 0.

        K is k, or the largest number of neighbours of a user where that is less.
        """
        lengths = np.minimum(np.diff(self.pointers), k)
        width = int(lengths.max(initial=0))
        filled = np.arange(width) < lengths[:, None]
        places = (self.pointers[:-1, None] + np.arange(width))[filled]
        neighbours = np.zeros(filled.shape, dtype=np.int32)
        counts = np.zeros(filled.shape, dtype=np.int32)
        neighbours[filled], counts[filled] = self.neighbours[places], self.counts[places]
        return neighbours, counts


def common_items(train: Interactions) -> CommonItems:
    """The `STORED` users with the largest c_uw = |N_u and N_w| > 0 of each user u, w other than u.

    Kept for later models of this process by the content of the interactions, so that the seeds
    and grid points of a recipe do not compute the same again.
    """
    digest = hashlib.blake2b(digest_size=16)
    for column in (train.users, train.items):
        digest.update(column.cpu().contiguous().numpy().data.cast("B"))
    key = f"{digest.hexdigest()} {train.n_users} {train.n_items}"
    if key not in _graphs:
        _graphs[key] = _count(train)
        while len(_graphs) > _KEPT:
            _graphs.popitem(last=False)
    _graphs.move_to_end(key)
    return _graphs[key]


def _count(train: Interactions) -> CommonItems:
    matrix = train.matrix
    transposed = sp.csr_array(matrix.T)
    # A user's row of R R' takes one multiplication for each user of each of the user's items.
    products = np.asarray(matrix @ np.diff(transposed.indptr), dtype=np.int64)
    block_of = np.cumsum(products) // BLOCK_PRODUCTS
    starts = np.flatnonzero(np.diff(block_of, prepend=-1)).tolist()
    lengths = np.zeros(train.n_users, dtype=np.int64)
    neighbours, counts = [], []
    for start, end in zip(starts, [*starts[1:], train.n_users], strict=True):
        rows, columns, values = _largest(sp.csr_array(matrix[start:end] @ transposed), start)
        lengths += np.bincount(rows, minlength=train.n_users)
        neighbours.append(columns.astype(np.int32))
        counts.append(values.astype(np.int32))
    return CommonItems(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([np.empty(0, dtype=np.int32), *neighbours]),
        np.concatenate([np.empty(0, dtype=np.int32), *counts]),
    )


def _largest(block: sp.csr_array, start: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Users, neighbours and counts of the `STORED` largest of each row of R R', best first."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    columns, values = block.indices.astype(np.int64), block.data.astype(np.int64)
    largest, n_users = int(values.max(initial=0)), block.shape[1]
    # One number that sorts by user, falling count and neighbour, and from which all three come
    # back: sorting numbers is several times as fast as sorting places.
    keys = (rows * (largest + 1) + largest - values) * n_users + columns
    keys = np.sort(keys[columns != rows + start])
    rows, columns = np.divmod(keys, n_users)
    rows, values = np.divmod(rows, largest + 1)
    first = np.searchsorted(rows, np.arange(block.shape[0]))
    kept = np.arange(len(rows)) - first[rows] < STORED
    return rows[kept] + start, columns[kept], largest - values[kept]


class UserGraph(nn.Module):
    """The sums sum_w beta_uw z_w over the K users w with whom u shares most items.

    beta_u is the softmax of the counts c_uw over the neighbours that there are, constant, and 0
    for a user without any. With `pad="resample"`, as the reference has it, a list shorter than K
    is filled with draws from itself, anew in each epoch (`draw`), and beta_u is the softmax over
    all K slots: a neighbour drawn n times weighs n times its exp(c_uw). The draw of the epoch
    is stored, so that what is ranked is what was trained. Where there are no two users of one item
    the sums are 0.

    Args:
        k: K, at most `STORED`.
    """

    neighbours: Tensor  # int32 [U, K]
    counts: Tensor  # c, int32 [U, K]; 0 where there is no neighbour
    weights: Tensor  # beta, [U, K]

    def __init__(self, train: Interactions, k: int, pad: Literal["none", "resample"]) -> None:
        super().__init__()
        self.k, self.pad = k, pad
        neighbours, counts = common_items(train).slots(k)
        self.register_buffer("neighbours", torch.from_numpy(neighbours), persistent=False)
        self.register_buffer("counts", torch.from_numpy(counts), persistent=False)
        weights = self._softmax(torch.ones_like(self.counts))
        self.register_buffer("weights", weights, persistent=pad == "resample")

    def draw(self) -> None:
        """Fill the lists shorter than K anew, from torch's global generator."""
        if self.pad == "none" or not self.counts.numel():
            return
        n_users, width = self.counts.shape
        lengths = (self.counts > 0).sum(dim=1, keepdim=True)
        draws = torch.rand(n_users, self.k, device=self.counts.device) * lengths
        chosen = draws.long().clamp_max(width - 1)
        empty = torch.arange(self.k, device=self.counts.device) >= lengths
        times = torch.ones_like(self.counts).scatter_add(1, chosen, empty.to(self.counts.dtype))
        self.weights.copy_(self._softmax(times))

    def _softmax(self, times: Tensor) -> Tensor:
        """The beta of neighbours that stand in the list so many times, float32 [U, K]."""
        # The rest of a softmax is its own zero: a list without neighbours has no largest count.
        counts = self.counts.double()
        largest = counts.amax(dim=1, keepdim=True) if counts.shape[1] else counts.sum(1, True)
        shares = (counts - largest).exp() * times * (counts > 0)
        return (shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-300)).float()

    def forward(self, vectors: Tensor, users: Tensor | None = None) -> Tensor:
        """sum_w beta_uw z_w of some users or all, [B, D], with gradient to z.

        Args:
            vectors: z, [U, D].
            users: int64 [B], or all.
        """
        neighbours, weights = self.neighbours, self.weights
        if users is not None:
            neighbours, weights = (x.index_select(0, users) for x in (neighbours, weights))
        if not neighbours.shape[1]:
            return vectors.new_zeros(len(neighbours), vectors.shape[1])
        summed: Tensor = _SlotSum.apply(neighbours, weights, vectors)
        return summed


class _SlotSum(torch.autograd.Function):
    """Y_b = sum over slots k: w_bk Z_(n_bk); the gradient to Z is that of Y, sent back."""

    @staticmethod
    def forward(ctx: Any, neighbours: Tensor, weights: Tensor, dense: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours, weights)
        ctx.dtype, ctx.n_rows = dense.dtype, len(dense)
        with torch.autocast(dense.device.type, enabled=False):
            dense = full_precision(dense.detach())
            return F.embedding_bag(neighbours, dense, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None, Tensor]:
        (neighbours, weights), gradient = ctx.saved_tensors, gradients[0]
        # The sums by neighbour, over the slots sorted by it: gathering in order is many times as
        # fast as adding to rows all over the table.
        by_neighbour, slots = neighbours.reshape(-1).sort()
        nodes = torch.arange(ctx.n_rows + 1, device=slots.device, dtype=by_neighbour.dtype)
        with torch.autocast(gradient.device.type, enabled=False):
            result = F.embedding_bag(
                slots // neighbours.shape[1],
                gradient.contiguous(),
                torch.searchsorted(by_neighbour, nodes),
                mode="sum",
                per_sample_weights=weights.reshape(-1).index_select(0, slots),
                include_last_offset=True,
            )
        return None, None, result.to(ctx.dtype)
