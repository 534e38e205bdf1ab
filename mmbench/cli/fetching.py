"""What `mmbench prepare` shows and asks before and while it fetches files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.progress import Progress, TaskID
from rich.table import Table

from mmbench import console
from mmbench.data.fetch.web import size_text

if TYPE_CHECKING:
    from mmbench.data.cards import Card
    from mmbench.data.fetch.download import Plan
    from mmbench.data.fetch.web import Watch


class Consent:
    """Shows what would be fetched, and asks where somebody can answer.

    Args:
        given: the user has agreed already, with --download.
    """

    def __init__(self, given: bool) -> None:
        self.given = given

    def __call__(self, card: Card, plan: Plan) -> bool:
        """Whether to fetch the files of `plan`."""
        _show_plan(card, plan)
        if self.given:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        return click.confirm("Fetch these files?", default=False, err=True)


def _show_plan(card: Card, plan: Plan) -> None:
    table = Table(title=f"{card.name}: files to fetch", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    for file in plan.missing:
        host = file.addresses[0].split("/")[2]
        mirrors = len(file.addresses) - 1
        size = plan.sizes[file.path]
        shown = size_text(size) if size is not None else "unknown"
        if plan.begun.get(file.path):
            shown += f" ({size_text(plan.begun[file.path])} here)"
        table.add_row(file.path, shown, host + (f" or {mirrors} mirror(s)" if mirrors else ""))
    known = [size for size in plan.sizes.values() if size is not None]
    begun = sum(plan.begun.values())
    unknown = len(plan.missing) - len(known)
    sums = [f"{size_text(sum(known) - begun)}"] if known else []
    sums += [f"{unknown} of unknown size"] if unknown else []
    total = f"to fetch: {' and '.join(sums)}"
    parent = next(place for place in (plan.folder, *plan.folder.parents) if place.exists())
    free = size_text(shutil.disk_usage(parent).free)
    table.caption = f"{total}; {free} free\ninto {plan.folder}"
    table.caption_justify = "left"
    if card.terms:
        table.caption += f"\nterms: {card.terms}"
    console.notice(table)


@contextmanager
def watching() -> Iterator[Watch]:
    """A `Watch` that draws a bar for each thing that is being fetched."""
    with console.progress() as bars:
        tasks: dict[str, TaskID] = {}

        def watch(what: str, done: int, total: int | None, unit: str) -> None:
            _draw(bars, tasks, what, done, total, unit)

        yield watch


def _draw(
    bars: Progress, tasks: dict[str, TaskID], what: str, done: int, total: int | None, unit: str
) -> None:
    if what not in tasks:
        tasks[what] = bars.add_task(what, total=total, status="")
    of = "?" if total is None else size_text(total) if unit == "bytes" else f"{total:,}"
    now = size_text(done) if unit == "bytes" else f"{done:,}"
    status = f"{now} of {of}" + ("" if unit == "bytes" else f" {unit}")
    bars.update(tasks[what], completed=done, total=total, status=status)
