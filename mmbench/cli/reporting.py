"""What commands need to write a report: its options, and the calls."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mmbench import console
from mmbench.cli import options

if TYPE_CHECKING:
    from mmbench.report.cold_start import ColdTable
    from mmbench.report.comparison import Comparison
    from mmbench.report.html.content import Section
    from mmbench.report.html.evidence import Request
    from mmbench.report.tsne import Panels
    from mmbench.runs import Run

Command = TypeVar("Command", bound=Callable[..., Any])

_PLACES = (
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
)


def report_options(command: Command) -> Command:
    """The options that belong to the report of a comparison."""
    return study_options(options.data_dir_option(command))


def study_options(command: Command) -> Command:
    """The options that belong to the report of a study, which has --data-dir anyway."""
    for option in reversed(_PLACES):
        command = option(command)
    return command


def check_places(page: Path | None, folder: Path | None, *, force: bool) -> None:
    """Refuse places that are taken, before any work is done."""
    if page is None and folder is None:
        if force:
            raise click.UsageError("--force belongs to --html and --out")
        return
    from mmbench.report.html.exporting import check_targets

    check_targets(page, folder, force=force)


def check(page: Path | None, folder: Path | None, *, force: bool, alone: bool) -> None:
    """Refuse what does not go together and places that are taken, before any work is done.

    Args:
        page: of --html.
        folder: of --out.
        force: of --force.
        alone: whether an option is given that a report cannot follow.
    """
    if alone and (page is not None or folder is not None):
        raise click.UsageError(
            "--html and --out do not go with --by, which they hold anyway, nor with "
            "--over-datasets; write one report per dataset"
        )
    check_places(page, folder, force=force)


def write(
    request: Request,
    compared: Comparison,
    page: Path | None,
    folder: Path | None,
    *,
    panels: Panels | None = None,
) -> None:
    """Write the report of a comparison, and say where it is.

    Args:
        request: what was asked for.
        compared: the comparison of that request.
        page: of --html.
        folder: of --out.
        panels: vectors in two dimensions, where they were asked for.
    """
    from mmbench.report.html.evidence import gather
    from mmbench.report.html.exporting import write_folder, write_page
    from mmbench.report.html.page import make_sections

    evidence = replace(gather(request, compared), panels=panels, cold=_cold(request, compared))
    sections = make_sections(evidence)
    if folder is not None:
        n_files = write_folder(evidence, sections, folder)
        console.note(f"figures and tables: {folder} ({n_files} files)")
    if page is not None:
        write_page(evidence, sections, page)
        console.note(f"report: {page}")


def _cold(request: Request, compared: Comparison) -> tuple[ColdTable, ...]:
    """What was judged on cold items already, if all runs of one side were."""
    runs = [run for system in compared.systems for run in system.runs]
    if request.against or not all(any((run.path / "lists").glob("cold-*")) for run in runs):
        return ()
    from mmbench.studies.cold_start import stored_tables

    tables, why_not = stored_tables(runs, request.data_dir, baseline=request.baseline)
    if why_not:
        console.warn(f"the report goes without cold items: {why_not}")
    return tuple(tables)


def write_study(
    title: str,
    sections: Sequence[Section],
    runs: Sequence[Run],
    page: Path | None,
    folder: Path | None,
) -> None:
    """Write what a study found as a page, as figures and tables, or both; say where it is.

    Args:
        title: what stands above the page.
        sections: what was found.
        runs: from which; the page tells all that is needed to make them again.
        page: of --html.
        folder: of --out.
    """
    if page is None and folder is None:
        return
    from mmbench.report.html.exporting import write_document, write_sections
    from mmbench.report.html.page import Head
    from mmbench.report.html.records import facts_of, provenance_of
    from mmbench.report.systems import group_runs

    created = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    systems = group_runs(list({run.path: run for run in runs}.values()))
    every = [*sections, provenance_of(systems, created, command_line())]
    if folder is not None:
        n_files = write_sections(every, folder, created, command_line())
        console.note(f"figures and tables: {folder} ({n_files} files)")
    if page is not None:
        write_document(Head(title, facts_of(systems), created), every, page)
        console.note(f"report: {page}")


def command_line() -> str:
    """The command as it can be typed again."""
    return shlex.join(["mmbench", *sys.argv[1:]])
