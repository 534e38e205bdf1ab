"""Reading files of one object per line: JSON, or Python literals as Amazon's 2014 metadata.

A line is read by `json.loads`, else by `ast.literal_eval`: nothing in a file is ever executed.
What is neither is malformed: counted, left out and told of, up to a share. NaN is read as a
missing value, as pandas means it when it writes one; an infinity is malformed, and so are the
names `null`, `true` and `false` in a Python literal.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from mmbench.data.blocks import BLOCK, Malformed, check_utf8, line_blocks

_LITERAL_CAP = 4 << 20
"""Bytes of the longest Python literal; the parser's memory is a hundred times its text."""
_CURE = "download the file again"
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _UnreadableError(ValueError):
    """Why a line or a value in it is malformed."""


def read_scalars(
    path: Path, columns: Mapping[str, Any], *, warnings: list[str], cure: str = ""
) -> pl.DataFrame:
    """Some scalar fields of every line as columns, fast; streamed from .gz or plain files.

    A number where text is wanted becomes its JSON text, a text that is a number the number where
    one is wanted. Lists, objects and other values of a wrong type make the line malformed. Of a
    field that is written twice the last one counts.

    Args:
        columns: polars type of each wanted field; a line that lacks one gives null.
        warnings: told of lines that are malformed and skipped.
        cure: what to do about a missing or broken file.

    Raises:
        DataError: missing file (E101), broken gzip or HTML (E106), not UTF-8 (E111), or more
            than `tables.MALFORMED_SHARE` of the lines malformed (E114).
    """
    malformed = Malformed(path, "114", warnings, cure or _CURE)
    frames: list[pl.DataFrame] = [pl.DataFrame(schema=dict(columns))]
    n_lines = 0
    for first_line, block in line_blocks(path, cure=cure, size=BLOCK):
        check_utf8(path, first_line, block)
        frames.append(_scalars_one_by_one(first_line, block, columns, malformed))
        n_lines = first_line - 1 + block.count(b"\n")
        malformed.give_up(n_lines)
    malformed.close(n_lines)
    return pl.concat(frames)


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
        try:
            number = float(value)
            if kind.is_integer():
                whole = value if isinstance(value, int) else int(number)
                if whole == number and -(2**63) <= whole < 2**63:
                    return whole
            elif abs(number) < float("inf"):
                return number
        except (ValueError, OverflowError):
            pass
    shown = repr(value)[:40]
    raise _UnreadableError(
        f"{key} is {shown}, expected {'text' if kind == pl.String else 'a number'}"
    )


def records(
    path: Path,
    *,
    warnings: list[str],
    key: str | None = None,
    wanted: Container[str] | None = None,
    cure: str = "",
) -> Iterator[dict[str, Any]]:
    """The object of each line, JSON or else a Python literal; streamed.

    With `key` and `wanted`, only lines whose field `key` (text) is in `wanted`; other lines are
    skipped without being parsed wherever a quick search tells. Raises as `read_scalars`.
    """
    malformed = Malformed(path, "114", warnings, cure or _CURE)
    n_lines = 0
    for first_line, block in line_blocks(path, cure=cure, size=BLOCK):
        check_utf8(path, first_line, block)
        for line, text in enumerate(block.split(b"\n")[:-1], first_line):
            try:
                record = _parse(text)
            except _UnreadableError as error:
                malformed.add(line, str(error))
                continue
            if key is None or wanted is None or _is_wanted(record.get(key), wanted):
                yield record
        n_lines = first_line - 1 + block.count(b"\n")
        malformed.give_up(n_lines)
    malformed.close(n_lines)


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
        raise _UnreadableError(f"a {type(value).__name__}, not an object")
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
