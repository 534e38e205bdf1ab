"""Running the tests of a comparison and correcting them, family by family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmbench import seeding
from mmbench.metrics.lists import FloatArray
from mmbench.report.breakdown import Column
from mmbench.stats.correction import adjust
from mmbench.stats.paired import PairedResult, paired_test
from mmbench.stats.system import SystemResult, system_test

Family = Literal["metric", "table"]
SEEDS_FOR_SYSTEM_TEST = 3
WHOLE_TABLE = "table"


@dataclass(frozen=True)
class Pair:
    """Two systems to be tested in one column, all by index."""

    column: int
    system: int
    reference: int


@dataclass(frozen=True)
class Tested:
    """What the tests of a pair found; `system` is None with fewer than three seeds on a side."""

    paired: PairedResult
    adjusted: float
    system: SystemResult | None
    system_adjusted: float


@dataclass(frozen=True)
class FamilySize:
    """How many comparisons were corrected together: over users, and over users and seeds."""

    name: str
    over_users: int
    over_systems: int


def run_tests(
    pairs: Iterable[Pair],
    columns: Sequence[Column],
    values: Sequence[Sequence[FloatArray]],
    names: Sequence[str],
    *,
    test: str,
    correction: str,
    family: Family,
    seed: int,
) -> tuple[dict[Pair, Tested], list[FamilySize]]:
    """Test every pair and correct the p-values within their families.

    Args:
        pairs: what is tested; all of it counts in the families.
        columns: the columns that pairs refer to.
        values: of each system and column, one value per run and user [S, U].
        names: a name of each system that does not depend on the others, for the randomness.
        test: name of the paired test over users.
        correction: name of the correction.
        family: "metric" corrects by `Column.family`, "table" all together.
        seed: of the resampling tests.

    Raises:
        UnknownNameError: there is no such test or correction.
    """
    significance = paired_test(test)
    pairs = list(pairs)
    averages: dict[tuple[int, int], FloatArray] = {}

    def average(system: int, column: int) -> FloatArray:
        if (system, column) not in averages:
            averages[system, column] = values[system][column].mean(axis=0)
        return averages[system, column]

    paired, systems = [], []
    for pair in pairs:
        # A stream for each pair: one more system in the table leaves the other p-values alone.
        sides = names[pair.system], names[pair.reference]
        rng = seeding.stream(seed, "paired test", columns[pair.column].head, *sides)
        a, b = average(pair.system, pair.column), average(pair.reference, pair.column)
        paired.append(significance(a, b, rng))
        a, b = values[pair.system][pair.column], values[pair.reference][pair.column]
        enough = min(len(a), len(b)) >= SEEDS_FOR_SYSTEM_TEST
        systems.append(system_test(a, b) if enough else None)

    p_users = np.array([result.p for result in paired], dtype=np.float64)
    p_systems = np.array([np.nan if r is None else r.p for r in systems], dtype=np.float64)
    adjusted, adjusted_systems = p_users.copy(), p_systems.copy()
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        name = WHOLE_TABLE if family == "table" else columns[pair.column].family
        members.setdefault(name, []).append(index)
    sizes = []
    for name, inside in members.items():
        adjusted[inside] = adjust(p_users[inside], correction)
        adjusted_systems[inside] = adjust(p_systems[inside], correction)
        # NaN, an undefined test, is no member of a family.
        sizes.append(FamilySize(name, _defined(p_users[inside]), _defined(p_systems[inside])))
    tested = {
        pair: Tested(paired[i], float(adjusted[i]), systems[i], float(adjusted_systems[i]))
        for i, pair in enumerate(pairs)
    }
    return tested, sizes


def _defined(p: FloatArray) -> int:
    return int((~np.isnan(p)).sum())
