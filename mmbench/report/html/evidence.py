"""What the report shows, gathered once: the comparisons, histories, costs and facts of the data.

Every number comes from the same comparison as the tables of `mmbench compare`, with the same
tests; a breakdown of the page is that of `--by`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmbench.data.prepared import load_dataset
from mmbench.data.statistics import describe
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.base import Metric
from mmbench.report.breakdown import By
from mmbench.report.cold_start import ColdTable
from mmbench.report.comparison import Comparison, compare
from mmbench.report.cost import Cost, costs
from mmbench.report.pairing import BEST
from mmbench.report.systems import System
from mmbench.report.testing import Family
from mmbench.report.tsne import Panels
from mmbench.runs import Part, Run

# Dense enough for a curve; each further one is one more test per system.
DEPTHS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


@dataclass(frozen=True)
class Request:
    """What `mmbench compare` was asked for.

    Attributes:
        runs, against, metrics, baseline, part, test, correction, family, alpha: as of `compare`.
        data_dir: where the prepared dataset is looked for.
        command: the command line, for the record.
    """

    runs: Sequence[Run]
    against: Sequence[Run] = ()
    metrics: Sequence[str] = ()
    baseline: str | None = None
    part: Part = "test"
    test: str = "t-test"
    correction: str = "holm"
    family: Family = "metric"
    alpha: float = 0.05
    data_dir: Path = Path("data")
    command: str = ""

    def compare(
        self,
        *,
        metrics: Sequence[str | Metric] | None = None,
        baseline: str | None = None,
        by: By | None = None,
        cutoffs: Sequence[int] = (),
        against: bool = True,
    ) -> Comparison:
        """The comparison that was asked for, with a few things changed."""
        return compare(
            self.runs,
            metrics=self.metrics if metrics is None else metrics,
            baseline=baseline or self.baseline,
            against=self.against if against else (),
            part=self.part,
            test=self.test,
            correction=self.correction,
            family=self.family,
            by=by,
            cutoffs=cutoffs,
            alpha=self.alpha,
        )


@dataclass(frozen=True)
class Epoch:
    """One evaluated epoch: its number, the seconds until its end, the validation metrics."""

    number: int
    seconds: float
    valid: Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """All that sections are made from.

    Attributes:
        request: what was asked for.
        main: the comparison, as `mmbench compare` prints it.
        pairs: the same metrics with every pair tested; None with one system or under `against`.
        reference: label of the system that the gains are over; None under `against`, where each
            system has its own, and with one system.
        by_k, by_activity, by_popularity: the breakdowns against the reference; None with one
            system, and where no metric can be broken down.
        histories: of each run, by folder, its evaluated epochs.
        spent: cost of each system, in the order of `main`; empty if `no_cost` says why.
        no_cost: why there is no cost, else "".
        dataset: facts of the prepared dataset; None if `no_dataset` says why.
        no_dataset: why there are none, else "".
        created: when the report was made.
        cold: the same systems on warm and cold items, where they were judged on them.
        panels: their item vectors, where they were asked for.
    """

    request: Request
    main: Comparison
    pairs: Comparison | None
    reference: str | None
    by_k: Comparison | None
    by_activity: Comparison | None
    by_popularity: Comparison | None
    histories: Mapping[Path, tuple[Epoch, ...]]
    spent: tuple[Cost, ...]
    no_cost: str
    dataset: Mapping[str, Any] | None
    no_dataset: str
    created: str
    cold: tuple[ColdTable, ...] = ()
    panels: Panels | None = None

    @property
    def labels(self) -> list[str]:
        """The systems' labels in the order of `main`."""
        return [system.label for system in self.main.systems]

    def look_index(self, label: str) -> int:
        """A system looks the same in every figure."""
        return self.labels.index(label)

    def curve(self, run: Run) -> tuple[Epoch, ...]:
        """The evaluated epochs of a run, none for a closed form."""
        return self.histories[run.path]

    @property
    def others(self) -> list[str]:
        """Systems that are compared with a reference."""
        if self.reference is not None:
            return [label for label in self.labels if label != self.reference]
        return self.labels[1::2] if self.request.against else []


