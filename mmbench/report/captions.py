"""What a table must say about itself: what was tested, against what, and in which family."""

from __future__ import annotations

import numpy as np

from mmbench.report.comparison import Comparison
from mmbench.report.numbers import count, fixed, mean_decimals
from mmbench.report.pairing import BEST
from mmbench.report.testing import SEEDS_FOR_SYSTEM_TEST, FamilySize
from mmbench.stats.power import minimal_detectable_difference

SIGNIFICANT, SPREAD = "*", "~"
POWER = 0.8
"""Probability at which a difference counts as one that could have been found."""

TEST_NAMES = {
    "t-test": "two-sided paired t-test",
    "wilcoxon": "two-sided Wilcoxon signed-rank test",
    "permutation": "two-sided paired permutation test",
    "bootstrap": "paired bootstrap",
}
CORRECTION_NAMES = {
    "holm": "Holm-Bonferroni",
    "bonferroni": "Bonferroni",
    "bh": "Benjamini-Hochberg (false discovery rate)",
    "none": "not corrected",
}
GROUPS = {
    "user-activity": "Users are grouped by their number of training interactions.",
    "item-popularity": "Head, mid, tail: from the most popular items down, each collects a third "
    "of the training interactions; the numbers are interactions per item. Only held-out items of "
    "the group count as relevant.",
    "modality-presence": "Items are grouped by the modalities that they lack. Only held-out items "
    "of the group count as relevant.",
    "history-presence": "Users are grouped by the share of their training items that have every "
    "modality: all, half or more, fewer.",
}


def title(comparison: Comparison) -> str:
    """One line: the data, the part, how many users, the split and the protocol."""
    c = comparison
    parts = [
        c.dataset,
        "validation" if c.part == "valid" else "test",
        f"{count(c.n_users)} users",
        f"split {c.split}",
        f"protocol {c.protocol}",
    ]
    return " | ".join(parts)


def tested(comparison: Comparison) -> bool:
    """Whether any test was made."""
    return any(cell.contrast for row in comparison.cells for cell in row)


def tested_systems(comparison: Comparison) -> bool:
    """Whether any test took the seeds as random."""
    contrasts = [cell.contrast for row in comparison.cells for cell in row]
    return any(contrast is not None and contrast.system is not None for contrast in contrasts)


def caption(comparison: Comparison) -> list[str]:
    """The sentences below a table, one per thing to know."""
    c = comparison
    lines = [GROUPS[c.by]] if c.by in GROUPS else []
    if tested(c):
        corrected = _corrected(c)
        bold = "" if c.baseline in (None, BEST) else " Bold: the best of each column."
        lines.append(f"diff: relative to the reference ({_reference(c)}).{bold}")
        lines.append(
            f"{p_head(c)}: {TEST_NAMES.get(c.test, c.test)} over users, each user's value averaged "
            f"over the seeds; {corrected}. {SIGNIFICANT} {p_head(c)} < {c.alpha:g}."
        )
        if tested_systems(c):
            sizes = _sizes(c.families, over_systems=True)
            likewise = (
                "not corrected" if c.correction == "none" else f"corrected alike over {sizes}"
            )
            lines.append(
                f"sys. p: users and seeds both random (from {SEEDS_FOR_SYSTEM_TEST} seeds a side), "
                f"{likewise}. It asks whether the systems differ; the test over users alone asks "
                "whether these trained models do."
            )
        if _spread_marked(c):
            lines.append(
                f"{SPREAD} the standard deviation over seeds is larger than the difference."
            )
        lines += _detectable(c)
    lines.append(_seeds(c))
    whole = [column.head for column in c.columns if not column.metric.per_user]
    if whole:
        lines.append(f"{', '.join(whole)}: one value for the whole system, not tested.")
    if c.baseline == BEST and len(c.systems) > 1:
        neutral = [
            x.head for x in c.columns if x.metric.per_user and x.metric.higher_is_better is None
        ]
        if neutral:
            lines.append(
                f"{', '.join(neutral)}: neither direction is better, so there is no best to test "
                "against; name a baseline."
            )
    undefined = max((cell.n_undefined for row in c.cells for cell in row), default=0)
    if undefined:
        lines.append(
            f"Users without a value in a column (up to {count(undefined)}) are left out of it."
        )
    if c.unpaired:
        lines.append(f"Not compared, for want of a partner: {', '.join(c.unpaired)}.")
    return lines


