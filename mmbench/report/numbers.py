"""How numbers look in tables; rounding happens here and nowhere before."""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSING = "-"
SMALLEST_P = 0.001


def mean_decimals(values: Iterable[float]) -> int:
    """Decimals for a column of means, so that each shows about four digits."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 4 if largest < 10 else 2 if largest < 100 else 1


def fixed(value: float | None, decimals: int) -> str:
    """A number with fixed decimals, "-" where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def significant(value: float) -> str:
    """A number of any size with about three digits: "0.0123", "4.56", "1,234"."""
    if not math.isfinite(value):
        return MISSING
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(4, digits)}f}"


def signed(value: float | None, decimals: int) -> str:
    """A number with its sign; a zero has none."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def percent(value: float | None) -> str:
    """A share as signed percent, for example "-12.3%"."""
    if value is None or not math.isfinite(value):
        return MISSING
    return signed(100 * value, 0 if abs(value) >= 9.9995 else 1) + "%"


def p_value(value: float | None) -> str:
    """A p-value with three decimals; "<0.001" below that."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"<{SMALLEST_P}" if value < SMALLEST_P else f"{value:.3f}"


def count(value: int) -> str:
    """A count with thousands separated."""
    return f"{value:,}"
