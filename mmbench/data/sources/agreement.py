"""Whether the files of a dataset speak of the same items."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mmbench.errors import DataError


def check_ids_meet(used: pl.Series, used_in: Path, listed: pl.Series, listed_in: Path) -> None:
    """Refuse an item file none of whose ids occurs among the interactions.

    Items that are only in one of the two files are usual, and are counted later; two files
    without a single common id are of different datasets, or one was written by a program that
    took ids for numbers.

    Args:
        used: item ids of the interactions.
        listed: item ids of the item file.

    Raises:
        DataError: no id is in both; the message shows one of each.
    """
    used, listed = used.drop_nulls().unique(), listed.drop_nulls().unique()
    if used.is_empty() or listed.is_empty() or used.is_in(listed.implode()).any():
        return
    bare = listed.str.strip_chars_start("0")
    hint = "the two files do not belong together"
    if used.str.strip_chars_start("0").is_in(bare.implode()).any():
        hint = "leading zeros were lost on the way: ids are text, take the original file"
    raise DataError(
        f"E266 none of the {len(listed)} item ids of {listed_in} occurs in {used_in.name}, "
        f"e.g. '{listed.sort()[0]}' in the one and '{used.sort()[0]}' in the other; {hint}"
    )
