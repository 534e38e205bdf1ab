"""Tables of published numbers beside ours: what compares, and apart from it what does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from mmbench.report.blocks import Block, tables
from mmbench.report.comparison import Comparison
from mmbench.report.numbers import MISSING, fixed, percent
from mmbench.report.publications import (
    SAME_SIZE,
    Beside,
    beside,
    facts,
    published_dataset,
    source_facts,
    without_rows,
)

TITLE = "Published"
APART = "Published, not comparable"
FIELDS = ("published_source", "published_model", "published_variant", "comparable", "differs")


@dataclass(frozen=True)
class PublishedBeside:
    """All published numbers of a comparison's systems, and what there is to say of them."""

    rows: tuple[Beside, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One line of a table: a source's row, its numbers by metric, and the notes it bears."""

    label: str
    numbers: dict[str, Beside]
    notes: tuple[int, ...]


@dataclass(frozen=True)
class Section:
    """One table: comparable or not, its metrics, its lines, and its notes in their order."""

    comparable: bool
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What stands above it."""
        return TITLE if self.comparable else APART

    def sentences(self) -> list[str]:
        """The numbered notes."""
        return [f"{number}: {note}." for number, note in enumerate(self.notes, 1)]


def published_beside(comparison: Comparison) -> PublishedBeside:
    """The published numbers of a comparison's systems."""
    rows = tuple(beside(comparison))
    if published_dataset(comparison.dataset) is None:
        known = ", ".join(facts()["datasets"])
        notes = (f"No published table holds {comparison.dataset}; they hold {known}.",)
        return PublishedBeside(rows, notes)
    missing = without_rows(comparison, rows)
    said = [f"No published number in these columns: {', '.join(missing)}."] if missing else []
    if rows:
        said.insert(0, _cited(rows))
        said.insert(
            0,
            "publ.: as printed; diff: ours relative to it. A dataset is the same if users, items "
            f"and training interactions differ by {SAME_SIZE:.1%} at most; no test is made, since "
            "no value for each user is published.",
        )
    return PublishedBeside(rows, tuple(filter(None, said)))


def _cited(rows: Sequence[Beside]) -> str:
    """The papers that the sources belong to."""
    papers = {}
    for row in rows:
        about = source_facts(row.source)
        if "arxiv" in about and not str(about["short"]).startswith("arXiv"):
            papers[str(about["short"])] = f"{about['short']}: arXiv {about['arxiv']}"
    return f"Sources. {'; '.join(papers.values())}." if papers else ""


def sections(published: PublishedBeside) -> list[Section]:
    """The comparable numbers, then the others; a section without lines is left out."""
    found = []
    for comparable in (True, False):
        rows = [row for row in published.rows if row.comparable is comparable]
        if not rows:
            continue
        notes = list(dict.fromkeys(note for row in rows for note in _notes(row)))
        lines = []
        for numbers in _lines(rows):
            first = next(iter(numbers.values()))
            name = " ".join(filter(None, (first.short, first.variant)))
            marks = tuple(sorted(notes.index(note) + 1 for note in _notes(first)))
            lines.append(Line(f"{first.label}: {name}", numbers, marks))
        metrics = tuple(dict.fromkeys(row.metric for row in rows))
        found.append(Section(comparable, metrics, tuple(lines), tuple(notes)))
    return found


def _lines(rows: Sequence[Beside]) -> list[dict[str, Beside]]:
    """Numbers by metric, those of one row of a source together.

    One table may reach us by two ways; where they print the same, it is one line.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Beside]]] = {}
    for row in rows:
        known = groups.setdefault((row.label, row.short, row.variant, _notes(row)), [])
        for numbers in known:
            other = numbers.get(row.metric)
            if other is None or other.published == row.published:
                numbers[row.metric] = row
                break
        else:
            known.append({row.metric: row})
    return [numbers for known in groups.values() for numbers in known]


def _notes(row: Beside) -> tuple[str, ...]:
    """The reasons where there are some, for they say enough; else what differs."""
    return row.reasons or row.differs


def heads(section: Section) -> tuple[str, ...]:
    """Heads of the columns of one metric."""
    return ("ours", "publ.", "diff") if section.comparable else ("publ.",)


def cells(section: Section, row: Beside | None) -> list[str]:
    """The texts of one metric; ours is not shown beside what does not compare."""
    if row is None:
        return [MISSING] * len(heads(section))
    printed = fixed(row.published, 4)
    if not section.comparable:
        return [printed]
    return [fixed(row.here, 4), printed, percent(row.relative)]


def marks(line: Line) -> str:
    """The numbers of a line's notes."""
    return ",".join(map(str, line.notes)) or MISSING


def terminal(published: PublishedBeside, width: int) -> Iterator[Table | Text]:
    """The tables for the terminal, each with its notes."""
    for section in sections(published):
        yield Text("")
        yield Text(section.title, style="bold")
        yield Text("")
        said = Block((), ("notes",), tuple((Text(marks(line)),) for line in section.lines))
        blocks = [said] + [
            Block(
                (metric,),
                heads(section),
                tuple(
                    tuple(map(Text, cells(section, line.numbers.get(metric))))
                    for line in section.lines
                ),
            )
            for metric in section.metrics
        ]
        yield from tables([line.label for line in section.lines], blocks, width)
        yield Text("")
        for sentence in section.sentences():
            yield Text(sentence, style="dim")
    yield Text("")
    for note in published.notes:
        yield Text(note, style="dim")


def markup_rows(section: Section) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a section for GitHub and LaTeX."""
    columns = ["System", "notes"]
    for metric in section.metrics:
        columns += [f"{metric} {head}" for head in heads(section)]
    rows = [
        [
            line.label,
            marks(line),
            *(text for m in section.metrics for text in cells(section, line.numbers.get(m))),
        ]
        for line in section.lines
    ]
    return columns, rows


def records(published: PublishedBeside) -> list[dict[str, Any]]:
    """One flat record per published number at full precision."""
    return [{**asdict(row), "comparable": row.comparable} for row in published.rows]


def csv_records(published: PublishedBeside) -> list[dict[str, Any]]:
    """One line per published number, in the columns of the comparison's CSV and `FIELDS`."""
    return [
        {
            "label": f"{row.model} (published)",
            "metric": row.metric,
            "mean": row.published,
            "reference": row.label,
            "published_source": row.source,
            "published_model": row.model,
            "published_variant": row.variant,
            "comparable": row.comparable,
            "differs": "; ".join((*row.reasons, *row.differs)),
        }
        for row in published.rows
    ]
