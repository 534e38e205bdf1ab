"""What the items of a dataset are: their text, their picture, and whether both are usable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.pictures import Picture, check_pictures, duplicate_groups
from mmbench.data.source import RawDataset
from mmbench.data.texts import clean_text, compose
from mmbench.errors import DataError, UnknownNameError

_LISTED = 20


class ItemContent:
    """The item table of a raw dataset, looked up by raw id; pictures are checked on demand."""

    def __init__(self, raw: RawDataset, text_fields: Sequence[str] | None, origin: str) -> None:
        table = raw.items if raw.items is not None else pl.DataFrame({"item": []})
        self.warnings: list[str] = []
        table = self._unique(table.with_columns(pl.col("item").cast(pl.String)), origin)
        self.root: Path | None = raw.image_root
        self.fields = [name for name in table.columns if name not in ("item", "image")]
        self.text_fields = tuple(text_fields if text_fields is not None else raw.text_fields)
        for name in self.text_fields:
            if name not in self.fields:
                raise UnknownNameError(f"text field of {origin}", name, self.fields)
        self._rows = {str(row["item"]): row for row in table.iter_rows(named=True)}
        self._pictures: dict[str, Picture] = {}

    def _unique(self, table: pl.DataFrame, origin: str) -> pl.DataFrame:
        distinct = table.unique(maintain_order=True)
        if distinct["item"].n_unique() < distinct.height:
            counts = distinct.group_by("item", maintain_order=True).len().filter(pl.col("len") > 1)
            raise DataError(
                f"E261 items of {origin}: '{counts['item'][0]}' listed {counts['len'][0]} times "
                f"with different content ({counts.height} such items); keep one row of each"
            )
        if distinct.height < table.height:
            repeated = table.height - distinct.height
            self.warnings.append(f"W261 {repeated} identical rows of the item table merged")
        return distinct

    def pictures(self, ids: Sequence[str]) -> list[Picture]:
        """The checked pictures of some items."""
        new = [item for item in ids if item not in self._pictures]
        paths = [self._rows.get(item, {}).get("image") for item in new]
        self._pictures.update(zip(new, check_pictures(self.root, paths), strict=True))
        return [self._pictures[item] for item in ids]

    def text(self, item: str) -> str:
        """The composed text of an item, "" where it has none."""
        row = self._rows.get(item)
        return "" if row is None else compose(clean_text(row[name]) for name in self.text_fields)

    def fulfils(self, ids: Sequence[str], requirement: str) -> NDArray[np.bool_]:
        """Which items have the required content: "text", "image", "any" or "all" of the two."""
        empty = np.zeros(len(ids), dtype=bool)
        text = image = empty
        if requirement != "image":
            text = np.array([bool(self.text(item)) for item in ids], dtype=bool)
        if requirement != "text":
            image = np.array([found.status == "ok" for found in self.pictures(ids)], dtype=bool)
        return text & image if requirement == "all" else text | image

    def records(self, keys: Sequence[str], ids: Sequence[str]) -> list[dict[str, Any]]:
        """The lines of items.jsonl.

        Args:
            keys: id of each item in the source's tables.
            ids: raw id of each item, the same but for positional layouts with an id mapping.
        """
        lines = []
        for index, (key, item, picture) in enumerate(
            zip(keys, ids, self.pictures(keys), strict=True)
        ):
            row = self._rows.get(key, {})
            text = self.text(key)
            lines.append(
                {
                    "item": index,
                    "id": item,
                    "title": clean_text(row.get("title")),
                    "text": text,
                    "text_status": "ok" if text else "missing",
                    "image": row.get("image"),
                    "image_status": picture.status,
                    "image_sha256": picture.sha256,
                    "fields": {name: row[name] for name in self.fields if row.get(name)},
                }
            )
        return lines

    def signature(self) -> list[tuple[str, int]]:
        """Path and size of every picture the table names, to notice exchanged files cheaply."""
        sizes = []
        for row in self._rows.values():
            path = row.get("image")
            if path and self.root is not None and (self.root / path).is_file():
                sizes.append((path, (self.root / path).stat().st_size))
        return sorted(sizes)


def describe_content(
    lines: Sequence[dict[str, Any]], pictures: Sequence[Picture]
) -> tuple[dict[str, Any], dict[str, Any], list[str], dict[str, list[Any]]]:
    """Facts of texts and of pictures for the manifest, warnings, and lists for the report."""
    warnings: list[str] = []
    words = np.array([len(line["text"].split()) for line in lines if line["text"]], dtype=float)
    texts: dict[str, Any] = {"ok": words.size, "missing": len(lines) - words.size, "words": None}
    if words.size:
        low, median, p95, most = np.quantile(words, [0, 0.5, 0.95, 1])
        texts["words"] = {"min": low, "median": median, "p95": p95, "max": most}
    counts = Counter(picture.status for picture in pictures)
    groups = duplicate_groups(pictures)
    images: dict[str, Any] = {
        name: counts[name] for name in ("ok", "missing", "corrupt", "placeholder")
    }
    images["duplicate_groups"] = len(groups)
    broken = [
        f"{line['image']}: {picture.problem}"
        for line, picture in zip(lines, pictures, strict=True)
        if picture.status in ("corrupt", "placeholder")
    ]
    if broken:
        names = "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")
        warnings.append(
            f"W263 pictures unusable: {counts['corrupt']} corrupt, {counts['placeholder']} "
            f"placeholders ({names}); these items count as having no picture"
        )
    has_text = np.array([bool(line["text"]) for line in lines], dtype=bool)
    has_image = np.array([picture.status == "ok" for picture in pictures], dtype=bool)
    if has_text.any() or has_image.any():
        lacking = []
        if has_text.any() and not has_text.all():
            lacking.append(f"{int((~has_text).sum())} items without text")
        if has_image.any() and not has_image.all():
            lacking.append(f"{int((~has_image).sum())} without image")
        if lacking:
            neither = int((~has_text & ~has_image).sum())
            warnings.append(f"W262 {', '.join(lacking)}, {neither} without both")
    if groups:
        warnings.append(
            f"W264 {sum(groups)} items share {len(groups)} identical images; wrong join or "
            "placeholder?"
        )
    shared = Counter(line["text"] for line in lines if line["text"])
    repeated = [n for n in shared.values() if n > 1]
    if repeated:
        warnings.append(f"W264 {sum(repeated)} items share {len(repeated)} identical texts")
    lists: dict[str, list[Any]] = {"unusable pictures": broken[:1000]}
    missing = [
        str(line["image"])
        for line, picture in zip(lines, pictures, strict=True)
        if line["image"] and picture.status == "missing"
    ]
    lists["pictures not found"] = missing[:_LISTED]
    return texts, images, warnings, {name: found for name, found in lists.items() if found}
