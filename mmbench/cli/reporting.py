"""What `mmbench compare` needs to write a report: its options, and the call."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mmbench import console
from mmbench.cli import options

if TYPE_CHECKING:
    from mmbench.report.comparison import Comparison
    from mmbench.report.html.evidence import Request

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--html",
        "page",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Write a report as one page that needs no network.",
    ),
    click.option(
        "--out",
        "folder",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Write the report's figures (SVG, PNG) and tables (LaTeX, CSV) into a folder.",
    ),
    click.option("--force", is_flag=True, help="Replace an earlier report."),
    options.data_dir_option,
)


def report_options(command: Command) -> Command:
    """The options that belong to the report."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check(page: Path | None, folder: Path | None, *, force: bool, alone: bool) -> None:
    """Refuse what does not go together and places that are taken, before any work is done.

    Args:
        page: of --html.
        folder: of --out.
        force: of --force.
        alone: whether an option is given that a report cannot follow.
    """
    if page is None and folder is None:
        if force:
            raise click.UsageError("--force belongs to --html and --out")
        return
    if alone:
        raise click.UsageError(
            "--html and --out do not go with --by, which they hold anyway, nor with "
            "--over-datasets; write one report per dataset"
        )
    from mmbench.report.html.exporting import check_targets

    check_targets(page, folder, force=force)


def write(request: Request, compared: Comparison, page: Path | None, folder: Path | None) -> None:
    """Write the report of a comparison, and say where it is."""
    from mmbench.report.html.evidence import gather
    from mmbench.report.html.exporting import write_folder, write_page
    from mmbench.report.html.page import make_sections

    evidence = gather(request, compared)
    sections = make_sections(evidence)
    if folder is not None:
        n_files = write_folder(evidence, sections, folder)
        console.note(f"figures and tables: {folder} ({n_files} files)")
    if page is not None:
        write_page(evidence, sections, page)
        console.note(f"report: {page}")


def command_line() -> str:
    """The command as it can be typed again."""
    return shlex.join(["mmbench", *sys.argv[1:]])
