"""Reading tables without guessing: every cell is text until a column is asked for by type.

Automatic typing is what loses the leading zero of an id or turns the title "NA" into nothing,
so files are read as text, their shape is checked line by line first, and each typed column is
converted here with the file, the line and the cell named when it does not fit.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.errors import DataError

_SHOWN = 5
MALFORMED_SHARE = 0.001
"""Share of malformed lines up to which they are counted and skipped, not refused."""


def read_bytes(path: Path, *, cure: str = "") -> bytes:
    """The content of a file that must exist and hold something.

    Raises:
        DataError: it is missing, a folder, unreadable or empty; `cure` ends the message.
    """
    cure = cure or "check the path given by --source"
    if not path.is_file():
        raise DataError(f"E101 {path.name} not found under {path.parent}; {cure}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"E101 {path} cannot be read: {error.strerror}; {cure}") from error
    if not content.strip():
        raise DataError(f"E113 {path} is empty; {cure}")
    return content


def read_delimited(
    path: Path,
    separator: str,
    *,
    columns: Sequence[str] | None = None,
    quoted: bool = False,
    encoding: str = "utf-8",
    cure: str = "",
    warnings: list[str] | None = None,
) -> pl.DataFrame:
    """Read a delimited text file as a frame of text columns, empty cells null.

    `columns` names the columns of a file without header; None means that line 1 is the header.
    With `quoted`, `"` quotes a cell (RFC 4180); without it every separator counts. `encoding` is
    "utf-8" (a byte order mark is accepted) or "latin-1"; `cure` ends the message of an error.

    Raises:
        DataError: the file is missing, empty, not in this encoding, or a line has another number
            of fields than the first.
    """
    content = read_bytes(path, cure=cure).removeprefix(b"\xef\xbb\xbf")
    content = content.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n"
    if encoding == "utf-8":
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"E111 {path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; "
                "save the file as UTF-8"
            ) from error
    else:
        content = content.decode(encoding).encode("utf-8")
    expected = len(columns) if columns is not None else None
    # Without a single quote sign the quick count over bytes is exact for quoted files too.
    if quoted and b'"' in content:
        _check_quoted_fields(path, content, separator, expected)
    else:
        _check_fields(path, content, separator, expected)
    try:
        frame = pl.read_csv(
            io.BytesIO(content),
            separator=separator,
            has_header=columns is None,
            new_columns=list(columns) if columns is not None else None,
            quote_char='"' if quoted else None,
            infer_schema=False,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"E112 {path} is not a readable table: {reason}; mend the file") from error
    return frame.rename({name: name.strip() for name in frame.columns})


def _check_fields(path: Path, content: bytes, separator: str, expected: int | None) -> None:
    data = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    marks = np.flatnonzero(data == ord(separator))
    fields = np.diff(np.searchsorted(marks, ends), prepend=0) + 1
    wanted = int(fields[0]) if expected is None else expected
    wrong = np.flatnonzero(fields != wanted)
    if wrong.size:
        _raise_fields(path, int(wrong[0]) + 1, int(fields[wrong[0]]), wanted, separator, wrong.size)


def _check_quoted_fields(path: Path, content: bytes, separator: str, expected: int | None) -> None:
    reader = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), delimiter=separator)
    wanted = expected
    try:
        for row in reader:
            wanted = len(row) if wanted is None else wanted
            if len(row) != wanted:
                _raise_fields(path, reader.line_num, len(row), wanted, separator, 1)
    except csv.Error as error:
        raise DataError(f"E112 {path}:{reader.line_num}: {error}; mend the line") from error


def _raise_fields(
    path: Path, line: int, found: int, wanted: int, separator: str, n_wrong: int
) -> None:
    sign = {"\t": "tab", ",": "comma", "|": "pipe"}.get(separator, separator)
    more = f" ({n_wrong} such lines)" if n_wrong > 1 else ""
    raise DataError(
        f"E112 {path}:{line}: {found} fields, expected {wanted} separated by {sign}{more}; "
        "mend the line"
    )


def read_parquet(path: Path) -> pl.DataFrame:
    """Read a Parquet file.

    Raises:
        DataError: it is missing or not a complete Parquet file.
    """
    read_bytes(path)
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"E106 {path} is not a complete Parquet file ({reason}); write it again"
        ) from error


def need_columns(frame: pl.DataFrame, path: Path, needed: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        DataError: naming the first missing column and those found.
    """
    for column in needed:
        if column not in frame.columns:
            raise DataError(
                f"E113 {path}: column '{column}' missing; found {', '.join(frame.columns)}; "
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
            f"E212 {offenders(path, first_line, bad.to_numpy(), frame[column], column)}; "
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
            f"E211 {offenders(path, first_line, bad.to_numpy(), raw, column)}; "
            "it must be a finite number"
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
    text = raw.str.strip_chars().str.replace(r"\.0+$", "")  # what a float column leaves behind
    text = pl.select(pl.when(text == "").then(None).otherwise(text)).to_series()
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
            f"E216 {offenders(path, first_line, bad.to_numpy(), frame[column], column)}; "
            "times must all be whole numbers (s, ms, us) or all ISO-8601"
        )
    return times.alias(column)


def offenders(
    path: Path, first_line: int, bad: NDArray[np.bool_], cells: pl.Series, column: str
) -> str:
    """Name the first five bad cells of a column and their total.

    `first_line` is the line of row 0 in the file, or 0 where rows are not lines.
    """
    rows = np.flatnonzero(bad)
    unit = "" if first_line else "row "
    shown = ", ".join(
        f"{unit}{row + max(first_line, 1)}: {column} '{'' if cells[row] is None else cells[row]}'"
        for row in rows[:_SHOWN].tolist()
    )
    more = f" and {rows.size - _SHOWN} more" if rows.size > _SHOWN else ""
    return f"{path}:{shown}{more}"
