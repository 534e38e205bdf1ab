"""The item tables of the Amazon releases: metadata records, read for the items that are kept.

A category can have millions of records of which a core needs some ten thousand, so the file is
streamed and only wanted records become rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from mmbench.data.lines import records
from mmbench.data.pictures import is_address
from mmbench.data.tables import need_columns
from mmbench.errors import DataError

_BLOCK = 20_000  # rows held as Python objects at a time; a frame takes less memory

Row = Callable[[Mapping[str, Any]], dict[str, str | None]]
"""Makes a row of the item table, without its id, of a metadata record."""


@dataclass
class ItemTable:
    """An `ItemReader` of one metadata file, or of one in several Parquet files.

    Attributes:
        path: the file, one record per line, or the first of the Parquet files.
        interactions: file that the asked ids come from, for messages.
        key: field that holds the item id.
        columns: the fields that `row` gives, in order.
        row: makes a row of a record.
        cure: what to do about a broken file.
        scrap: what a title holds that is a piece of a page's script; it counts as missing.
        pictures: path of the picture that is here already, by item; it takes the place of the
            address.
        warnings: told of what is odd in the file.
    """

    path: Path
    interactions: Path
    key: str
    columns: tuple[str, ...]
    row: Row
    cure: str = ""
    scrap: str | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __call__(self, ids: pl.Series) -> pl.DataFrame:
        """The rows of the items `ids` that the file has; of several records the first counts.

        Raises:
            DataError: the file is broken, or describes none of these items.
        """
        told: list[str] = []
        schema = dict.fromkeys(("item", *self.columns), pl.String)
        frames = [pl.DataFrame(schema=schema)]
        block: list[tuple[str | None, ...]] = []
        seen: dict[str, int] = {}  # a hash of the row tells whether another one is the same
        differing = scraps = 0
        for record in self._records(frozenset(ids.to_list()), told):
            item = str(record[self.key]).strip()
            row = self.row(record)
            is_scrap = self.scrap is not None and self.scrap in (row["title"] or "")
            if is_scrap:
                row["title"] = None
            row["image"] = self.pictures.get(item, row["image"])
            values = (item, *(row[name] for name in self.columns))
            if item in seen:
                differing += seen[item] != hash(values)
                continue
            seen[item] = hash(values)
            scraps += is_scrap
            block.append(values)
            if len(block) == _BLOCK:
                frames.append(pl.DataFrame(block, schema=schema, orient="row"))
                block = []
        frames.append(pl.DataFrame(block, schema=schema, orient="row"))
        if differing:
            told.append(
                f"W261 {differing} records of {self.path.name} repeat an item with other content; "
                "the first of each is kept"
            )
        if scraps:
            told.append(
                f"W262 {scraps} titles of {self.path.name} are pieces of a page's script "
                f"('{self.scrap}') and count as missing"
            )
        if not seen and len(ids):
            self._refuse_strangers(str(ids[0]))
        # The same file may be read twice, for the items before a filter and after it.
        self.warnings += [text for text in told if text not in self.warnings]
        return pl.concat(frames)

    def _records(self, wanted: frozenset[str] | None, told: list[str]) -> Iterator[dict[str, Any]]:
        if self.path.suffix == ".parquet":
            for path in shards(self.path):
                yield from self._stored_records(path, wanted)
        else:
            yield from records(
                self.path, warnings=told, key=self.key, wanted=wanted, cure=self.cure
            )

    def _stored_records(
        self, path: Path, wanted: frozenset[str] | None
    ) -> Iterator[dict[str, Any]]:
        """Records of a Parquet file; a few alone where all are asked for."""
        try:
            stored = pl.scan_parquet(path)
            need_columns(stored.collect_schema().names(), path, (self.key,))
            if wanted is None:
                found = stored.head(1).collect()
            else:
                ids = pl.Series(sorted(wanted), dtype=pl.String)
                found = stored.filter(pl.col(self.key).is_in(ids.implode())).collect()
        except (pl.exceptions.PolarsError, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(
                f"E106 {path} is not a complete Parquet file ({reason}); {self.cure}"
            ) from error
        yield from found.iter_rows(named=True)

    def _refuse_strangers(self, asked: str) -> None:
        held = next(self._records(None, []), None)
        if held is not None:
            raise DataError(
                f"E266 {self.path} describes no item of {self.interactions}, e.g. "
                f"'{held.get(self.key)}' against '{asked}'; the two files belong to different "
                "categories or releases"
            )


def shards(path: Path) -> list[Path]:
    """The files that the table in `path` is spread over, itself alone if it is none of several."""
    start, mark, _ = path.name.partition("-of-")
    if path.suffix != ".parquet" or not mark:
        return [path]
    return sorted(path.parent.glob(f"{start.rpartition('-')[0]}-*-of-*.parquet"))


def text_of(value: object) -> str | None:
    """A text field of a record as one line; lists are joined, anything else counts as missing."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(text_of, value))) or None
    return None


def path_of(values: Iterable[object]) -> str | None:
    """The names along a path of categories, each once, from the root."""
    names = (text_of(value) for value in values if isinstance(value, str))
    return ", ".join(dict.fromkeys(name for name in names if name)) or None


def addresses_of(values: Iterable[object]) -> str | None:
    """The web addresses among some values, each once, separated by blanks: the best first."""
    texts = (value.strip().replace(" ", "%20") for value in values if isinstance(value, str))
    return " ".join(dict.fromkeys(text for text in texts if is_address(text))) or None


def list_of(value: object) -> list[Any]:
    """`value` if it is a list, an empty one otherwise."""
    return list(value) if isinstance(value, (list, tuple)) else []
