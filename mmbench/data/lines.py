"""Reading files of one object per line: JSON, or Python literals as Amazon's 2014 metadata.

A line is read by `json.loads`, else by `ast.literal_eval`: nothing in a file is ever executed.
What is neither is malformed: counted, left out and told of, up to a share. NaN is read as a
missing value, as pandas means it when it writes one; an infinity is malformed, and so are the
names `null`, `true` and `false` in a Python literal.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import polars as pl

from mmbench.data.blocks import BLOCK, Malformed, check_utf8, line_blocks

_LITERAL_CAP = 4 << 20
"""Bytes of the longest Python literal; the parser's memory is a hundred times its text."""
_CURE = "download the file again"
_WHOLE = re.compile(r"[-+]?[0-9]{1,400}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _UnreadableError(ValueError):
    """Why a line or a value in it is malformed."""


def read_scalars(
    path: Path,
    columns: Mapping[str, Any],
    *,
    warnings: list[str],
    cure: str = "",
    block: int = BLOCK,
) -> pl.DataFrame:
    """Some scalar fields of every line as columns, fast; streamed from .gz or plain files.

    A number where text is wanted becomes its JSON text, a text that is a number the number where
    one is wanted. Lists, objects and other values of a wrong type make the line malformed. Of a
    field that is written twice the last one counts.

    Args:
        columns: polars type of each wanted field: String, Float64, Int64 or Boolean; a line that
            lacks one gives null.
        warnings: told of lines that are malformed and skipped.
        cure: what to do about a missing or broken file.
        block: bytes of text to work on at a time; the result does not depend on it.

    Raises:
        DataError: missing file (E101), broken gzip or HTML (E106), not UTF-8 (E111), or more
            than `tables.MALFORMED_SHARE` of the lines malformed (E114).
    """
    malformed = Malformed(path, "114", warnings, cure or _CURE)
    frames: list[pl.DataFrame] = [pl.DataFrame(schema=dict(columns))]
    n_lines = 0
    for first_line, text in line_blocks(path, cure=cure, size=block):
        check_utf8(path, first_line, text)
        frame = _scalars_at_once(text, columns)
        if frame is None:
            frame = _scalars_one_by_one(first_line, text, columns, malformed)
        frames.append(frame)
        n_lines = first_line - 1 + text.count(b"\n")
        malformed.give_up(n_lines)
    malformed.close(n_lines)
    return pl.concat(frames)


def _scalars_at_once(block: bytes, columns: Mapping[str, Any]) -> pl.DataFrame | None:
    """The fields of a block of plain JSON; None where it may mean something else line by line.

    The quick reader takes the first of two equal keys, writes lists and objects into columns of
    text, and numbers in a form of its own. So it is believed only where every key stands once
    for every value that was read, and in front of a quote for every text.
    """
    n_lines = block.count(b"\n")
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict(columns))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if frame.height != n_lines:  # it passes over empty lines
        return None
    for key, kind in columns.items():
        series, mark = frame[key], json.dumps(key).encode() + b":"
        n_written = block.count(mark)
        n_null = block.count(mark + b"null") + block.count(mark + b" null")
        if n_written != n_lines - series.null_count() + n_null:
            return None
        # A null may stand for a second value of a line, and the count be right all the same.
        if n_null and not _is_once_a_line(block, mark):
            return None
        if kind == pl.String:
            n_texts = block.count(mark + b'"') + block.count(mark + b' "')
            # NUL is what it makes of half a surrogate pair.
            if n_texts + n_null != n_written or series.str.contains("\0", literal=True).any():
                return None
        elif kind.is_float() and not series.is_finite().all():
            return None
    return frame


def _is_once_a_line(block: bytes, mark: bytes) -> bool:
    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
    places = [match.start() for match in re.finditer(re.escape(mark), block)]
    return bool(np.diff(np.searchsorted(ends, places)).all())


def _scalars_one_by_one(
    first_line: int, block: bytes, columns: Mapping[str, Any], malformed: Malformed
) -> pl.DataFrame:
    rows = []
    for line, text in enumerate(block.split(b"\n")[:-1], first_line):
        try:
            record = _parse(text)
            rows.append([_scalar(record.get(key), columns[key], key) for key in columns])
        except _UnreadableError as error:
            malformed.add(line, str(error))
    return pl.DataFrame(rows, schema=dict(columns), orient="row")


