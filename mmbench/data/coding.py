"""Raw interactions in whole numbers: each id is coded once, and only numbers are moved after.

Twenty million rows of text cost gigabytes to sort, join or filter; of codes they cost little.
Codes follow the UTF-8 byte order of the ids, so whatever is decided by an id can be decided by
its code, and nothing depends on the order of the rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.errors import DataError

_BLANK = " \t\r\n"


@dataclass
class CodedRows:
    """Interactions whose ids are codes; `keep` drops rows in place.

    Attributes:
        user, item: codes, int32 [N], -1 where there is no id.
        user_names, item_names: the id of each code, in UTF-8 byte order.
        source_row: row number in the source, int64 [N], ascending.
        timestamp: int64 [N], or None without times.
        rating: float64 [N], NaN where there is none, or None without ratings.
        label: int8 [N], or None without labels.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    user_names: pl.Series
    item_names: pl.Series
    source_row: NDArray[np.int64]
    timestamp: NDArray[np.int64] | None
    rating: NDArray[np.float64] | None
    label: NDArray[np.int8] | None

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Drop the rows where `rows` is false."""
        if rows.all():
            return
        for name in ("user", "item", "source_row", "timestamp", "rating", "label"):
            column = getattr(self, name)
            if column is not None:
                setattr(self, name, column[rows])

    def users(self) -> NDArray[np.int64]:
        """Codes of the users that have rows, ascending."""
        return np.flatnonzero(occurring(self.user, len(self.user_names)))

    def items(self) -> NDArray[np.int64]:
        """Codes of the items that have rows, ascending."""
        return np.flatnonzero(occurring(self.item, len(self.item_names)))


def occurring(codes: NDArray[Any], size: int) -> NDArray[np.bool_]:
    """Which of the codes 0..size-1 occur, bool [size]."""
    found = np.zeros(size, dtype=bool)
    found[codes] = True
    return found


def code_ids(ids: pl.Series) -> tuple[NDArray[np.int32], pl.Series, int]:
    """Code ids, stripped of blanks around them.

    Returns:
        the code of each row, int32 [N], -1 where nothing is left of the id; the distinct ids in
        byte order; and how many distinct ids there were before stripping, a missing one included.
    """
    coded = ids.cast(pl.Categorical)  # numbered by first appearance, renumbered below
    distinct = coded.unique()
    n_raw = len(distinct)
    distinct = distinct.drop_nulls()
    stripped = distinct.cast(pl.String).str.strip_chars(_BLANK)
    names = stripped.filter(stripped != "").unique().sort()
    number = distinct.to_physical().to_numpy()
    # A null row gets the number past the last, whose entry says that there is no id.
    no_id = int(number.max()) + 1 if number.size else 0
    to_code = np.full(no_id + 1, -1, dtype=np.int32)
    if len(names):
        codes = stripped.cast(pl.Enum(names), strict=False).to_physical()
        to_code[number] = codes.cast(pl.Int32).fill_null(-1).to_numpy()
    return to_code[coded.to_physical().fill_null(no_id).to_numpy()], names, n_raw


def read_ratings(ratings: pl.Series) -> NDArray[np.float64] | None:
    """Ratings as float64, NaN where there is none; None if there is not one."""
    if ratings.null_count() == len(ratings):
        return None
    return ratings.fill_null(float("nan")).to_numpy()


def refuse_control_characters(rows: CodedRows, origin: str) -> None:
    """Refuse ids that no terminal or table can show.

    Raises:
        DataError: naming the first row with such an id.
    """
    for what, codes, names in (
        ("user", rows.user, rows.user_names),
        ("item", rows.item, rows.item_names),
    ):
        control = names.str.contains(r"\p{Cc}").to_numpy()
        if not control.any():
            continue
        bad = control[codes]
        if bad.any():
            first = int(bad.argmax())
            raise DataError(
                f"E217 {origin}: data row {int(rows.source_row[first]) + 1}: {what} id "
                f"{names[int(codes[first])]!r} holds a control character; remove it from the file"
            )


def read_times(
    times: pl.Series, source_row: NDArray[np.int64], origin: str
) -> tuple[NDArray[np.int64] | None, str | None]:
    """Times in milliseconds UTC, and the unit they were in; None and None without times.

    Raises:
        DataError: times are partly missing, of mixed units, or implausible.
    """
    missing = times.null_count()
    if missing == len(times):
        return None, None
    if missing:
        raise DataError(
            f"E215 {missing} of {len(times)} rows of {origin} lack a timestamp; give all of "
            "them or none"
        )
    given = times.to_numpy()
    positive = given[given > 0]
    limits = {"s": 1e11, "ms": 1e14, "us": 1e17}
    median = float(np.median(positive)) if positive.size else 0.0
    unit = next((name for name, limit in limits.items() if median < limit), "us")
    low = {"s": 0.0, "ms": 1e11, "us": 1e14}[unit]
    other = int(((positive < low) | (positive >= limits[unit])).sum())
    if other > given.size / 1000:
        names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
        raise DataError(
            f"E214 timestamps of {origin} mix {names[unit]} and another unit ({other} of "
            f"{given.size}); bring them to one"
        )
    del positive
    scaled = given if unit == "ms" else given * 1000 if unit == "s" else given // 1000
    earliest, latest = 788_918_400_000, int((time.time() + 86_400) * 1000)  # 1995-01-01 .. tomorrow
    bad = (scaled < earliest) | (scaled > latest)
    if bad.any():
        first = int(bad.argmax())
        raise DataError(
            f"E216 {int(bad.sum())} timestamps of {origin} outside 1995..today, e.g. "
            f"{int(given[first])} in data row {int(source_row[first]) + 1}; mend or "
            "remove them"
        )
    return scaled, unit
