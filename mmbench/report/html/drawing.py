"""Drawing figures that suit both themes: matplotlib draws, colours become CSS variables.

A figure is drawn once, in the colours of the light theme. For the page each of these few colours
is replaced by a variable that the theme sets; files keep the colours, on white. Text stays text,
so it is found, read aloud and set in the page's font.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, SymmetricalLogLocator

from mmbench.report.html.content import Figure

# Distinct under normal vision and the three kinds of colour blindness, and three to one or more
# against their background; tests/report/test_html_drawing.py computes both.
SERIES = {
    "light": ("#1e63d6", "#ca8315", "#00452f", "#8a2f86", "#a83c1e", "#8d85df"),
    "dark": ("#6ba5da", "#f1f136", "#4bf3d0", "#9a7bff", "#e0873e", "#d04a86"),
}
# An order, from little to much: lightness alone tells it, in either theme away from the paper.
RAMP = {
    "light": ("#7f93b8", "#3d6ab0", "#10284f"),
    "dark": ("#56709f", "#8fb2ea", "#e9f1ff"),
}
THEMES = {
    "light": {"ink": "#1b1f24", "muted": "#59616c", "grid": "#dfe3e8", "paper": "#ffffff"},
    "dark": {"ink": "#e8eaed", "muted": "#a3abb6", "grid": "#343a43", "paper": "#14171c"},
}
INK, MUTED, GRID = (THEMES["light"][name] for name in ("ink", "muted", "grid"))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_LINK = re.compile(r"url\(#([^)]+)\)")
_COLOR = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"font-family: [^;]+; ?")
_BLANKS = re.compile(r"\s*\n\s*")
WIDTH, HEIGHT = 4.9, 3.4
PNG_DPI = 200
LABEL_WIDTH = 34


@dataclass(frozen=True)
class Look:
    """How a series is told apart: colour, marker and dashes together."""

    color: str
    marker: str
    dashes: Any


def look(index: int) -> Look:
    """The look of the series of that index; looks repeat after 66 series at the earliest."""
    colors = SERIES["light"]
    return Look(
        colors[index % len(colors)],
        MARKERS[index % len(MARKERS)],
        DASHES[index // len(colors) % len(DASHES)],
    )


@contextmanager
def style() -> Iterator[None]:
    """The settings of all figures; none of them outlives the block."""
    settings: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.unicode_minus": True,
        "figure.constrained_layout.use": True,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "legend.edgecolor": "none",
        "legend.facecolor": "none",
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "mmbench",
        "text.color": INK,
        "text.parse_math": False,
        "text.usetex": False,
        "xtick.color": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.color": MUTED,
        "ytick.labelsize": 8.5,
    }
    with warnings.catch_warnings(), mpl.rc_context(settings):
        # A sign that the font lacks is a box in the PNG file and right everywhere else.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def canvas(height: float = HEIGHT, width: float = WIDTH) -> tuple[Drawing, Axes]:
    """An empty drawing with one pair of axes; sizes in inches."""
    drawing = Drawing(figsize=(width, height))
    return drawing, drawing.subplots()


def wrapped(label: str, width: int = LABEL_WIDTH) -> str:
    """A label on several short lines."""
    return "\n".join(textwrap.wrap(label, width, break_on_hyphens=False)) or label


def legend(
    drawing: Drawing,
    series: Sequence[tuple[str, int]],
    *,
    lines: bool = True,
    more: Sequence[tuple[str, Line2D]] = (),
) -> None:
    """A legend below the axes, of labels and the indices of their looks; the drawing grows.

    Args:
        drawing: what it belongs to.
        series: labels, each with the index of its look.
        lines: whether the looks have lines.
        more: further labels with looks of their own.
    """
    names = [wrapped(label) for label, _ in (*series, *more)]
    widest = max((len(line) for name in names for line in name.split("\n")), default=1)
    columns = max(1, min(len(names), int(70 // (widest + 6))))
    handles = []
    for _, index in series:
        seen = look(index)
        dashes: Any = seen.dashes if lines else "none"
        handles.append(Line2D([], [], color=seen.color, marker=seen.marker, linestyle=dashes))
    handles += [handle for _, handle in more]
    n_rows = -(-len(names) // columns)  # filled column by column
    height = 0.19 * sum(
        max(name.count("\n") + 1 for name in names[row::n_rows]) for row in range(n_rows)
    )
    drawing.set_figheight(drawing.get_figheight() + height + 0.1)
    # The leading blank: labels that begin with an underscore would be left out.
    drawing.legend(
        handles, [f" {name}" for name in names], loc="outside lower center", ncols=columns
    )


def number(value: float, _: int | None = None) -> str:
    """A tick of a logarithmic axis as people write it: "0.5", "20", "1,000", "2.5M"."""
    for unit, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with a few readable ticks; linear up to the least value if one is 0."""
    positive = [value for value in values if value > 0]
    if not positive:
        return
    low, high = min(positive), max(positive)
    if min(values) <= 0:
        axes.set_xscale("symlog", linthresh=low)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=low))
    else:
        axes.set_xscale("log")
        narrow = high / low < 30
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(number))
    axes.xaxis.set_minor_formatter(NullFormatter())


