"""Reading tables without guessing: every cell is text until a column is asked for by type.

Automatic typing is what loses the leading zero of an id or turns the title "NA" into nothing,
so files are read as text, their shape is checked line by line first, and each typed column is
converted here with the file, the line and the cell named when it does not fit. Files are read
in blocks, so that one of many millions of rows takes little more memory than its columns.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.blocks import BLOCK, check_is_file, empty, refuse_web_page, unreadable
from mmbench.data.blocks import MALFORMED_SHARE as MALFORMED_SHARE
from mmbench.data.delimited import DelimitedFile, Form
from mmbench.data.fields import Shaped
from mmbench.errors import DataError

_SHOWN = 5
_HEAD = 1 << 16  # bytes that hold a header


def read_bytes(path: Path, *, cure: str = "") -> bytes:
    """The content of a file that must exist and hold something.

    Raises:
        DataError: it is missing, a folder, unreadable or empty; `cure` ends the message.
    """
    check_is_file(path, cure)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, cure) from error
    if not content.strip():
        raise empty(path, cure)
    return content


@dataclass(frozen=True)
class Lines:
    """Which line of a file each row of a table begins in.

    Attributes:
        first: the line of row 0, were nothing left out before it.
        rows, shifts: from each of these rows on, so many lines more than rows lie before it,
            because lines were left out or cells hold line breaks; ascending.
    """

    first: int
    rows: NDArray[np.int64]
    shifts: NDArray[np.int64]

    def of(self, row: int) -> int:
        """The line of a row."""
        known = int(np.searchsorted(self.rows, row, side="right"))
        return self.first + row + (int(self.shifts[known - 1]) if known else 0)


class Table(pl.DataFrame):
    """A table that knows the lines of its rows, for messages; what is made of it does not."""

    lines: Lines | None = None


class _LineCount:
    """The lines of the rows of one block after the other."""

    def __init__(self, first: int) -> None:
        self.first, self.n_rows, self.shift = first, 0, 0
        self.rows: list[NDArray[np.int64]] = []
        self.shifts: list[NDArray[np.int64]] = []

    def add(self, lines: NDArray[np.int64]) -> Lines:
        """Append rows; the lines of these rows alone."""
        shifts = lines - np.arange(self.first + self.n_rows, self.first + self.n_rows + lines.size)
        changes = np.flatnonzero(np.diff(shifts, prepend=self.shift))
        self.rows.append(changes + self.n_rows)
        self.shifts.append(shifts[changes])
        self.n_rows += lines.size
        self.shift = int(shifts[-1])
        return Lines(int(lines[0]), changes, shifts[changes] - shifts[0])

    def all(self) -> Lines:
        """The lines of all rows so far."""
        none = np.zeros(0, dtype=np.int64)
        return Lines(
            self.first, np.concatenate([none, *self.rows]), np.concatenate([none, *self.shifts])
        )


def read_delimited(
    path: Path,
    separator: str,
    *,
    columns: Sequence[str] | None = None,
    keep: Collection[str] | None = None,
    numbers: Collection[str] = (),
    times: Collection[str] = (),
    quoted: bool = False,
    last_takes_rest: bool = False,
    encoding: str = "utf-8",
    cure: str = "",
    warnings: list[str] | None = None,
    block: int = BLOCK,
) -> Table:
    """Read a delimited text file, plain or gzip, as a frame of text columns, empty cells null.

    Args:
        separator: what stands between the cells, of one character or more ("::").
        columns: names for a file without header; None means that line 1 is the header.
        keep: columns to read, those of them that there are; None means all.
        numbers, times: columns to convert on the way, as `number_column` and `time_column` do,
            which saves the memory of their text; they may be absent.
        quoted: `"` quotes a cell (RFC 4180); without it every separator counts.
        last_takes_rest: the last column holds all that is left of its line, separators included.
        encoding: "utf-8" (a byte order mark is accepted) or "latin-1".
        cure: what to do about a missing file; ends the message.
        warnings: is told of malformed lines, which are left out; None where none may be.
        block: bytes of text to work on at a time; the result does not depend on it.

    Raises:
        DataError: the file is missing (E101), empty (E113), another kind of file or broken
            (E106), not in this encoding (E111), or lines have another number of fields than
            there are columns: one of them, or with `warnings` more than `MALFORMED_SHARE`
            (E112). A cell of `numbers` or `times` is none (E211, E216).
    """
    form = Form(separator, columns, quoted, last_takes_rest, encoding)
    file = DelimitedFile(path, form, cure=cure, warnings=warnings, block=block)
    kept = [name for name in file.names if keep is None or name in keep]
    types: dict[str, Any] = dict.fromkeys(numbers, pl.Float64())
    types |= dict.fromkeys(times, pl.Int64())
    count = _LineCount(file.first_line)
    parts: list[pl.DataFrame] = []
    for shaped in file.shaped():
        lines = count.add(shaped.lines)
        parts.append(_read_part(file, shaped, kept, types, lines))
    texts = {name for part in parts for name in times if part.schema.get(name) == pl.String}
    schema = pl.Schema(
        (name, pl.String() if name in texts else types.get(name, pl.String())) for name in kept
    )
    frame = pl.concat([pl.DataFrame(schema=schema), *(part.cast(schema) for part in parts)])
    del parts
    table = Table(frame)
    table.lines = count.all()
    if texts:
        converted = [time_column(table, path, name, file.first_line) for name in sorted(texts)]
        lines = table.lines
        table = Table(frame.with_columns(converted))
        table.lines = lines
    return table


def _read_part(
    file: DelimitedFile,
    shaped: Shaped,
    kept: Collection[str],
    types: Mapping[str, Any],
    lines: Lines,
) -> pl.DataFrame:
    """The wanted columns of a block, converted; a column of times that are dates stays text."""
    wanted = [name for name in types if name in kept]
    if wanted and shaped.cells is None:
        try:
            frame = file.parse(shaped, kept, types)
            if frame.schema == {name: types.get(name, pl.String()) for name in kept} and all(
                frame[name].is_finite().all() for name in wanted if types[name].is_float()
            ):
                return frame
        except pl.exceptions.PolarsError:
            pass  # some cell does not fit; the text tells which, or what was meant
    table = Table(file.parse(shaped, kept, {}))
    table.lines = lines
    converted = []
    for name in wanted:
        if types[name].is_float():
            converted.append(number_column(table, file.path, name, lines.first))
        else:
            whole = _whole_times(table[name])
            converted += [] if whole is None else [whole]
    return table.with_columns(converted)


def read_header(
    path: Path, separator: str, *, quoted: bool = False, encoding: str = "utf-8", cure: str = ""
) -> list[str]:
    """The names in the first line of a delimited file; raises as `read_delimited`."""
    form = Form(separator, quoted=quoted, encoding=encoding)
    return DelimitedFile(path, form, cure=cure, warnings=None, block=_HEAD).names


def read_parquet(path: Path, *, keep: Collection[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file, or those columns of it that are in `keep`.

    Raises:
        DataError: it is missing (E101), or not a complete Parquet file (E106).
    """
    names = parquet_header(path)
    try:
        return pl.read_parquet(path, columns=[n for n in names if keep is None or n in keep])
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _broken_parquet(path, str(error).splitlines()[0]) from error