def _scalar(value: Any, kind: Any, key: str) -> Any:
    """A value of a line as the polars type `kind`, None where there is none."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if kind == pl.String:
        if isinstance(value, str):
            return value
        if isinstance(value, (bool, int, float)):
            return json.dumps(value)
    elif kind == pl.Boolean:
        if isinstance(value, bool):
            return value
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _number(value, kind.is_integer())
        if number is not None:
            return number
    wanted = {pl.String: "text", pl.Boolean: "true or false"}.get(kind, "a number")
    raise _UnreadableError(f"{key} is {repr(value)[:40]}, expected {wanted}")


def _number(value: float | str, is_whole: bool) -> float | None:
    """A finite number, or one that fits int64; None if the value is not."""
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return None
        value = int(text) if _WHOLE.fullmatch(text) else float(text)
    if not is_whole:
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if abs(number) < float("inf") else None
    if isinstance(value, float):
        if not value.is_integer():
            return None
        value = int(value)
    return value if -(2**63) <= value < 2**63 else None


def records(
    path: Path,
    *,
    warnings: list[str],
    key: str | None = None,
    wanted: Container[str] | None = None,
    cure: str = "",
    block: int = BLOCK,
) -> Iterator[dict[str, Any]]:
    """The object of each line, JSON or else a Python literal; streamed.

    With `key` and `wanted`, only lines whose field `key` (text) is in `wanted`; other lines are
    skipped without being parsed wherever a quick search tells. Raises as `read_scalars`, once
    the lines have been read that show it.
    """
    malformed = Malformed(path, "114", warnings, cure or _CURE)
    is_skipped = _Skip(key, wanted) if key is not None and wanted is not None else None
    n_lines = 0
    for first_line, text in line_blocks(path, cure=cure, size=block):
        check_utf8(path, first_line, text)
        for line, content in enumerate(text.split(b"\n")[:-1], first_line):
            if is_skipped is not None and is_skipped(content):
                continue
            try:
                record = _parse(content)
            except _UnreadableError as error:
                malformed.add(line, str(error))
                continue
            if key is None or wanted is None or _is_wanted(record.get(key), wanted):
                yield record
        n_lines = first_line - 1 + text.count(b"\n")
        malformed.give_up(n_lines)
    malformed.close(n_lines)


class _Skip:
    """Tells of a line, without parsing it, that its field `key` is not in `wanted`.

    The key may stand in the line more than once, nested or as a text; the line can only be
    skipped if at each place it is followed by a plain value that is not wanted.
    """

    _VALUE = re.compile(
        rb"""\s*:\s*(?:u?'([^'\\]*)'|"([^"\\]*)"|(0|-?[1-9][0-9]*))\s*[,}]""",
    )

    def __init__(self, key: str, wanted: Container[str]) -> None:
        self.wanted = wanted
        name = key.encode("utf-8")
        self.marks = (b"'" + name + b"'", b'"' + name + b'"')

    def __call__(self, line: bytes) -> bool:
        is_found = False
        for mark in self.marks:
            at = line.find(mark)
            while at >= 0:
                at += len(mark)
                value = self._VALUE.match(line, at)
                if value is None or value[value.lastindex or 0].decode("utf-8") in self.wanted:
                    return False
                is_found = True
                at = line.find(mark, at)
        # A line that lacks the key is parsed, for it may be no object at all.
        return is_found


def _is_wanted(value: Any, wanted: Container[str]) -> bool:
    if isinstance(value, (int, float)):
        value = json.dumps(value)
    return isinstance(value, str) and value in wanted


def _parse(line: bytes) -> dict[str, Any]:
    """The object that a line holds."""
    if not line or line.isspace():
        raise _UnreadableError("an empty line")
    text = line.decode("utf-8")
    try:
        # Control characters in a text are forgiven: what is meant is plain all the same.
        value = json.loads(text, strict=False, parse_constant=_constant)
    except _UnreadableError:
        raise
    except (ValueError, RecursionError):
        value = _parse_literal(line, text)
    if not isinstance(value, dict):
        raise _UnreadableError("not an object")
    # Halves of a character that no UTF-8 can hold; Python 2 wrote both halves as escapes.
    mended: dict[str, Any] = _mend(value) if "\\ud" in text or "\\uD" in text else value
    return mended


def _parse_literal(line: bytes, text: str) -> Any:
    if not text.lstrip().startswith("{"):
        raise _UnreadableError("neither JSON nor a Python literal")
    if len(line) > _LITERAL_CAP:
        raise _UnreadableError(
            f"no JSON, and a Python literal of more than {_LITERAL_CAP >> 20} MiB"
        )
    try:
        with catch_warnings():
            simplefilter("ignore")  # of backslashes that escape nothing, which texts may hold
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _UnreadableError("neither JSON nor a Python literal") from error


def _constant(name: str) -> None:
    if name == "NaN":
        return
    raise _UnreadableError(f"{name} is no number")


def _mend(value: Any) -> Any:
    if isinstance(value, str):
        if not _SURROGATE.search(value):
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mend(name): _mend(content) for name, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mend(content) for content in value]
    return value
