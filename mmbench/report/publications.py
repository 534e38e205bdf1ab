"""Published results beside a comparison, each with what differs, or why it does not compare.

The tables and what their names mean are data, in the folder `published`. A published number is
comparable if it was measured on a split by the same rule, on a dataset of the same size to
`SAME_SIZE`, by the same definition of the metric; anything else that differs is named. What is not
comparable is kept apart, with its reason, and no difference is computed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mmbench.report.comparison import Comparison
from mmbench.report.paradigms import encoding_of
from mmbench.report.systems import System

FOLDER = Path(__file__).with_name("published")
SAME_SIZE = 0.005
"""Share by which users, items and training interactions may differ in a comparable dataset."""
LETTERS = {"visual": "v", "acoustic": "a", "textual": "t"}
WORDS = {"v": "pictures", "a": "sound", "t": "text"}
SEQUENTIAL = "arXiv:2403.17372"
OTHER_STUDIES = re.compile(r"cold-start|scratch|transfer|source=|no encoder")
TUNED = {"ft": "its encoders were fine-tuned there", "ete": "its encoders learned with it there"}


@dataclass(frozen=True)
class Published:
    """One printed number.

    Attributes:
        variant: what distinguishes it from other rows of its model and source, or "".
        modalities: letters of v, a and t; "" for none; None where the source does not say.
        value: as a fraction.
    """

    dataset: str
    split: str
    model: str
    variant: str
    encoder: str
    training: str
    modalities: str | None
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Beside:
    """A published number and the system it belongs to.

    Attributes:
        label: of the system.
        source: as the tables name it, with its table.
        short: the same, short.
        here: the system's mean over users and seeds.
        published: the printed number, a fraction.
        relative: `here` relative to `published`; None where they do not compare.
        reasons: why they do not compare; empty where they do.
        differs: what else differs.
    """

    label: str
    model: str
    source: str
    short: str
    variant: str
    metric: str
    here: float
    published: float
    relative: float | None
    reasons: tuple[str, ...]
    differs: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether the two numbers may stand beside one another."""
        return not self.reasons


@cache
def facts() -> Mapping[str, Any]:
    """What names in the tables mean, and how sources differ."""
    found: Mapping[str, Any] = yaml.safe_load((FOLDER / "sources.yaml").read_text("utf-8"))
    return found


@cache
def published_results() -> tuple[Published, ...]:
    """All numbers that ordinary runs can stand beside."""
    return (*_general(), *_sequential())


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _general() -> Iterator[Published]:
    for row in _rows("general.csv"):
        encoder, training = (row[key].replace("none", "") for key in ("encoder", "training"))
        yield Published(
            dataset=row["dataset"],
            split=row["split"],
            model=row["model"],
            variant=" ".join(filter(None, (encoder, training, row["modalities"])))
            if encoder
            else "",
            encoder=encoder,
            training=training,
            modalities=row["modalities"].replace("none", ""),
            metric=row["metric"],
            value=float(row["value"]),
            source=row["source"],
        )


def _sequential() -> Iterator[Published]:
    for row in _rows("sequential.csv"):
        if row["metric"].startswith("Improv") or OTHER_STUDIES.search(row["setting"]):
            continue
        yield Published(
            dataset=row["dataset"],
            split="leave-one-out",
            model=row["model"],
            variant=row["variant"],
            encoder="",
            training="",
            modalities=None,
            metric=row["metric"].lower(),
            value=float(row["value_percent"]) / 100,
            source=f"{SEQUENTIAL} Table {row['table']} ({row['setting']})",
        )


def same_name(name: str) -> str:
    """A name without what writers differ in: case, blanks, hyphens; "++" is "pp"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


def published_dataset(name: str) -> str | None:
    """The dataset of the tables that is prepared under a name; None if they have none."""
    for dataset, about in facts()["datasets"].items():
        if same_name(name) in map(same_name, about["names"]):
            return str(dataset)
    return None


def beside(comparison: Comparison) -> list[Beside]:
    """The published numbers of a comparison's systems, in the order of its systems and columns."""
    dataset = published_dataset(comparison.dataset)
    found = []
    for system, cells in zip(comparison.systems, comparison.cells, strict=True):
        rows = [row for row in published_results() if row.dataset == dataset and _is(system, row)]
        for column, cell in zip(comparison.columns, cells, strict=True):
            for row in rows:
                if row.metric != str(column.metric):
                    continue
                reasons = tuple(_reasons(system, row))
                found.append(
                    Beside(
                        label=system.label,
                        model=row.model,
                        source=row.source,
                        short=_short(row),
                        variant=row.variant,
                        metric=row.metric,
                        here=cell.mean,
                        published=row.value,
                        relative=None if reasons or not row.value else cell.mean / row.value - 1,
                        reasons=reasons,
                        differs=tuple(_differences(system, row)),
                    )
                )
    return found


