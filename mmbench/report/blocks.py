"""Columns that stay together, packed into as many terminal tables as the width asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from mmbench.report.labels import wrap_label

GAP = 3  # blanks between two blocks
LABEL_SHARE = 0.36  # of the width, at most, for the labels
SHORTEST_LABEL = 8
WRAPPED_LABEL = 18  # no label is wrapped to less only to save a table


@dataclass(frozen=True)
class Block:
    """Columns that stay together: a title, their heads, and one row of texts per system."""

    titles: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]

    @property
    def widths(self) -> list[int]:
        """Width of each column; the first is widened until the titles fit."""
        widths = [
            max([len(head), *(row[i].cell_len for row in self.rows)])
            for i, head in enumerate(self.heads)
        ]
        missing = max(map(len, self.titles), default=0) - (sum(widths) + len(widths) - 1)
        widths[0] += max(0, missing)
        return widths

    @property
    def width(self) -> int:
        """Width of the whole block."""
        return sum(self.widths) + len(self.heads) - 1

    def head(self, n_titles: int) -> Text:
        """The titles, centred on `n_titles` lines, above the heads."""
        widths = self.widths
        heads = " ".join(head.rjust(width) for head, width in zip(self.heads, widths, strict=True))
        titles = [*[""] * (n_titles - len(self.titles)), *self.titles]
        lines = [Text(line.center(self.width), style="bold", end="") for line in titles]
        return Text("\n").join([*lines, Text(heads, style="dim", end="")])

    def line(self, row: int) -> Text:
        """One row, each cell aligned to the right."""
        cells = []
        for text, width in zip(self.rows[row], self.widths, strict=True):
            cells.append(Text(" " * (width - text.cell_len)) + text)
        return Text(" ").join(cells)


def tables(
    labels: Sequence[str],
    blocks: Sequence[Block],
    width: int,
    *,
    head: str = "System",
    ends: Sequence[int] = (),
) -> Iterator[Table]:
    """Pack blocks into tables no wider than `width`, about equally many in each.

    Args:
        labels: of the rows.
        blocks: what is packed.
        width: of the terminal.
        head: above the labels.
        ends: rows below which a group ends.
    """
    longest = max([len(head), *map(len, labels)])
    widest = max(block.width for block in blocks) + GAP
    # The labels give way to the widest block, never the reverse; and they are wrapped rather
    # than that a further table is needed.
    cap = max(SHORTEST_LABEL, min(longest, int(width * LABEL_SHARE), width - widest))
    candidates = range(cap, min(cap, WRAPPED_LABEL) - 1, -1)
    n_tables, label_width = min(
        (_tables_needed(blocks, width - label), -label) for label in candidates
    )
    label_width = -label_width
    per_table = -(-len(blocks) // n_tables)
    for start in range(0, len(blocks), per_table):
        chosen = blocks[start : start + per_table]
        # The box adds one blank between columns.
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False
        )
        n_titles = max(len(block.titles) for block in chosen)
        table.add_column(
            Text("\n" * n_titles + head, style="bold"),
            min_width=label_width,
            max_width=label_width,
            overflow="fold",
        )
        for block in chosen:
            table.add_column(
                block.head(n_titles), min_width=block.width, no_wrap=True, overflow="ignore"
            )
        for row, label in enumerate(labels):
            lines = (block.line(row) for block in chosen)
            table.add_row(Text(wrap_label(label, label_width)), *lines, end_section=row in ends)
        yield table


def _tables_needed(blocks: Sequence[Block], width: int) -> int:
    """Number of tables for the blocks, where the labels leave `width` in each."""
    widths = [block.width + GAP for block in blocks]
    return 1 if sum(widths) <= width else -(-len(blocks) // max(1, width // max(widths)))