def parquet_header(path: Path) -> list[str]:
    """The names of the columns of a Parquet file; raises as `read_parquet`."""
    check_is_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(max(file.seek(0, io.SEEK_END) - 4, 0))
            end = file.read()
        if start[:4] == end == b"PAR1":
            return list(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _broken_parquet(path, str(error).splitlines()[0]) from error
    if not start:
        raise empty(path, "")
    refuse_web_page(path, start)
    raise _broken_parquet(path, "truncated" if start[:4] == b"PAR1" else "begins otherwise")


def _broken_parquet(path: Path, reason: str) -> DataError:
    return DataError(f"E106 {path} is not a complete Parquet file ({reason}); write it again")


def need_columns(frame: pl.DataFrame | Sequence[str], path: Path, needed: Sequence[str]) -> None:
    """Refuse a table, or the names of its columns, if a needed one is missing.

    Raises:
        DataError: naming the first missing column and those found.
    """
    found = frame.columns if isinstance(frame, pl.DataFrame) else frame
    for column in needed:
        if column not in found:
            raise DataError(
                f"E113 {path}: column '{column}' missing; found {', '.join(found)}; "
                "rename the column in the header"
            )


def id_column(frame: pl.DataFrame, path: Path, column: str) -> pl.Series:
    """A column of raw ids as text, never through a number type that could change it.

    Raises:
        DataError: the column holds neither text nor whole numbers.
    """
    series = frame[column]
    if series.dtype == pl.String:
        return series
    if series.dtype.is_integer() or isinstance(series.dtype, (pl.Categorical, pl.Enum)):
        return series.cast(pl.String)
    raise DataError(
        f"E113 {path}: column '{column}' has type {series.dtype}; ids must be text or whole "
        "numbers, so store the column as text"
    )


def index_column(
    frame: pl.DataFrame, path: Path, column: str, first_line: int
) -> NDArray[np.int64]:
    """A column of indices 0, 1, ... of a positional format, int64.

    Raises:
        DataError: a cell is empty, negative, or not a whole number.
    """
    text = frame[column].str.strip_chars()
    bad = ~text.str.contains(r"^\d{1,9}$").fill_null(False)
    if bad.any():
        raise DataError(
            f"E212 {_offenders(frame, path, first_line, bad, column)}; "
            "indices must be whole numbers from 0"
        )
    return text.cast(pl.Int64).to_numpy()


def number_column(frame: pl.DataFrame, path: Path, column: str, first_line: int) -> pl.Series:
    """A column of finite numbers as float64, empty cells null.

    Raises:
        DataError: a cell is not a number, or not finite.
    """
    raw = frame[column]
    values = raw.str.strip_chars() if raw.dtype == pl.String else raw
    if raw.dtype == pl.String:
        values = pl.select(pl.when(values == "").then(None).otherwise(values)).to_series()
    if not (raw.dtype == pl.String or raw.dtype.is_numeric() or raw.dtype == pl.Null):
        raise DataError(
            f"E113 {path}: column '{column}' has type {raw.dtype}; it must hold numbers"
        )
    numbers = values.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() & values.is_not_null()) | ~numbers.is_finite().fill_null(True)
    if bad.any():
        raise DataError(
            f"E211 {_offenders(frame, path, first_line, bad, column)}; it must be a finite number"
        )
    return numbers.alias(column)


