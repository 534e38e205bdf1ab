"""The one place that writes to the terminal: results to stdout, all else to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

out = Console(soft_wrap=False, highlight=False)
err = Console(stderr=True, highlight=False)
_quiet = False
_hushed = False


def set_quiet(quiet: bool) -> None:
    """Silence notes and progress; errors and results stay."""
    global _quiet
    _quiet = quiet


def hush() -> None:
    """Print errors alone from now on: of several processes the first one speaks for all."""
    global _hushed
    _hushed = True
    set_quiet(True)


def result(renderable: Any) -> None:
    """Print a result (a rich renderable) to stdout."""
    if not _hushed:
        out.print(renderable)


def notice(renderable: Any) -> None:
    """Print a rich renderable to stderr, for what is to be read before an answer."""
    if not _quiet:
        err.print(renderable)


def text(line: str) -> None:
    """Print plain text to stdout, unwrapped and unstyled, as other programs read it."""
    if _hushed:
        return
    sys.stdout.write(line if line.endswith("\n") else line + "\n")
    sys.stdout.flush()


def note(message: str) -> None:
    """Print a remark to stderr."""
    if not _quiet:
        err.print(escape(message), style="dim", soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning to stderr."""
    if not _hushed:
        err.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)


def error(message: str) -> None:
    """Print an error to stderr."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display on stderr; it shows nothing where stderr is not a terminal."""
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", style="dim"),
        console=err,
        transient=True,
        disable=_quiet or not err.is_terminal or bool(os.environ.get("MMBENCH_NO_PROGRESS")),
    )
    with bars:
        yield bars
