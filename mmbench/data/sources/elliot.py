"""Elliot and Ducho: tables without header, texts, pictures, one feature file per item.

train.tsv, val.tsv, test.tsv   tab-separated, no header: user, item, rating, timestamp if any
*_indexed.tsv                  the same with integers, by first appearance in train, val, test
reviews.tsv                    the same before it was split, read where there is no split
meta.tsv                       asin, description, imUrl
images/<item>.jpg              pictures
visual_embeddings*/.../<item>.npy    one vector; textual_embeddings*, audio_embeddings* likewise.
                               Folders with _indexed in their name use the integers. Ducho cuts
                               the item's name at its first dot.

The folders below visual_embeddings (library, model, layer) become the name of the encoder. Where
items lack a feature file, Elliot leaves them out silently; here they stay, count as missing the
modality, and are told. Elliot's usual split, 0.2 and then 0.1 of the rest, is 72/8/20.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.pictures import is_address
from mmbench.data.source import RawDataset, RawFeatures, Source, register_dataset
from mmbench.data.sources.folders import list_pictures
from mmbench.data.sources.matrices import write_rows
from mmbench.data.sources.positional import beginning
from mmbench.data.tables import (
    id_column,
    need_columns,
    number_column,
    read_delimited,
    time_column,
)
from mmbench.errors import DataError

_COLUMNS = ("user", "item", "rating", "timestamp")
_SPLITS = ("", "_indexed", "_mapped")  # what the names of the three tables end with
_TEXT_FIELDS = ("title", "brand", "categories", "description", "text")
_ROOT = re.compile(r"(visual|textual|audio|acoustic)_embeddings(?P<variant>(_.*)?)")
_MODALITIES = {
    "visual": "visual",
    "textual": "textual",
    "audio": "acoustic",
    "acoustic": "acoustic",
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@register_dataset("elliot")
class ElliotFolder(Source):
    """Any dataset in the layout of Elliot and Ducho; labels are taken as they are."""

    title = "a folder of Elliot or Ducho (train.tsv, ... or reviews.tsv, visual_embeddings*/)"
    layout = True
    expects = "train.tsv, val.tsv, test.tsv or reviews.tsv, tab-separated: user item rating"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether the tables are there, and their first line is no header."""
        tables = _find_tables(folder)
        return bool(tables) and all(_begins_like_table(path) for path in tables.values())

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        tables = _find_tables(source)
        if not tables:
            raise DataError(
                f"E101 train.tsv or reviews.tsv not found under {source}; check --source"
            )
        files = list(tables.values())
        warnings: list[str] = []
        frames = [_read_table(path, label, warnings) for label, path in tables.items()]
        interactions = pl.concat(frames)
        items = interactions["item"].unique(maintain_order=True).drop_nulls()
        described, root = _read_items(source, items, files)
        is_split = len(tables) > 1
        names = _Names(
            items.to_list(),
            indexed=is_split and files[0].stem != "train",
            split=is_split,
        )
        features, told = _read_features(source, scratch, names, warnings)
        return RawDataset(
            interactions=interactions,
            items=described,
            text_fields=tuple(
                name for name in _TEXT_FIELDS if described is not None and name in described.columns
            ),
            image_root=root,
            features=features,
            files=tuple(files),
            facts={
                "source_layout": "Elliot: " + ", ".join(path.name for path in tables.values()),
                **({"feature_files": told} if told else {}),
            },
            warnings=warnings,
        )


def _find_tables(folder: Path) -> dict[int | None, Path]:
    """The table of each label, or the one table without labels; empty if there are none."""
    for ending in _SPLITS:
        names = (f"train{ending}.tsv", f"val{ending}.tsv", f"test{ending}.tsv")
        paths = {label: folder / name for label, name in enumerate(names)}
        found: dict[int | None, Path] = {k: path for k, path in paths.items() if path.is_file()}
        if 0 in found and 2 in found:
            return found
    reviews = folder / "reviews.tsv"
    return {None: reviews} if reviews.is_file() else {}


def _begins_like_table(path: Path) -> bool:
    line = beginning(path).split(b"\n")[0].decode("utf-8-sig", errors="replace")
    cells = line.strip("\r").split("\t")
    if len(cells) == 2 and path.stem.endswith(_SPLITS[1:]):
        return all(cell.strip().isdigit() for cell in cells)
    return len(cells) in (3, 4) and all(_NUMBER.fullmatch(cell.strip()) for cell in cells[2:])


