"""From run folders to one value per run and user, without holding more than two runs' lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmbench.metrics.base import Metric
from mmbench.metrics.lists import FloatArray, RankedLists
from mmbench.report.breakdown import By, Column, Presence, columns_of
from mmbench.report.systems import System, check_depth, check_same_users
from mmbench.runs import Part, Run


def measure(
    systems: Sequence[System],
    metrics: Sequence[Metric],
    part: Part,
    by: By | None,
    cutoffs: Sequence[int],
    presence: Presence | None = None,
) -> tuple[list[Column], list[list[FloatArray]], int]:
    """What is in the columns: read from one run's lists after the other.

    Args:
        systems: whose runs are read.
        metrics: what is measured.
        part: whose lists are read.
        by: the breakdown; None for one column per metric.
        cutoffs: the cut-offs of the breakdown "k".
        presence: what items have, for the breakdowns by it.

    Returns:
        The columns; of each system and column one value per run and user [S, U]; and the number
        of evaluated users.

    Raises:
        ConfigError: lists are too short, or the runs differ in users or held-out items.
        DataError: lists are missing or broken.
    """
    first: tuple[Run, RankedLists] | None = None
    columns: list[Column] = []
    values: list[list[FloatArray]] = []
    for system in systems:
        of_runs = []
        for run in system.runs:
            lists = run.lists(part)
            if first is None:
                first = run, lists
                columns = columns_of(metrics, by, lists, cutoffs, presence)
            check_depth(run, lists, [column.metric for column in columns])
            check_same_users(*first, run, lists)
            of_runs.append(_column_values(columns, lists))
        values.append([np.stack(per_run) for per_run in zip(*of_runs, strict=True)])
    return columns, values, first[1].n_users if first else 0


def _column_values(columns: Sequence[Column], lists: RankedLists) -> list[FloatArray]:
    narrowed: dict[str, RankedLists] = {}
    values = []
    for column in columns:
        seen = lists
        if column.group is not None:
            if column.group.name not in narrowed:
                narrowed[column.group.name] = column.group.narrow(lists)
            seen = narrowed[column.group.name]
        values.append(column.metric.values(seen))
    return values
