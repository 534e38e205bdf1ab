"""The page: every section, set by the template into one file that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmbench.report.captions import title
from mmbench.report.html import drawing
from mmbench.report.html.aligned import alignment
from mmbench.report.html.breakdowns import gain_over_k, sparsity
from mmbench.report.html.cold_start import cold_starts
from mmbench.report.html.content import Figure, Section
from mmbench.report.html.effects import effects, significance
from mmbench.report.html.evidence import Evidence
from mmbench.report.html.leaderboard import leaderboard
from mmbench.report.html.published import published
from mmbench.report.html.records import dataset_card, provenance
from mmbench.report.html.spending import convergence, spending
from mmbench.report.html.vectors import vectors

MakeSection = Callable[[Evidence], Section | Sequence[Section] | None]
# In the order of the page. A further study is one more function here, or is handed to
# `make_sections` by the study itself.
SECTIONS: tuple[MakeSection, ...] = (
    leaderboard,
    significance,
    effects,
    gain_over_k,
    sparsity,
    cold_starts,
    convergence,
    spending,
    alignment,
    vectors,
    published,
    dataset_card,
    provenance,
)


def make_sections(
    evidence: Evidence, makers: Sequence[MakeSection] = SECTIONS
) -> tuple[Section, ...]:
    """The sections that the evidence has something for."""
    sections: list[Section] = []
    for make in makers:
        made = make(evidence)
        if made is not None:
            sections += [made] if isinstance(made, Section) else made
    return tuple(sections)


@dataclass(frozen=True)
class Head:
    """What stands above the sections.

    Attributes:
        title: one line.
        facts: a few words each.
        created: when the page was made.
    """

    title: str
    facts: tuple[str, ...]
    created: str


def head_of(evidence: Evidence) -> Head:
    """The head of a comparison's page."""
    facts = tuple(title(evidence.main).split(" | ")[1:])
    return Head(evidence.main.dataset, facts, evidence.created)


def render(head: Head, sections: Sequence[Section]) -> str:
    """A page as HTML.

    Every text is escaped by the template's engine. The figures alone pass as they are: an XML
    writer made them.
    """
    environment = Environment(
        loader=PackageLoader("mmbench.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline_svg"] = _inline
    environment.globals["kind"] = lambda part: type(part).__name__
    styles = Markup(
        environment.get_template("page.css").render(
            light=drawing.palette_css("light"), dark=drawing.palette_css("dark")
        )
    )
    scripts = Markup(_source(environment, "page.js"))
    return environment.get_template("page.html").render(
        title=head.title,
        facts=head.facts,
        sections=sections,
        created=head.created,
        styles=styles,
        scripts=scripts,
    )


def _inline(figure: Figure) -> Markup:
    return Markup(drawing.inline_svg(figure))


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
