"""RecBole's atomic files: NAME.inter, NAME.item, and files of item vectors.

NAME.inter           line 1 names and types the columns, `user_id:token item_id:token`, with
                     rating:float and timestamp:float where there are any; tab-separated
NAME.train.inter     the same, split: train, valid, test, or part1, part2, part3
NAME.item            item_id:token; title, brand, categories, description, ... where there are any
NAME.image           an id of type token and a vector of type float_seq: features of items

Files that `mmbench export` wrote hold a column `mmbench_index` that restores order and numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mmbench.data.pictures import is_address
from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.recbole_tables import (
    EXPECTED,
    INDEX,
    TEXT,
    find_interactions,
    read_atomic,
    read_header,
)
from mmbench.data.sources.recbole_vectors import find_features
from mmbench.data.tables import Table, need_columns, offenders
from mmbench.errors import DataError

# What people call the columns of an item's text, in the order of the composed text.
_TEXT_COLUMNS = (
    ("title", "movie_title", "item_title", "item_name", "name"),
    ("brand",),
    ("categories", "category", "genres", "genre", "class"),
    ("description",),
)
_IDS = ("user_id", "item_id")
_NUMBERS = ("rating", "timestamp", INDEX)
_LARGEST = float(2**62)


@register_dataset("recbole")
class RecBoleFiles(Source):
    """Any dataset as RecBole's atomic files; a split that comes along is kept."""

    title = "RecBole's atomic files (NAME.inter with typed columns, NAME.item)"
    layout = True
    expects = EXPECTED

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is an .inter file whose header has `name:type` fields."""
        for path in sorted(folder.glob("*.inter")):
            try:
                with path.open("rb") as file:
                    if b":" in file.readline(4096):
                        return True
            except OSError:
                continue
        return False

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        name, parts = find_interactions(source)
        files = list(parts)
        interactions, ignored = _read_interactions(parts, warnings)
        tables = {
            what: _read_described(source / f"{name}.{what}", f"{what}_id", warnings)
            for what in ("user", "item")
        }
        files += [source / f"{name}.{what}" for what, table in tables.items() if table is not None]
        numbered = all(table is not None and INDEX in table.columns for table in tables.values())
        ids: dict[str, tuple[str, ...]] = {}
        if numbered:
            for what, table in tables.items():
                assert table is not None
                path = source / f"{name}.{what}"
                ids[what] = _numbered_ids(table, path, f"{what}_id")
                interactions = _to_index(interactions, what, ids[what], path)
        item_index = {item: str(k) for k, item in enumerate(ids["item"])} if numbered else None
        items, text_fields = _item_table(tables["item"], source / f"{name}.item", item_index)
        features = find_features(source, name, scratch, item_index, files, warnings)
        if not numbered and len(parts) > 1 and tables["item"] is not None:
            _warn_of_unused(tables["item"], interactions, f"{name}.item", warnings)
        return RawDataset(
            interactions=interactions,
            items=items,
            positional=numbered,
            text_fields=text_fields,
            features=features,
            files=tuple(files),
            facts={"columns_ignored": ignored} if ignored else {},
            user_ids=ids.get("user"),
            item_ids=ids.get("item"),
            warnings=warnings,
        )


def _read_interactions(paths: list[Path], warnings: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """Interactions of all files in order, and names of columns that are not used."""
    frames: list[pl.DataFrame] = []
    ignored: list[str] = []
    for part, path in enumerate(paths):
        header = read_header(path)
        need_columns(header.names, path, ("user_id", "item_id"))
        for column, kind in zip(header.names, header.types, strict=True):
            if column in (*_IDS, *_NUMBERS) and kind.endswith("_seq"):
                raise DataError(
                    f"E115 {path}: column '{column}' is a {kind}; one value per line is needed"
                )
        table, _ = read_atomic(path, warnings, keep=(*_IDS, *_NUMBERS), numbers=_NUMBERS)
        ignored += [c for c in header.names if c not in (*_IDS, *_NUMBERS, *ignored)]
        columns = {"user": table["user_id"], "item": table["item_id"]}
        for column in _NUMBERS:
            columns[column] = (
                table[column]
                if column in table.columns
                else pl.repeat(None, table.height, dtype=pl.Float64, eager=True)
            )
        huge = (columns["timestamp"].abs() > _LARGEST).fill_null(False)
        if huge.any():
            told = offenders(
                path, table.lines or 0, huge.to_numpy(), columns["timestamp"], "timestamp"
            )
            raise DataError(f"E216 {told}; times are seconds, ms or us since 1970")
        label = part if len(paths) > 1 else None
        columns["split"] = pl.repeat(label, table.height, dtype=pl.Int8, eager=True)
        frames.append(pl.DataFrame(columns))
    joined = pl.concat(frames)
    if not joined.height:
        raise DataError(f"E241 {paths[0]} has a header and no rows; check the file")
    if "label" in ignored:
        warnings.append(
            f"W115 column 'label' of {paths[0].name} is not used: every line counts as liked"
        )
    if joined[INDEX].null_count() == 0:
        joined = joined.sort(INDEX, maintain_order=True)
    return joined.drop(INDEX).with_columns(_whole_times(joined["timestamp"])), ignored


def _whole_times(times: pl.Series) -> pl.Series:
    """Times as int64 in their own unit; seconds with a fraction become milliseconds."""
    held = times.drop_nulls()
    if (held == held.floor()).all():
        return times.cast(pl.Int64)
    middle = held.median()
    in_seconds = isinstance(middle, float) and abs(middle) < 1e11
    return ((times * 1000).round() if in_seconds else times.floor()).cast(pl.Int64)


def _read_described(path: Path, key: str, warnings: list[str]) -> Table | None:
    """The table of users or of items, without sequences of numbers; None if there is none."""
    if not path.is_file():
        return None
    header = read_header(path)
    need_columns(header.names, path, (key,))
    kinds = zip(header.names, header.types, strict=True)
    keep = [name for name, kind in kinds if kind != "float_seq" or name == key]
    table, _ = read_atomic(path, warnings, keep=keep, numbers=(INDEX,))
    lines = table.lines
    table = Table(table.with_columns(pl.col(key).str.strip_chars(" \t\r\n")))
    table.lines = lines
    return table


def _numbered_ids(table: pl.DataFrame, path: Path, key: str) -> tuple[str, ...]:
    """Raw ids in the order of the exported dataset."""
    index = table[INDEX].to_numpy()
    if not np.array_equal(np.sort(index), np.arange(table.height)):
        raise DataError(
            f"E213 {path}: {INDEX} must hold each of 0..{table.height - 1} once; export the "
            f"dataset again, or remove that column to have the {key[:-3]}s numbered anew"
        )
    ids = table[key]
    if ids.null_count() or ids.n_unique() != table.height:
        raise DataError(f"E261 {path}: {key} must be unique and not empty; keep one line of each")
    return tuple(ids.gather(np.argsort(index)).to_list())


def _to_index(
    interactions: pl.DataFrame, what: str, ids: tuple[str, ...], path: Path
) -> pl.DataFrame:
    """Interactions whose raw ids of users or of items are replaced by their indices."""
    index = pl.DataFrame({
        what: pl.Series(ids, dtype=pl.String),
        "index": pl.int_range(len(ids), eager=True).cast(pl.String),
    })  # fmt: skip
    found = (
        interactions.lazy()
        .with_columns(pl.col(what).str.strip_chars(" \t\r\n"))
        .join(index.lazy(), on=what, how="left", maintain_order="left")
        .collect()
    )
    unknown = found.filter(pl.col("index").is_null())
    if unknown.height:
        raise DataError(
            f"E266 {path}: {unknown[what].n_unique()} {what}s of the interactions are not in it, "
            f"e.g. '{unknown[what][0]}'; export the dataset again, or remove the column {INDEX}"
        )
    return found.with_columns(pl.col("index").alias(what)).drop("index")


def _item_table(
    table: Table | None, path: Path, index: dict[str, str] | None
) -> tuple[pl.DataFrame | None, tuple[str, ...]]:
    """The item table with the columns that `RawDataset` wants, and the fields of the text."""
    if table is None:
        return None, ()
    without = table["item_id"].fill_null("") == ""
    if without.any():
        told = offenders(path, table.lines or 0, without.to_numpy(), table["item_id"], "item_id")
        raise DataError(f"E113 {told}; every line needs an id")
    if "item" in table.columns:
        raise DataError(f"E113 {path}: column 'item' beside 'item_id'; rename it")
    groups = [next((n for n in names if n in table.columns), None) for names in _TEXT_COLUMNS]
    text_fields = tuple(name for name in groups if name is not None)
    if TEXT in table.columns and (INDEX in table.columns or not text_fields):
        text_fields = (TEXT,)
    # The title has a place of its own in the prepared dataset.
    renamed = {groups[0]: "title"} if groups[0] not in (None, "title") else {}
    if "image" in table.columns and not all(map(is_address, table["image"].drop_nulls())):
        renamed["image"] = "image_path"  # below a folder that nobody knows
    items = table.drop(INDEX, strict=False).rename({"item_id": "item", **renamed})
    if index is not None:
        items = items.with_columns(pl.col("item").replace_strict(index, return_dtype=pl.String))
    return items, tuple(renamed.get(name, name) for name in text_fields)


def _warn_of_unused(
    table: pl.DataFrame, interactions: pl.DataFrame, name: str, warnings: list[str]
) -> None:
    used = interactions["item"].str.strip_chars(" \t\r\n").unique()
    unused = int((~table["item_id"].unique().is_in(used.implode())).sum())
    if unused:
        warnings.append(
            f"W213 {unused} items of {name} have no interactions and are left out; RecBole ranks "
            "them as candidates where it loads that file"
        )