def p_head(comparison: Comparison) -> str:
    """Head of the column of p-values."""
    return "p" if comparison.correction == "none" else "adj. p"


def _spread_marked(comparison: Comparison) -> bool:
    contrasts = [cell.contrast for row in comparison.cells for cell in row]
    return any(contrast is not None and contrast.seed_spread_exceeds for contrast in contrasts)


def _detectable(c: Comparison) -> list[str]:
    """How small a difference could have been found where none was; of the first column alone."""
    first = next((i for i, column in enumerate(c.columns) if column.metric.per_user), None)
    if c.by is not None or first is None:
        return []
    found = [row[first].contrast for row in c.cells]
    unclear = [x for x in found if x is not None and x.adjusted >= c.alpha and x.n_users > 1]
    size = 1
    if c.correction != "none":
        wanted = ("table", c.columns[first].family)
        size = max((f.over_users for f in c.families if f.name in wanted), default=1)
    level = c.alpha / max(1, size)
    shown = []
    for contrast in unclear:
        if contrast.difference and np.isfinite(contrast.d_z) and contrast.d_z:
            sd = abs(contrast.difference / contrast.d_z)
            least = minimal_detectable_difference(sd, contrast.n_users, level, POWER)
            mean = contrast.difference / contrast.relative if contrast.relative else float("nan")
            shown.append((least, least / abs(mean)))
    if not shown:
        return []
    (low, low_share), (high, high_share) = min(shown), max(shown)
    decimals = mean_decimals([low, high])
    ends = dict.fromkeys(
        f"{fixed(value, decimals)}{f' ({100 * share:.1f}%)' if np.isfinite(share) else ''}"
        for value, share in ((low, low_share), (high, high_share))
    )
    return [
        f"Not significant is not equal: in {c.columns[first].head} a true difference of "
        f"{' to '.join(ends)} would be found with probability {POWER:g} (paired t-test, level "
        f"{c.alpha:g}{f' / {size}' if size > 1 else ''})."
    ]


def _reference(c: Comparison) -> str:
    if c.references is not None:
        return c.references.named
    if c.baseline is None:
        return "the same system on the other side"
    return "the best of each column, in bold" if c.baseline == BEST else c.baseline


def _corrected(c: Comparison) -> str:
    if c.correction == "none":
        return "not corrected for multiple testing"
    n, tested_columns = len(c.systems), [column for column in c.columns if column.metric.per_user]
    if c.references is not None:
        what = f"each system against {c.references.named}"
    elif c.baseline is None:
        what = "each system against its counterpart"
    elif c.baseline == BEST:
        what = (
            f"every pair of the {n} systems, since the data choose the reference"
            if n > 2
            else "the one pair"
        )
    else:
        what = f"each system against {c.baseline}"
    per_family = len(tested_columns) / max(1, len(c.families))
    if per_family > 1:
        what += f", in {per_family:g} columns"
    sizes = _sizes(c.families, over_systems=False)
    return f"{CORRECTION_NAMES.get(c.correction, c.correction)} over {sizes}: {what}"


def _sizes(families: tuple[FamilySize, ...], *, over_systems: bool) -> str:
    sizes = [f.over_systems if over_systems else f.over_users for f in families]
    if len(families) == 1 and families[0].name == "table":
        return f"all {_comparisons(sizes[0])} of this table"
    if len(set(sizes)) == 1:
        return f"{_comparisons(sizes[0])} per metric"
    return (
        ", ".join(f"{size} ({f.name})" for f, size in zip(families, sizes, strict=True))
        + " comparisons"
    )


def _comparisons(number: int) -> str:
    return f"{number} comparison{'' if number == 1 else 's'}"


def _seeds(c: Comparison) -> str:
    by_number: dict[int, list[str]] = {}
    for system in c.systems:
        by_number.setdefault(len(system.seeds), []).append(system.label)
    if len(by_number) == 1:
        number = next(iter(by_number))
        return f"Seeds: {number} each." if len(c.systems) > 1 else f"Seeds: {number}."
    parts = (
        f"{number} of {', '.join(labels)}"
        for number, labels in sorted(by_number.items(), reverse=True)
    )
    return f"Seeds: {'; '.join(parts)}."
