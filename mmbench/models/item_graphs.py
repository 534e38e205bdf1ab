"""Graphs of items that resemble each other: who is near whom, and how much that weighs.

Shapes: I items, F columns of features, k neighbours. Nothing of size I x I exists: rows are
compared in blocks.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.models.base import ItemFeatures
from mmbench.models.fusion import FeatureTables
from mmbench.models.graph import SparseOperator

BLOCK_ROWS = 512
"""Rows of an item-by-item matrix that exist at once."""
_KEPT = 16
"""How many neighbour lists of raw features are kept for later models of this process."""
_neighbours: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()


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
    features = features.detach()
    norms = torch.linalg.vector_norm(features, dim=1)
    unit = F.normalize(features, dim=1, eps=1e-12)
    indices = torch.empty(n_items, k, dtype=torch.int64, device=features.device)
    values = torch.empty(n_items, k, dtype=features.dtype, device=features.device)
    for start in range(0, n_items, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, n_items))
        if shrinkage:
            scale = torch.outer(norms[rows], norms) + shrinkage
            block = (features[rows] @ features.T) / scale.clamp_min(1e-12)
        else:  # rows of length one first: a block is the product alone
            block = unit[rows] @ unit.T
        if not include_self:
            block.diagonal(start).fill_(-torch.inf)
        indices[rows] = largest_columns(block, k)
        values[rows] = block.gather(1, indices[rows])
    return indices, values


def largest_columns(block: Tensor, k: int) -> Tensor:
    """Columns of the k largest values of each row, int64 [B, k], ascending.

    Among equals the lowest columns win, which `torch.topk` does not promise: rows where the k-th
    value has an equal outside are looked at again.
    """
    if k in (0, block.shape[1]):
        return torch.arange(k, device=block.device).repeat(len(block), 1)
    values, columns = block.topk(k + 1, dim=1)
    columns = columns[:, :k].sort(dim=1).values
    tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
    if len(tied):
        columns[tied] = _lowest_of_equals(block[tied], values[tied, k - 1 : k], k)
    return columns


def _lowest_of_equals(block: Tensor, smallest: Tensor, k: int) -> Tensor:
    """`largest_columns` where the k-th largest value of each row, [B, 1], has equals."""
    above, equal = block > smallest, block == smallest
    room = k - above.sum(dim=1, keepdim=True)
    keep = above | (equal & (equal.cumsum(dim=1) <= room))
    return keep.nonzero()[:, 1].view(len(block), k)


def raw_neighbours(features: ItemFeatures, k: int) -> tuple[Tensor, Tensor]:
    """`item_neighbours` of a feature set by cosine, the item itself included.

    Kept for later models of this process by the content of the features, never by their name, so
    that the seeds and grid points of a recipe do not compute the same again.

    Raises:
        ConfigError: fewer than two distinct rows, so that nothing is nearer than anything else.
    """
    content = features.matrix.detach().cpu().float().contiguous()
    digest = hashlib.blake2b(content.numpy().data.cast("B"), digest_size=16).hexdigest()
    key = f"{digest} {tuple(content.shape)} {k}"
    if key not in _neighbours:
        if len(content) > 1 and bool((content == content[0]).all()):
            raise ConfigError(
                f"features {features.name}: all rows are equal, so no item has nearest ones; "
                "leave this feature set out"
            )
        _neighbours[key] = item_neighbours(content, k)
        while len(_neighbours) > _KEPT:
            _neighbours.popitem(last=False)
    _neighbours.move_to_end(key)
    return _neighbours[key]


def knn_graph(
    features: ItemFeatures, k: int, weights: Literal["cosine", "uniform"]
) -> sp.csr_array:
    """The graph of the k nearest items, itself included, normalised; [I, I], rows receive.

    "cosine" (KNN-w): W_ij = cos(x_i, x_j) for the k kept, delta_i = max(0, sum_j W_ij), result
    delta_i^-1/2 W_ij delta_j^-1/2 with the *row* sums on both sides, 0 where a sum is 0.
    "uniform" (KNN-1): every kept edge has the weight 1 / k.
    """
    indices, similarities = raw_neighbours(features, k)
    n_items, width = indices.shape
    receivers = np.repeat(np.arange(n_items), width)
    columns = indices.numpy().ravel()
    if weights == "uniform":
        values = np.full(len(columns), 1.0 / width, dtype=np.float32)
    else:
        values = normalised_similarities(indices, similarities).numpy().ravel()
    return sp.csr_array((values, (receivers, columns)), shape=(n_items, n_items))


def normalised_similarities(indices: Tensor, similarities: Tensor) -> Tensor:
    """delta_i^-1/2 W_ij delta_j^-1/2 of kept similarities [I, k]; differentiable in them."""
    sums = similarities.sum(dim=1)
    positive = sums > 0
    # Not sums.clamp(0) ** -0.5: its gradient at 0 is infinite, and infinity times 0 is NaN.
    scale = torch.where(positive, torch.where(positive, sums, 1.0).rsqrt(), 0.0)
    return scale[:, None] * similarities * scale[indices]


def cosine_of_pairs(features: Tensor, indices: Tensor) -> Tensor:
    """cos(f_i, f_j) for given pairs, [I, k], with gradient; j = indices[i, :]."""
    unit = F.normalize(features, dim=1, eps=1e-12)
    blocks = [
        torch.einsum("bd,bkd->bk", unit[start : start + BLOCK_ROWS], unit[chosen])
        for start in range(0, len(unit), BLOCK_ROWS)
        for chosen in [indices[start : start + BLOCK_ROWS]]
    ]
    return torch.cat(blocks)


def mix_graphs(graphs: Mapping[str, sp.csr_array], weights: Mapping[str, float]) -> sp.csr_array:
    """sum_m w_m G_m; shared edges are summed."""
    names = list(graphs)
    total = weights[names[0]] * graphs[names[0]]
    for name in names[1:]:
        total = total + weights[name] * graphs[name]
    return sp.csr_array(total)


def mixing_weights(modalities: Sequence[str], visual: float) -> dict[str, float]:
    """Weights of modalities that sum to 1: `visual` for it, the rest shared equally.

    A single modality has weight 1; without a visual one all share equally.
    """
    others = [name for name in modalities if name != "visual"]
    if "visual" not in modalities or not others:
        return {name: 1.0 / len(modalities) for name in modalities}
    return {
        name: visual if name == "visual" else (1.0 - visual) / len(others) for name in modalities
    }


@dataclass(frozen=True)
class NeighbourGraph:
    """A graph of items as W senders of each item and their weights, which may carry gradient.

    Attributes:
        indices: int64 [I, W]; a sender that stands twice counts with the sum of its weights.
        weights: [I, W].
    """

    indices: Tensor
    weights: Tensor

    def scaled(self, factor: Tensor | float) -> NeighbourGraph:
        """The graph with every weight times a factor."""
        return NeighbourGraph(self.indices, self.weights * factor)

    def normalised(self) -> NeighbourGraph:
        """The graph by `normalised_similarities`."""
        return NeighbourGraph(self.indices, normalised_similarities(self.indices, self.weights))

    def propagate(self, dense: Tensor, n_layers: int) -> Tensor:
        """G^n X, [I, D], with gradient to X and to the weights."""
        # Autocast would halve what the weights are given with.
        with torch.autocast(dense.device.type, enabled=False):
            for _ in range(n_layers):
                dense = F.embedding_bag(
                    self.indices, dense, mode="sum", per_sample_weights=self.weights
                )
        return dense

    def frozen(self) -> SparseOperator:
        """The graph as a constant, which is faster to go over many times."""
        n_items, width = self.indices.shape
        pointers = np.arange(n_items + 1) * width
        values = self.weights.detach().cpu().numpy().ravel()
        columns = self.indices.cpu().numpy().ravel()
        # A copy, as summing happens in place and the arrays are the tensors' own memory.
        matrix = sp.csr_array((values, columns, pointers), shape=(n_items, n_items), copy=True)
        matrix.sum_duplicates()
        return SparseOperator(matrix).to(self.weights.device, self.weights.dtype)


def joined_graph(*graphs: NeighbourGraph) -> NeighbourGraph:
    """The sum of graphs over the same items."""
    return NeighbourGraph(
        torch.cat([graph.indices for graph in graphs], dim=1),
        torch.cat([graph.weights for graph in graphs], dim=1),
    )


def raw_graph(features: ItemFeatures, k: int) -> NeighbourGraph:
    """`knn_graph` by "cosine" (KNN-w) as neighbours and weights, on the features' device."""
    indices, similarities = raw_neighbours(features, k)
    weights = normalised_similarities(indices, similarities)
    device = features.matrix.device
    return NeighbourGraph(indices.to(device), weights.to(device))