def standalone_svg(figure: Figure) -> str:
    """The figure as an SVG file, on white."""
    return _svg(figure, transparent=False)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, on white."""
    with style():
        drawing = figure.draw()
        FigureCanvasAgg(drawing)
        out = io.BytesIO()
        drawing.savefig(
            out, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None}
        )
    return out.getvalue()


def inline_svg(figure: Figure) -> str:
    """The figure as an element of the page: ids of its own, colours of the theme, described."""
    # Parsed, never searched as text: a label may hold whatever looks like an attribute.
    svg = ElementTree.fromstring(_svg(figure, transparent=True))
    box = svg.attrib["viewBox"]
    variables, used = _variables(), set()
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            value = element.attrib.pop(name)
            bare = name.rpartition("}")[2]
            if bare == "href" and value.startswith("#"):
                used.add(value[1:])
                value = f"#{figure.name}-{value[1:]}"
            elif found := _LINK.fullmatch(value):
                used.add(found.group(1))
                value = f"url(#{figure.name}-{found.group(1)})"
            elif bare == "style":
                value = _FONT.sub("", _COLOR.sub(lambda m: variables.get(m[0], m[0]), value))
            element.attrib[bare] = value
    for element in svg.iter():
        name = element.attrib.pop("id", "")
        if name in used:
            element.attrib["id"] = f"{figure.name}-{name}"
    for parent in svg.findall(".//defs/.."):
        for child in parent.findall("defs"):
            for rule in child.findall("style"):  # it would hold for the whole page
                child.remove(rule)
            if not len(child):
                parent.remove(child)
    svg.attrib.clear()
    width = float(box.split()[2]) * 1.6  # a fifth above its size in print
    svg.attrib.update(
        {
            "viewBox": box,
            "style": f"max-width: {width:.0f}px",
            "role": "img",
            "aria-labelledby": f"{figure.name}-title",
            "aria-describedby": f"{figure.name}-description",
        }
    )
    for place, tag in enumerate(("title", "desc")):
        said = ElementTree.Element(tag)
        said.text = figure.title if tag == "title" else figure.description
        said.attrib["id"] = f"{figure.name}-{'title' if tag == 'title' else 'description'}"
        svg.insert(place, said)
    return _BLANKS.sub("\n", ElementTree.tostring(svg, encoding="unicode"))


def palette_css(theme: str) -> str:
    """The variables of a theme as CSS declarations."""
    colors = {**THEMES[theme], **{f"series-{i}": c for i, c in enumerate(SERIES[theme])}}
    colors |= {f"ramp-{i}": c for i, c in enumerate(RAMP[theme])}
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


def _variables() -> dict[str, str]:
    theme = {color: name for name, color in THEMES["light"].items()}
    names = {**theme, **{color: f"series-{i}" for i, color in enumerate(SERIES["light"])}}
    names |= {color: f"ramp-{i}" for i, color in enumerate(RAMP["light"])}
    return {color: f"var(--{name})" for color, name in names.items()}


def _svg(figure: Figure, *, transparent: bool) -> str:
    with style():
        drawing = figure.draw()
        FigureCanvasSVG(drawing)
        out = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        drawing.savefig(out, format="svg", transparent=transparent, metadata=nothing)
    return out.getvalue()