def time_column(frame: pl.DataFrame, path: Path, column: str, first_line: int) -> pl.Series:
    """A column of times as int64, empty cells null.

    Whole numbers stay in their own unit; dates and ISO-8601 text become milliseconds UTC.

    Raises:
        DataError: a cell is neither a whole number nor ISO-8601.
    """
    raw = frame[column]
    if raw.dtype.is_integer() or raw.dtype == pl.Null:
        return raw.cast(pl.Int64)
    if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
        return raw.dt.epoch("ms").alias(column)
    if raw.dtype.is_float():
        whole = raw.is_null() | (raw.is_finite() & (raw == raw.floor()))
        raw = raw.cast(pl.Int64, strict=False) if whole.all() else raw
        raw = raw.cast(pl.String)
    if raw.dtype != pl.String:
        raise DataError(f"E113 {path}: column '{column}' has type {raw.dtype}; it must hold times")
    text = _time_texts(raw)
    times = text.cast(pl.Int64, strict=False)
    if times.null_count() > text.null_count():
        try:
            dates = text.str.to_datetime(strict=False, time_zone="UTC", time_unit="ms")
            times = dates.dt.epoch("ms") if times.null_count() == len(times) else times
        except pl.exceptions.PolarsError:
            pass  # no date format fits the column; the cells are named below
    bad = times.is_null() & text.is_not_null()
    if bad.any():
        raise DataError(
            f"E216 {_offenders(frame, path, first_line, bad, column)}; "
            "times must all be whole numbers (s, ms, us) or all ISO-8601"
        )
    return times.alias(column)


def _time_texts(raw: pl.Series) -> pl.Series:
    text = raw.str.strip_chars().str.replace(r"\.0+$", "")  # what a float column leaves behind
    return pl.select(pl.when(text == "").then(None).otherwise(text)).to_series()


def _whole_times(raw: pl.Series) -> pl.Series | None:
    """A column of text as whole numbers; None if a cell is none."""
    text = _time_texts(raw)
    times = text.cast(pl.Int64, strict=False)
    return times.alias(raw.name) if times.null_count() == text.null_count() else None


def _offenders(
    frame: pl.DataFrame, path: Path, first_line: int, bad: pl.Series, column: str
) -> str:
    lines = frame.lines if isinstance(frame, Table) else None
    known = lines if lines is not None and first_line else first_line
    return offenders(path, known, bad.to_numpy(), frame[column], column)


def offenders(
    path: Path, first_line: int | Lines, bad: NDArray[np.bool_], cells: pl.Series, column: str
) -> str:
    """Name the first five bad cells of a column and their total.

    `first_line` is the line of row 0 in the file, 0 where rows are not lines, or the `lines` of
    the table that `read_delimited` gave, which know of lines that were left out.
    """
    rows = np.flatnonzero(bad)

    def place(row: int) -> str:
        if isinstance(first_line, Lines):
            return str(first_line.of(row))
        return str(row + first_line) if first_line else f"row {row + 1}"

    shown = ", ".join(
        f"{place(row)}: {column} '{'' if cells[row] is None else cells[row]}'"
        for row in rows[:_SHOWN].tolist()
    )
    more = f" and {rows.size - _SHOWN} more" if rows.size > _SHOWN else ""
    return f"{path}:{shown}{more}"
