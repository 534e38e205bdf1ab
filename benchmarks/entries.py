"""One measured figure, and how the files of one script are turned into such."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One measured figure.

    Attributes:
        work: what was done.
        unit: of both figures.
        ours: our figure.
        theirs: the other side's; None where there is none.
        ratio: how many times as good ours is.
        bar: what the benchmark asks for, in words; "" where it asks for nothing.
        met: whether the figure reaches the bar; None where there is no bar, or no other side.
        memory_mib: by how much our memory rose, or its peak; None where it was not measured.
        their_memory_mib: the same of the other side.
        over_floor: how many times its arithmetic floor our time is; None where it has none.
        note: what else there is to say.
    """

    work: str
    unit: str
    ours: float | None
    theirs: float | None = None
    ratio: float | None = None
    bar: str = ""
    met: bool | None = None
    memory_mib: float | None = None
    their_memory_mib: float | None = None
    over_floor: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Met, missed, or a dash."""
        return "-" if self.met is None else "met" if self.met else "missed"


@dataclass(frozen=True)
class Kind:
    """How the results of one script are read."""

    title: str
    beside: str
    entries: Callable[[Facts], Iterator[Entry]]
    command: Callable[[Facts], str]
