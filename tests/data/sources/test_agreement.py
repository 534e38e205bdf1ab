"""Item files that speak of other items than the interactions do."""

from pathlib import Path

import polars as pl
import pytest

from mmbench.data.sources.agreement import check_ids_meet
from mmbench.errors import DataError

ROWS, ITEMS = Path("raw/rows.csv"), Path("raw/items.csv")


@pytest.mark.parametrize(
    ("used", "listed"),
    [(["a", "b"], ["b", "c"]), (["7"], ["7"]), ([], ["b"]), (["a", None], []), ([None], ["b"])],
)
def test_one_common_id_is_enough_and_empty_files_are_not_its_business(used, listed):
    check_ids_meet(
        pl.Series(used, dtype=pl.String), ROWS, pl.Series(listed, dtype=pl.String), ITEMS
    )


def test_two_datasets_are_told_apart():
    with pytest.raises(DataError) as told:
        check_ids_meet(pl.Series(["b", "a", None]), ROWS, pl.Series(["y", "x", "x"]), ITEMS)
    assert str(told.value) == (
        "E266 none of the 2 item ids of raw/items.csv occurs in rows.csv, e.g. 'x' in the one and "
        "'a' in the other; the two files do not belong together"
    )


@pytest.mark.parametrize(("used", "listed"), [("0108", "108"), ("108", "0108")])
def test_lost_zeros_are_named_whichever_file_lost_them(used, listed):
    with pytest.raises(DataError, match="leading zeros were lost on the way: ids are text"):
        check_ids_meet(pl.Series([used]), ROWS, pl.Series([listed]), ITEMS)
