"""Days as times."""

from pathlib import Path

import polars as pl
import pytest

from mmbench.data.sources.days import read_days
from mmbench.errors import DataError


def test_a_day_is_its_midnight_in_utc():
    days = read_days(
        pl.Series(["19700102", " 20000229 "]), "%Y%m%d", Path("x"), [1, 2].__getitem__, "19700102"
    )
    # 29 February 2000 is day 30 * 365 + 7 leap days + 59 (from 0) of the epoch.
    assert days.to_list() == [86_400_000, (30 * 365 + 7 + 59) * 86_400_000]
    assert days.dtype == pl.Int64


def test_the_first_three_bad_cells_are_shown_with_their_lines():
    cells = pl.Series(["20010101", "20010229", None, "x", "20011301", ""])
    with pytest.raises(DataError) as told:
        read_days(cells, "%Y%m%d", Path("raw.txt"), lambda row: 10 * row, "20140911")
    assert str(told.value) == (
        "E216 raw.txt:10: '20010229', 20: '', 30: 'x' and 2 more; days must be written as 20140911"
    )
