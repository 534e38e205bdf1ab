"""Columns of vectors (`float_seq`) in RecBole's files, brought into .npy files block by block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from mmbench.data.features import rows_in_item_order
from mmbench.data.source import RawFeatures
from mmbench.data.sources.recbole_tables import NARROW, Header, read_header
from mmbench.data.store import write_array
from mmbench.errors import DataError

_BLOCK_BYTES = 8 * 2**20
_MODALITIES = {
    "visual": r"visual|vision|image|img|pictur|poster|cover",
    "textual": r"text|title|desc|sentence|caption",
    "acoustic": r"acoustic|audio|sound|music",
    "joint": r"joint|multimodal",
}
_ENCODER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(_[A-Za-z0-9.-]+)*")


def find_features(
    source: Path,
    name: str,
    scratch: Path,
    index: dict[str, str] | None,
    files: list[Path],
    warnings: list[str],
) -> tuple[RawFeatures, ...]:
    """Every column of vectors of items, each brought into a .npy file in `scratch`."""
    found: dict[tuple[str, str], tuple[Path, RawFeatures]] = {}
    taken = {*files, source / f"{name}.user"}
    for path in sorted(source.glob(f"{_escaped(name)}.*")):
        own = path == source / f"{name}.item"
        if not path.is_file() or path.suffix == ".inter" or (path in taken and not own):
            continue
        suffix = path.name.removeprefix(f"{name}.")
        header = _vector_header(path)
        if header is None:
            continue
        ids = [k for k, kind in enumerate(header.types) if kind == "token"]
        vectors = [k for k, kind in enumerate(header.types) if kind == "float_seq"]
        if own:
            ids = [header.names.index("item_id")] if "item_id" in header.names else []
        for k in vectors:
            field = header.names[k]
            place = _place_of(field if own else suffix, field)
            if len(ids) != 1 or place is None or re.match(r"u(ser|id)", header.names[ids[0]]):
                warnings.append(
                    f"W118 {path.name}: vectors '{field}' are left out, as their name does not "
                    f"tell that they are visual, textual or acoustic features of items; call the "
                    f"file {name}.visual to have them as visual features, for example"
                )
                continue
            if place in found:
                raise DataError(
                    f"E118 {path}: {found[place][0].name} would be stored under the same name; "
                    f"call one of them {name}.{place[0]}__<encoder>"
                )
            dtype = np.dtype("<f2" if field.endswith(NARROW) else "<f4")
            target = scratch / f"{place[0]}__{place[1]}.npy"
            rows = read_vectors(
                path, header.separator, (ids[0], k), len(header.names), target, dtype
            )
            if rows is None:
                warnings.append(f"W118 {path.name}: column '{field}' holds no vectors; left out")
                continue
            found[place] = (path, _feature(path, target, place, rows, index))
            if path not in files:
                files.append(path)
    return tuple(feature for _, feature in found.values())


def _feature(
    path: Path, target: Path, place: tuple[str, str], rows: list[str], index: dict[str, str] | None
) -> RawFeatures:
    """The matrix in `target` with the ids of its rows, or in the order of the numbered items."""
    if index is None:
        return RawFeatures(target, *place, tuple(rows))
    matrix = rows_in_item_order(np.load(target, allow_pickle=False), rows, list(index), path)
    write_array(target, matrix)
    return RawFeatures(target, *place)


def _escaped(name: str) -> str:
    """A name whose signs mean nothing special in a pattern of file names."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _vector_header(path: Path) -> Header | None:
    """The header of a file that holds vectors, None for any other file."""
    with path.open("rb") as file:
        if b":float_seq" not in file.readline(2**20):
            return None
    return read_header(path)


def _place_of(suffix: str, field: str) -> tuple[str, str] | None:
    """Modality and encoder of a file `NAME.<suffix>` with a column `field`; None if untold."""
    modality, _, encoder = suffix.partition("__")
    if modality in _MODALITIES and _ENCODER.fullmatch(encoder):
        return modality, encoder
    words = f"{suffix} {field}".lower()
    told = [name for name, pattern in _MODALITIES.items() if re.search(pattern, words)]
    return (told[0], "imported") if len(told) == 1 else None


