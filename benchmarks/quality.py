"""Quality on real data from finished runs: systems that may be compared, tested, and their cost.

Everything is computed by what `mmbench compare` computes it with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from provenance import Provenance, provenance_of

from mmbench.errors import ConfigError, DataError
from mmbench.metrics.lists import RankedLists
from mmbench.report.beside import PublishedBeside, published_beside
from mmbench.report.comparison import Cell, Comparison, compare
from mmbench.report.cost import Cost, costs
from mmbench.report.formats import as_dict
from mmbench.report.systems import (
    System,
    check_comparable,
    check_same_users,
    group_runs,
    resolved_recipe,
)
from mmbench.runs import Part, Run, open_run, read_manifest

PART: Part = "test"
NEXT_ITEM = "mmsr"
"""The protocol whose runs are judged as sequential models are."""
GENERAL_METRICS, SEQUENTIAL_METRICS = ("recall@20", "ndcg@20"), ("hr@10", "ndcg@10")
GENERAL_BASELINE, SEQUENTIAL_BASELINE = "lightgcn", "sasrec"


@dataclass
class Found:
    """The runs that can be used, and what was left out."""

    runs: list[Run] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """What was read and what was not."""
        said = [f"{len(self.runs)} finished runs were read."]
        for names, why in (
            (self.unfinished, "unfinished"),
            (self.damaged, "not readable by this version"),
            (self.copies, "of a system and seed that is there already"),
        ):
            if names:
                said.append(f"Left out, {why}: {len(names)} ({', '.join(names)}).")
        return said


@dataclass(frozen=True)
class Row:
    """One system with all that is known of it; cells by column of its comparison."""

    system: System
    cells: tuple[Cell, ...]
    made_by: Provenance
    cost: Cost | None


@dataclass(frozen=True)
class Quality:
    """Systems that may be compared with one another."""

    compared: Comparison
    rows: tuple[Row, ...]
    published: PublishedBeside
    baseline: str | None
    versions: tuple[tuple[str, ...], ...]
    """Labels of systems whose recipes are one and the same to this version."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; run folders by their names."""
        values = as_dict(self.compared, published=self.published)
        values["systems"] = [
            {
                **known,
                "runs": [run.path.name for run in row.system.runs],
                "made_by": asdict(row.made_by),
                "cost": None if row.cost is None else asdict(row.cost),
            }
            for known, row in zip(values["systems"], self.rows, strict=True)
        ]
        return {**values, "versions_of_one_system": [list(same) for same in self.versions]}


def find(folders: Sequence[Path], datasets: Sequence[str] = ()) -> Found:
    """Open every finished run in and below the folders, each system and seed once.

    Args:
        folders: that are searched.
        datasets: runs of others are passed over; none passes over none.

    Raises:
        DataError: a folder does not exist.
        ConfigError: there is no finished run at all.
    """
    found, known = Found(), set()
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; give --runs folders that hold run folders")
        for file in sorted(folder.rglob("manifest.json")):
            path = file.parent
            try:
                if read_manifest(path).get("status") != "complete":
                    found.unfinished.append(path.name)
                    continue
                run = open_run(path)
                if datasets and run.manifest["dataset"]["name"] not in datasets:
                    continue
                run.lists(PART)
                resolved_recipe(run)
                key = (run.system, run.seed)
            except (DataError, KeyError):
                found.damaged.append(path.name)
                continue
            if key in known:
                found.copies.append(path.name)
            else:
                known.add(key)
                found.runs.append(run)
    if not found.runs:
        names = ", ".join(map(str, folders))
        raise ConfigError(f"no finished run in {names}; train one, or name other --runs")
    return found


def comparable_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that rank the same for the same users, together; in the order of their first runs."""
    groups: list[tuple[Run, RankedLists, list[Run]]] = []
    for run in runs:
        lists = run.lists(PART)
        for first, theirs, members in groups:
            try:
                check_comparable([first, run], PART)
                check_same_users(first, theirs, run, lists)
            except ConfigError:
                continue
            members.append(run)
            break
        else:
            groups.append((run, lists, [run]))
    return [members for _, _, members in groups]


def measure(runs: Sequence[Run], data_dir: Path) -> Quality:
    """Compare the systems of one group with LightGCN, of next-item runs with SASRec.

    Raises:
        ConfigError: lists are too short for the metrics.
        DataError: a manifest lacks what a comparison needs.
    """
    sequential = any(_protocol(run) == NEXT_ITEM for run in runs)
    systems = group_runs(runs)
    made_by = {system.hash: provenance_of(system, data_dir) for system in systems}
    runs = _named(systems, made_by)
    systems = group_runs(runs)
    wanted = SEQUENTIAL_BASELINE if sequential else GENERAL_BASELINE
    able = [system for system in systems if _model(system) == wanted]
    # More seeds say more; nothing that is chosen by here is a result.
    able.sort(key=lambda s: (-len(s.seeds), made_by[s.hash].is_current is not True))
    baseline = able[0].label if able else None
    compared = compare(
        runs,
        metrics=SEQUENTIAL_METRICS if sequential else GENERAL_METRICS,
        baseline=baseline,
        part=PART,
    )
    rows = tuple(
        Row(system, cells, made_by[system.hash], _cost(compared, system))
        for system, cells in zip(compared.systems, compared.cells, strict=True)
    )
    known = Counter(row.made_by.identity for row in rows if row.made_by.identity)
    versions = tuple(
        tuple(row.system.label for row in rows if row.made_by.identity == identity)
        for identity, count in known.items()
        if count > 1
    )
    return Quality(compared, rows, published_beside(compared), baseline, versions)


def _named(systems: Sequence[System], made_by: Mapping[str, Provenance]) -> list[Run]:
    """The runs under labels that tell systems apart by their settings, versions by number."""
    versions: dict[str, list[System]] = {}
    for system in sorted(systems, key=_created):
        versions.setdefault(made_by[system.hash].identity or system.hash, []).append(system)
    firsts = group_runs([run for same in versions.values() for run in same[0].runs])
    named = []
    for first, same in zip(firsts, versions.values(), strict=True):
        for number, system in enumerate(same, 1):
            label = f"{first.label} v{number}" if len(same) > 1 else first.label
            named += [
                replace(run, manifest={**run.manifest, "label": label}) for run in system.runs
            ]
    return named


def _created(system: System) -> str:
    return str(system.runs[0].manifest.get("created", ""))


def _protocol(run: Run) -> str:
    protocol = run.manifest.get("protocol")
    return str(protocol.get("name") if isinstance(protocol, dict) else protocol)


def _model(system: System) -> str:
    model = system.runs[0].manifest.get("model")
    return str(model.get("name")) if isinstance(model, dict) else ""


def _cost(compared: Comparison, system: System) -> Cost | None:
    """What a system cost; None where an older manifest does not say."""
    try:
        return costs(replace(compared, systems=(system,)))[0]
    except DataError:
        return None
