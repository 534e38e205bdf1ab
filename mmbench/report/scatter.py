"""Drawing points in two dimensions: items by popularity, and items of users.

Colours can be told apart with every common kind of colour vision, and shapes repeat what
colours say: cividis for counts, Tol's muted scheme for users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from mmbench.errors import DataError
from mmbench.metrics.lists import FloatArray, IntArray
from mmbench.report.tsne import PERPLEXITY, Sample, Vectors, flatten

COLD_BELOW = 10
"""Training interactions below which an item is cold, as in arXiv 2403.17372."""
COLD_COLOUR = "#D55E00"
USER_COLOURS = (
    "#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip
USER_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
PANELS_IN_A_ROW = 3
PANEL_INCHES = 3.6
LABEL_WIDTH = 38


@dataclass(frozen=True)
class Panel:
    """One picture: points [N, 2] of a system, and what colours them [N].

    Attributes:
        values: training interactions of each point, or the place of its user.
    """

    label: str
    points: FloatArray
    values: IntArray


def draw_pictures(
    systems: Sequence[Vectors],
    sample: Sample,
    folder: Path,
    *,
    perplexity: float = PERPLEXITY,
    seed: int = 0,
) -> list[Path]:
    """Both pictures of the same items and users of every system, as PNG and SVG in `folder`.

    Raises:
        DataError: there are too few points, all are equal, or a file cannot be written.
    """

    def flat(items: IntArray) -> list[FloatArray]:
        return [flatten(each.items[items], perplexity=perplexity, seed=seed) for each in systems]

    places, owned = sample.pairs
    distinct, row = np.unique(owned, return_inverse=True)  # an item of two users has one place
    by_item = [
        Panel(each.label, points, each.popularity[sample.items])
        for each, points in zip(systems, flat(sample.items), strict=True)
    ]
    by_user = [
        Panel(each.label, points[row], places)
        for each, points in zip(systems, flat(distinct), strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return [*draw_items(by_item, folder / "items"), *draw_users(by_user, folder / "users")]


def draw_items(panels: Sequence[Panel], stem: Path) -> list[Path]:
    """Items coloured by training interactions; writes `stem`.png and `stem`.svg."""
    from matplotlib.colors import LogNorm

    def paint(axes: Any, panel: Panel) -> None:
        cold = panel.values < COLD_BELOW
        warm = panel.points[~cold]
        order = np.argsort(panel.values[~cold], kind="stable")  # popular ones on top
        drawn.append(
            axes.scatter(
                *warm[order].T, c=panel.values[~cold][order], s=9, cmap="cividis",
                norm=LogNorm(COLD_BELOW, top), linewidths=0,
            )
        )  # fmt: skip
        axes.scatter(
            *panel.points[cold].T, s=16, marker="x", color=COLD_COLOUR, linewidths=0.8,
            label=f"cold: fewer than {COLD_BELOW} ({cold.sum():,} items)",
        )  # fmt: skip
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), frameon=False, fontsize=8)

    drawn: list[Any] = []
    top = max([COLD_BELOW + 1, *(int(panel.values.max()) for panel in panels)])
    n = len(panels[0].points)
    figure, grid = _grid(panels, paint, f"t-SNE of {n:,} random items")
    bar = figure.colorbar(drawn[0], ax=grid, fraction=0.03, pad=0.02)
    bar.set_label("training interactions of the item")
    return _save(figure, stem)


def draw_users(panels: Sequence[Panel], stem: Path) -> list[Path]:
    """Items of some users, a colour and a shape for each; writes `stem`.png and `stem`.svg."""
    users = range(int(max(panel.values.max() for panel in panels)) + 1)

    def paint(axes: Any, panel: Panel) -> None:
        for user in users:
            axes.scatter(
                *panel.points[panel.values == user].T, s=14, linewidths=0, alpha=0.9,
                color=USER_COLOURS[user % len(USER_COLOURS)],
                marker=USER_MARKERS[user % len(USER_MARKERS)], label=f"user {user + 1}",
            )  # fmt: skip

    figure, grid = _grid(
        panels,
        paint,
        f"t-SNE of the items of {len(users)} random users; a shared item has several marks",
    )
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right center", frameon=False, fontsize=8, markerscale=1.4
    )
    return _save(figure, stem)


def _grid(panels: Sequence[Panel], paint: Any, title: str) -> tuple[Any, list[Any]]:
    """A figure with one square panel for each system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(panels) == 4 else min(len(panels), PANELS_IN_A_ROW)
    rows = -(-len(panels) // columns)
    size = (PANEL_INCHES * columns + 1.2, (PANEL_INCHES + 0.35) * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    used = list(grid.flat)[: len(panels)]
    for axes, panel in zip(used, panels, strict=True):
        paint(axes, panel)
        axes.set_title(_wrapped(panel.label), fontsize=9)
        # Positions mean nothing in a t-SNE, neighbours do: no ticks, equal scales.
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("t-SNE 1", fontsize=8)
        axes.set_ylabel("t-SNE 2", fontsize=8)
        axes.set_box_aspect(1)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure, used


def _wrapped(label: str) -> str:
    return "\n".join(wrap(label, LABEL_WIDTH)) or label


def _save(figure: Any, stem: Path) -> list[Path]:
    import matplotlib as mpl

    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    # No date and no random names: equal vectors, equal files.
    with mpl.rc_context({"svg.hashsalt": "mmbench", "svg.fonttype": "none"}):
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else {}
            try:
                figure.savefig(file, dpi=150, metadata=metadata)
            except OSError as problem:
                raise DataError(
                    f"{file} cannot be written ({problem.strerror or problem}); free space or "
                    "name another folder with --to"
                ) from None
    return files
