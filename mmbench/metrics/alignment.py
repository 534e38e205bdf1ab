"""How well two sets of vectors of the same items agree: arrays in, numbers out.

Row k of both arrays is item k, for example its picture and its text. With unit vectors a_k and
b_k of n items:

    recall@K      share of a_k whose b_k is among the K nearest of all b, and the other way round
    paired        mean over k of a_k . b_k
    unpaired      mean over k != l of a_k . b_l
    gap           | mean a - mean b |                       (Liang et al., arXiv 2203.02053)
    uniformity    log mean over k < l of exp(-2 |a_k - a_l|^2)  (Wang & Isola, arXiv 2005.10242)
    rank          exp of the entropy of the singular values' shares  (Roy & Vetterli, 2007)

Vectors that are equally near share the places they take: recall is its expectation over all orders
of them, so that constant vectors score as chance. Rows of zeros have no direction and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import DataError

FloatArray = NDArray[np.float64]
KS = (1, 5, 10)
TIE = 1e-9
"""Cosines closer than this are equal: identical rows differ by rounding."""
_BLOCK = 1024


@dataclass(frozen=True)
class Alignment:
    """The measures of one pair of sets; the first is called a above, the second b.

    Attributes:
        n_items: items measured, which is what recall has to choose from.
        recall_first: recall@K by K from the first to the second.
        recall_second: recall@K by K from the second to the first.
        paired: mean cosine of the two vectors of an item.
        unpaired: mean cosine of vectors of two items, one of each set.
        gap: distance of the two means.
        uniformity_first: of the first set; 0 where all vectors are one, less is more even.
        uniformity_second: of the second set.
        rank_first: effective number of directions of the first set.
        rank_second: of the second set.
    """

    n_items: int
    recall_first: dict[int, float]
    recall_second: dict[int, float]
    paired: float
    unpaired: float
    gap: float
    uniformity_first: float
    uniformity_second: float
    rank_first: float
    rank_second: float

    @property
    def recall(self) -> float:
        """Mean of recall@K over K and both directions."""
        return float(np.mean([*self.recall_first.values(), *self.recall_second.values()]))


def measure(
    first: NDArray[Any], second: NDArray[Any], ks: Sequence[int] = KS, *, most: int | None = None
) -> Alignment:
    """All measures of two sets [n, D] of the same items.

    Args:
        most: measure so many items, drawn evenly over the rows, where there are more.

    Raises:
        DataError: the sets do not fit, fewer than two items, or a row that is zero or not finite.
    """
    if most is not None and len(first) > most:
        rows = np.linspace(0, len(first) - 1, most).round().astype(np.int64)
        first, second = first[rows], second[rows]
    a, b = _checked(first, second)
    places_first, places_second = _places(a, b), _places(b, a)
    return Alignment(
        n_items=len(a),
        recall_first={k: float(_within(*places_first, k).mean()) for k in ks},
        recall_second={k: float(_within(*places_second, k).mean()) for k in ks},
        paired=paired_cosine(a, b),
        unpaired=unpaired_cosine(a, b),
        gap=modality_gap(a, b),
        uniformity_first=uniformity(a),
        uniformity_second=uniformity(b),
        rank_first=effective_rank(a),
        rank_second=effective_rank(b),
    )


def unit(rows: NDArray[Any]) -> FloatArray:
    """Rows scaled to length 1, float64 [n, D].

    Raises:
        DataError: a row is zero or not finite, or there is no matrix.
    """
    wide = np.asarray(rows, dtype=np.float64)
    if wide.ndim != 2:
        raise DataError(f"vectors of items are a matrix [n, D], not {list(wide.shape)}")
    # The largest entry first: the square of a float32 can leave even float64's better digits.
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    bad = np.flatnonzero(~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0))
    if len(bad):
        raise DataError(
            f"{len(bad)} vectors are zero or not finite, the first in row {bad[0]}; such an item "
            "has no direction, leave it out"
        )
    wide = wide / largest
    scaled: FloatArray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def recall_at(first: NDArray[Any], second: NDArray[Any], k: int) -> FloatArray:
    """Of each item, the probability [n] that its second vector is among the K nearest its first."""
    return _within(*_places(*_checked(first, second)), k)


def paired_cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Mean cosine of the two vectors of an item."""
    a, b = _checked(first, second)
    return float((a * b).sum(axis=1).mean())


def unpaired_cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Mean cosine of the first vector of an item and the second of another one."""
    a, b = _checked(first, second)
    n = len(a)
    # The sum over all k and l is the product of two sums; n^2 products are not needed.
    return float((a.sum(axis=0) @ b.sum(axis=0) - (a * b).sum()) / (n * (n - 1)))


def modality_gap(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Distance of the means of the unit vectors."""
    a, b = _checked(first, second)
    return float(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)))


def uniformity(rows: NDArray[Any]) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of two rows, d their distance; at most 0."""
    a = unit(rows)
    n = len(a)
    if n < 2:
        raise DataError("uniformity is of two items at least")
    total = 0.0
    for start, block in _blocks(a):
        # |a - b|^2 = 2 - 2 a.b, clipped, as rounding can make a square negative.
        squares = np.clip(2 - 2 * (block @ a.T), 0, None)
        total += float(np.exp(-2 * squares).sum()) - float(
            np.exp(-2 * squares[np.arange(len(block)), start + np.arange(len(block))]).sum()
        )
    return float(np.log(total / (n * (n - 1))))


def effective_rank(rows: NDArray[Any]) -> float:
    """Between 1, all vectors on one line, and D: exp of the entropy of the spectrum."""
    a = unit(rows)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(a.T @ a), 0, None))
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _checked(first: NDArray[Any], second: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    a, b = unit(first), unit(second)
    if a.shape != b.shape:
        raise DataError(
            f"two sets of {list(a.shape)} and {list(b.shape)} have no common space; both need the "
            "same items and columns"
        )
    if len(a) < 2:
        raise DataError(f"alignment is of two items at least, not {len(a)}")
    return a, b


def _places(a: FloatArray, b: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of b are nearer to a_k than b_k is [n], and how many others are as near [n]."""
    nearer, even = np.empty(len(a), np.int64), np.empty(len(a), np.int64)
    for start, block in _blocks(a):
        rows = slice(start, start + len(block))
        cosines = block @ b.T
        own = (block * b[rows]).sum(axis=1, keepdims=True)
        nearer[rows] = (cosines > own + TIE).sum(axis=1)
        even[rows] = (np.abs(cosines - own) <= TIE).sum(axis=1) - 1
    return nearer, even


def _within(nearer: NDArray[np.int64], even: NDArray[np.int64], k: int) -> FloatArray:
    """Probability of a place among the first K, all orders of equals being equally likely."""
    if k < 1:
        raise DataError(f"recall@K needs a K from 1, not {k}")
    return np.clip((k - nearer) / (even + 1), 0.0, 1.0)


def _blocks(rows: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    for start in range(0, len(rows), _BLOCK):
        yield start, rows[start : start + _BLOCK]
