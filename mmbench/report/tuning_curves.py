"""The history of a fine-tuning as a picture: losses, retrieval, temperature, gradient and rate.

Of the chosen point of the grid. Epoch 0 is of the published weights; the dashed line is the epoch
that was kept. Retrieval is Recall@K on the held-out items, mean of both directions, beside what
chance would find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from mmbench.errors import DataError
from mmbench.report.html import drawing
from mmbench.report.html.content import Figure

NAME = "curves"
Record = Mapping[str, Any]
Series = Sequence[tuple[str, Sequence[float], Sequence[float]]]
HEIGHT = 2.1


def draw_curves(history: Sequence[Record], facts: Record, folder: Path) -> list[Path]:
    """Draw the history into `curves.svg` and `curves.png` of a folder.

    Args:
        history: a record of each epoch, as a fine-tuning writes them, epoch 0 first.
        facts: content of its finetuning.json.

    Raises:
        DataError: E108 a file cannot be written.
    """
    figure = figure_of(history, facts)
    files = [folder / f"{NAME}.svg", folder / f"{NAME}.png"]
    contents = [drawing.standalone_svg(figure).encode("utf-8"), drawing.png(figure)]
    for file, content in zip(files, contents, strict=True):
        partial = file.with_name(f".{file.name}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(file)
        except OSError as problem:
            partial.unlink(missing_ok=True)
            raise DataError(
                f"E108 {file} cannot be written ({problem.strerror or problem}); make room, then "
                "run this again: what was learnt is stored"
            ) from problem
    return files


def figure_of(history: Sequence[Record], facts: Record) -> Figure:
    """The picture of a history."""
    before, after = facts["before"]["recall"], facts["after"]["recall"]
    said = (
        f"{len(history) - 1} epochs; epoch {facts['chosen_epoch']} was kept. Mean Recall@1, 5, 10 "
        f"on {facts['after']['n_items']} held-out items {before:.3f} before, {after:.3f} after."
    )
    return Figure(NAME, "Fine-tuning on pictures and texts", said, lambda: _draw(history, facts))


def _draw(history: Sequence[Record], facts: Record) -> Drawing:
    epochs = [float(record["epoch"]) for record in history]
    learnt = [record for record in history if "train" in record]
    trained = [float(record["epoch"]) for record in learnt]
    names = list(facts["objective"])
    losses = [
        (f"{name}, held out", epochs, [record["held_out"]["losses"][name] for record in history])
        for name in names
    ]
    losses += [(f"{name}, training", trained, [r["train"][name] for r in learnt]) for name in names]
    ks = sorted(history[0]["held_out"]["recall_first"], key=int)
    found = [
        (f"Recall@{k}", epochs, [_both_ways(record["held_out"], k) for record in history])
        for k in ks
    ]
    n_items = facts["after"]["n_items"]
    chance = [min(1.0, int(k) / n_items) for k in ks]
    vectors = [
        (label, epochs, [record["held_out"][key] for record in history])
        for label, key in (("cosine of pairs", "paired"), ("of others", "unpaired"), ("gap", "gap"))
    ]
    steps = [
        (label, trained, [record["train"][key] for record in learnt])
        for label, key in (("gradient norm, mean", "gradient"), ("largest", "gradient_largest"))
        if all(key in record["train"] for record in learnt)
    ]
    rates = [("learning rate", trained, [r["train"].get("rate", np.nan) for r in learnt])]
    panels: list[tuple[str, Series]] = [
        ("loss", losses),
        ("retrieval", found),
        ("held-out vectors", vectors),
    ]
    if learnt:
        panels += [("gradient", steps), ("learning rate", rates)]
    figure = Drawing(figsize=(drawing.WIDTH + 1.6, HEIGHT * len(panels)))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, series) in zip(grid, panels, strict=True):
        _panel(axes, label, series, facts["chosen_epoch"])
    for index, level in enumerate(chance):
        grid[1].axhline(level, color=drawing.look(index).color, linewidth=0.8, linestyle=":")
    for axes in grid[3:]:
        _logarithmic(axes, [value for line in axes.get_lines()[:-1] for value in line.get_ydata()])
    grid[0].set_title(
        "Fine-tuning on pictures and texts; dashed: the epoch kept, dotted: chance", fontsize=9
    )
    grid[-1].set_xlabel("epoch")
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _panel(axes: Axes, label: str, series: Series, chosen: int) -> None:
    for index, (name, x, y) in enumerate(series):
        seen = drawing.look(index)
        axes.plot(
            x, y, color=seen.color, marker=seen.marker, markersize=3, linestyle=seen.dashes,
            label=name,
        )  # fmt: skip
    axes.axvline(chosen, color=drawing.MUTED, linewidth=0.8, linestyle="--")
    axes.set_ylabel(label)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    known = np.asarray([value for value in values if np.isfinite(value)])
    if len(known) and known.min() > 0 and known.max() > 20 * known.min():
        axes.set_yscale("log")


def _both_ways(judged: Record, k: str) -> float:
    return (float(judged["recall_first"][k]) + float(judged["recall_second"][k])) / 2
