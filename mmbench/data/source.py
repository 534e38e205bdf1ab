"""Dataset sources: what a raw dataset looks like once its files are read.

A source is a file of this package that registers a class with `@register_dataset`. A *named*
source stands for one dataset (`demo`, `movielens-100k`); a *layout* reads any dataset in one
arrangement of files (`mmrec`, `plain`) and can recognise it by looking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.registry import Registry


@dataclass(frozen=True)
class RawFeatures:
    """A feature matrix that came with the dataset.

    Attributes:
        path: the .npy file; rows are items.
        modality: "visual", "textual", "acoustic" or "joint".
        encoder: name for the feature set, for example "imported".
        item_ids: raw id of each row; None where row k is item k of a positional layout.
    """

    path: Path
    modality: str
    encoder: str
    item_ids: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its source read it, before any cleaning.

    Attributes:
        interactions: in file order, columns `user` (str), `item` (str), `rating` (float64, null
            where there is none), `timestamp` (int64 in the unit of the source, or null) and
            `split` (int8: 0 train, 1 validation, 2 test, or null).
        items: one row per item, `item` (str), the text fields (str or null), and `image`
            (path below `image_root`, or null); None where the source describes no items.
        positional: ids are indices 0..n-1 already, kept as they are, items without
            interactions included.
        text_fields: which columns of `items` make an item's text, in order.
        image_root: folder that `image` is relative to.
        features: matrices that came along.
        files: every file that was read, for the manifest's hashes.
        facts: what else the manifest should tell, for example planted importances.
        user_ids, item_ids: raw id of each index of a positional layout; None where the index is
            the only id there is.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | None = None
    positional: bool = False
    text_fields: tuple[str, ...] = ()
    image_root: Path | None = None
    features: tuple[RawFeatures, ...] = ()
    files: tuple[Path, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    user_ids: tuple[str, ...] | None = None
    item_ids: tuple[str, ...] | None = None


class Source:
    """A dataset source.

    Class attributes are its card: `title`, `citation`, `terms` (of use), `needs_source`
    (whether `--source DIR` must be given), `expects` (what that folder holds and where to get
    it), and `defaults` (settings of `PrepareConfig` that this dataset is usually prepared with).
    """

    title: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    terms: ClassVar[str] = ""
    layout: ClassVar[bool] = False
    needs_source: ClassVar[bool] = True
    expects: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, object]] = {}

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether `folder` looks like this source."""
        return False

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the raw files in `source`; `scratch` is a folder for files it has to create.

        Raises:
            DataError: a file is missing or malformed; the message names file, line and cure.
        """
        raise TypeError(f"{type(self).__name__} reads nothing")


DATASETS: Registry[type[Source]] = Registry("dataset", "mmbench.data", "register_dataset")


def register_dataset(name: str):  # type: ignore[no-untyped-def]
    """Register a `Source` class under the name of its file."""
    return DATASETS.register(name)
