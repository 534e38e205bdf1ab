"""Feature sets on disk: one matrix of item features, from one encoder, for one dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureSet:
    """A feature set of a prepared dataset.

    Attributes:
        key: folder name, `<modality>__<encoder>`.
        modality: "visual", "textual", "acoustic" or "joint".
        encoder: what recipes write, for example "tfidf-svd".
        matrix: float32 or float16 [n_items, dim], memory-mapped, in item order; zero rows
            where `mask` is false.
        mask: which items truly have the modality, bool [n_items].
        manifest: encoder settings, sha256 of the matrix, dataset fingerprint.
    """

    key: str
    modality: str
    encoder: str
    matrix: NDArray[Any]
    mask: NDArray[np.bool_]
    manifest: Mapping[str, Any]


def write_features(
    root: Path,
    fingerprint: str,
    modality: str,
    encoder: str,
    matrix: NDArray[Any],
    mask: NDArray[np.bool_],
    settings: Mapping[str, Any],
) -> FeatureSet:
    """Check a matrix and store it atomically below the dataset folder `root`.

    Args:
        fingerprint: the dataset's, so that features never serve another dataset.

    Raises:
        DataError: NaN or infinity, a wrong number of rows, or a row of zeros counted as present.
    """
    raise TypeError("being built")


def load_features(root: Path, key: str, fingerprint: str, n_items: int) -> FeatureSet:
    """Open the feature set `key`, memory-mapped.

    Raises:
        DataError: it is missing, damaged, or belongs to another dataset.
    """
    raise TypeError("being built")
