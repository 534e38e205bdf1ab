"""Item vectors on the page: an order that lightness tells, and every item in one group."""

from __future__ import annotations

import numpy as np
import pytest

from mmbench.report.html import drawing
from mmbench.report.html.content import figures_of
from mmbench.report.html.evidence import Request, gather
from mmbench.report.html.vectors import popularity_groups, vectors
from mmbench.report.tsne import Geometry, Panels


def lightness(color):
    return sum(w * int(color[i : i + 2], 16) for i, w in ((1, 0.3), (3, 0.59), (5, 0.11)))


@pytest.mark.parametrize(
    "values",
    [np.arange(60), np.full(9, 50), np.full(4, 2), np.array([10, 10, 11, 500]), np.array([9, 10])],
)
def test_every_item_is_in_one_group(values):
    groups = popularity_groups(values)
    assert (np.sum([chosen for _, chosen in groups], axis=0) == 1).all()
    assert len({name for name, _ in groups}) == len(groups) <= 4


def test_the_ramp_goes_one_way_from_the_paper():
    light, dark = (list(map(lightness, drawing.RAMP[theme])) for theme in ("light", "dark"))
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)


def test_pictures_show_all_points_and_name_who_has_none(lab):
    rng = np.random.default_rng(0)
    panels = Panels(
        labels=("a", "b"),
        popularity=np.arange(30),
        by_item=(rng.normal(size=(30, 2)), rng.normal(size=(30, 2))),
        users=np.array([3, 5]),
        owner=np.repeat([0, 1], 6),
        by_user=(rng.normal(size=(12, 2)), rng.normal(size=(12, 2))),
        numbers=tuple(Geometry(label, 8, 0.4, 0.1, 0.3, 0.2, 50) for label in "ab"),
        without=("itemknn",),
    )
    evidence = gather(Request([lab.run("a")], metrics=("recall@10",)))
    assert vectors(evidence) is None
    object.__setattr__(evidence, "panels", panels)
    section = vectors(evidence)
    assert "without a picture: itemknn" in section.parts[0].paragraphs[0]
    figures = figures_of(section.parts)
    assert [figure.name for figure in figures] == [
        "tsne-items-1-a", "tsne-users-1-a", "tsne-items-2-b", "tsne-users-2-b",
    ]  # fmt: skip
    with drawing.style():
        for figure, n_points in zip(figures, (30, 12, 30, 12), strict=True):
            (axes,) = figure.draw().axes
            assert sum(len(line.get_xdata()) for line in axes.lines) == n_points
