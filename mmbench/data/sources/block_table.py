"""Large tables of ids and days, read block by block: gigabytes in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.blocks import BLOCK, Malformed, check_utf8, line_blocks
from mmbench.errors import DataError

_SHOWN = 3


class BlockTable:
    """Some columns of a large delimited file, as text, one frame per block of lines.

    Cells are ids, days and numbers: quotes around them mean nothing and are dropped, and a
    line of another number of fields is malformed. Malformed lines are left out and counted.

    Args:
        path: the file, plain or gzip.
        separator: one character.
        wanted: the columns to keep, in this order.
        columns: names of the columns of a file without header; None where line 1 is the header.
        cure: ends the message of an error.
        warnings: is told of the malformed lines, after the last block.
    """

    size: ClassVar[int] = BLOCK

    def __init__(
        self,
        path: Path,
        separator: str,
        wanted: Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        cure: str,
        warnings: list[str],
    ) -> None:
        self.path, self.separator, self.cure = path, separator, cure
        self.wanted, self.columns = list(wanted), columns
        self.malformed = Malformed(path, "112", warnings, cure)
        self.n_lines = 0

    def __iter__(self) -> Iterator[tuple[pl.DataFrame, NDArray[np.int64]]]:
        """Frames of the wanted columns, and the line number of each row, int64.

        Raises:
            DataError: the file is missing (E101), a web page or a broken gzip file (E106), not
                UTF-8 (E111), empty or without a wanted column (E113), holds no rows (E241), or
                more than a thousandth of its lines is malformed (E112).
        """
        names = list(self.columns) if self.columns is not None else None
        for line, block in line_blocks(self.path, cure=self.cure, size=self.size):
            check_utf8(self.path, line, block)
            content, first = block.replace(b'"', b""), line
            if names is None:
                head, _, content = content.partition(b"\n")
                names = [name.strip() for name in head.decode("utf-8").split(self.separator)]
                first = line + 1
            self._need(names)
            if content:
                yield self._parse(content, first, names)
        self.malformed.close(self.n_lines)
        if not self.n_lines:
            raise DataError(f"E241 {self.path} has a header and no rows; {self.cure}")

    def _need(self, names: list[str]) -> None:
        for name in self.wanted:
            if name not in names:
                raise DataError(
                    f"E113 {self.path}: column '{name}' missing; found {', '.join(names)}; "
                    f"{self.cure}"
                )

    def _parse(
        self, content: bytes, first: int, names: list[str]
    ) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        data = np.frombuffer(content, dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        marks = np.flatnonzero(data == ord(self.separator))
        fields = np.diff(np.searchsorted(marks, ends), prepend=0) + 1
        lengths = np.diff(ends, prepend=-1)  # the line feed included
        empty = lengths == 1
        good = (fields == len(names)) & ~empty
        self.n_lines += int((~empty).sum())
        if not good.all():
            for row in np.flatnonzero(~good & ~empty):
                reason = f"{fields[row]} fields, expected {len(names)}"
                self.malformed.add(int(first + row), reason)
            self.malformed.give_up(self.n_lines)
            content = data[np.repeat(good, lengths)].tobytes()
        return self._frame(content, names), first + np.flatnonzero(good)

    def _frame(self, content: bytes, names: list[str]) -> pl.DataFrame:
        if not content:
            return pl.DataFrame(schema=dict.fromkeys(self.wanted, pl.String))
        places = sorted(names.index(name) for name in self.wanted)
        frame = pl.read_csv(
            io.BytesIO(content),
            separator=self.separator,
            has_header=False,
            columns=places,
            quote_char=None,
            infer_schema=False,
        )
        frame.columns = [names[place] for place in places]
        return frame.select(self.wanted)


def read_days(
    cells: pl.Series, form: str, path: Path, lines: NDArray[np.int64], example: str
) -> pl.Series:
    """Days as int64 milliseconds UTC, of midnight.

    Args:
        form: how they are written, as `strptime` takes it; `example` shows it to the user.
        lines: line number of each cell in `path`.

    Raises:
        DataError: E216, a cell is empty or no such day.
    """
    days = cells.str.strip_chars().str.to_date(form, strict=False)
    if days.null_count():
        rows = np.flatnonzero(days.is_null().to_numpy())
        shown = ", ".join(f"{lines[row]}: '{cells[int(row)] or ''}'" for row in rows[:_SHOWN])
        more = f" and {rows.size - _SHOWN} more" if rows.size > _SHOWN else ""
        raise DataError(f"E216 {path}:{shown}{more}; days must be written as {example}")
    return days.cast(pl.Datetime("ms")).dt.epoch("ms")
