"""One table of evidence: quality on real data, speed, memory, throughput and calibration.

    python benchmarks/evidence.py --runs runs --data-dir data --out benchmarks/results/evidence.md

Nothing is measured here. Quality comes from finished run folders, by the code of `mmbench compare`;
all else from the files that the other scripts of this folder write into `results`. Every row names
the recipe and the command that made it, and its bar where the benchmark has one.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from making import command_of
from measured import Benchmark, cells, heads, read_results, title
from quality import Quality, Row, comparable_groups, find, measure
from rich.text import Text
from tabulate import tabulate

from mmbench import console
from mmbench.errors import DataError, MMBenchError
from mmbench.report import beside, captions, cost
from mmbench.report.blocks import Block, tables
from mmbench.report.leaderboard import short_block
from mmbench.report.numbers import MISSING, fixed, significant
from mmbench.runs import write_json

WIDTH = 80
SCHEMA = 1
HEAD = "Evidence"
SPENT = slice(2, 5)
"""Of what `report.cost` shows: epochs, seconds per epoch, peak memory."""
EARLIER = "†"


@dataclass(frozen=True)
class Section:
    """One table: what stands above it, its rows and columns, and what is said below it."""

    title: str
    labels: list[str]
    blocks: list[Block]
    notes: list[str]
    group: Quality | None = None
    """The systems in its rows; None where they are figures of a benchmark."""


def sections(groups: Sequence[Quality], benchmarks: Sequence[Benchmark]) -> Iterator[Section]:
    """Every table, quality first."""
    titles = Counter(captions.title(group.compared) for group in groups)
    for group in groups:
        head = captions.title(group.compared)
        if titles[head] > 1:  # splits that share a name
            split = group.rows[0].system.runs[0].manifest["split"]
            head += f" ({str(split['fingerprint'])[:8]})"
        labels = [row.system.label for row in group.rows]
        yield Section(head, labels, quality_blocks(group), quality_notes(group), group)
    for one in benchmarks:
        labels = [entry.work for entry in one.entries]
        yield Section(title(one), labels, [measured_block(one)], measured_notes(one))


def quality_blocks(group: Quality) -> list[Block]:
    """What is known of the systems of a group: metrics, their tests, and cost."""
    compared = group.compared
    papers = [
        [printed(group, row, str(column.metric)) for column in compared.columns]
        for row in group.rows
    ]
    spent = [
        [
            ",".join(map(str, row.system.seeds)),
            *(
                cost.cells(row.cost)[SPENT]
                if row.cost
                else [MISSING] * len(cost.SHORT_HEADS[SPENT])
            ),
        ]
        for row in group.rows
    ]
    return [
        *(short_block(compared, index) for index in range(len(compared.columns))),
        _block("published", [column.head for column in compared.columns], papers),
        _block("", ["seeds", *cost.SHORT_HEADS[SPENT]], spent),
    ]


def printed(group: Quality, row: Row, metric: str) -> str:
    """The published values that compare: the one, or the least and the greatest."""
    values = {
        each.published
        for each in group.published.rows
        if each.comparable and each.label == row.system.label and each.metric == metric
    }
    ends = sorted({min(values), max(values)}) if values else []
    return " to ".join(fixed(value, 4) for value in ends) or MISSING


def quality_notes(group: Quality) -> list[str]:
    """What was tested, what made the rows, and which are versions of one system."""
    lines = captions.caption(group.compared)
    if group.baseline is None:
        lines.append("No LightGCN, or SASRec, is among these runs: tested against the best.")
    lines.append(
        "published: what papers print for the model and compares, from the least to the greatest; "
        "the table of published numbers names each. Epochs, seconds and memory: mean over seeds; "
        f"{MISSING} a closed form has no epochs. MiB: peak of the whole process. The seconds are "
        "those of the runs, whatever else their machine did; speed is compared further down."
    )
    devices = {d for row in group.rows if row.cost for d in row.cost.devices}
    lines.append(f"Trained on: {'; '.join(sorted(devices)) or 'not stored'}.")
    for same in group.versions:
        lines.append(
            f"{', '.join(same)}: versions of one system. Their recipes are the same to this "
            "version; its keys or the data changed between them."
        )
    return lines


def mark(row: Row) -> str:
    """A mark where this version would not find the run, which was made otherwise."""
    return "" if row.made_by.is_current else EARLIER


def made_notes(group: Quality) -> list[str]:
    """How the commands were found, and what the marked rows are."""
    lines = [
        "A command names a shipped recipe if the identity of the run's own recipe is equal to that "
        "of the shipped one, with the settings that are given, if any."
    ]
    reasons: dict[str, list[str]] = {}
    for row in group.rows:
        if mark(row):
            reasons.setdefault(row.made_by.reason, []).append(row.system.label)
    if reasons:
        told = "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in reasons.items())
        lines.append(f"{EARLIER} The command would train anew today, not find this run. {told}.")
    return lines


def measured_block(benchmark: Benchmark) -> Block:
    """The figures of one file of results, without the columns that nobody has."""
    lines = [cells(entry) for entry in benchmark.entries]
    names = heads(benchmark)
    kept = [i for i in range(len(names)) if any(line[i] != MISSING for line in lines)]
    return _block("", [names[i] for i in kept], [[line[i] for i in kept] for line in lines])


def measured_notes(benchmark: Benchmark) -> list[str]:
    """The command, the caption, and what else there is to say of rows."""
    how = " (rebuilt from the settings stored with the figures)" if benchmark.rebuilt else ""
    notes: dict[str, list[str]] = {}
    for entry in benchmark.entries:
        if entry.note:
            notes.setdefault(entry.note, []).append(entry.work)
    return [
        f"Command: {benchmark.command}{how}",
        benchmark.caption,
        *(f"{', '.join(works)}: {note}." for note, works in notes.items()),
    ]


def bars(benchmarks: Sequence[Benchmark]) -> list[str]:
    """How many bars are met, and which are not."""
    judged = [(one, entry) for one in benchmarks for entry in one.entries if entry.met is not None]
    missed = [
        f"{one.script} {entry.work} ({_short(entry.ratio, entry.ours)} for {entry.bar}; {one.file})"
        for one, entry in judged
        if not entry.met
    ]
    said = [f"Bars of benchmarks: {len(judged)}; met {len(judged) - len(missed)}."]
    return said + ([f"Missed: {'; '.join(missed)}."] if missed else [])


def _short(ratio: float | None, ours: float | None) -> str:
    value = ours if ratio is None else ratio
    return MISSING if value is None else significant(value)


def _block(head: str, names: Sequence[str], lines: Sequence[Sequence[str]]) -> Block:
    return Block(
        (head,) if head else (), tuple(names), tuple(tuple(map(Text, line)) for line in lines)
    )


def show(
    groups: Sequence[Quality], benchmarks: Sequence[Benchmark], remarks: Sequence[str]
) -> Iterator[Any]:
    """Everything for the terminal."""
    for section in sections(groups, benchmarks):
        group = section.group
        yield Text(section.title, style="bold")
        head = "work" if group is None else "System"
        for table in tables(section.labels, section.blocks, WIDTH, head=head):
            yield Text("")
            yield table
        yield Text("")
        yield from (Text(note, style="dim") for note in section.notes)
        if group:
            yield Text("\nMade by\n", style="bold")
            for row in group.rows:
                yield Text(f"{row.system.label} {mark(row)}\n  {row.made_by.command}")
            yield Text("")
            yield from (Text(note, style="dim") for note in made_notes(group))
            yield from beside.terminal(group.published, WIDTH)
        yield Text("")
    yield from (Text(line) for line in remarks)


def markdown(
    groups: Sequence[Quality],
    benchmarks: Sequence[Benchmark],
    remarks: Sequence[str],
    command: str,
) -> str:
    """Everything as Markdown, one row per system."""
    parts = [f"# {HEAD}", f"Made by `{command}`.", *(_escaped(line) for line in remarks)]
    for section in sections(groups, benchmarks):
        group, notes = section.group, section.notes
        columns = [
            " ".join(filter(None, (*block.titles, head)))
            for block in section.blocks
            for head in block.heads
        ]
        rows = [
            [label, *(_marked(text) for block in section.blocks for text in block.rows[index])]
            for index, label in enumerate(section.labels)
        ]
        if group:
            columns.append("made by")
            rows = [
                [*cells, f"`{row.made_by.command}` {mark(row)}"]
                for cells, row in zip(rows, group.rows, strict=True)
            ]
            notes = [*notes, *made_notes(group)]
        parts += [f"## {section.title}", _table(["", *columns], rows), _listed(notes)]
        parts += _published(group) if group else ()
    return "\n\n".join(parts) + "\n"


def _published(group: Quality) -> Iterator[str]:
    for section in beside.sections(group.published):
        columns, rows = beside.markup_rows(section)
        yield f"### {section.title}"
        yield _table(columns, rows)
        yield _listed(section.sentences())
    if group.published.notes:
        yield _listed(group.published.notes)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return str(tabulate(escaped, headers=columns, tablefmt="github", disable_numparse=True))


def _marked(text: Text) -> str:
    """A cell for Markdown: bold stays bold, and marks stay marks."""
    plain = _escaped(text.plain.strip())
    return f"**{plain}**" if text.style == "bold" and plain else plain


def _listed(lines: Any) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _escaped(line: str) -> str:
    return line.replace("*", "\\*").replace("~", "\\~").replace("<", "&lt;")


def records(
    groups: Sequence[Quality],
    benchmarks: Sequence[Benchmark],
    remarks: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """Everything at full precision, for JSON."""
    return {
        "schema": SCHEMA,
        "command": command,
        "remarks": list(remarks),
        "quality": [group.as_dict() for group in groups],
        "measured": [
            {
                **asdict(one),
                "entries": [{**asdict(entry), "verdict": entry.verdict} for entry in one.entries],
            }
            for one in benchmarks
        ],
    }


def check_target(out: Path) -> None:
    """Refuse, before any work, a place that cannot be written.

    Raises:
        DataError: its folder is missing, or it is no name of a Markdown file.
    """
    if out.suffix != ".md" or out.is_dir():
        raise DataError(f"{out}: --out takes the name of a Markdown file, for example evidence.md")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise DataError(f"{out.parent} is no folder that can be written to; choose another --out")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", "folders", multiple=True, required=True, metavar="DIR",
              type=click.Path(path_type=Path), help="A folder of runs; repeatable.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), default="data", envvar="MMBENCH_DATA",
              show_default=True, help="Where prepared datasets lie.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path),
              default=Path(__file__).parent / "results",
              help="Figures of the other scripts. [default: results, beside this]")  # fmt: skip
@click.option("--dataset", "datasets", multiple=True, metavar="NAME",
              help="Only runs of this dataset; repeatable. [default: of all]")  # fmt: skip
@click.option("--out", metavar="FILE.md", type=click.Path(path_type=Path),
              help="Write the table as Markdown, and as JSON beside it.")  # fmt: skip
def main(
    folders: tuple[Path, ...],
    data_dir: Path,
    results: Path,
    datasets: tuple[str, ...],
    out: Path | None,
) -> None:
    """Print one table of everything that was measured, with what made each figure.

    Unfinished runs are left out and counted. Of a system and seed that several folders hold, the
    first one counts.
    """
    try:
        if out is not None:
            check_target(out)
        benchmarks, lacking = read_results(results)
        found = find(folders, datasets)
        groups = [measure(runs, data_dir) for runs in comparable_groups(found.runs)]
    except MMBenchError as problem:
        console.error(str(problem))
        sys.exit(2)
    groups.sort(key=lambda group: (group.compared.dataset, group.compared.split))
    remarks = [*found.sentences(), *lacking, *bars(benchmarks)]
    command = command_of("evidence.py")
    if out is not None:
        try:
            write_json(out.with_suffix(".json"), records(groups, benchmarks, remarks, command))
            partial = out.with_name(f"{out.name}.partial")
            partial.write_text(markdown(groups, benchmarks, remarks, command), encoding="utf-8")
            partial.replace(out)
        except OSError as problem:
            console.error(f"{out} cannot be written: {problem.strerror}")
            sys.exit(2)
    for part in show(groups, benchmarks, remarks):
        console.result(part)


if __name__ == "__main__":
    main()
