"""LightGCN's layout: one line per user, its index and those of its items.

train.txt, test.txt, val.txt   `user item item ...`, blanks between; a user alone has no items
item2imgfeat.txt               `item v1 v2 ...`: a visual feature of an item, as MCLN has them
itemtitle2vec.txt              likewise, a textual one
item_list.txt, user_list.txt   raw id and index of each, where they are there

Most datasets of this layout have no val.txt. Their two labels are kept, but are no split that a
model can be chosen on, so prepare asks for one: --split random-per-user or another.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.blocks import line_blocks
from mmbench.data.source import RawDataset, RawFeatures, Source, register_dataset
from mmbench.data.sources.matrices import write_rows
from mmbench.data.sources.positional import (
    Pairs,
    beginning,
    check_listed,
    labelled,
    read_id_list,
)
from mmbench.errors import DataError

_LINE = re.compile(rb"\d{1,9}(?:[ \t]+\d{1,9})*[ \t]*")
_VECTORS = {"item2imgfeat.txt": "visual", "itemtitle2vec.txt": "textual"}


@register_dataset("lightgcn")
class LightGCNFolder(Source):
    """Any dataset in LightGCN's layout; indices and labels are taken as they are."""

    title = "a folder in LightGCN's layout (train.txt, test.txt: user item item ...)"
    layout = True
    expects = "train.txt and test.txt with lines `user item item ...`; item2imgfeat.txt, if any"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether train.txt and test.txt begin with a line of indices."""
        # A user of many items has a long line; what is cut off its end does not matter.
        lines = (beginning(folder / name).split(b"\n")[0] for name in ("train.txt", "test.txt"))
        return all(_LINE.fullmatch(line.strip()) for line in lines)

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        none = np.zeros(0, dtype=np.int64)
        paths = [source / name for name in ("train.txt", "val.txt", "test.txt")]
        files = [path for path in paths if path.name != "val.txt" or path.is_file()]
        layout = "LightGCN: " + ", ".join(path.name for path in files)
        parts = [_read_lists(path) if path in files else (none, none) for path in paths]
        interactions = labelled(parts, source)
        ids: dict[str, tuple[str, ...] | None] = {}
        for what in ("item", "user"):
            path = source / f"{what}_list.txt"
            ids[what] = read_id_list(path) if path.is_file() else None
            files += [path] if path.is_file() else []
            check_listed(ids[what], path, interactions[what], what)
        listed = ids["item"]
        largest = max(int(part[1].max()) for part in parts if part[1].size)
        n_items = len(listed) if listed is not None else largest + 1
        features: list[RawFeatures] = []
        warnings: list[str] = []
        for name, modality in _VECTORS.items():
            path = source / name
            if path.is_file():
                files.append(path)
                matrix = _read_vectors(path, n_items, scratch, warnings)
                features.append(RawFeatures(matrix, modality, "imported"))
        return RawDataset(
            interactions=interactions,
            positional=True,
            features=tuple(features),
            files=tuple(files),
            facts={"source_layout": layout},
            item_ids=listed,
            user_ids=ids["user"],
            warnings=warnings,
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of each line that is not blank."""
    for first, block in line_blocks(path):
        for number, line in enumerate(block.split(b"\n"), start=first):
            if line.strip():
                yield number, line.strip()


def _read_lists(path: Path) -> Pairs:
    """User and item index of each interaction, line by line.

    Raises:
        DataError: the file is missing (E101), empty (E113), a web page (E106), or a line holds
            anything but whole numbers (E212).
    """
    users, items = array("q"), array("q")
    for number, line in _lines(path):
        if not _LINE.fullmatch(line):
            shown = line[:60].decode("utf-8", errors="replace")
            raise DataError(
                f"E212 {path}:{number}: '{shown}'; a line is `user item item ...`, whole numbers "
                "from 0"
            )
        owner, *owned = map(int, line.split())
        items.extend(owned)
        users.extend([owner] * len(owned))
    return np.frombuffer(users, dtype=np.int64), np.frombuffer(items, dtype=np.int64)


def _read_vectors(path: Path, n_items: int, scratch: Path, warnings: list[str]) -> Path:
    """Bring a text file of `item v1 v2 ...` lines into a matrix [n_items, dim] of float32.

    Raises:
        DataError: a line has no item index, another number of values than the first, or a value
            that is no finite number, or an item comes twice.
    """
    dim = len(next(_lines(path))[1].split()) - 1
    if dim < 1:
        raise DataError(f"E112 {path}:1: no values; a line is `item v1 v2 ...`")
    seen: set[int] = set()
    foreign: list[int] = []

    def rows() -> Iterator[tuple[int, NDArray[Any]]]:
        for number, line in _lines(path):
            cells = line.split()
            item = _item_of(cells[0], path, number, seen)
            if len(cells) != dim + 1:
                raise DataError(
                    f"E112 {path}:{number}: {len(cells) - 1} values, expected {dim}; mend the line"
                )
            if item >= n_items:
                foreign.append(item)
            else:
                yield item, _numbers(cells[1:], path, number)

    target = scratch / f"{path.stem}.npy"
    write_rows(target, n_items, dim, np.dtype("<f4"), rows())
    lacking = n_items - (len(seen) - len(foreign))
    if foreign:
        warnings.append(
            f"W213 {path.name}: {len(foreign)} items are in no other file and left out, e.g. "
            f"{foreign[0]}"
        )
    if lacking:
        warnings.append(f"W262 {path.name}: {lacking} of {n_items} items have no line in it")
    return target


def _item_of(cell: bytes, path: Path, number: int, seen: set[int]) -> int:
    if not cell.isdigit() or len(cell) > 9:
        shown = cell[:40].decode("utf-8", errors="replace")
        raise DataError(f"E212 {path}:{number}: itemID '{shown}'; a whole number from 0")
    item = int(cell)
    if item in seen:
        raise DataError(f"E261 {path}:{number}: item {item} has a line already; keep one")
    seen.add(item)
    return item


def _numbers(cells: list[bytes], path: Path, number: int) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            row = np.array([float(cell) for cell in cells]).astype(np.float32)
    except ValueError as error:
        raise DataError(f"E118 {path}:{number}: {error}; values are numbers") from None
    if not np.isfinite(row).all():
        raise DataError(f"E118 {path}:{number}: NaN, infinity or too large; mend the line")
    return row
