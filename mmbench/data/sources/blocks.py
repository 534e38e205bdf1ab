"""Large tables of ids and numbers, read block by block: gigabytes in bounded memory."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.sources.folders import refuse_web_page
from mmbench.data.tables import MALFORMED_SHARE
from mmbench.errors import DataError

_BLOCK = 32 * 2**20
_SHOWN = 3


class BlockTable:
    """Some columns of a large delimited file, as text, one frame per block of lines.

    Cells are ids, days and numbers: quotes around them mean nothing and are dropped, and a
    line of another number of fields is malformed. Malformed lines are left out and counted;
    `finish` tells of them, or refuses the file when there are too many.

    Args:
        path: the file, plain or .gz.
        separator: one character.
        wanted: the columns to keep, in this order.
        columns: names of the columns of a file without header; None where line 1 is the header.
        cure: ends the message of an error.
        block: bytes held at a time.

    Raises:
        DataError: the file is missing (E101), empty or without a wanted column (E113), or a web
            page (E106).
    """

    def __init__(
        self,
        path: Path,
        separator: str,
        wanted: Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        cure: str,
        block: int = _BLOCK,
    ) -> None:
        self.path, self.separator, self.cure = path, separator, cure
        self._block, self._wanted = block, list(wanted)
        self._has_header = columns is None
        refuse_web_page(path, cure)
        header = self._first_line() if columns is None else list(columns)
        for name in wanted:
            if name not in header:
                raise DataError(
                    f"E113 {path}: column '{name}' missing; found {', '.join(header)}; {cure}"
                )
        self._n_fields = len(header)
        self._places = [header.index(name) for name in wanted]
        self._n_lines = self._n_malformed = 0
        self._examples: list[str] = []

    def __iter__(self) -> Iterator[tuple[pl.DataFrame, NDArray[np.int64]]]:
        """Frames of the wanted columns with the line number of each row, int64.

        Raises:
            DataError: the file cannot be read, is a broken .gz, or is not UTF-8.
        """
        line = 1
        try:
            with self._open() as file:
                if self._has_header:
                    file.readline()
                    line = 2
                rest = b""
                while True:
                    read = file.read(self._block)
                    cut = read.rfind(b"\n") + 1 if read else 0
                    if read and not cut:  # a line longer than a block
                        rest += read
                        continue
                    content, rest = rest + read[:cut], read[cut:] if read else b""
                    if content:
                        frame, lines = self._parse(content, line)
                        line += content.count(b"\n")
                        yield frame, lines
                    if not read:
                        return
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(
                f"E106 {self.path} is not a complete gzip file ({error}); {self.cure}"
            ) from error
        except OSError as error:
            raise DataError(
                f"E101 {self.path} cannot be read: {error.strerror or error}; {self.cure}"
            ) from error

    def finish(self, warnings: list[str]) -> None:
        """Tell of the malformed lines, after the last block.

        Raises:
            DataError: they are more than `MALFORMED_SHARE` of the lines (E112), or there is no
                line at all (E241).
        """
        if not self._n_lines:
            raise DataError(f"E241 {self.path} holds no rows; {self.cure}")
        if not self._n_malformed:
            return
        what = (
            f"{self._n_malformed:,} of {self._n_lines:,} lines of {self.path} are malformed "
            f"({self._n_fields} fields expected), e.g. {'; '.join(self._examples)}"
        )
        if self._n_malformed > MALFORMED_SHARE * self._n_lines:
            raise DataError(f"E112 {what}; {self.cure}")
        warnings.append(f"W114 {what}; they are left out")

    def _open(self) -> BinaryIO:
        if self.path.suffix == ".gz":
            return cast(BinaryIO, gzip.open(self.path, "rb"))
        return self.path.open("rb")

    def _first_line(self) -> list[str]:
        try:
            with self._open() as file:
                line = file.readline(2**16)
        except (OSError, EOFError) as error:
            raise DataError(f"E106 {self.path} cannot be read ({error}); {self.cure}") from error
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
        if not text.strip():
            raise DataError(f"E113 {self.path} is empty; {self.cure}")
        return [name.strip().strip('"') for name in text.rstrip("\r\n").split(self.separator)]

    def _parse(self, content: bytes, first: int) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = first + content.count(b"\n", 0, error.start)
            raise DataError(
                f"E111 {self.path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; "
                f"{self.cure}"
            ) from error
        content = content.replace(b'"', b"").replace(b"\r\n", b"\n")
        content += b"" if content.endswith(b"\n") else b"\n"
        data = np.frombuffer(content, dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        marks = np.flatnonzero(data == ord(self.separator))
        fields = np.diff(np.searchsorted(marks, ends), prepend=0) + 1
        empty = np.diff(ends, prepend=-1) == 1
        good = (fields == self._n_fields) & ~empty
        self._n_lines += int((~empty).sum())
        wrong = np.flatnonzero(~good & ~empty)
        if wrong.size or empty.any():
            starts = np.concatenate([[0], ends[:-1] + 1])
            for row in wrong[: max(_SHOWN - len(self._examples), 0)]:
                cells = content[starts[row] : ends[row]].decode("utf-8")[:60]
                self._examples.append(f"line {first + row}: '{cells}'")
            self._n_malformed += wrong.size
            content = data[np.repeat(good, np.diff(ends, prepend=-1))].tobytes()
        lines = first + np.flatnonzero(good)
        return self._frame(content), lines.astype(np.int64)

    def _frame(self, content: bytes) -> pl.DataFrame:
        if not content:
            return pl.DataFrame(schema=dict.fromkeys(self._wanted, pl.String))
        frame = pl.read_csv(
            io.BytesIO(content),
            separator=self.separator,
            has_header=False,
            columns=self._places,
            quote_char=None,
            infer_schema=False,
        )
        # Columns come in the order of the file, whatever order they are asked for in.
        names = [self._wanted[self._places.index(place)] for place in sorted(self._places)]
        return frame.rename(dict(zip(frame.columns, names, strict=True))).select(self._wanted)


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