def gather(request: Request, main: Comparison | None = None) -> Evidence:
    """Compare, break down and read what else a report shows.

    Args:
        request: what was asked for.
        main: the comparison of that request, where it is there already.

    Raises:
        ConfigError: the runs are not comparable, or an argument does not fit them.
        DataError: a run folder is damaged.
    """
    main = main or request.compare()
    several = len(main.systems) > 1
    against = bool(request.against)
    reference = _reference(main) if several and not against else None
    pairs = None
    if several and not against:
        every = main.baseline == BEST
        pairs = main if every else request.compare(baseline=BEST)
    broken: dict[By, Comparison | None] = {
        "k": None,
        "user-activity": None,
        "item-popularity": None,
    }
    if several:
        tested = _one_of_each([column.metric for column in main.columns])
        for by in broken:
            if tested:
                broken[by] = request.compare(
                    metrics=tested,
                    baseline=reference,
                    by=by,
                    cutoffs=_depths(main.systems, request.part) if by == "k" else (),
                )
    spent, no_cost = _costs(main)
    dataset, no_dataset = _dataset(main, request.data_dir)
    return Evidence(
        request=request,
        main=main,
        pairs=pairs,
        reference=reference,
        by_k=broken["k"],
        by_activity=broken["user-activity"],
        by_popularity=broken["item-popularity"],
        histories={run.path: read_history(run) for s in main.systems for run in s.runs},
        spent=spent,
        no_cost=no_cost,
        dataset=dataset,
        no_dataset=no_dataset,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def read_history(run: Run) -> tuple[Epoch, ...]:
    """The evaluated epochs of a run; none where it kept no history, as a closed form does.

    Raises:
        DataError: the file is damaged.
    """
    file = run.path / "history.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{file} cannot be read ({problem}); train the run again") from None
    epochs, seconds = [], 0.0
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            seconds += float(record.get("train_s", 0)) + float(record.get("evaluate_s", 0))
            if valid := record.get("valid"):
                metrics = {str(name): float(value) for name, value in valid.items()}
                epochs.append(Epoch(int(record["epoch"]), seconds, metrics))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(
                f"{file}, line {number} is no record of an epoch; the run folder is damaged, "
                "train it again"
            ) from None
    return tuple(epochs)


def _reference(main: Comparison) -> str:
    """The named baseline, else the best system of the first column."""
    return main.systems[0].label if main.baseline in (None, BEST) else str(main.baseline)


def _one_of_each(metrics: Sequence[Metric]) -> list[Metric]:
    """The first metric of each name among those that users have a value of."""
    first: dict[str, Metric] = {}
    for metric in metrics:
        if metric.per_user and metric.higher_is_better is not None:
            first.setdefault(metric.name, metric)
    return list(first.values())


def _depths(systems: Sequence[System], part: Part) -> list[int]:
    """Cut-offs within the lists of every run; the depth itself is one."""
    depth = min(run.lists(part).depth for system in systems for run in system.runs)
    return sorted({k for k in DEPTHS if k <= depth} | {min(depth, DEPTHS[-1])})


def _costs(main: Comparison) -> tuple[tuple[Cost, ...], str]:
    try:
        return tuple(costs(main)), ""
    except DataError as problem:  # a page without costs is better than none
        return (), str(problem)


def _dataset(main: Comparison, data_dir: Path) -> tuple[Mapping[str, Any] | None, str]:
    facts = main.systems[0].runs[0].manifest["dataset"]
    try:
        prepared = load_dataset(main.dataset, data_dir)
        if prepared.fingerprint != facts.get("fingerprint"):
            return None, (
                f"The {main.dataset} prepared in {data_dir} is not the one that was trained on "
                f"(its fingerprint is {prepared.fingerprint[:12]}), so its facts are left out."
            )
        return describe(prepared), ""
    except (DataError, ConfigError, OSError) as problem:
        return None, f"More is told where --data-dir holds the prepared dataset. ({problem})"
