"""Plain tables: CSV, TSV or Parquet, with an item table, pictures and features where there are any.

interactions.{csv,tsv,parquet}   user_id, item_id; rating, timestamp (s, ms, us
                                 or ISO-8601) and split (train, valid, test or
                                 0, 1, 2) where there are any
items.{csv,tsv,parquet}          item_id; text fields such as title, brand,
                                 categories (separated by |), description, text;
                                 image: path below images/
images/<item_id>.jpg             pictures (or .jpeg, .png, .webp), where the item
                                 table has no column `image`
features/<name>.npy, .ids.txt    features, and the item_id of each of their rows

CSV and TSV may be packed with gzip (interactions.csv.gz).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mmbench.data.source import RawDataset, RawFeatures, Source, register_dataset
from mmbench.data.sources.agreement import check_ids_meet
from mmbench.data.sources.folders import find_file
from mmbench.data.tables import (
    Table,
    id_column,
    need_columns,
    number_column,
    offenders,
    parquet_header,
    read_bytes,
    read_delimited,
    read_header,
    read_parquet,
    time_column,
)
from mmbench.errors import DataError
from mmbench.modality import MODALITIES

_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
_COLUMNS = ("user_id", "item_id", "rating", "timestamp", "split")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_TEXT = ("title", "brand", "categories", "description", "text")
_LABELS = {"train": 0, "valid": 1, "test": 2, "0": 0, "1": 1, "2": 2}
_MODALITY_WORDS = {
    "visual": "visual",
    "image": "visual",
    "textual": "textual",
    "text": "textual",
    "acoustic": "acoustic",
    "audio": "acoustic",
    "joint": "joint",
}


@register_dataset("plain")
class PlainTables(Source):
    """Any dataset as plain tables; every id is read as text."""

    title = "tables: interactions.csv|tsv|parquet, items.*, images/, features/"
    layout = True
    expects = (
        "interactions.csv, .tsv (or .gz of them) or .parquet with columns user_id and item_id, "
        "and rating, timestamp and split where you have them; items.csv with item_id, title and "
        "other texts, images/ITEM_ID.jpg and features/NAME.npy where you have them"
    )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is an interactions table."""
        return find_file(folder, [f"interactions{suffix}" for suffix in _SUFFIXES]) is not None

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        path = _find_table(source, "interactions")
        if path is None:
            raise DataError(f"E101 interactions.csv not found under {source}; {self.expects}")
        files = [path]
        warnings: list[str] = []
        interactions, ignored = _read_interactions(path, warnings)
        items: pl.DataFrame | None = None
        text_fields: tuple[str, ...] = ()
        items_path = _find_table(source, "items")
        images = source / "images"
        if items_path is not None:
            files.append(items_path)
            items, text_fields = _read_items(items_path, warnings)
            # Padding around ids is no part of them.
            used = interactions["item"].unique().str.strip_chars()
            check_ids_meet(used, path, items["item"], items_path)
        if images.is_dir() and (items is None or "image" not in items.columns):
            items = _find_pictures(images, items, interactions["item"])
        features = _find_features(source / "features", files)
        return RawDataset(
            interactions=interactions,
            items=items,
            text_fields=text_fields,
            image_root=images if images.is_dir() else None,
            features=features,
            files=tuple(files),
            facts={"columns_ignored": ignored} if ignored else {},
            warnings=warnings,
        )


def _find_table(source: Path, stem: str) -> Path | None:
    found = [source / f"{stem}{suffix}" for suffix in _SUFFIXES]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"E103 {source} holds {names}; keep one of them")
    return found[0] if found else None


