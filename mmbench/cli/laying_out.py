"""What `mmbench compare --layout` does: tables in the layout of a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbench import console

if TYPE_CHECKING:
    from mmbench.report.layout_rows import Kind
    from mmbench.runs import Run

KINDS = ("encoders", "paradigms", "modalities")

layout_option = click.option(
    "--layout",
    type=click.Choice(KINDS),
    help="Lay runs of one or more datasets out as a table of arXiv 2310.20343. encoders: each "
    "model with each encoder, against encoders of one modality (Table 3). paradigms: "
    "pre-trained, fine-tuned, end to end, against the best of them (Table 4). modalities: all "
    "against each alone (Table 5). --baseline names another reference row, for example PT.",
)

alignment_option = click.option(
    "--alignment",
    is_flag=True,
    help="Print how well the vectors of an item's picture and text agree in each system: "
    "retrieval, cosines, modality gap, uniformity. Stored sets are read from --data-dir; of "
    "encoders that learnt the runs tell.",
)


def check(layout: str | None, others: Mapping[str, Any]) -> None:
    """Refuse options that a layout cannot follow."""
    if layout is None:
        return
    given = [name for name, value in others.items() if value]
    if given:
        raise click.UsageError(f"--layout goes without {', '.join(given)}")


def print_layout(
    runs: Sequence[Run],
    layout: Kind,
    output: str,
    data_dir: Path,
    *,
    published: bool,
    alignment: bool,
    **how: Any,
) -> None:
    """Lay runs out and print them."""
    from mmbench.report.aligning import alignment_beside
    from mmbench.report.layout_text import Shown, render_layout
    from mmbench.report.layouts import lay_out

    laid = lay_out(runs, layout, data_dir=data_dir, **how)
    sheets = laid.sheets if alignment else ()
    aligned = tuple(alignment_beside(sheet.comparison.systems, data_dir) for sheet in sheets)
    shown = Shown(laid, published, aligned)
    if output == "table":
        console.result(shown)
    else:
        console.text(render_layout(shown, output))