def _read_table(path: Path, label: int | None, warnings: list[str]) -> pl.DataFrame:
    n_columns = beginning(path).split(b"\n")[0].count(b"\t") + 1
    n_columns = min(max(n_columns, 2), len(_COLUMNS))
    frame = read_delimited(path, "\t", columns=_COLUMNS[:n_columns], warnings=warnings)
    n = frame.height
    return pl.DataFrame(
        {
            "user": id_column(frame, path, "user"),
            "item": id_column(frame, path, "item"),
            "rating": number_column(frame, path, "rating", 1)
            if n_columns > 2
            else pl.Series([None], dtype=pl.Float64).new_from_index(0, n),
            "timestamp": time_column(frame, path, "timestamp", 1)
            if n_columns > 3
            else pl.Series([None], dtype=pl.Int64).new_from_index(0, n),
            "split": pl.Series([label], dtype=pl.Int8).new_from_index(0, n),
        }
    )


def _read_items(
    source: Path, used: pl.Series, files: list[Path]
) -> tuple[pl.DataFrame | None, Path | None]:
    """The item table with the place of each picture, and the folder of the pictures."""
    path, folder = source / "meta.tsv", source / "images"
    root = folder if folder.is_dir() else None
    items: pl.DataFrame | None = None
    if path.is_file():
        frame = read_delimited(path, "\t", quoted=True)
        need_columns(frame, path, ("asin",))
        if "item" in frame.columns:
            raise DataError(f"E113 {path}: column 'item' beside 'asin'; rename it")
        ids = pl.col("asin").str.strip_chars().alias("item")
        items = frame.select(ids, pl.all().exclude("asin")).filter(pl.col("item").is_not_null())
        files.append(path)
    if items is None and root is not None:
        items = pl.DataFrame({"item": used})
    if items is None:
        return None, None
    held = list_pictures(root) if root is not None else {}
    addresses = items["imUrl"].to_list() if "imUrl" in items.columns else [None] * items.height
    images = [
        held.get(item) or held.get(_cut(item)) or (address if is_address(address or "") else None)
        for item, address in zip(items["item"].to_list(), addresses, strict=True)
    ]
    items = items.drop("imUrl", strict=False)
    return items.with_columns(pl.Series("image", images, dtype=pl.String)), root


def _cut(item: str) -> str:
    return item.partition(".")[0]


@dataclass(frozen=True)
class _Names:
    """How feature files are named after items.

    Attributes:
        items: ids of the items, in order of first appearance.
        indexed: whether the tables hold the integers instead of the ids.
        split: whether the three tables are there, whose order numbers the items.
    """

    items: Sequence[str]
    indexed: bool
    split: bool

    def for_folder(self, indexed: bool) -> Mapping[str, str] | None:
        """The item of each file name in a folder; None if it cannot be known.

        Of items that differ only after their first dot none has a name of its own.
        """
        if indexed and not self.indexed:
            return {str(k): item for k, item in enumerate(self.items)} if self.split else None
        if self.indexed and not indexed:
            return None
        names: dict[str, str] = {}
        shared: set[str] = set()
        for item in self.items:
            name = _cut(item)
            shared |= {name} & names.keys()
            names[name] = item
        return {name: item for name, item in names.items() if name not in shared}


@dataclass(frozen=True)
class _Leaf:
    """A folder of feature files: which modality, what its name says, and the files by stem."""

    folder: Path
    modality: str
    variant: str
    encoder: str
    indexed: bool
    files: Mapping[str, str]


def _find_leaves(source: Path) -> list[_Leaf]:
    leaves = []
    for root in sorted(path for path in source.iterdir() if path.is_dir()):
        match = _ROOT.fullmatch(root.name)
        if match is None:
            continue
        variant = match["variant"].replace("_indexed", "")
        for place, folders, names in os.walk(root):
            folders.sort()
            files = {_cut(name): name for name in sorted(names) if name.endswith(".npy")}
            if not files:
                continue
            inner = "-".join(Path(place).relative_to(root).parts)
            leaves.append(
                _Leaf(
                    folder=Path(place),
                    modality=_MODALITIES[match[1]],
                    variant=_plain(variant),
                    encoder=_plain(inner) or "imported",
                    indexed="_indexed" in match["variant"],
                    files=files,
                )
            )
    return leaves


