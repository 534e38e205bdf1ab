"""Delimited text files, block by block: from bytes to frames of the columns that are wanted."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from mmbench.data.blocks import Malformed, check_utf8, line_blocks
from mmbench.data.fields import (
    Shaped,
    first_record,
    one_byte,
    quoted_blocks,
    shape_lines,
    shape_quoted,
    split_cells,
    unused_byte,
)

_SIGNS = {"\t": "tab", ",": "comma", "|": "pipe", " ": "blank"}


@dataclass(frozen=True)
class Form:
    """How a delimited file is written; see `tables.read_delimited`."""

    separator: str
    columns: Sequence[str] | None = None
    quoted: bool = False
    last_takes_rest: bool = False
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.quoted and (len(self.separator.encode()) > 1 or self.last_takes_rest):
            raise ValueError("quotes need a separator of one byte, and end the last cell")


class DelimitedFile:
    """A delimited text file that is being read.

    Attributes:
        names: of all its columns, in order.
        first_line: the line of its first row.
    """

    def __init__(
        self, path: Path, form: Form, *, cure: str, warnings: list[str] | None, block: int
    ) -> None:
        self.path, self.form, self.cure, self.warnings = path, form, cure, warnings
        sign = _SIGNS.get(form.separator, form.separator)
        self.malformed = Malformed(path, "112", warnings, "mend the line", sign)
        self.n_lines = 0
        self._separator = form.separator.encode("utf-8")
        texts = self._texts(block)
        self._blocks: Iterator[tuple[int, bytes, bool]] = (
            quoted_blocks(path, texts, self._separator, self.malformed)
            if form.quoted
            else ((line, text, True) for line, text in texts)
        )
        start = next(self._blocks, None)
        if start is None:  # a quote in the first line is never closed
            raise self.malformed.refusal()
        self.first_line, text, is_regular = start
        self.names = list(form.columns or ())
        if form.columns is None:
            names, end = first_record(text, self._separator, form.quoted)
            self.names = _distinct([name.strip() for name in names])
            self.first_line += text.count(b"\n", 0, end)
            text = text[end:]
        if text:
            self._blocks = chain([(self.first_line, text, is_regular)], self._blocks)

    def _texts(self, size: int) -> Iterator[tuple[int, bytes]]:
        for first_line, block in line_blocks(self.path, cure=self.cure, size=size):
            self.n_lines = first_line - 1 + block.count(b"\n")
            if self.form.encoding == "utf-8":
                check_utf8(self.path, first_line, block)
                yield first_line, block
            else:
                yield first_line, block.decode(self.form.encoding).encode("utf-8")

    def shaped(self) -> Iterator[Shaped]:
        """The rows of each block that have as many fields as there are columns.

        Raises:
            DataError: as `tables.read_delimited`, for all that concerns the file's lines.
        """
        n_fields, form = len(self.names), self.form
        for first_line, text, is_regular in self._blocks:
            if form.quoted:
                shaped = shape_quoted(
                    first_line, text, self._separator, n_fields, self.malformed, is_regular
                )
            else:
                text, sign = one_byte(text, self._separator)
                shaped = shape_lines(
                    first_line, text, sign, n_fields, self.malformed, form.last_takes_rest
                )
            self._refuse_some()
            if shaped.n_rows:
                yield shaped
        self._refuse_some()
        self.malformed.close(self.n_lines)

    def _refuse_some(self) -> None:
        if self.warnings is not None:
            self.malformed.give_up(self.n_lines)
        elif self.malformed.n:
            raise self.malformed.refusal()

    def parse(
        self, shaped: Shaped, wanted: Collection[str], types: Mapping[str, Any]
    ) -> pl.DataFrame:
        """The wanted columns of a block: text, empty cells null, but for those given a type.

        Raises:
            polars.exceptions.PolarsError: a cell is not of the type.
        """
        kept = [name for name in self.names if name in wanted]
        if shaped.cells is not None:
            return _frame(shaped.cells, self.names, kept)
        if self.form.last_takes_rest:
            return self._parse_rest(shaped, kept)
        schema = {name: types.get(name, pl.String) for name in self.names}
        frame = _read(shaped.content, shaped.separator, schema, kept, self.form.quoted)
        if frame.height == shaped.n_rows:
            return frame
        # A reader that counts other rows than we do is not believed in anything.
        cells = split_cells(shaped.content, shaped.separator, self.form.quoted)
        return _frame(cells, self.names, kept)

    def _parse_rest(self, shaped: Shaped, kept: list[str]) -> pl.DataFrame:
        sign = unused_byte(shaped.content)
        lines = _read(shaped.content, sign, {"line": pl.String}, ["line"], False)
        parts = lines["line"].str.splitn(shaped.separator.decode("utf-8"), len(self.names))
        frame = parts.struct.rename_fields(self.names).struct.unnest().select(kept)
        return frame.with_columns(pl.when(pl.col(kept) != "").then(pl.col(kept)))


def _read(
    content: bytes, separator: bytes, schema: Mapping[str, Any], kept: list[str], quoted: bool
) -> pl.DataFrame:
    return pl.read_csv(
        io.BytesIO(content),
        separator=separator.decode("utf-8"),
        has_header=False,
        schema=dict(schema),
        columns=[k for k, name in enumerate(schema) if name in kept],
        quote_char='"' if quoted else None,
    )


def _frame(cells: list[list[str | None]], names: list[str], kept: list[str]) -> pl.DataFrame:
    wanted = [(name, names.index(name)) for name in kept]
    return pl.DataFrame(
        {name: [row[k] for row in cells] for name, k in wanted},
        schema=dict.fromkeys(kept, pl.String),
    )


def _distinct(names: list[str]) -> list[str]:
    """The names of a header, those that stand there again with a number."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        again = seen.get(name, 0)
        seen[name] = again + 1
        distinct.append(f"{name}_duplicated_{again - 1}" if again else name)
    return distinct
