"""Reading files of one object per line: JSON, or Python literals. CONTRACT ONLY: being built."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl


def read_scalars(
    path: Path, columns: Mapping[str, Any], *, warnings: list[str], cure: str = ""
) -> pl.DataFrame:
    """Some scalar fields of every line as columns, fast; streamed from .gz or plain files.

    Args:
        columns: polars type of each wanted field; a line that lacks one gives null.
        warnings: told of lines that are malformed and skipped.

    Raises:
        DataError: missing file (E101), broken gzip or HTML (E106), not UTF-8 (E111), or more
            than `tables.MALFORMED_SHARE` of the lines malformed (E114).
    """
    raise NotImplementedError


def records(
    path: Path,
    *,
    warnings: list[str],
    key: str | None = None,
    wanted: Container[str] | None = None,
    cure: str = "",
) -> Iterator[dict[str, Any]]:
    """The object of each line, JSON or else a Python literal; streamed.

    With `key` and `wanted`, only lines whose field `key` (text) is in `wanted`; other lines are
    skipped without being parsed wherever a quick search tells. Raises as `read_scalars`.
    """
    raise NotImplementedError