def _plain(text: str) -> str:
    """`text` in the signs that the name of an encoder may have."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def _read_features(
    source: Path, scratch: Path, names: _Names, warnings: list[str]
) -> tuple[tuple[RawFeatures, ...], dict[str, object]]:
    """One matrix of each folder of feature files, and what the manifest should tell of them."""
    leaves = _find_leaves(source) if names.items else []
    chosen: dict[tuple[str, str, str], _Leaf] = {}
    for leaf in sorted(leaves, key=lambda leaf: (leaf.indexed != names.indexed, leaf.folder)):
        if names.for_folder(leaf.indexed) is None:
            kind = "integers" if leaf.indexed else "ids"
            warnings.append(
                f"W251 {leaf.folder.relative_to(source)} left out: its files are named by {kind}, "
                "and no table here tells which item is which"
            )
            continue
        # The same vectors often lie there twice, by id and by integer.
        chosen.setdefault((leaf.modality, leaf.encoder, leaf.variant), leaf)
    variants: dict[tuple[str, str], int] = {}
    for modality, encoder, _ in chosen:
        variants[modality, encoder] = variants.get((modality, encoder), 0) + 1
    features: list[RawFeatures] = []
    told: dict[str, object] = {}
    for (modality, encoder, variant), leaf in sorted(chosen.items()):
        several = variants[modality, encoder] > 1 and variant
        name = f"{encoder}-{variant}" if several else encoder
        if any((f.modality, f.encoder) == (modality, name) for f in features):
            raise DataError(
                f"E118 {leaf.folder}: another folder is called {modality} {name} too; rename one"
            )
        matrix, facts = _assemble(leaf, scratch / f"{modality}__{name}.npy", names, warnings)
        features.append(RawFeatures(matrix[0], modality, name, matrix[1]))
        told[f"{modality}__{name}"] = {
            "folder": leaf.folder.relative_to(source).as_posix(), **facts
        }  # fmt: skip
    return tuple(features), told


def _assemble(
    leaf: _Leaf, target: Path, names: _Names, warnings: list[str]
) -> tuple[tuple[Path, tuple[str, ...]], dict[str, object]]:
    """Bring the feature files of a folder into one matrix; its path and item ids, and facts."""
    item_of = names.for_folder(leaf.indexed) or {}
    held = [
        (item_of[stem], leaf.folder / name) for stem, name in leaf.files.items() if stem in item_of
    ]
    if not held:
        example = next(iter(leaf.files.values()))
        raise DataError(
            f"E251 {leaf.folder}: none of its files is named after an item, e.g. {example} against "
            f"item '{names.items[0]}'; the folder belongs to another dataset"
        )
    first = _read_vector(held[0][1])
    digest = hashlib.sha256()

    def rows() -> Iterator[tuple[int, NDArray[Any]]]:
        for place, (_, path) in enumerate(held):
            row = _read_vector(path)
            if row.size != first.size:
                raise DataError(
                    f"E118 {path}: {row.size} values, {held[0][1].name} has {first.size}; all "
                    "files of a folder must come from one run"
                )
            digest.update(row.astype("<f8").tobytes())
            yield place, row

    write_rows(target, len(held), first.size, np.dtype("<f4"), rows())
    lacking = sorted(set(names.items) - {item for item, _ in held})
    if lacking:
        warnings.append(
            f"W262 {leaf.folder.name} of {leaf.modality} features: {len(lacking)} of "
            f"{len(names.items)} items have no file, e.g. '{lacking[0]}'; they count as missing"
        )
    facts = {"files": len(held), "values_sha256": digest.hexdigest()}
    return (target, tuple(item for item, _ in held)), facts


def _read_vector(path: Path) -> NDArray[Any]:
    """The vector in a .npy file of shape (d,), (1, d) or the like, finite.

    Raises:
        DataError: E118, it is no .npy file, or holds objects, no numbers, several vectors or NaN.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        reason = str(problem)
        if "pickle" in reason.lower() or "object" in reason.lower():
            reason = "it holds Python objects or is no .npy file"
        raise DataError(f"E118 {path}: {reason}; extract the features again") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise DataError(f"E118 {path}: it holds no numbers; extract the features again")
    if not array.size or array.size != max(array.shape, default=0):
        raise DataError(
            f"E118 {path}: its shape is {list(array.shape)}; a file holds one vector, choose a "
            "layer that gives one"
        )
    with np.errstate(over="ignore"):
        row = np.asarray(array).reshape(-1).astype(np.float32)
    if not np.isfinite(row).all():
        raise DataError(f"E118 {path}: NaN, infinity or too large; extract the features again")
    return row
