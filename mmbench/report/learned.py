"""What models learned about their own make-up: gates of modalities, for example, by system."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from mmbench.errors import DataError
from mmbench.report.blocks import Block, tables
from mmbench.report.systems import System
from mmbench.runs import Run

NOTE = (
    "Learned: what a model says of its own state with the weights that rank; mean over seeds, in "
    "brackets the lowest and the highest where seeds differ. gate.X: of modality X, 0 is off; "
    "ramp.X: its weight in the chosen epoch."
)


@dataclass(frozen=True)
class Learned:
    """What the runs of a system learned: the value of each seed, by name."""

    label: str
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class LearnedTable:
    """Renders what systems learned, as wide as the console."""

    rows: tuple[Learned, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The tables and their note."""
        yield from shown(self.rows, options.max_width)


def learned(systems: Sequence[System]) -> list[Learned]:
    """Of systems that learned something, what it is; others are left out.

    Raises:
        DataError: a manifest is damaged.
    """
    found = []
    for system in systems:
        of_runs = [_values(run) for run in system.runs]
        names = dict.fromkeys(name for values in of_runs for name in values)
        values = {
            name: tuple(values[name] for values in of_runs if name in values) for name in names
        }
        if values:
            found.append(Learned(system.label, values))
    return found


def shown(rows: Sequence[Learned], width: int) -> Iterator[Text | Table]:
    """Tables for the terminal, one column per name, and what they mean; nothing for no rows."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    blocks = [
        Block((), (name,), tuple((Text(_text(row.values.get(name, ()))),) for row in rows))
        for name in names
    ]
    for table in tables([row.label for row in rows], blocks, width):
        yield Text("")
        yield table
    yield Text("")
    yield Text(NOTE, style="dim")


def _text(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.2f}"
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return mean if low == high else f"{mean} ({low}-{high})"


def _values(run: Run) -> dict[str, float]:
    model = run.manifest.get("model")
    values = model.get("learned", {}) if isinstance(model, Mapping) else {}
    if not isinstance(values, Mapping) or not all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values.values()
    ):
        raise DataError(
            f"{run.path / 'manifest.json'}: model.learned is not a number for each name; the run "
            "folder is damaged, train it again"
        )
    return {str(name): float(value) for name, value in values.items()}
