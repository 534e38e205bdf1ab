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

from mmbench.data.sources.histories import refuse_page
from mmbench.data.tables import MALFORMED_SHARE, read_bytes
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
    refuse_page(path)
    content = read_bytes(path, cure=cure).removeprefix(b"\xef\xbb\xbf")
    try:
        lines = content.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"E111 {path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    first = 0 if _number(lines[0], separator) is not None else 1
    if first:
        head = lines[0].split(separator)[0].strip().strip('"').lower()
        if head not in _HEADERS:
            raise DataError(
                f"E113 {path}:1: found '{lines[0][:80]}'; expected item{separator}{fields[0]}, or "
                "a line that begins with the number of an item"
            )
    rows, malformed = _cut(lines, first, separator, len(fields))
    _tell(path, lines, malformed, warnings)
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
    lines: list[str], first: int, separator: str, n_fields: int
) -> tuple[list[tuple[str, ...]], list[int]]:
    """Rows, and the indices of lines that belong to none."""
    rows: list[tuple[str, ...]] = []
    malformed: list[int] = []
    at = first
    while at < len(lines):
        item, rest = _number(lines[at], separator), lines[at].partition(separator)[2]
        start, at = at, at + 1
        if item is None:
            malformed += [start] if lines[start].strip() else []
            continue
        if rest.lstrip().startswith('"') and not _QUOTED.fullmatch(rest):
            end = _closing(lines, start, separator, rest)
            if end is not None:
                rest, at = "\n".join([rest, *lines[start + 1 : end + 1]]), end + 1
        cells = [rest] if n_fields == 1 else rest.split(separator, n_fields - 1)
        if len(cells) < n_fields:
            malformed.append(start)
            continue
        rows.append((item, *(_unquote(cell) for cell in cells)))
    return rows, malformed


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


def _tell(path: Path, lines: list[str], malformed: list[int], warnings: list[str]) -> None:
    if not malformed:
        return
    shown = ", ".join(f"line {at + 1}: '{lines[at][:60]}'" for at in malformed[:3])
    what = f"{len(malformed)} of {len(lines)} lines of {path} begin with no item number"
    if len(malformed) > MALFORMED_SHARE * len(lines):
        raise DataError(f"E112 {what}, e.g. {shown}; mend them or take the original file")
    warnings.append(f"W114 {what} and are left out, e.g. {shown}")
