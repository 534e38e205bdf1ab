"""Vectors of items in two dimensions: by how often items were trained on, and by user."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from mmbench.metrics.lists import BoolArray, IntArray
from mmbench.report.html import drawing
from mmbench.report.html.content import Cell, Column, Figure, Gallery, Section, Table, Text
from mmbench.report.html.evidence import Evidence
from mmbench.report.html.naming import slug
from mmbench.report.numbers import count, fixed, signed
from mmbench.report.scatter import COLD_BELOW
from mmbench.report.tsne import HEADS, Geometry, Panels, geometry_notes

SIDE = 4.2
"""Inches of the axes; equal, for distances are equal in both directions."""
Group = tuple[str, BoolArray]


def vectors(evidence: Evidence) -> Section | None:
    """Two pictures of each system, of the same items and users, and the numbers of all."""
    shown = evidence.panels
    if shown is None:
        return None
    figures = []
    for number, label in enumerate(shown.labels):
        numbers = shown.numbers[number]
        figures += [
            Figure(
                f"tsne-items-{number + 1}-{slug(label)[:40]}",
                f"{label}: items by training interactions",
                f"t-SNE of {count(len(shown.by_item[number]))} random items of {label}. Spearman's "
                "correlation of the norm of a vector with the item's training interactions: "
                f"{signed(numbers.norm_popularity, 3)}.",
                partial(_items, shown, number),
            ),
            Figure(
                f"tsne-users-{number + 1}-{slug(label)[:40]}",
                f"{label}: items of {len(shown.users)} users",
                f"t-SNE of the items of {len(shown.users)} random users of {label}. Mean cosine of "
                f"two items of one user {fixed(numbers.same_user, 3)}, of two users "
                f"{fixed(numbers.different_users, 3)}.",
                partial(_users, shown, number),
            ),
        ]
    without = (
        f" Without vectors, hence without a picture: {', '.join(shown.without)}."
        if shown.without
        else ""
    )
    said = (
        "t-SNE of the item vectors that each system ranks with, of its first seed; the same items "
        "and users for all. It tells neighbours: positions, and distances between groups, mean "
        f"nothing.{without}",
    )
    parts = (Text(said), Gallery(tuple(figures)), _table(shown.numbers))
    return Section("vectors", "Item vectors (t-SNE)", parts, menu="t-SNE")


def popularity_groups(values: IntArray) -> list[Group]:
    """Items below `COLD_BELOW` training interactions, and thirds of the others, by count."""
    groups: list[Group] = [(f"fewer than {COLD_BELOW}", values < COLD_BELOW)]
    warm = values[values >= COLD_BELOW]
    if len(warm):
        low, high = (int(np.quantile(warm, share, method="lower")) for share in (1 / 3, 2 / 3))
        bounds = [COLD_BELOW - 1, *dict.fromkeys((low, high, int(warm.max())))]
        for before, last in pairwise(bounds):
            groups.append(
                (f"{count(before + 1)} to {count(last)}", (values > before) & (values <= last))
            )
    return [(name, chosen) for name, chosen in groups if chosen.any()]


def _items(shown: Panels, number: int) -> Drawing:
    figure, axes = drawing.canvas(SIDE)
    points, values = shown.by_item[number], shown.popularity
    handles = []
    for place, (name, chosen) in enumerate(popularity_groups(values)):
        marker, color, size = _ITEM_LOOKS[place if values.min() < COLD_BELOW else place + 1]
        look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none"}
        axes.plot(*points[chosen].T, markersize=size, markeredgewidth=0.9, **look)
        named = f"{name} ({count(int(chosen.sum()))} items)"
        handles.append((named, Line2D([], [], markersize=5, **look)))
    _plain(axes)
    drawing.legend(figure, [], more=handles)
    return figure


def _users(shown: Panels, number: int) -> Drawing:
    figure, axes = drawing.canvas(SIDE)
    for place in range(len(shown.users)):
        seen = drawing.look(place)
        own = shown.by_user[number][shown.owner == place]
        axes.plot(*own.T, color=seen.color, marker=seen.marker, linestyle="none", markersize=4)
    _plain(axes)
    names = [(f"user {place + 1}", place) for place in range(len(shown.users))]
    drawing.legend(figure, names, lines=False)
    return figure


_ITEM_LOOKS = (
    ("x", drawing.SERIES["light"][4], 4.0),
    ("v", drawing.RAMP["light"][0], 2.6),
    ("s", drawing.RAMP["light"][1], 2.9),
    ("o", drawing.RAMP["light"][2], 3.4),
)
"""From rare to popular: shape, colour and size all tell the order."""


def _plain(axes: Axes) -> None:
    """No ticks, for positions mean nothing; equal scales, for near and far do."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("t-SNE, first dimension")
    axes.set_ylabel("t-SNE, second dimension")
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(visible=False)


def _table(rows: tuple[Geometry, ...]) -> Table:
    lines = tuple(
        (
            Cell(each.label, each.label),
            Cell(str(each.width), each.width),
            Cell(fixed(each.same_user, 3), each.same_user),
            Cell(fixed(each.different_users, 3), each.different_users),
            Cell(signed(each.gap, 3), each.gap),
            Cell(signed(each.norm_popularity, 3), each.norm_popularity),
        )
        for each in rows
    )
    columns = (Column("System", numeric=False), *(Column(head) for head in HEADS))
    said = "How the vectors of items lie, over all items"
    return Table("vectors", said, columns, lines, tuple(geometry_notes(rows)))
