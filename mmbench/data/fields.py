"""The shape of delimited text: which lines have as many fields as they should.

Works on blocks of whole lines of UTF-8 (`blocks.line_blocks`). Quotes follow RFC 4180: a cell that
begins with `"` ends with the next one that is not doubled, and may hold separators and line
breaks. Blocks whose quotes all stand where that rule wants them are counted as arrays; others,
with quotes inside of cells, are split cell by cell as the csv module would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmbench.data.blocks import LINE_CAP, Malformed, too_long

_QUOTE = ord('"')
_END = ord("\n")
_STAND_INS = bytes([31, 30, 29, 28, 1, 2, 3, 4, 5, 6])


@dataclass(frozen=True)
class Shaped:
    """The well-formed records of a block.

    Attributes:
        content: their text; empty where `cells` holds them.
        separator: the byte between their cells.
        n_rows: how many they are.
        lines: the line that each begins in, [n_rows].
        cells: the cells of each, null where nothing stands, if they had to be split.
    """

    content: bytes
    separator: bytes
    n_rows: int
    lines: NDArray[np.int64]
    cells: list[list[str | None]] | None = None


def one_byte(block: bytes, separator: bytes) -> tuple[bytes, bytes]:
    """The block with a separator of several bytes replaced by one that it does not hold."""
    if len(separator) == 1:
        return block, separator
    stand_in = unused_byte(block)
    return block.replace(separator, stand_in), stand_in


def unused_byte(block: bytes) -> bytes:
    """A control character that a block of text does not hold."""
    unused = [sign for sign in _STAND_INS if sign not in block]
    # Text that holds all ten of them is none; the fields will not fit then, and be refused.
    return bytes(unused[:1] or _STAND_INS[:1])


def shape_lines(
    first_line: int,
    block: bytes,
    separator: bytes,
    n_fields: int,
    malformed: Malformed,
    at_least: bool = False,
) -> Shaped:
    """The lines of a block that have `n_fields` fields, or `at_least` as many."""
    data = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(data == _END)
    marks = np.flatnonzero(data == separator[0])
    lines = np.arange(first_line, first_line + ends.size + 1)
    return _drop_misshapen(block, separator, ends, marks, lines, n_fields, malformed, at_least)


def _drop_misshapen(
    block: bytes,
    separator: bytes,
    ends: NDArray[np.int64],
    marks: NDArray[np.int64],
    lines: NDArray[np.int64],
    n_fields: int,
    malformed: Malformed,
    at_least: bool = False,
) -> Shaped:
    """Leave out records; `ends` and `marks` are those outside of quotes, `lines` has one more."""
    if n_fields > 1 and marks.size == ends.size * (n_fields - 1):
        grid = marks.reshape(-1, n_fields - 1)
        if (grid[:, -1] < ends).all() and (grid[1:, 0] > ends[:-1]).all():
            return Shaped(block, separator, ends.size, lines[:-1])
    starts = np.concatenate(([0], ends[:-1] + 1))
    fields = np.diff(np.searchsorted(marks, ends), prepend=0) + 1
    fields[ends == starts] = 0
    wrong = fields < n_fields if at_least else fields != n_fields
    if not wrong.any():
        return Shaped(block, separator, ends.size, lines[:-1])
    parts, at = [], 0
    for row in np.flatnonzero(wrong).tolist():
        _tell_fields(malformed, int(lines[row]), int(fields[row]), n_fields, lines, row)
        parts.append(block[at : starts[row]])
        at = int(ends[row]) + 1
    content = b"".join([*parts, block[at:]])
    return Shaped(content, separator, int((~wrong).sum()), lines[:-1][~wrong])


def _tell_fields(
    malformed: Malformed, line: int, found: int, wanted: int, lines: NDArray[np.int64], row: int
) -> None:
    reason = f"{found} fields, expected {wanted}" if found else "an empty line"
    malformed.add(line, reason, int(lines[row + 1]) - line)


def quoted_blocks(
    path: Path, blocks: Iterator[tuple[int, bytes]], separator: bytes, malformed: Malformed
) -> Iterator[tuple[int, bytes, bool]]:
    """Blocks of whole records of whole lines: first line, text, whether its quotes are regular.

    Text without any quote is regular. A quote that is open at the end of the file makes all from
    its record on malformed.

    Raises:
        DataError: a record of more than `LINE_CAP` bytes (E112).
    """
    line, held = 1, b""
    for first_line, block in blocks:
        if not held:
            if b'"' not in block:
                yield first_line, block, True
                continue
            line = first_line
        held += block
        cut, is_regular = _whole_records(held, separator)
        if cut:
            yield line, held[:cut], is_regular
            line += held.count(b"\n", 0, cut)
            held = held[cut:]
        if len(held) > LINE_CAP:
            raise too_long(path, line)
    while held:
        cut, is_regular = _whole_records(held, separator)
        if not cut:
            malformed.add(line, "a quote is not closed", held.count(b"\n"))
            return
        yield line, held[:cut], is_regular
        line += held.count(b"\n", 0, cut)
        held = held[cut:]


def _whole_records(text: bytes, separator: bytes) -> tuple[int, bool]:
    """Where the last record that is whole ends, and whether the quotes up to there are regular."""
    data = np.frombuffer(text, dtype=np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    ends = np.flatnonzero(data == _END)
    outside = ends[np.searchsorted(quotes, ends) % 2 == 0]
    cut = int(outside[-1]) + 1 if outside.size else 0
    quotes = quotes[quotes < cut]
    around = np.zeros(256, dtype=bool)
    around[[_QUOTE, _END, separator[0]]] = True
    # Every other quote opens: it stands behind a separator, a line end, or the quote that would
    # have closed the cell, so that the two are one in the text; closing ones the same in front.
    opening, closing = quotes[::2], quotes[1::2]
    before = data[opening[opening > 0] - 1]
    is_regular = bool(around[before].all() and around[data[closing + 1]].all())
    # Without a cut the quotes were not looked at: one inside of a cell may hold all the rest.
    if is_regular and cut:
        return cut, True
    at = 0
    for _, at, is_whole in _split(text, separator):
        if not is_whole:
            return at, False
    return at, False


def shape_quoted(
    first_line: int,
    block: bytes,
    separator: bytes,
    n_fields: int,
    malformed: Malformed,
    is_regular: bool,
) -> Shaped:
    """The records of a block of `quoted_blocks` that have `n_fields` fields."""
    if is_regular:
        data = np.frombuffer(block, dtype=np.uint8)
        quotes = np.flatnonzero(data == _QUOTE)
        ends = np.flatnonzero(data == _END)
        marks = np.flatnonzero(data == separator[0])
        lines = np.arange(first_line, first_line + ends.size + 1)
        if quotes.size:
            outside = np.searchsorted(quotes, ends) % 2 == 0
            lines = lines[np.concatenate(([True], outside))]
            ends = ends[outside]
            marks = marks[np.searchsorted(quotes, marks) % 2 == 0]
        return _drop_misshapen(block, separator, ends, marks, lines, n_fields, malformed)
    cells, kept, line, start = [], [], first_line, 0
    for record, end, _ in _split(block, separator):
        n_lines = block.count(b"\n", start, end)
        if record == [None]:
            malformed.add(line, "an empty line")
        elif len(record) != n_fields:
            malformed.add(line, f"{len(record)} fields, expected {n_fields}", n_lines)
        else:
            cells.append(record)
            kept.append(line)
        line, start = line + n_lines, end
    return Shaped(b"", separator, len(cells), np.array(kept, dtype=np.int64), cells)


def first_record(block: bytes, separator: bytes, quoted: bool) -> tuple[list[str], int]:
    """The cells of the first record of a block, and where it ends."""
    if quoted:
        record, end, _ = next(_split(block, separator))
        return [cell or "" for cell in record], end
    end = block.index(b"\n")
    return block[:end].decode("utf-8").split(separator.decode("utf-8")), end + 1


def split_cells(content: bytes, separator: bytes, quoted: bool) -> list[list[str | None]]:
    """The cells of every record, one by one; None where nothing stands."""
    if quoted:
        return [record for record, _, _ in _split(content, separator)]
    sign = separator.decode("utf-8")
    lines = content.decode("utf-8").split("\n")[:-1]
    return [[cell or None for cell in line.split(sign)] for line in lines]


def _split(text: bytes, separator: bytes) -> Iterator[tuple[list[str | None], int, bool]]:
    """The cells of each record, where it ends, and whether it does.

    The last one is not whole, and ends where it begins, if a quote in it is not closed.
    """
    sign = re.escape(separator)
    # What follows a closing quote belongs to the cell, as the csv module has it.
    pattern = rb'(?:"([^"]*(?:""[^"]*)*)"(?!")([^%b\n]*)|([^%b\n]*))(%b|\n)' % (sign, sign, sign)
    record: list[str | None] = []
    start = 0
    for match in re.compile(pattern).finditer(text):
        inside, behind, plain, stop = match.groups()
        if inside is not None:
            record.append((inside.replace(b'""', b'"') + behind).decode("utf-8"))
        elif plain.startswith(b'"'):
            yield [], start, False
            return
        else:
            record.append(plain.decode("utf-8") if plain else None)
        if stop == b"\n":
            start = match.end()
            yield record, start, True
            record = []
