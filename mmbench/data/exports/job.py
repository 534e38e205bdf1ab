"""What every layout is given to write, and how tables of any length are written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.features import FeatureSet
from mmbench.data.prepared import EXCLUDED, PreparedDataset, Split

BLOCK_ROWS = 1_000_000
"""How many interactions are held as text at a time."""


@dataclass(frozen=True)
class ExportJob:
    """A dataset, one of its splits, and the feature sets to write.

    Attributes:
        name: stem of the files: the name of the folder, by which both toolboxes look for them.
    """

    dataset: PreparedDataset
    split: Split
    features: tuple[FeatureSet, ...]
    name: str

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Which rows are written, bool [N]: those that the split does not exclude."""
        return np.asarray(self.split.label != EXCLUDED)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Which of rating and timestamp the dataset has."""
        dataset = self.dataset
        held = {
            "rating": not np.isnan(dataset.rating).all(),
            "timestamp": bool((dataset.timestamp >= 0).any()),
        }
        return tuple(name for name, has in held.items() if has)

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[pl.DataFrame]:
        """Some rows in blocks, as columns `row`, `user`, `item`, `label`, `rating`, `timestamp`.

        Ratings are text of the fewest digits that give the same float32 again, null where
        unknown. Columns that the dataset lacks are left out.
        """
        dataset = self.dataset
        for start in range(0, rows.size, BLOCK_ROWS):
            at = rows[start : start + BLOCK_ROWS]
            block = {
                "row": at,
                "user": dataset.user[at],
                "item": dataset.item[at],
                "label": self.split.label[at],
            }
            if "timestamp" in self.columns:
                block["timestamp"] = dataset.timestamp[at]
            frame = pl.DataFrame(block)
            if "rating" in self.columns:
                rating = pl.Series("rating", dataset.rating[at], dtype=pl.Float32)
                frame = frame.with_columns(rating.fill_nan(None).cast(pl.String))
            yield frame


@dataclass(frozen=True)
class Written:
    """What a layout's writer tells: warnings, and how the toolbox is pointed at the files."""

    warnings: tuple[str, ...]
    usage: tuple[str, ...]


def write_table(path: Path, header: Iterable[str], blocks: Iterable[pl.DataFrame]) -> None:
    """Write frames below one tab-separated header, without quotes, empty cells for nulls."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        for frame in blocks:
            file.write(
                frame.write_csv(
                    include_header=False, separator="\t", quote_style="never", null_value=""
                )
            )
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