def _read_interactions(path: Path, warnings: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """The interactions, and the names of the columns that were not read."""
    frame: pl.DataFrame
    if path.suffix == ".parquet":
        first_line, names = 0, parquet_header(path)  # rows are no lines
        need_columns(names, path, ("user_id", "item_id"))
        frame = read_parquet(path, keep=_COLUMNS)
    else:
        first_line, names = 2, read_header(path, _separator(path), quoted=True)
        need_columns(names, path, ("user_id", "item_id"))
        frame = read_delimited(
            path,
            _separator(path),
            keep=_COLUMNS,
            numbers=("rating",),
            times=("timestamp",),
            quoted=True,
            warnings=warnings,
        )
    if frame.height == 0:
        raise DataError(f"E241 {path} has a header and no rows; check the file")
    columns = {
        "user": id_column(frame, path, "user_id"),
        "item": id_column(frame, path, "item_id"),
        "rating": number_column(frame, path, "rating", first_line)
        if "rating" in names
        else pl.repeat(None, frame.height, dtype=pl.Float64, eager=True),
        "timestamp": time_column(frame, path, "timestamp", first_line)
        if "timestamp" in names
        else pl.repeat(None, frame.height, dtype=pl.Int64, eager=True),
        "split": _labels(frame, path)
        if "split" in names
        else pl.repeat(None, frame.height, dtype=pl.Int8, eager=True),
    }
    return pl.DataFrame(columns), [name for name in names if name not in _COLUMNS]


def _separator(path: Path) -> str:
    return "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","


def _labels(frame: pl.DataFrame, path: Path) -> pl.Series:
    text = frame["split"].cast(pl.String).str.strip_chars().str.to_lowercase()
    labels = text.replace_strict(_LABELS, default=None, return_dtype=pl.Int8)
    if labels.null_count():
        lines = frame.lines if isinstance(frame, Table) else None
        found = offenders(path, lines or 0, labels.is_null().to_numpy(), frame["split"], "split")
        raise DataError(f"E221 {found}; labels are train, valid, test or 0, 1, 2")
    return labels


def _read_items(path: Path, warnings: list[str]) -> tuple[pl.DataFrame, tuple[str, ...]]:
    frame: pl.DataFrame
    if path.suffix == ".parquet":
        frame = read_parquet(path)
    else:
        frame = read_delimited(path, _separator(path), quoted=True, warnings=warnings)
    need_columns(frame, path, ("item_id",))
    ids = id_column(frame, path, "item_id").str.strip_chars()
    if "item" in frame.columns:
        raise DataError(f"E113 {path}: column 'item' beside 'item_id'; rename it")
    others = [name for name in frame.columns if name != "item_id"]
    nested = [name for name in others if frame[name].dtype.is_nested()]
    if nested:
        raise DataError(f"E113 {path}: column '{nested[0]}' holds lists; store it as text")
    items = frame.select(ids.alias("item"), *(pl.col(name).cast(pl.String) for name in others))
    without = items.filter(pl.col("item").fill_null("") == "").height
    if without:
        raise DataError(f"E113 {path}: {without} rows without item_id; fill or remove them")
    if "categories" in items.columns:
        items = items.with_columns(pl.col("categories").str.replace_all("|", ", ", literal=True))
    return items, tuple(name for name in _TEXT if name in items.columns)


def _find_pictures(images: Path, items: pl.DataFrame | None, used: pl.Series) -> pl.DataFrame:
    """Join pictures named like item ids: the exact name first, then the one in lower case."""
    if items is None:
        items = pl.DataFrame({"item": used.str.strip_chars().unique().drop_nulls().sort()})
    files = {path.name: path.name for path in sorted(images.iterdir())}
    lower = {name.lower(): name for name in reversed(list(files))}

    def find(item: str) -> str | None:
        for names, stem in ((files, item), (lower, item.lower())):
            for suffix in _PICTURES:
                if stem + suffix in names:
                    return names[stem + suffix]
        return None

    found = [find(item) for item in items["item"].to_list()]
    return items.with_columns(pl.Series("image", found, dtype=pl.String))


def _find_features(folder: Path, files: list[Path]) -> tuple[RawFeatures, ...]:
    features: list[RawFeatures] = []
    for path in sorted(folder.glob("*.npy")) if folder.is_dir() else []:
        # `visual__clip.npy` names modality and encoder, `image.npy` the modality alone.
        word, _, encoder = path.stem.partition("__")
        modality = _MODALITY_WORDS.get(word.lower().removesuffix("_feat"))
        if modality is None:
            raise DataError(
                f"E118 {path}: begin the name with its modality ({', '.join(MODALITIES)}), for "
                "example visual.npy or visual__clip.npy"
            )
        key = (modality, encoder or "imported")
        taken = [f.path.name for f in features if (f.modality, f.encoder) == key]
        if taken:
            raise DataError(
                f"E118 {path}: {taken[0]} would be stored under the same name; call one of them "
                f"{modality}__<encoder>.npy"
            )
        ids_path = path.with_suffix(".ids.txt")
        cure = "write the item_id of each row there, one per line"
        content = read_bytes(ids_path, cure=cure)
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"E111 {ids_path} is not UTF-8; save the file as UTF-8") from error
        ids = tuple(line.strip() for line in lines)
        if len(set(ids)) != len(ids):
            twice = next(item for item in ids if ids.count(item) > 1)
            raise DataError(f"E251 {ids_path}: item '{twice}' has several rows; keep one")
        features.append(RawFeatures(path, *key, ids))
        files += [path, ids_path]
    return tuple(features)
