"""Dataset sources: what a raw dataset looks like once its files are read.

A source is a file of `mmbench/data/sources` that registers a class with `@register_dataset`. A
*named* source stands for one dataset (`demo`, `movielens-100k`) or for a family of them
(`amazon-2014`), each with its card; a *layout* reads any dataset in one arrangement of files
(`mmrec`, `plain`) and can recognise it by looking. Some are both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.cards import Card
from mmbench.registry import Registry

ItemReader = Callable[[pl.Series], pl.DataFrame]
"""Given raw item ids (text, unique), the rows of the item table for those of them it has.

For item tables too long to hold: only the items that survive the cleaning are ever read.
"""


@dataclass(frozen=True)
class RawFeatures:
    """A feature matrix that came with the dataset.

    Attributes:
        path: the .npy file, or the .b file of Amazon 2014; rows are items.
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
        items: one row per item, `item` (str), the text fields (str or null), and `image` (path
            below `image_root`, a web address, or null); or a function that reads the rows of
            given items; None where the source describes no items.
        positional: ids are indices 0..n-1 already, kept as they are, items without
            interactions included.
        text_fields: which columns of `items` make an item's text, in order.
        image_root: folder that `image` is relative to.
        features: matrices that came along.
        files: every file that was read, for the manifest's hashes.
        facts: what else the manifest should tell, for example planted importances.
        user_ids, item_ids: raw id of each index of a positional layout; None where the index is
            the only id there is.
        warnings: what the user should know of the files; reading items late may add to it.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | ItemReader | None = None
    positional: bool = False
    text_fields: tuple[str, ...] = ()
    image_root: Path | None = None
    features: tuple[RawFeatures, ...] = ()
    files: tuple[Path, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    user_ids: tuple[str, ...] | None = None
    item_ids: tuple[str, ...] | None = None
    warnings: list[str] = field(default_factory=list)


class Source:
    """A dataset source.

    Class attributes tell what it is: `title`, `citation`, `terms` (of use), `layout` (whether it
    reads any dataset of one arrangement), `needs_source` (whether it reads files at all, rather
    than generate them), `expects` (what a folder holds that it can read), and `defaults`
    (settings of `PrepareConfig` that its datasets are usually prepared with).

    Args:
        card: the dataset that is meant; None where only the folder tells.
    """

    title: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    terms: ClassVar[str] = ""
    layout: ClassVar[bool] = False
    needs_source: ClassVar[bool] = True
    expects: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, object]] = {}

    def __init__(self, card: Card | None = None) -> None:
        self.card = card

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The datasets of this source that are known by name, to be listed."""
        return ()

    @classmethod
    def find_card(cls, name: str) -> Card | None:
        """The card of the dataset `name` (lower case, with hyphens), None if it is not one of it.

        A family may know more names than it lists.

        Raises:
            DataError: the name is one that people expect here, and there is no such dataset.
        """
        return next((c for c in cls.cards() if name == c.name or name in c.aliases), None)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether `folder` looks like this source."""
        return False

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the raw files in `source`; `scratch` is a folder for files it has to create.

        `source` is only read, never written to, and `scratch` exists.

        Raises:
            DataError: a file is missing or malformed; the message names file, line and cure.
        """
        raise TypeError(f"{type(self).__name__} reads nothing")


DATASETS: Registry[type[Source]] = Registry("dataset", "mmbench.data", "register_dataset")


def register_dataset(name: str):  # type: ignore[no-untyped-def]
    """Register a `Source` class under the name of its file."""
    return DATASETS.register(name)