def _is(system: System, row: Published) -> bool:
    """Whether a row is of the system's model."""
    model = str(_section(system, "model").get("name"))
    for name in facts()["models"].get(model, ()):
        asked = {"name": name} if isinstance(name, str) else name
        if (
            asked["name"] == row.model
            and asked.get("variant", row.variant) == row.variant
            and set(asked.get("modalities", _letters(system))) == set(_letters(system))
        ):
            return True
    return False


def _section(system: System, name: str) -> Mapping[str, Any]:
    section = system.runs[0].manifest.get(name)
    return section if isinstance(section, Mapping) else {}


def _letters(system: System) -> str:
    given = _section(system, "model").get("modalities") or ()
    joint = "vt" if "joint" in given else ""
    return "".join(LETTERS[name] for name in given if name in LETTERS) + joint


def source_facts(source: str) -> Mapping[str, Any]:
    """What is known of a source."""
    entries = facts()["sources"]
    found: Mapping[str, Any] = next(e for e in entries if source.startswith(e["source"]))
    return found


def _short(row: Published) -> str:
    short = str(source_facts(row.source)["short"])
    table = re.search(r"[Tt]able (\w+)", row.source)
    return f"{short}, table {table[1]}" if table and short.startswith("arXiv") else short


def _reasons(system: System, row: Published) -> Iterator[str]:
    """Why the two do not compare."""
    source = source_facts(row.source)
    split = str(_section(system, "split").get("name"))
    ours = facts()["splits"][row.split]["ours"]
    if not any(split == name or split.startswith(f"{name}-") for name in ours):
        yield f"another split: {row.split} there, {split} here"
    for what, there, here in _sizes(system, row):
        if abs(here - there) > SAME_SIZE * there:
            yield f"another size: {there:,} {what} there, {here:,} here"
    hits = source.get("ndcg") == "hits" and row.dataset not in source.get("ndcg_same", ())
    if hits and row.metric.startswith("ndcg"):
        yield "another NDCG: its ideal is made of the items found there, which gives more"


def _differences(system: System, row: Published) -> Iterator[str]:
    """What differs between numbers that may or may not compare."""
    source = source_facts(row.source)
    for what, there, here in _sizes(system, row):
        if 0 < abs(here - there) <= SAME_SIZE * there:
            yield f"{there:,} {what} there, {here:,} here"
    if about := facts()["splits"][row.split].get("differs"):
        yield str(about)
    masked = _section(system, "protocol").get("mask_validation_at_test")
    hidden = source.get("validation_masked")
    if hidden is not None and masked is not None and hidden != masked:
        yield f"validation items are {'no ' if hidden else ''}candidates at test there"
    yield from _feature_differences(system, row)
    yield from map(str, source.get("differs", ()))


def _feature_differences(system: System, row: Published) -> Iterator[str]:
    here = set(_letters(system))
    if row.modalities is None:
        if here:
            yield "encoders, fusion and fine-tuning are those of the paper there, see the row"
        return
    lacking = [WORDS[letter] for letter in row.modalities if letter not in here]
    further = [WORDS[letter] for letter in LETTERS.values() if letter in here - set(row.modalities)]
    if lacking:
        yield f"{' and '.join(lacking)} used there as well, which this run lacks"
    if further:
        yield f"no {' and no '.join(further)} used there, which this run uses"
    if row.encoder:
        manifest = system.runs[0].manifest
        read = [*(manifest.get("features") or ()), *(manifest.get("encoders") or ())]
        named = {str(each.get("encoder")) for each in read}
        yield (
            f"features there: {facts()['encoders'][row.encoder]}; "
            f"here: {', '.join(sorted(named)) or 'none'}"
        )
    if row.training in TUNED and encoding_of(system.runs[0]).paradigm != row.training:
        yield TUNED[row.training]


def _sizes(system: System, row: Published) -> Iterator[tuple[str, int, int]]:
    """What is counted, how many there and how many here, where both are known."""
    dataset = _section(system, "dataset")
    size = source_facts(row.source).get("sizes", {}).get(row.dataset)
    size = size or facts()["datasets"][row.dataset]["size"]
    names = {"users": "users", "items": "items", "train": "train_interactions"}
    words = {"users": "users", "items": "items", "train": "training interactions"}
    for key, there in size.items():
        counted = dataset.get(names[key])
        if isinstance(counted, int):
            yield words[key], int(there), counted


def without_rows(comparison: Comparison, rows: Sequence[Beside]) -> list[str]:
    """Labels of the systems that no published number belongs to."""
    having = {row.label for row in rows}
    return [system.label for system in comparison.systems if system.label not in having]
