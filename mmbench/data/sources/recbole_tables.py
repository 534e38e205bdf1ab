"""RecBole's tables: typed headers, cells as text, and which files make up the interactions."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmbench.data.tables import Table, read_delimited
from mmbench.errors import DataError

INDEX = "mmbench_index"
"""Column of exported tables: the place of the line in the dataset that was exported."""
TEXT = "text"
"""Column of exported item tables: the composed text."""
NARROW = "_float16"
"""End of the names of exported vector columns whose numbers are float16."""

EXPECTED = (
    "NAME.inter, or NAME.train.inter, NAME.valid.inter and NAME.test.inter, whose first line is "
    "user_id:token<tab>item_id:token..."
)
TYPES = ("token", "token_seq", "float", "float_seq")
_PARTS = {
    "train": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2,
    "part1": 0, "part2": 1, "part3": 2,
}  # fmt: skip
_NEEDED = {0: "train", 1: "valid", 2: "test"}
_SEPARATORS = ("\t", ",", ";", "|")
_QUOTED = r'^"(?:[^"]|"")*"$'


@dataclass(frozen=True)
class Header:
    """Line 1 of an atomic file: names and types of the columns, and what separates them."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    separator: str


def read_header(path: Path) -> Header:
    """Read line 1 of an atomic file.

    Raises:
        DataError: the file cannot be read, or a field is not `name:type`.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(2**20).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(
            f"E101 {path} cannot be read: {error.strerror or error}; check the file"
        ) from error
    text = line.decode("utf-8", errors="replace").strip("\r\n")
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        raise DataError(
            f"E106 {path} is a web page, not a table (it begins with {text[:40]!r}); download the "
            "file again, signing in where the site asks for it"
        )
    if not text.strip():
        raise DataError(f"E113 {path} has no header in its first line; {EXPECTED}")
    separator = next((sign for sign in _SEPARATORS if sign in text), "\t")
    fields = [field.strip() for field in text.split(separator)]
    names, types = [], []
    for field in fields:
        name, colon, kind = field.rpartition(":")
        if not name or ":" in name or not colon or kind not in TYPES:
            raise DataError(
                f"E115 {path}: header field '{field}' needs name:type with type "
                f"{', '.join(TYPES[:-1])} or {TYPES[-1]}"
            )
        names.append(name)
        types.append(kind)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"E113 {path}: column '{twice}' stands twice in the header; rename one")
    return Header(tuple(names), tuple(types), separator)


def read_atomic(
    path: Path,
    warnings: list[str],
    *,
    keep: Collection[str] | None = None,
    numbers: Collection[str] = (),
) -> tuple[Table, Header]:
    """An atomic file as columns of text; cells in quotes are taken out of them, as RecBole does.

    Args:
        warnings: is told of malformed lines.
        keep: names of the columns to read; None means all.
        numbers: names of columns to convert to float64 on the way.

    Raises:
        DataError: as `read_header` and `read_delimited`.
    """
    header = read_header(path)
    typed = {name: f"{name}:{kind}" for name, kind in zip(header.names, header.types, strict=True)}
    kept = [name for name in header.names if keep is None or name in keep]
    table = read_delimited(
        path,
        header.separator,
        keep={typed[name] for name in kept},
        numbers={typed[name] for name in numbers if name in typed},
        warnings=warnings,
    )
    lines = table.lines
    table.columns = kept
    for name in kept:
        cells = table[name]
        if cells.dtype == pl.String and cells.str.starts_with('"').any():
            inner = cells.str.slice(1, cells.str.len_chars() - 2)
            bare = inner.str.replace_all('""', '"', literal=True)
            unquoted = pl.when(cells.str.contains(_QUOTED)).then(bare).otherwise(cells)
            table = Table(table.with_columns(unquoted.alias(name)))
    table.lines = lines
    return table, header


def find_interactions(source: Path) -> tuple[str, list[Path]]:
    """Name of the dataset, and its one file of interactions or its three parts in order."""
    whole: dict[str, Path] = {}
    parts: dict[str, dict[int, list[Path]]] = {}
    for path in sorted(source.glob("*.inter")):
        name, _, part = path.stem.rpartition(".")
        if name and part in _PARTS:
            parts.setdefault(name, {}).setdefault(_PARTS[part], []).append(path)
        else:
            whole[path.stem] = path
    names = sorted({*whole, *parts})
    if not names:
        raise DataError(f"E101 no NAME.inter found under {source}; pass the folder that holds it")
    if len(names) > 1 and source.name not in names:
        raise DataError(
            f"E103 {source} holds files of {', '.join(names)}; keep one dataset in the folder, or "
            f"name one {source.name}"
        )
    name = source.name if len(names) > 1 else names[0]
    if name not in parts:
        return name, [whole[name]]
    found = parts[name]
    if name in whole:
        raise DataError(
            f"E103 {source} holds {name}.inter and the parts of a split ({_names(found)}); "
            "keep one of the two"
        )
    several = [paths for paths in found.values() if len(paths) > 1]
    if several:
        told = " and ".join(path.name for path in several[0])
        raise DataError(f"E103 {source} holds {told} for one part; keep one of them")
    missing = [f"{name}.{word}.inter" for part, word in _NEEDED.items() if part not in found]
    if missing:
        raise DataError(
            f"E101 {' and '.join(missing)} not found under {source}, only {_names(found)}; a "
            "split has the parts train, valid and test"
        )
    return name, [found[part][0] for part in sorted(found)]


def _names(parts: dict[int, list[Path]]) -> str:
    """Names of the files of a split."""
    return ", ".join(path.name for part in sorted(parts) for path in parts[part])
