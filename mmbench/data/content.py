"""What the items of a dataset are: their text, their picture, and whether both are usable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.fetch.pictures import FetchedPictures, find_pictures
from mmbench.data.pictures import (
    Picture,
    check_paths,
    check_pictures,
    duplicate_groups,
    is_address,
)
from mmbench.data.source import RawDataset
from mmbench.data.texts import clean_text, compose
from mmbench.errors import DataError, UnknownNameError

_LISTED = 20
Fetch = Callable[[Mapping[str, Sequence[str]], Path], FetchedPictures]


class ItemContent:
    """The item table of a raw dataset, looked up by raw id.

    Rows of a table that is read on demand, and pictures, are looked at when first asked for.

    Args:
        raw: the dataset as its source read it.
        text_fields: fields that make an item's text, in order; None for the source's own.
        origin: how messages call the source.
        fetched: folder of the pictures that were fetched by their addresses.
        fetch: fetches pictures into that folder; None to fetch nothing.
    """

    def __init__(
        self,
        raw: RawDataset,
        text_fields: Sequence[str] | None,
        origin: str,
        fetched: Path | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self.warnings: list[str] = []
        self.origin, self.root, self.fetched = origin, raw.image_root, fetched
        self.fields: list[str] = []
        self.text_fields = tuple(text_fields if text_fields is not None else raw.text_fields)
        self.described = raw.items is not None
        self._fetch = fetch
        self._rows: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()
        self._pictures: dict[str, Picture] = {}
        self._files: dict[str, Path] = {}
        self._failures: dict[str, str] = {}
        self._reader = raw.items if callable(raw.items) else None
        if self._reader is None:
            table = raw.items if isinstance(raw.items, pl.DataFrame) else pl.DataFrame({"item": []})
            self._add(table)

    def _add(self, table: pl.DataFrame) -> None:
        """Take up rows of the item table."""
        table = self._unique(table.with_columns(pl.col("item").cast(pl.String)))
        self.fields = [name for name in table.columns if name not in ("item", "image")]
        for name in self.text_fields:
            if name not in self.fields:
                raise UnknownNameError(f"text field of {self.origin}", name, self.fields)
        self._rows.update((str(row["item"]), row) for row in table.iter_rows(named=True))

    def _look_up(self, ids: Sequence[str]) -> None:
        """Read the rows of items of a table that is read on demand, each at most once."""
        if self._reader is None:
            return
        new = [item for item in ids if item not in self._asked]
        if new:
            self._asked.update(new)
            self._add(self._reader(pl.Series("item", new, dtype=pl.String)))

    def _unique(self, table: pl.DataFrame) -> pl.DataFrame:
        distinct = table.unique(maintain_order=True)
        if distinct["item"].n_unique() < distinct.height:
            counts = distinct.group_by("item", maintain_order=True).len().filter(pl.col("len") > 1)
            raise DataError(
                f"E261 items of {self.origin}: '{counts['item'][0]}' listed {counts['len'][0]} "
                f"times with different content ({counts.height} such items); keep one row of each"
            )
        if distinct.height < table.height:
            repeated = table.height - distinct.height
            self.warnings.append(f"W261 {repeated} identical rows of the item table merged")
        return distinct

    def pictures(self, ids: Sequence[str]) -> list[Picture]:
        """The checked pictures of some items; those with an address are fetched if agreed."""
        self._look_up(ids)
        new = [item for item in ids if item not in self._pictures]
        addresses, local = {}, {}
        for item in new:
            path = self._rows.get(item, {}).get("image")
            if path is not None and is_address(path):
                addresses[item] = path.split()
            elif path is not None:
                local[item] = path
        self._resolve(addresses)
        check_paths(local)
        if self.root is not None:
            self._files |= {item: self.root / path for item, path in local.items()}
        checked = check_pictures([self._files.get(item) for item in new])
        self._pictures.update(zip(new, checked, strict=True))
        return [self._pictures[item] for item in ids]

    def _resolve(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Find the files of pictures that are known by address."""
        if self.fetched is None or not addresses:
            return
        found = (
            find_pictures(list(addresses), self.fetched)
            if self._fetch is None
            else self._fetch(addresses, self.fetched)
        )
        self._files |= {item: self.fetched / name for item, name in found.files.items()}
        self._failures.update(found.failures)

    def text(self, item: str) -> str:
        """The composed text of an item, "" where it has none."""
        self._look_up([item])
        row = self._rows.get(item)
        return "" if row is None else compose(clean_text(row[name]) for name in self.text_fields)

    def fulfils(self, ids: Sequence[str], requirement: str) -> NDArray[np.bool_]:
        """Which items have the required content: "text", "image", "any" or "all" of the two."""
        self._look_up(ids)
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
            line: dict[str, Any] = {
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
            if row.get("image") and is_address(row["image"]):
                line |= self._fetched_line(key, row["image"])
            lines.append(line)
        self._check_common_ids(keys)
        return lines

    def _fetched_line(self, item: str, address: str) -> dict[str, Any]:
        """What items.jsonl says of a picture known by address: where it is, and what failed."""
        said: dict[str, Any] = {"image": None, "image_address": address}
        if item in self._files:
            said |= {"image": self._files[item].name, "image_from": "fetched"}
        elif item in self._failures:
            said |= {"image_failure": self._failures[item]}
        return said

    def _check_common_ids(self, keys: Sequence[str]) -> None:
        """Refuse an item table that describes not one item of the interactions."""
        described = sum(key in self._rows for key in keys)
        if self.described and not described:
            other = next(iter(self._rows), None)
            against = f" against '{other}'" if other is not None else ""
            raise DataError(
                f"E266 {self.origin}: no item of the interactions is in the item table, e.g. "
                f"'{keys[0]}'{against}; the two belong to different datasets, or write their ids "
                "differently"
            )

    def signature(self) -> list[tuple[str, int]]:
        """Path and size of every picture that may be used, to notice exchanged files cheaply."""
        sizes = []
        for row in self._rows.values():
            path = row.get("image")
            if path and self.root is not None and (self.root / path).is_file():
                sizes.append((path, (self.root / path).stat().st_size))
        folders = [self.fetched, self.root if self._reader is not None else None]
        for folder in folders:
            # A table that is read on demand is not read for this; all files count.
            if folder is not None and folder.is_dir():
                files = (path for path in folder.rglob("*") if path.is_file())
                sizes += [
                    (path.relative_to(folder).as_posix(), path.stat().st_size) for path in files
                ]
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
    # Why a missing picture is missing: it has an address and was not asked for, or it was in vain.
    known = [
        line for line in lines if line["image_status"] == "missing" and "image_address" in line
    ]
    images["failed"] = sum("image_failure" in line for line in known)
    images["not_fetched"] = len(known) - images["failed"]
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
    lists["items without text or picture"] = [
        str(line["id"])
        for line in lines
        if not line["text"] and line["image_status"] != "ok" and (has_text.any() or has_image.any())
    ][:_LISTED]
    return texts, images, warnings, {name: found for name, found in lists.items() if found}
