"""Lists `id,text` whose text may hold anything: commas, lone quotes, even line breaks.

MicroLens publishes its titles in two ways: as CSV proper, and as lines that begin with the item's
number and a comma and go on with the bare title. A CSV reader runs over the end of a line at the
first lone quote of the second kind; cutting at the first comma leaves quotes in the first kind.
What tells them apart is that items are numbers: a line that begins with one begins an item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mmbench.data.blocks import Malformed, check_utf8, line_blocks
from mmbench.errors import DataError

_QUOTED = re.compile(r'\s*"((?:[^"]|"")*)"\s*', re.DOTALL)
_LONGEST = 100
"""Lines that a quoted text may have; bounds the search for the end of a lone quote."""
_HEADERS = {"item", "item_id", "itemid", "id", "video", "video_id", "videoid"}


def read_numbered(
    path: Path, separator: str, fields: Sequence[str], *, cure: str, warnings: list[str]
) -> pl.DataFrame:
    """Read `<item number><separator><first field>...`, with or without a header.

    The last of `fields` takes the rest of the line, separators included.

    Returns:
        Columns `item` and `fields`, text; empty texts are null.

    Raises:
        DataError: the file is missing, empty, a web page, not UTF-8, its header names the item
            second, or more lines are malformed than `MALFORMED_SHARE`.
    """
    lines: list[str] = []
    for first_line, block in line_blocks(path, cure=cure):
        check_utf8(path, first_line, block)
        lines += block.decode("utf-8").removesuffix("\n").split("\n")
    first = 0 if _number(lines[0], separator) is not None else 1
    if first:
        head = lines[0].split(separator)[0].strip().strip('"').lower()
        if head not in _HEADERS:
            raise DataError(
                f"E113 {path}:1: found '{lines[0][:80]}'; expected item{separator}{fields[0]}, or "
                "a line that begins with the number of an item"
            )
    malformed = Malformed(path, "112", warnings, "mend the lines or take the original file")
    rows = _cut(lines, first, separator, len(fields), malformed)
    malformed.close(len(lines))
    if not rows:
        raise DataError(f"E241 {path} has a header and no rows; {cure}")
    columns = ("item", *fields)
    table = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    return table.with_columns(
        pl.when(pl.col(name).str.strip_chars() != "").then(pl.col(name)).alias(name)
        for name in fields
    )


def _number(line: str, separator: str) -> str | None:
    """The item number that a line begins with, None where it begins with something else."""
    head, found, _ = line.partition(separator)
    head = head.strip().strip('"')
    # str.isdigit alone takes superscripts and digits of other scripts.
    return head if found and head.isascii() and head.isdigit() else None


def _cut(
    lines: list[str], first: int, separator: str, n_fields: int, malformed: Malformed
) -> list[tuple[str, ...]]:
    """The rows of a list; `malformed` is told of the lines that belong to none."""
    rows: list[tuple[str, ...]] = []
    at = first
    while at < len(lines):
        item, rest = _number(lines[at], separator), lines[at].partition(separator)[2]
        start, at = at, at + 1
        if item is None:
            if lines[start].strip():
                malformed.add(start + 1, f"'{lines[start][:60]}' begins with no item number")
            continue
        if rest.lstrip().startswith('"') and not _QUOTED.fullmatch(rest):
            end = _closing(lines, start, separator, rest)
            if end is not None:
                rest, at = "\n".join([rest, *lines[start + 1 : end + 1]]), end + 1
        cells = [rest] if n_fields == 1 else rest.split(separator, n_fields - 1)
        if len(cells) < n_fields:
            malformed.add(start + 1, f"{len(cells) + 1} fields, expected {n_fields + 1}")
            continue
        rows.append((item, *(_unquote(cell) for cell in cells)))
    return rows


def _closing(lines: list[str], start: int, separator: str, rest: str) -> int | None:
    """The line that closes the quoted cell opened in `start`, None where the quote is a lone one.

    The next line that begins an item ends the search: a lone quote must not swallow the list.
    """
    for at in range(start + 1, min(len(lines), start + _LONGEST)):
        if _number(lines[at], separator) is not None:
            return None
        rest += "\n" + lines[at]
        if _QUOTED.fullmatch(rest):
            return at
    return None


def _unquote(cell: str) -> str:
    quoted = _QUOTED.fullmatch(cell)
    return quoted[1].replace('""', '"') if quoted else cell.strip()
