"""The prepared dataset: its canonical folder, written once, opened memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.features import FeatureSet

TRAIN, VALID, TEST, EXCLUDED = 0, 1, 2, 3


@dataclass(frozen=True)
class Split:
    """Labels of every interaction: 0 train, 1 validation, 2 test, 3 excluded; int8 [N]."""

    name: str
    label: NDArray[np.int8]
    fingerprint: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset, opened for reading; arrays are memory-mapped, all of length N.

    Attributes:
        user, item: int32 indices, ordered by user, then time.
        timestamp: int64 milliseconds UTC, -1 where unknown.
        rating: float32, NaN where unknown.
        manifest: manifest.json of the folder.
    """

    root: Path
    manifest: Mapping[str, Any]
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    timestamp: NDArray[np.int64]
    rating: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return str(self.manifest["name"])

    @property
    def fingerprint(self) -> str:
        """Hash of the interactions and of the ids."""
        return str(self.manifest["fingerprint"])

    @property
    def n_users(self) -> int:
        """Number of users."""
        return int(self.manifest["counts"]["users"])

    @property
    def n_items(self) -> int:
        """Number of items, those without interactions included."""
        return int(self.manifest["counts"]["items"])

    @property
    def split_names(self) -> list[str]:
        """Names of the stored splits, the default one first."""
        raise TypeError("being built")

    def split(self, name: str | None = None) -> Split:
        """A split by name, or the default one.

        Raises:
            UnknownNameError: there is no such split.
            DataError: its labels are damaged.
        """
        raise TypeError("being built")

    @property
    def user_ids(self) -> list[str]:
        """Raw id of each user index."""
        raise TypeError("being built")

    @property
    def item_ids(self) -> list[str]:
        """Raw id of each item index."""
        raise TypeError("being built")

    @property
    def texts(self) -> list[str]:
        """Composed text of each item, "" where it has none."""
        raise TypeError("being built")

    @property
    def image_paths(self) -> list[Path | None]:
        """Picture file of each item, None where it has none or it is unusable."""
        raise TypeError("being built")

    @property
    def feature_keys(self) -> list[str]:
        """Keys `<modality>__<encoder>` of the stored feature sets."""
        raise TypeError("being built")

    def features(self, modality: str, encoder: str | None = None) -> FeatureSet:
        """The feature set of a modality; `encoder` may be left out where there is just one.

        Raises:
            DataError: there is none, or more than one and none was named; the message lists them.
        """
        raise TypeError("being built")


def load_dataset(name: str, data_dir: Path) -> PreparedDataset:
    """Open the prepared dataset `data_dir/name`.

    Raises:
        DataError: it is not prepared (the message says how to), unfinished, damaged, or of
            another version.
    """
    raise TypeError("being built")
