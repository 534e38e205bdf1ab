"""Figures: colours that everybody can tell apart, in both themes; names that stay what they are."""

from __future__ import annotations

import itertools
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from mmbench.report.html import drawing
from mmbench.report.html.content import Figure

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as the colour-blind see it.
VISION = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(color):
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The ratio of WCAG 2."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def seen(color, vision):
    """100 times the OKLab coordinates of a colour as somebody sees it."""
    light = np.clip(np.array(VISION[vision]) @ linear(color), 0, 1)
    return 100 * TO_OKLAB @ np.cbrt(TO_LMS @ light)


def a_figure(name="one", draw=None, title="Title"):
    def plain():
        sheet, axes = drawing.canvas()
        for index in range(3):
            look = drawing.look(index)
            axes.plot([1, 2], [index, index + 1], color=look.color, marker=look.marker)
        axes.set_xlabel("K")
        return sheet

    return Figure(name, title, "What it shows.", draw or plain)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_series_differ_for_every_kind_of_vision(theme, vision):
    colors = drawing.SERIES[theme]
    distances = [
        np.linalg.norm(seen(a, vision) - seen(b, vision))
        for a, b in itertools.combinations(colors, 2)
    ]
    assert min(distances) > 7.5  # a just noticeable difference is about 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_suffices(theme):
    paper = drawing.THEMES[theme]["paper"]
    assert min(contrast(color, paper) for color in drawing.SERIES[theme]) >= 3
    assert contrast(drawing.THEMES[theme]["ink"], paper) >= 7
    assert contrast(drawing.THEMES[theme]["muted"], paper) >= 4.5


def test_both_themes_have_the_same_variables():
    names = [
        [part.split(":")[0].strip() for part in drawing.palette_css(theme).split(";")]
        for theme in ("light", "dark")
    ]
    assert names[0] == names[1]


def test_looks_do_not_repeat_soon():
    looks = [drawing.look(index) for index in range(66)]
    assert len(set(looks)) == 66


def test_inline_figures_share_no_id_and_no_fixed_colour():
    one, two = (
        ElementTree.fromstring(drawing.inline_svg(a_figure(name))) for name in ("one", "two")
    )
    ids = [{e.get("id") for e in svg.iter() if e.get("id")} for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    styles = " ".join(e.get("style") or "" for e in one.iter())
    assert "#" not in styles
    assert "var(--series-2)" in styles


def test_hostile_labels_stay_text():
    label = 'url(#x) id="y" style="fill: #1b1f24" <script>$a_b$'

    def draw():
        sheet, axes = drawing.canvas()
        axes.set_title(label)
        drawing.legend(sheet, [(label, 0), ("_hidden", 1)])
        return sheet

    svg = ElementTree.fromstring(drawing.inline_svg(a_figure(draw=draw, title=label)))
    texts = ["".join(e.itertext()) for e in svg.iter("text")]
    assert label in texts
    assert " _hidden" in texts
    assert svg.find("title").text == label
    assert list(svg.iter("script")) == []


def test_files_keep_colours_on_white():
    svg = drawing.standalone_svg(a_figure())
    assert svg.startswith("<?xml")
    assert "var(" not in svg
    assert drawing.SERIES["light"][1] in svg
    assert "fill: #ffffff" in svg
    assert drawing.png(a_figure()).startswith(b"\x89PNG\r\n")


def test_same_figure_same_bytes():
    assert drawing.inline_svg(a_figure()) == drawing.inline_svg(a_figure())
    assert drawing.png(a_figure()) == drawing.png(a_figure())


def test_signs_the_font_lacks_do_not_warn():
    def draw():
        sheet, axes = drawing.canvas()
        axes.set_title("\u6a21\u578b")
        return sheet

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "\u6a21\u578b" in drawing.inline_svg(a_figure(draw=draw))


def test_settings_do_not_outlive_the_drawing():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    drawing.inline_svg(a_figure())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("values", [[0, 10, 2000], [0, 0], [3, 4], [5], [1e7, 3e9]])
def test_logarithmic_axes_take_every_cost(values):
    def draw():
        sheet, axes = drawing.canvas()
        axes.plot(values, values, "o")
        drawing.logarithmic(axes, values)
        return sheet

    assert "<svg" in drawing.inline_svg(a_figure(draw=draw))


def test_numbers_of_axes():
    shown = [drawing.number(value) for value in (0.5, 20, 1000, 2_500_000, 3e9, 0)]
    assert shown == ["0.5", "20", "1,000", "2.5M", "3G", "0"]
