"""Product quantisation of item vectors, with a learned rotation (OPQ).

Ge, He, Ke and Sun, CVPR 2013; the recipe "OPQ32,IVF1,PQ32x8" of faiss, which VQ-Rec takes its
codes from, without faiss.

    x'      = (x - m) R                     m the mean of the fitted rows, R orthogonal
    c_k     = argmin over c of |x'_k - C_{k,c}|        x'_k the k-th of D parts of x'
    x_hat   = m + [C_{1,c_1} .. C_{D,c_D}] R'

Fitting alternates: k-means in each part, which improves C and c for the current R; then
R = U V' of the SVD X' X_hat = U S V' (orthogonal Procrustes), which is the best rotation for the
current reconstructions. No step makes the error larger. R starts as the principal axes, dealt
out so that every part has about the same variance.

Shapes: N rows, F width, D parts, W = ceil(F / D) width of a part, K centroids.
Departures: m takes the place of the one coarse centroid, as rows are compared by distance. Rows
are widened with zeros to D W where D does not divide F, which changes no distance. With fewer
than K distinct rows there are as many centroids as those. Rows are sorted before anything is
drawn, so that codes do not depend on the order of the items.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float32]

MAX_ROWS = 65_536
"""Rows that fitting looks at, 256 for each of 256 centroids as in faiss; others are only coded."""
_STEPS = 4
"""Steps of k-means between two rotations, warm from the last ones."""
_LAST_STEPS = 25
"""Steps of the first and of the last k-means."""
_LEAST_GAIN = 1e-4
"""Share of the error that a rotation must save for another one to be learned."""
_BLOCK = 4096
"""Rows that are coded at once."""


class ProductQuantiser(nn.Module):
    """From vectors to codes and back.

    Attributes:
        mean: m, [D W].
        rotation: R, [D W, D W].
        centroids: C, [D, K, W].
    """

    mean: Tensor
    rotation: Tensor
    centroids: Tensor

    def __init__(self, width: int, mean: Tensor, rotation: Tensor, centroids: Tensor) -> None:
        super().__init__()
        self.width = width
        for name, tensor in (("mean", mean), ("rotation", rotation), ("centroids", centroids)):
            self.register_buffer(name, tensor)

    @property
    def n_parts(self) -> int:
        """D."""
        return len(self.centroids)

    @property
    def n_centroids(self) -> int:
        """K, of each part."""
        return self.centroids.shape[1]

    @torch.no_grad()
    def quantise(self, rows: Tensor) -> Tensor:
        """Codes of some vectors, int64 [N, D] of [N, F]; of equally near centroids the first."""
        if rows.shape[1] != self.width:
            raise ValueError(f"vectors have {rows.shape[1]} columns, the quantiser {self.width}")
        rotated = (self._widened(rows) - self.mean) @ self.rotation
        parts = rotated.view(len(rows), *self.centroids.shape[::2]).transpose(0, 1)  # [D, N, W]
        # Not by products, |x|^2 - 2 x.c + |c|^2: what those round decides near ties.
        codes = [
            torch.cdist(block, self.centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(
                dim=2
            )
            for block in torch.split(parts, _BLOCK, dim=1)
        ]
        return torch.cat(codes, dim=1).T.contiguous()

    @torch.no_grad()
    def reconstruct(self, codes: Tensor) -> Tensor:
        """Vectors x_hat that codes int64 [N, D] stand for, [N, F]."""
        parts = torch.arange(self.n_parts, device=codes.device)
        rotated = self.centroids[parts, codes].flatten(1)
        return (rotated @ self.rotation.T + self.mean)[:, : self.width]

    def _widened(self, rows: Tensor) -> Tensor:
        return F.pad(rows.to(self.mean.dtype), (0, len(self.mean) - self.width))


def fit_product_quantiser(
    rows: Tensor, *, n_parts: int, n_centroids: int, n_rounds: int, seed: int
) -> ProductQuantiser:
    """Learn a quantiser on the CPU.

    Args:
        rows: vectors [N, F], N at least 1, finite.
        n_parts: D.
        n_centroids: K, or the number of distinct rows where that is smaller.
        n_rounds: rotations learned at most; 0 keeps the principal axes.
        seed: of k-means and of the choice of rows.
    """
    # One thread: those of k-means add up in the order in which they end, so that the last bits
    # of a centroid, and with them the codes, would differ from run to run.
    from threadpoolctl import threadpool_limits

    given = rows.detach().cpu().float().numpy()
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(given, axis=0, return_counts=True)
    sample = np.repeat(distinct, counts, axis=0)
    if len(sample) > MAX_ROWS:
        sample = sample[np.sort(rng.choice(len(sample), MAX_ROWS, replace=False))]
        distinct = np.unique(sample, axis=0)
    width = -(-given.shape[1] // n_parts)  # W
    x: Array = np.zeros((len(sample), n_parts * width), dtype=np.float32)
    x[:, : given.shape[1]] = sample
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x -= mean
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Parts of rows are equal more often than rows, and then share a centroid.
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        rotation = principal_axes(x, n_parts)
        centroids, closest = _first_centroids(
            x @ rotation, n_parts, min(n_centroids, len(distinct)), rng
        )
        before = np.inf
        for _ in range(n_rounds):
            left, _, right = np.linalg.svd(x.T @ closest)
            rotation = left @ right
            rotated = x @ rotation
            centroids, closest = _improved(rotated, centroids, _STEPS)
            error = float(np.square(rotated - closest).sum(dtype=np.float64))
            if error >= (1 - _LEAST_GAIN) * before:
                break
            before = error
        centroids, _ = _improved(x @ rotation, centroids, _LAST_STEPS)
    return ProductQuantiser(given.shape[1], *map(torch.from_numpy, (mean, rotation, centroids)))


def principal_axes(x: Array, n_parts: int) -> Array:
    """Principal axes of centred rows [N, D W] as columns, dealt out to parts, [D W, D W].

    The axis with the most variance that is left goes to the part that has the least so far.
    """
    variances, axes = np.linalg.eigh(x.T.astype(np.float64) @ x)
    width = len(axes) // n_parts
    dealt: list[list[int]] = [[] for _ in range(n_parts)]
    totals = np.zeros(n_parts)
    for axis in range(len(axes) - 1, -1, -1):
        part = int(totals.argmin())
        dealt[part].append(axis)
        totals[part] += max(0.0, variances[axis])
        if len(dealt[part]) == width:
            totals[part] = np.inf
    return np.asarray(axes[:, [axis for part in dealt for axis in part]], dtype=np.float32)


def _first_centroids(
    rotated: Array, n_parts: int, n_centroids: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Centroids [D, K, W] of k-means++ and the rows they stand for [N, D W]."""
    from sklearn.cluster import kmeans_plusplus

    starts = [
        kmeans_plusplus(part, n_centroids, random_state=int(rng.integers(2**31)))[0]
        for part in np.split(rotated, n_parts, axis=1)
    ]
    return _improved(rotated, np.stack(starts), _LAST_STEPS)


def _improved(rotated: Array, centroids: Array, n_steps: int) -> tuple[Array, Array]:
    """Centroids after some steps of k-means in each part, and the rows they stand for."""
    # Imported here: listing models must not wait for scikit-learn.
    from sklearn.cluster import KMeans

    better, closest = np.empty_like(centroids), np.empty_like(rotated)
    for k, part in enumerate(np.split(rotated, len(centroids), axis=1)):
        means = KMeans(
            len(centroids[k]), init=centroids[k], n_init=1, max_iter=n_steps, tol=0.0
        ).fit(np.ascontiguousarray(part))
        better[k] = means.cluster_centers_
        width = part.shape[1]
        closest[:, k * width : (k + 1) * width] = better[k][means.labels_]
    return better, closest
