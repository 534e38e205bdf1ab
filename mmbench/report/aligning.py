"""How well the vectors of an item's modalities agree, for each system of a comparison.

Vectors that learnt with a recommender were measured when its training ended, and the run tells;
stored feature sets are measured here, once each, where the prepared dataset is at hand. Rows of
another data or of another set of the same name are not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from mmbench.data.aligned import alignments
from mmbench.data.features import read_feature_manifest
from mmbench.data.prepared import PreparedDataset, load_dataset
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.alignment import KS
from mmbench.report.blocks import Block, tables
from mmbench.report.numbers import count, fixed
from mmbench.report.paradigms import LETTERS
from mmbench.report.systems import System

HEADS = (*(f"R@{k}" for k in KS), "paired", "others", "gap", "uniformity")
MEASURES = ("paired", "unpaired", "gap", "uniformity_first", "uniformity_second")
TITLE = "Alignment"
FEW = 4


@dataclass(frozen=True)
class Aligned:
    """The vectors of two modalities in one system; learnt ones are means over the seeds.

    Attributes:
        pair: letters of the modalities, for example "V-T".
        learnt: whether they learnt with the recommender.
        one_encoder: whether both are of one encoder, hence of one space.
        n_items: items with both.
        recall: recall@K by K, mean of both ways.
        paired: mean cosine of an item's two vectors.
        unpaired: of vectors of two items.
        gap: distance of the means of the two modalities.
        uniformity_first, uniformity_second: of each; less is more even.
    """

    label: str
    pair: str
    learnt: bool
    one_encoder: bool
    n_items: int
    recall: dict[int, float]
    paired: float
    unpaired: float
    gap: float
    uniformity_first: float
    uniformity_second: float


@dataclass(frozen=True)
class AlignmentBeside:
    """What was measured, and of whom nothing was, with the reasons."""

    rows: tuple[Aligned, ...]
    lacking: tuple[tuple[str, str], ...] = ()


@dataclass
class _Sets:
    """Stored feature sets, each dataset opened and each pair measured once."""

    data_dir: Path
    opened: dict[str, PreparedDataset | str] = field(default_factory=dict)
    measured: dict[tuple[str, str, str], Mapping[str, Any] | str] = field(default_factory=dict)

    def between(self, system: System, one: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
        """The record of two sets, or why there is none."""
        facts = system.runs[0].manifest["dataset"]
        name = str(facts["name"])
        key = (str(facts.get("fingerprint")), str(one.get("sha256")), str(other.get("sha256")))
        if key not in self.measured:
            self.measured[key] = self._measure(name, key[0], one, other)
        return self.measured[key]

    def _measure(
        self, name: str, fingerprint: str, one: Mapping[str, Any], other: Mapping[str, Any]
    ) -> Mapping[str, Any] | str:
        if name not in self.opened:
            try:
                self.opened[name] = load_dataset(name, self.data_dir)
            except (DataError, ConfigError, OSError):
                self.opened[name] = f"{name} is not prepared under --data-dir"
        dataset = self.opened[name]
        if isinstance(dataset, str):
            return dataset
        if dataset.fingerprint != fingerprint:
            return f"the {name} under --data-dir is another one"
        widths = []
        for given in (one, other):
            stored = read_feature_manifest(dataset.root, str(given.get("key"))) or {}
            if stored.get("sha256") != given.get("sha256"):
                return f"its {given.get('key')} is not there, or another one by now"
            widths.append((stored.get("shape") or [0, 0])[1])
        if widths[0] != widths[1]:
            return f"no common space, {widths[0]:,} and {widths[1]:,} columns"
        try:
            found = alignments(dataset, [str(one["key"]), str(other["key"])])
        except DataError as problem:
            return str(problem)
        return found[0] if found else "fewer than two items have both"


def alignment_beside(systems: Sequence[System], data_dir: Path) -> AlignmentBeside:
    """The alignment of the vectors that systems read, in their order."""
    sets = _Sets(data_dir)
    rows: list[Aligned] = []
    lacking: list[tuple[str, str]] = []
    for system in systems:
        found, missing = _of_system(system, sets)
        rows += found
        lacking += [(system.label, why) for why in missing]
    return AlignmentBeside(tuple(rows), tuple(dict.fromkeys(lacking)))


def _of_system(system: System, sets: _Sets) -> tuple[list[Aligned], list[str]]:
    manifest = system.runs[0].manifest
    stored = {str(f.get("modality")): f for f in manifest.get("features") or ()}
    live = {str(e.get("modality")): e for e in manifest.get("encoders") or ()}
    given = [modality for modality in LETTERS if modality in stored or modality in live]
    if len(given) < 2:
        return [], ["it reads one modality or none"]
    rows, missing = [], []
    for one, other in itertools.combinations(given, 2):
        learnt = _learnt(system, one, other)
        names = {str((stored.get(m) or live.get(m) or {}).get("encoder")) for m in (one, other)}
        if learnt:
            rows.append(_row(system.label, one, other, learnt, True, len(names) == 1))
        elif one in live or other in live:
            missing.append("its encoders learn and were not measured: tokens, or unequal widths")
        else:
            record = sets.between(system, stored[one], stored[other])
            if isinstance(record, str):
                missing.append(record)
            else:
                rows.append(_row(system.label, one, other, [record], False, len(names) == 1))
    return rows, missing


def _learnt(system: System, one: str, other: str) -> list[Mapping[str, Any]]:
    """What the runs tell of two modalities; empty unless all of them do."""
    found = []
    for run in system.runs:
        for record in run.manifest.get("alignment") or ():
            if {record.get("first"), record.get("second")} == {one, other}:
                found.append(record)
    return found if len(found) == len(system.runs) else []


def _row(
    label: str,
    one: str,
    other: str,
    records: Sequence[Mapping[str, Any]],
    learnt: bool,
    one_encoder: bool,
) -> Aligned:
    def mean(*path: str) -> float:
        values = []
        for record in records:
            value: Any = record
            for key in path:
                value = value[key]
            values.append(float(value))
        return float(np.mean(values))

    # "visual" is always the first of a record's two, whatever the order of the tables.
    measures = {name: mean(name) for name in MEASURES}
    if not str(records[0]["first"]).startswith(one):
        first, second = measures["uniformity_first"], measures["uniformity_second"]
        measures |= {"uniformity_first": second, "uniformity_second": first}
    recall = {k: (mean("recall_first", str(k)) + mean("recall_second", str(k))) / 2 for k in KS}
    pair = f"{LETTERS[one]}-{LETTERS[other]}"
    n_items = int(records[0]["n_items"])
    return Aligned(label, pair, learnt, one_encoder, n_items, recall, **measures)


def names(beside: AlignmentBeside) -> list[str]:
    """What tables call the rows: the system, and the modalities where it has several pairs."""
    several = len({row.pair for row in beside.rows}) > 1
    return [f"{row.label} {row.pair}" if several else row.label for row in beside.rows]


def cells(row: Aligned) -> list[str]:
    """The figures as texts, in the order of the heads."""
    return [
        *(fixed(row.recall[k], 3) for k in KS),
        fixed(row.paired, 3),
        fixed(row.unpaired, 3),
        fixed(row.gap, 3),
        f"{fixed(row.uniformity_first, 2)} {fixed(row.uniformity_second, 2)}",
    ]


def block(beside: AlignmentBeside) -> Block:
    """The figures as columns for the terminal."""
    return Block((TITLE,), HEADS, tuple(tuple(map(Text, cells(row))) for row in beside.rows))


def terminal(beside: AlignmentBeside, width: int) -> Iterator[Table | Text]:
    """The table for the terminal with its notes."""
    if beside.rows:
        for table in tables(names(beside), [block(beside)], width):
            yield Text("")
            yield table
    yield Text("")
    for line in notes(beside):
        yield Text(line, style="dim")


def notes(beside: AlignmentBeside) -> list[str]:
    """The sentences below the table."""
    lines = []
    if beside.rows:
        sizes = sorted({row.n_items for row in beside.rows})
        items = " to ".join(count(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        lines.append(
            f"{TITLE}: R@K, an item's vector of one modality finds its other one among the K "
            f"nearest of {items} items, mean of both ways; cosines of pairs and of others; gap: "
            "distance of the modalities' means; uniformity of each, less is more even."
        )
        learnt = [row.label for row in beside.rows if row.learnt]
        if learnt:
            lines.append(
                f"Learnt with the recommender, measured when it was trained: {_listed(learnt)}."
            )
        apart = [row.label for row in beside.rows if not row.one_encoder]
        if apart:
            lines.append(
                f"Vectors of two encoders share no space, unless trained to: {_listed(apart)}."
            )
    for why in dict.fromkeys(why for _, why in beside.lacking):
        labels = [label for label, reason in beside.lacking if reason == why]
        lines.append(f"No alignment ({why}): {_listed(labels)}.")
    return lines


def _listed(labels: Sequence[str]) -> str:
    labels = list(dict.fromkeys(labels))
    more = f" and {len(labels) - FEW} more" if len(labels) > FEW else ""
    return f"{', '.join(labels[:FEW])}{more}"


def markup_rows(beside: AlignmentBeside) -> tuple[list[str], list[list[str]]]:
    """Heads and rows for GitHub and LaTeX."""
    called = names(beside)
    return ["System", *HEADS], [
        [name, *cells(row)] for name, row in zip(called, beside.rows, strict=True)
    ]


def records(beside: AlignmentBeside) -> list[dict[str, Any]]:
    """One flat record per system and pair at full precision."""
    return [
        {**asdict(row), "recall": {str(k): value for k, value in row.recall.items()}}
        for row in beside.rows
    ]


FIELDS = tuple(
    f"alignment_{name}"
    for name in ("pair", "learnt", "n_items", *(f"recall@{k}" for k in KS), *MEASURES)
)
"""Columns of CSV; several pairs of a system stand in one field, in their order."""


def csv_fields(beside: AlignmentBeside, label: str) -> dict[str, str]:
    """The columns of one system; empty where nothing was measured."""
    own = [row for row in beside.rows if row.label == label]
    return {name: "; ".join(_values(own, name)) for name in FIELDS}


def _values(rows: Sequence[Aligned], name: str) -> Iterator[str]:
    _, _, what = name.partition("_")
    for row in rows:
        if what.startswith("recall@"):
            yield repr(row.recall[int(what.partition("@")[2])])
        else:
            value = getattr(row, what)
            yield value if isinstance(value, str) else repr(value)