def learned_similarities(features: Tensor, k: int, indices: Tensor | None = None) -> NeighbourGraph:
    """The k items nearest to each by cosine, with similarities that carry gradient to F [I, D].

    The choice of the k is not differentiated. Not normalised yet.

    Args:
        indices: the k of each item, [I, k], if they were chosen before.
    """
    features = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
    with torch.autocast(features.device.type, enabled=False):
        if indices is None:
            indices, _ = item_neighbours(features, k)  # without gradient
        return NeighbourGraph(indices, cosine_of_pairs(features, indices))


def table_similarities(
    features: FeatureTables, name: str, project: nn.Module, k: int, chosen: dict[str, Tensor] | None
) -> NeighbourGraph:
    """`learned_similarities` of one modality's projected rows, project(X_m) [I, D].

    Args:
        chosen: the k of each item by modality, [I, k]; what is not in it yet is chosen by the table
            as it stands and put there. None: chosen anew in each call.
    """
    indices = None
    if chosen is not None:
        if name not in chosen:
            with torch.no_grad():
                chosen[name] = learned_similarities(project(features.table(name)), k).indices
        indices = chosen[name]
    return learned_similarities(project(features[name]), k, indices)


class LearnedGraphs(nn.Module):
    """Item graphs that are built with gradient, then stand still for a while.

    LATTICE and MICRO build theirs in the first batch of an epoch. Beside them stand the graphs of
    the features at the start, which never change. Neither is among the stored weights.
    """

    raw_indices: Tensor
    raw_weights: Tensor

    def __init__(self, raw: Sequence[NeighbourGraph]) -> None:
        super().__init__()
        for name, parts in (
            ("raw_indices", [graph.indices for graph in raw]),
            ("raw_weights", [graph.weights for graph in raw]),
        ):
            stacked = torch.stack(parts) if parts else torch.empty(0)
            self.register_buffer(name, stacked, persistent=False)  # [M, I, k]
        self.kept = nn.ModuleList()

    def raw(self) -> list[NeighbourGraph]:
        """The graphs of the raw features, one for each modality."""
        pairs = zip(self.raw_indices, self.raw_weights, strict=True)
        return [NeighbourGraph(indices, weights) for indices, weights in pairs]

    def forget(self) -> None:
        """Let the next `propagate` build anew."""
        self.kept = nn.ModuleList()

    def propagate(
        self,
        dense: Tensor,
        n_layers: int,
        build: Callable[[], Sequence[NeighbourGraph]],
        *,
        keep: bool = True,
    ) -> list[Tensor]:
        """G^n X of each graph, [I, D]: newly built with gradient, or kept without.

        Args:
            dense: X, [I, D].
            n_layers: n.
            build: makes the graphs.
            keep: whether later calls, up to `forget`, take the graphs built now.
        """
        if len(self.kept):
            return [graph.last_power(dense, n_layers) for graph in self._kept()]
        built = build()
        if keep:
            self.kept = nn.ModuleList(graph.frozen() for graph in built)
        return [graph.propagate(dense, n_layers) for graph in built]

    def _kept(self) -> list[SparseOperator]:
        return [graph for graph in self.kept if isinstance(graph, SparseOperator)]
