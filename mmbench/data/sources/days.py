"""Times of raw files that are days: an order between days, and none within one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from mmbench.errors import DataError

_SHOWN = 3


def read_days(
    cells: pl.Series, form: str, path: Path, line_of: Callable[[int], int], example: str
) -> pl.Series:
    """Days as int64 milliseconds UTC, of midnight.

    Args:
        form: how they are written, as `strptime` takes it; `example` shows it to the user.
        line_of: the line of `path` that a row comes from.

    Raises:
        DataError: E216, a cell is empty or no such day.
    """
    days = cells.str.strip_chars().str.to_date(form, strict=False)
    if days.null_count():
        rows = np.flatnonzero(days.is_null().to_numpy()).tolist()
        shown = ", ".join(f"{line_of(row)}: '{cells[row] or ''}'" for row in rows[:_SHOWN])
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        raise DataError(f"E216 {path}:{shown}{more}; days must be written as {example}")
    return days.cast(pl.Datetime("ms")).dt.epoch("ms")
