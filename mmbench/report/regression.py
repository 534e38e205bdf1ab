"""Has anything become worse? The question of a job that must fail when a model gets worse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmbench.errors import ConfigError
from mmbench.report.comparison import Comparison, Contrast
from mmbench.report.numbers import p_value, percent
from mmbench.report.pairing import BEST
from mmbench.report.testing import SEEDS_FOR_SYSTEM_TEST

Level = Literal["users", "systems"]


@dataclass(frozen=True)
class Regression:
    """A system that is significantly worse than its reference in one column."""

    label: str
    reference: str
    column: str
    relative: float
    adjusted: float

    def __str__(self) -> str:
        worse = "from zero" if math.isnan(self.relative) else percent(self.relative)
        return (
            f"{self.label} is worse than {self.reference} in {self.column}: {worse}, adjusted p "
            f"{p_value(self.adjusted)}"
        )


def regressions(
    comparison: Comparison, *, margin: float = 0.0, level: Level = "users"
) -> list[Regression]:
    """Every tested cell that is significantly worse than its reference by more than a margin.

    A cell counts if its adjusted p is below the comparison's alpha and its mean lies on the
    worse side of the reference's by more than `margin` of it. Metrics without a better
    direction, and those of the whole system, never count.

    Args:
        comparison: made with a named baseline or `against`.
        margin: tolerated loss as a share of the reference's mean.
        level: "users" judges these trained models by the paired test over users; "systems"
            judges by the test with users and seeds both random.

    Raises:
        ConfigError: the reference is the best of each column, nothing can be tested, or the
            level is "systems" and a side has fewer than three seeds.
    """
    if comparison.baseline == BEST:
        raise ConfigError(
            "a regression needs a fixed reference; name a baseline, or runs to compare against"
        )
    found, n_tested = [], 0
    for system, row in zip(comparison.systems, comparison.cells, strict=True):
        for column, cell in zip(comparison.columns, row, strict=True):
            better_up, contrast = column.metric.higher_is_better, cell.contrast
            if contrast is None or better_up is None:
                continue
            adjusted = _adjusted(contrast, system.label, level)
            n_tested += not math.isnan(adjusted)
            loss = -contrast.difference if better_up else contrast.difference
            loss_share = loss / abs(contrast.difference) * abs(contrast.relative) if loss else 0.0
            exceeds = loss > 0 and (math.isnan(contrast.relative) or loss_share > margin)
            if adjusted < comparison.alpha and exceeds:
                found.append(
                    Regression(
                        system.label, contrast.reference, column.head, contrast.relative, adjusted
                    )
                )
    if not n_tested:
        raise ConfigError(
            "nothing could be tested for a regression; choose a metric that has a value per user "
            "and a better direction, such as recall@20, and data with at least two test users"
        )
    return found


def _adjusted(contrast: Contrast, label: str, level: Level) -> float:
    if level == "users":
        return contrast.adjusted
    if contrast.system is None:
        raise ConfigError(
            f"{label} against {contrast.reference}: a test of systems needs at least "
            f"{SEEDS_FOR_SYSTEM_TEST} seeds on both sides; train more seeds, or judge these "
            "trained models with --level users"
        )
    return contrast.system.adjusted