def read_vectors(
    path: Path,
    separator: str,
    columns: tuple[int, int],
    n_fields: int,
    target: Path,
    dtype: np.dtype[Any],
) -> list[str] | None:
    """Write the vectors of a file to `target`, a .npy file [rows, dim], and return their ids.

    An empty vector becomes a row of zeros. `columns` are the places of id and vector among the
    `n_fields` fields of a line. None where there is not one vector.

    Raises:
        DataError: a line has another number of fields, a vector another length than the first,
            a number is none, or an id is empty or not UTF-8.
    """
    n_rows, dim = _measure(path, separator.encode(), columns[1])
    if not dim:
        return None
    ids: list[str] = []
    with path.open("rb") as file, target.open("wb") as matrix:
        file.readline()
        shape = (n_rows, dim)
        npy_format.write_array_header_1_0(
            matrix, {"descr": dtype.str, "fortran_order": False, "shape": shape}
        )
        line = 2
        # Plain writes rather than a memory map: on a full disk a map kills the process.
        while lines := file.readlines(_BLOCK_BYTES):
            numbers = [line + k for k, row in enumerate(lines) if row.strip()]
            cells = [_split(path, n, lines[n - line], separator, n_fields) for n in numbers]
            names = [row[columns[0]].strip(" ") for row in cells]
            if "" in names:
                raise DataError(
                    f"E113 {path}:{numbers[names.index('')]}: no id; every line needs one"
                )
            ids += map(_unquoted, names)
            block = _parse(path, numbers, [row[columns[1]] for row in cells], dim)
            with np.errstate(over="ignore"):  # infinities are refused when the file is imported
                matrix.write(block.astype(dtype).tobytes())
            line += len(lines)
    return ids


def _measure(path: Path, separator: bytes, column: int) -> tuple[int, int]:
    """Number of rows, and length of the first vector that is not empty (0 if none is)."""
    n_rows = dim = 0
    with path.open("rb") as file:
        file.readline()
        for row in file:
            if row.strip():
                n_rows += 1
                if not dim:
                    fields = row.split(separator)
                    dim = len(fields[column].split()) if len(fields) > column else 0
    return n_rows, dim


def _split(path: Path, line: int, row: bytes, separator: str, n_fields: int) -> list[str]:
    try:
        fields = row.decode("utf-8").rstrip("\r\n").split(separator)
    except UnicodeDecodeError as error:
        raise DataError(
            f"E111 {path}:{line}: byte 0x{row[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8"
        ) from error
    if len(fields) != n_fields:
        raise DataError(
            f"E112 {path}:{line}: {len(fields)} fields, expected {n_fields}; mend the line"
        )
    return fields


def _unquoted(name: str) -> str:
    inner = name[1:-1]
    if len(name) > 1 and name[0] == name[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return name


def _parse(path: Path, numbers: list[int], cells: list[str], dim: int) -> NDArray[np.float64]:
    """Vectors as numbers, [rows, dim]; empty ones are zeros."""
    text = pl.Series(cells, dtype=pl.String).str.strip_chars(" ").str.replace_all(" {2,}", " ")
    filled = np.flatnonzero((text != "").to_numpy())
    split = text.gather(filled).str.split(" ")
    lengths = split.list.len().to_numpy()
    if (lengths != dim).any():
        at = int((lengths != dim).argmax())
        raise DataError(
            f"E112 {path}:{numbers[filled[at]]}: a vector of {lengths[at]} numbers, the first has "
            f"{dim}; all must have one length"
        )
    block = np.zeros((len(cells), dim))
    if filled.size:
        parsed = split.explode()
        values = parsed.cast(pl.Float64, strict=False)
        bad = (values.is_null() | ~values.is_finite()).fill_null(True)
        if bad.any():
            at = int(bad.arg_max() or 0)
            raise DataError(
                f"E211 {path}:{numbers[filled[at // dim]]}: '{parsed[at]}' in a vector is not a "
                "finite number"
            )
        block[filled] = values.to_numpy().reshape(-1, dim)
    return block
