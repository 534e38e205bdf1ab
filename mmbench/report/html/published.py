"""What papers report for these models and data, each number with what differs from ours."""

from __future__ import annotations

from mmbench.report.beside import Line, cells, heads, marks, published_beside, sections
from mmbench.report.beside import Section as Beside
from mmbench.report.html.content import Cell, Column, Part, Section, Table, Text
from mmbench.report.html.evidence import Evidence
from mmbench.report.publications import published_dataset

NAMES = {True: "published", False: "published-not-comparable"}


def published(evidence: Evidence) -> Section | None:
    """Published numbers that compare beside ours, and apart from them those that do not."""
    c = evidence.main
    # Papers report the whole test part.
    if evidence.request.part != "test" or published_dataset(c.dataset) is None:
        return None
    found = published_beside(c)
    parts: list[Part] = [_table(section) for section in sections(found)]
    return Section("published", "Published results", (*parts, Text(found.notes)), menu="Published")


def _table(section: Beside) -> Table:
    columns = [Column("System: source", numeric=False), Column("notes", numeric=False)]
    for metric in section.metrics:
        columns += [Column(head, group=metric) for head in heads(section)]
    said = (
        "As printed in papers, beside ours; the notes name what differs"
        if section.comparable
        else "As printed in papers, not comparable with ours for the reason in the notes"
    )
    return Table(
        NAMES[section.comparable],
        said,
        tuple(columns),
        tuple(_row(section, line) for line in section.lines),
        tuple(section.sentences()),
    )


def _row(section: Beside, line: Line) -> tuple[Cell, ...]:
    row = [Cell(line.label, line.label), Cell(marks(line), marks(line))]
    for metric in section.metrics:
        number = line.numbers.get(metric)
        texts = cells(section, number)
        values: tuple[float | None, ...] = (None,) * len(texts)
        if number is not None:
            values = (number.here, number.published, number.relative)[-len(texts) :]
            values = values if section.comparable else (number.published,)
        row += [Cell(text, value) for text, value in zip(texts, values, strict=True)]
    return tuple(row)
