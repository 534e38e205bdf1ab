"""What the three releases of the Amazon reviews share: cards, finding files, reading a folder."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.blocks import read_pieces
from mmbench.data.cards import Card, Published, RemoteFile
from mmbench.data.fetch.ledger import LEDGER
from mmbench.data.lines import read_scalars
from mmbench.data.source import RawDataset, RawFeatures, Source
from mmbench.data.sources.amazon_items import ItemTable, shards
from mmbench.data.sources.amazon_names import (
    CATEGORIES,
    find_category,
    long_name,
    prefix,
    short_name,
    with_category,
)
from mmbench.data.sources.folders import list_pictures
from mmbench.data.tables import need_columns, read_delimited
from mmbench.errors import DataError, UnknownNameError

_ENTRIES = 5_000  # looked at per inner folder; one that holds more holds pictures
_DEEP = frozenset({
    "benchmark", "0core", "5core", "rating_only", "last_out", "timestamp", "raw",
    "review_categories", "meta_categories", "categoryFiles", "categoryFilesSmall", "metaFiles",
    "metaFiles2", "image_features", "productGraph",
})  # fmt: skip
TERMS = (
    "no licence is known; for research, with citation. Do not pass texts or pictures on: they are "
    "not the authors' of the dataset"
)


@dataclass(frozen=True)
class Form:
    """A choice of interactions within a category.

    Attributes:
        suffix: what the name of a dataset ends with to mean it, "" for the usual one.
        what: how titles call it.
        readings: kinds of files it is read from: alternatives, the best first, each of which
            may need several files.
    """

    suffix: str
    what: str
    readings: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Reading:
    """Interactions that were found: their category, form, and the kind and path of each file."""

    category: str
    form: Form
    files: Mapping[str, Path]


class AmazonRelease(Source, ABC):
    """One release; its class says how its files are called and what their fields mean.

    Class attributes: `year`, `release` (how messages call it), `page`, `forms` (the usual one
    first), `listed` (category and form suffix of the datasets that are listed), `published`
    (statistics by the same), `columns` (of the item table), `key` (field that items are joined
    by), `scrap` (see `ItemTable`).
    """

    year: ClassVar[int]
    release: ClassVar[str]
    page: ClassVar[str]
    forms: ClassVar[tuple[Form, ...]]
    listed: ClassVar[tuple[tuple[str, str], ...]]
    published: ClassVar[Mapping[tuple[str, str], tuple[Published, ...]]] = {}
    columns: ClassVar[tuple[str, ...]]
    key: ClassVar[str] = "asin"
    scrap: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 5, "item_min": 5}

    @classmethod
    @abstractmethod
    def remote_files(cls, category: str, form: Form) -> tuple[RemoteFile, ...]:
        """What can be fetched for a dataset."""

    @classmethod
    @abstractmethod
    def classify(cls, path: Path) -> tuple[str, str] | None:
        """Kind and category of a file of this release, None for any other file."""

    @abstractmethod
    def read_file(self, kind: str, path: Path, cure: str, warnings: list[str]) -> pl.DataFrame:
        """The interactions of one file: user, item, rating and timestamp."""

    @abstractmethod
    def item_row(self, record: Mapping[str, object]) -> dict[str, str | None]:
        """The row of the item table that a metadata record makes, without its id."""

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The datasets that are commonly used; `find_card` knows every category."""
        forms = {form.suffix: form for form in cls.forms}
        return tuple(cls.card_of(category, forms[suffix]) for category, suffix in cls.listed)

    @classmethod
    def card_of(cls, category: str, form: Form) -> Card:
        """The card of one form of one category."""
        ending = f"-{form.suffix}" if form.suffix else ""
        names = [
            f"{prefix(cls.year)}-{name}{ending}"
            for name in (short_name(category), long_name(category))
        ]
        return Card(
            name=names[0],
            title=f"{category.replace('_', ' ')}: {form.what}, {cls.release}",
            citation=cls.citation,
            terms=cls.terms,
            page=cls.page,
            aliases=tuple(name for name in names[1:] if name != names[0]),
            files=cls.remote_files(category, form),
            published=cls.published.get((category, form.suffix), ()),
            facts={"category": category, "form": form.suffix},
        )

    @classmethod
    def find_card(cls, name: str) -> Card | None:
        """The card of any form of any category of this release.

        Raises:
            DataError: another release has the category, this one has not.
            UnknownNameError: no release has it.
        """
        start, _, rest = name.partition("-")
        if start != prefix(cls.year) or not rest:
            return None
        for form in sorted(cls.forms, key=lambda form: -len(form.suffix)):
            ending = f"-{form.suffix}" if form.suffix else ""
            category = find_category(cls.year, rest.removesuffix(ending))
            if category is not None and rest.endswith(ending):
                return cls.card_of(category, form)
        raise cls.no_category(rest)

    @classmethod
    def no_category(cls, word: str) -> DataError | UnknownNameError:
        """What to say of a category that this release does not have."""
        own = [f"{prefix(cls.year)}-{short_name(category)}" for category in CATEGORIES[cls.year]]
        others = with_category(word)
        if not others:
            return UnknownNameError(f"category of {cls.release}", f"{prefix(cls.year)}-{word}", own)
        near = [known for known in own if word in known.split("-")]
        return DataError(
            f"E102 {cls.release} has no category '{word}'. {' and '.join(others)} "
            f"{'have' if len(others) > 1 else 'has'} it, with other products and users"
            + (f"; nearest in this release: {', '.join(near)}" if near else "")
            + ". Say which one you mean"
        )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether interactions of this release are in the folder, or below it."""
        if _holds(folder, "5-core"):  # LATTICE keeps the raw files beside its own
            return False
        found = cls._look(folder)
        readings = cls._readings(found)
        # What mmbench itself fetches has metadata too; without, it was cut short.
        if _holds(folder, LEDGER):
            readings = [known for known in readings if ("meta", known.category) in found]
        return bool(readings)

    @classmethod
    def _look(cls, folder: Path) -> dict[tuple[str, str], Path]:
        """The files of this release by kind and category, the least deep first."""
        found: dict[tuple[str, str], Path] = {}
        for path in list_files(folder):
            known = cls.classify(path)
            if known is not None:
                found.setdefault(known, path)
        return found

    @classmethod
    def _readings(cls, found: Mapping[tuple[str, str], Path]) -> list[Reading]:
        """Every way to read interactions from these files, for each form the best first."""
        return [
            Reading(category, form, {kind: found[kind, category] for kind in kinds})
            for form in cls.forms
            for kinds in form.readings
            for category in CATEGORIES[cls.year]
            if all((kind, category) in found for kind in kinds)
        ]

    def _choose(self, folder: Path, found: Mapping[tuple[str, str], Path]) -> Reading:
        """The reading that is meant.

        Raises:
            DataError: there is none, or there are several categories and no name that tells.
        """
        possible = self._readings(found)
        categories = sorted({reading.category for reading in possible})
        if self.card is None:
            if len(categories) > 1:
                names = ", ".join(f"{prefix(self.year)}-{short_name(c)}" for c in categories[:5])
                raise DataError(
                    f"E103 {folder} holds several categories ({', '.join(categories[:5])}); name "
                    f"the dataset after the one you mean: {names}, or leave one in the folder"
                )
            if possible:
                return possible[0]
            raise DataError(
                f"E101 no interactions of {self.release} found under {folder}; expected "
                f"{self.expects}"
            )
        category, suffix = self.card.facts["category"], self.card.facts["form"]
        for reading in possible:
            if (reading.category, reading.form.suffix) == (category, suffix):
                return reading
        missing = self.card.files[0]
        cure = f"get it from {missing.addresses[0]}"
        name = missing.path.rpartition("/")[2]
        for path in list_files(folder):  # there, but not what its name says
            if path.name.removesuffix(".gz") == name.removesuffix(".gz"):
                start = _first_line(path, cure)  # says what is wrong with a broken file
                raise DataError(
                    f"E106 {path} is no such table of {self.release}, it begins with "
                    f"'{start[:60]}'; {cure}"
                )
        others = [held for held in categories if held != category]
        there = f", but files of {' and '.join(others[:5])}" if others else ""
        raise DataError(
            f"E101 {missing.path} not found under {folder}{there}; {cure}, or run mmbench prepare "
            f"{self.card.name} --download"
        )

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        found = self._look(source)
        reading = self._choose(source, found)
        category = reading.category
        card = self.card or self.card_of(category, reading.form)
        cure = f"get it again from {card.files[0].addresses[0]}"
        parts = []
        for kind, path in reading.files.items():
            label = {"train": 0, "valid": 1, "test": 2}.get(kind.rpartition("/")[2])
            frame = self.read_file(kind, path, cure, warnings)
            parts.append(frame.with_columns(pl.lit(label, pl.Int8).alias("split")))
        files = list(reading.files.values())
        images = source / "images"
        metadata = found.get(("meta", category))
        named = next(file for file in card.files if "meta_" in file.path)
        table = None
        if metadata is not None:
            table = ItemTable(
                metadata, files[0], self.key, self.columns, self.item_row,
                cure=f"get it again from {named.addresses[0]}",
                scrap=self.scrap,
                # What mmbench fetched into a folder of its own, it finds by the addresses.
                pictures={} if _holds(source, LEDGER) else list_pictures(images),
                warnings=warnings,
            )  # fmt: skip
            files += shards(metadata)
        else:
            warnings.append(
                f"W262 {named.path} is not under {source}: items have neither texts nor pictures; "
                f"get it from {named.addresses[0]}"
            )
        features = self.read_features(found, category, warnings)
        return RawDataset(
            interactions=pl.concat(parts),
            items=table,
            text_fields=("title", "brand", "categories", "description") if table else (),
            image_root=images if images.is_dir() else None,
            features=features,
            files=(*files, *(stored.path for stored in features)),
            facts={
                "release": self.year,
                "category": category,
                "interactions_from": next(iter(reading.files)).partition("/")[0],
            },
            warnings=warnings,
        )

    def read_features(
        self, found: Mapping[tuple[str, str], Path], category: str, warnings: list[str]
    ) -> tuple[RawFeatures, ...]:
        """The feature matrices of a category; most releases have none."""
        return ()


def list_files(folder: Path) -> list[Path]:
    """Files in the folder, one folder deeper, and further down where the releases' own folders go.

    Sorted by depth and then by name, so that a file comes before its compressed twin. A folder
    that cannot be read counts as empty.
    """
    files: list[Path] = []
    level = [folder]
    for depth in range(5):
        below: list[Path] = []
        for place in level:
            try:
                with os.scandir(place) as entries:
                    held = sorted(
                        islice(entries, _ENTRIES if depth else None), key=lambda entry: entry.name
                    )
            except OSError:
                continue
            for entry in held:
                kind = _kind(entry)
                if kind == "file":
                    files.append(Path(entry.path))
                elif kind == "folder" and (depth == 0 or entry.name in _DEEP):
                    below.append(Path(entry.path))
        level = below
    return files


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else "other"
    except OSError:  # a link that leads in a circle, for example
        return "other"


def _holds(folder: Path, name: str) -> bool:
    try:
        return (folder / name).exists()
    except OSError:
        return False


def reviews(path: Path, fields: Mapping[str, str], cure: str, warnings: list[str]) -> pl.DataFrame:
    """Interactions from a file of reviews, one object per line.

    `fields` names the fields that hold `user`, `item`, `rating` and `timestamp`.
    """
    types = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
    frame = read_scalars(
        path, {fields[name]: types[name] for name in types}, warnings=warnings, cure=cure
    )
    return frame.select(pl.col(fields[name]).alias(name) for name in types)


def ratings(
    path: Path, columns: Sequence[str] | None, cure: str, warnings: list[str]
) -> pl.DataFrame:
    """Interactions from a table separated by commas.

    `columns` names its columns; None means that line 1 does, as user_id, parent_asin, rating and
    timestamp.
    """
    names = ("user", "item") if columns is not None else ("user_id", "parent_asin")
    frame = read_delimited(
        path,
        ",",
        columns=columns,
        keep=(*names, "rating", "timestamp"),
        numbers=("rating",),
        times=("timestamp",),
        cure=cure,
        warnings=warnings,
    )
    need_columns(frame, path, (*names, "rating", "timestamp"))
    return frame.select(
        pl.col(names[0]).alias("user"), pl.col(names[1]).alias("item"), "rating", "timestamp"
    )


def first_line(path: Path) -> str:
    """The beginning of a text file up to the end of its first line, "" for any other file."""
    try:
        return _first_line(path, "")
    except DataError:
        return ""


def _first_line(path: Path, cure: str) -> str:
    start = next(read_pieces(path, cure=cure, size=1024), b"")
    return start.partition(b"\n")[0][:1024].decode("utf-8", "replace").strip()
