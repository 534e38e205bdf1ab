"""Writing a report: the page as one file, its figures and tables as a folder.

Both are written beside their place and renamed when they are complete, so that whatever goes
wrong, nothing half-written stays and what was there before is as it was. A folder of a report
tells so in `mmbench-report.json`; `--force` replaces such folders alone.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tabulate import tabulate

from mmbench.errors import DataError
from mmbench.report.html import drawing
from mmbench.report.html.content import Section, Table, figures_of, tables_of
from mmbench.report.html.evidence import Evidence
from mmbench.report.html.page import Head, head_of, render
from mmbench.runs import write_json

MARK = "mmbench-report.json"


def check_targets(page: Path | None, folder: Path | None, *, force: bool) -> None:
    """Refuse a place that is taken, before any work is done.

    Raises:
        DataError: something is there that may not be replaced.
    """
    if page is not None:
        if page.is_dir():
            raise DataError(f"--html {page} is a folder; name a file, for example report.html")
        if page.exists() and not force:
            raise DataError(f"--html {page} exists; choose another file or pass --force")
    if page is not None and folder is not None and _within(page, folder):
        raise DataError(
            f"--html {page} lies in --out {folder}, which is written as a whole; put the page "
            "beside it"
        )
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"--out {folder} is a file; name a folder to make")
    if not any(folder.iterdir()):
        return
    # Not even --force removes what mmbench did not make.
    if not (folder / MARK).is_file():
        raise DataError(
            f"--out {folder} is not empty and no earlier report; choose another folder, or empty "
            "it yourself"
        )
    if not force:
        raise DataError(
            f"--out {folder} holds an earlier report; choose another folder or pass --force"
        )


def write_page(evidence: Evidence, sections: Sequence[Section], page: Path) -> None:
    """Write the page of a comparison.

    Raises:
        DataError: it cannot be written.
    """
    write_document(head_of(evidence), sections, page)


def write_document(head: Head, sections: Sequence[Section], page: Path) -> None:
    """As `write_page`, for sections that are no report of one comparison.

    Raises:
        DataError: the page cannot be written.
    """
    text = render(head, sections)
    partial = page.with_name(f"{page.name}.partial-{os.getpid()}")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(page)
    except OSError as problem:
        raise _not_written("--html", page, problem) from problem
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_folder(evidence: Evidence, sections: Sequence[Section], folder: Path) -> int:
    """Write every figure as SVG and PNG and every table as CSV and LaTeX; returns their number.

    Raises:
        DataError: the folder cannot be written.
    """
    return write_sections(sections, folder, evidence.created, evidence.request.command)


def write_sections(sections: Sequence[Section], folder: Path, created: str, command: str) -> int:
    """As `write_folder`, for sections that are no report of one comparison.

    Args:
        sections: what is written.
        folder: made, or replaced; `check_targets` says whether it may be.
        created: when the sections were made.
        command: the command line, for the record.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = folder.absolute()  # not resolved: a link keeps its name
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        n_files = _fill(sections, partial, {"created": created, "command": command})
        _take_place(partial, folder)
    except OSError as problem:
        raise _not_written("--out", folder, problem) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return n_files


def table_csv(table: Table) -> str:
    """The table at full precision, one line per row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_heads(table))
    for row in table.rows:
        writer.writerow([cell.text if cell.value is None else cell.sort_key for cell in row])
    return out.getvalue()


def table_latex(table: Table) -> str:
    """The table as it is read (booktabs), its caption and notes as comments above it."""
    said = [table.caption, *table.notes]
    align = ["right" if column.numeric else "left" for column in table.columns]
    body = tabulate(
        [[" ".join(cell.text.split()) for cell in row] for row in table.rows],
        headers=_heads(table),
        tablefmt="latex_booktabs",
        colalign=align if table.rows else None,
        disable_numparse=True,
    )
    # Split, lest a line break in a label ends the comment.
    return "\n".join([*(f"% {' '.join(line.split())}" for line in said), body, ""])


def _fill(sections: Sequence[Section], folder: Path, record: dict[str, str]) -> int:
    files: list[str] = []
    for name in ("figures", "tables"):
        (folder / name).mkdir()
    for section in sections:
        for figure in figures_of(section.parts):
            path = folder / "figures" / f"{figure.name}.svg"
            path.write_text(drawing.standalone_svg(figure), encoding="utf-8")
            path.with_suffix(".png").write_bytes(drawing.png(figure))
            files += [f"figures/{path.name}", f"figures/{path.stem}.png"]
        for table in tables_of(section.parts):
            path = folder / "tables" / f"{table.name}.csv"
            path.write_text(table_csv(table), encoding="utf-8")
            path.with_suffix(".tex").write_text(table_latex(table), encoding="utf-8")
            files += [f"tables/{path.name}", f"tables/{path.stem}.tex"]
    write_json(folder / MARK, {**record, "files": files})
    return len(files)


def _within(page: Path, folder: Path) -> bool:
    return page.resolve().is_relative_to(folder.resolve())


def _heads(table: Table) -> list[str]:
    return [f"{column.group} {column.head}".strip() for column in table.columns]


def _take_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _not_written(option: str, place: Path, problem: OSError) -> DataError:
    reason = problem.strerror or str(problem)
    return DataError(
        f"{option} {place} cannot be written: {reason}; nothing was kept, choose another place or "
        "free some space"
    )
