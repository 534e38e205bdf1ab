"""MicroLens: short videos with titles, covers and published features.

<name>_pairs.csv     header user,item,timestamp; milliseconds; <name> is MicroLens-100k, ...
<name>_pairs.tsv     the same without times: user<TAB>item item ..., from old to new
<name>_titles.csv    (50k) header item,title, cells quoted where they hold commas
<name>_title_en.csv  (100k) id,title without a header; everything after the first comma is title
tags_to_summary.csv  (100k) id,category
<name>_likes_and_views.txt   id<TAB>likes<TAB>views, of an unknown day
<name>_covers/       <item>.jpg
extracted_modality_features/  (100k) .npy, row i is item i + 1

Likes and views are kept as fields of the item and never enter its text: they count what users
did, held-out interactions included.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from mmbench.data.cards import Card, Published, RemoteFile
from mmbench.data.features import import_matrix
from mmbench.data.source import RawDataset, RawFeatures, Source, register_dataset
from mmbench.data.sources.histories import (
    check_listed,
    choose,
    compare_histories,
    first_line,
    interactions,
    matching_files,
    places_of,
    read_histories,
    with_pictures,
)
from mmbench.data.sources.numbered_titles import read_numbered
from mmbench.data.tables import need_columns, read_delimited, read_header
from mmbench.errors import DataError

_HOME = "https://recsys.westlake.edu.cn/"
_PAGE = "https://github.com/westlake-repl/MicroLens"
_CURE = f"take the file from {_PAGE}"
_CITATION = (
    "Y. Ni, Y. Cheng, X. Liu, J. Fu, Y. Li, X. He, Y. Zhang and F. Yuan. A Content-Driven "
    "Micro-Video Recommendation Dataset at Scale. arXiv:2309.15379, 2023."
)
_TERMS = "research use; offering modified copies of the data for download is prohibited"
_PAIRS = re.compile(r"(?P<name>.+)_pairs\.(?P<kind>csv|tsv)", re.I)
_HISTORY = re.compile(r"\d+\t\d+( \d+)*\s*")
_HEADER = ("user", "item", "timestamp")
_FEATURES = re.compile(r"(?P<name>.+)_(?P<medium>text|image|video|audio)_features_(?P<by>.+)\.npy")
_MODALITY = {"text": "textual", "image": "visual", "video": "visual", "audio": "acoustic"}
_ENCODERS = {"bgem3": "bge-m3", "cliprn50": "clip-rn50", "videomae": "videomae"}


def _file(subset: str, name: str, *, part: str = "core", **more: object) -> RemoteFile:
    address = f"{_HOME}MicroLens-{subset}-Dataset/{name}"
    return RemoteFile(name, (address,), part, **more)  # type: ignore[arg-type]


def _covers(subset: str, **more: object) -> RemoteFile:
    return _file(
        subset, f"MicroLens-{subset}_covers.zip", part="pictures", unpacks_to="covers", **more
    )


_CARDS = (
    Card(
        name="microlens-50k",
        title="MicroLens-50K: 50,000 users of a short-video site, titles and covers",
        citation=_CITATION,
        terms=_TERMS,
        page=_PAGE,
        # Sizes and hashes are those that several users of the release measured and agree on.
        files=(
            _file(
                "50k",
                "MicroLens-50k_pairs.csv",
                bytes=9_431_093,
                sha256="7ff8b91bcc84f5434ac2c5be7d0b7d7730f5e84f79f9648b5ae67a7641f97bbd",
            ),
            _file(
                "50k",
                "MicroLens-50k_titles.csv",
                bytes=2_392_145,
                sha256="244aad5380cbbe0fb43458cfcda5ebe820f534384602f80a64dbbcd07dd30e49",
            ),
            _covers("50k"),
        ),
        published=(Published(50_000, 19_220, 359_708, where="its authors, README of the data"),),
        facts={"dataset": "MicroLens-50k"},
    ),
    Card(
        name="microlens-100k",
        title="MicroLens-100K: 100,000 users of a short-video site, titles, covers and features",
        citation=_CITATION,
        terms=_TERMS,
        page=_PAGE,
        files=(
            _file("100k", "MicroLens-100k_pairs.csv"),
            _file("100k", "MicroLens-100k_title_en.csv"),
            _file("100k", "tags_to_summary.csv", part="tags"),
            _covers("100k"),
            *(
                _file(
                    "100k",
                    f"extracted_modality_features/MicroLens-100k_{features}.npy",
                    part="features",
                )
                for features in (
                    "title_en_text_features_BgeM3",
                    "image_features_CLIPRN50",
                    "video_features_VideoMAE",
                )
            ),
        ),
        published=(Published(100_000, 19_738, 719_405, where="Ni et al. 2023"),),
        facts={"dataset": "MicroLens-100k"},
    ),
    Card(
        name="microlens-1m",
        title="MicroLens-1M: a million users of a short-video site, titles and covers",
        citation=_CITATION,
        terms=_TERMS,
        page=_PAGE,
        by_hand=(
            "Ask its authors for MicroLens-1M, and put MicroLens-1M_pairs.csv, "
            "MicroLens-1M_title.csv and, if you want pictures, the unpacked folder "
            "MicroLens-1M_covers into {folder}. Or pass the folder that holds them with --source."
        ),
        published=(Published(1_000_000, 91_402, 9_095_620, where="Ni et al. 2023"),),
        facts={"dataset": "MicroLens-1M"},
    ),
)


@register_dataset("microlens")
class MicroLens(Source):
    """MicroLens, or any dataset in its files; no core is taken, an item's text is its title."""

    title = "MicroLens and folders like it (NAME_pairs.csv, NAME_titles.csv, NAME_covers/)"
    citation = _CITATION
    terms = _TERMS
    layout = True
    expects = (
        "NAME_pairs.csv (header user,item,timestamp) or NAME_pairs.tsv (user<TAB>item item ...); "
        "NAME_titles.csv or NAME_title_en.csv, NAME_covers/ and "
        "extracted_modality_features/*.npy where you have them"
    )
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 0, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The subsets that its authors published."""
        return _CARDS

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is a file of pairs or histories whose first line is of their form."""
        return any(_looks_right(path) for path in matching_files(folder, _PAIRS, depth=1))

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        card = self.card
        found: dict[str, dict[str, Path]] = {}
        for path in matching_files(source, _PAIRS, depth=1):
            match = _PAIRS.fullmatch(path.name)
            assert match is not None
            found.setdefault(match["name"], {}).setdefault(match["kind"].lower(), path)
        wanted = card.facts["dataset"] if card else None
        if not found:
            raise DataError(f"E101 {wanted or 'NAME'}_pairs.csv not found under {source}; {_CURE}")
        name = choose(
            {name: next(iter(kinds.values())) for name, kinds in found.items()},
            wanted,
            source,
            card.name if card else "",
        )
        kinds = found[name]
        if "csv" in kinds:
            path = kinds["csv"]
            pairs = _read_pairs(path, warnings)
            if "tsv" in kinds:
                compare_histories(pairs, path, kinds["tsv"], path, cure=_CURE, warnings=warnings)
        else:
            path = kinds["tsv"]
            pairs = read_histories(path, cure=_CURE, warnings=warnings)
        files = list(kinds.values())
        items, titles = _read_items(name, path.parent, pairs["item"], path, files, warnings)
        features = _find_features(name, path, found, pairs["item"], titles)
        files += [stored.path for stored in features]
        covers = (f"{name}_covers", "covers", "cover", "images")
        described, pictures = with_pictures(
            items, pairs["item"], places_of(path, source), covers, warnings
        )
        facts: dict[str, object] = {"interactions_from": path.name}
        if "csv" not in kinds:
            facts["has_order"] = True
        return RawDataset(
            interactions=interactions(pairs),
            items=described,
            text_fields=("title",) if titles is not None else (),
            image_root=pictures,
            features=features,
            files=tuple(files),
            facts=facts,
            warnings=warnings,
        )


def _looks_right(path: Path) -> bool:
    line = first_line(path)
    if path.suffix.lower() == ".tsv":
        return _HISTORY.match(line) is not None
    return {cell.strip() for cell in line.split(",")} >= set(_HEADER)


def _read_pairs(path: Path, warnings: list[str]) -> pl.DataFrame:
    header = read_header(path, ",", cure=_CURE)
    if all(re.fullmatch(r"\d+", cell) for cell in first_line(path).split(",")):
        raise DataError(
            f"E113 {path}:1: '{first_line(path)}' is no header; the first line must be "
            f"{','.join(_HEADER)}, which tells the columns apart"
        )
    need_columns(header, path, _HEADER)
    pairs = read_delimited(
        path, ",", keep=_HEADER, times=("timestamp",), cure=_CURE, warnings=warnings
    )
    if pairs.height == 0:
        raise DataError(f"E241 {path} has a header and no rows; {_CURE}")
    return pairs


def _read_items(
    name: str, home: Path, used: pl.Series, used_in: Path, files: list[Path], warnings: list[str]
) -> tuple[pl.DataFrame | None, pl.Series | None]:
    """The item table as far as there is one, and the ids that the titles list."""
    titles = _first_of(home, (f"{name}_titles.csv", f"{name}_title_en.csv", f"{name}_title.csv"))
    if titles is None:
        return None, None
    items = read_numbered(titles, ",", ("title",), cure=_CURE, warnings=warnings)
    files.append(titles)
    check_listed(used, used_in, items["item"], titles, warnings)
    listed = items["item"]
    for path, separator, fields in (
        (_first_of(home, ("tags_to_summary.csv",)), ",", ("category",)),
        (_first_of(home, (f"{name}_likes_and_views.txt",)), "\t", ("likes", "views")),
    ):
        if path is not None:
            more = read_numbered(path, separator, fields, cure=_CURE, warnings=warnings)
            if more["item"].is_duplicated().any():
                twice = more["item"].filter(more["item"].is_duplicated())[0]
                raise DataError(f"E261 {path}: item '{twice}' has several lines; keep one")
            items = items.join(more, on="item", how="left", maintain_order="left")
            files.append(path)
    return items, listed


def _first_of(home: Path, names: tuple[str, ...]) -> Path | None:
    return next((home / name for name in names if (home / name).is_file()), None)


def _find_features(
    name: str,
    pairs: Path,
    datasets: Collection[str],
    used: pl.Series,
    listed: pl.Series | None,
) -> tuple[RawFeatures, ...]:
    """The published matrices, in a folder of their own or beside the pairs.

    Those of other `datasets` that are in the folder too are passed over.
    """
    features: list[RawFeatures] = []
    for folder in (pairs.parent / "extracted_modality_features", pairs.parent):
        for path in sorted(folder.glob("*_features_*.npy")):
            match = _FEATURES.fullmatch(path.name)
            if match is None:
                raise DataError(
                    f"E118 {path}: the name tells no modality; call it "
                    f"{name}_image_features_ENCODER.npy (or _text_, _video_, _audio_), or remove it"
                )
            # What the matrix was made from may stand in between: NAME_title_en_text_features_...
            owner = match["name"].lower()
            if not owner.startswith(name.lower()):
                if any(owner.startswith(other.lower()) for other in datasets):
                    continue
                raise DataError(
                    f"E251 {path} belongs to another dataset than {pairs.name}; its rows are other "
                    f"items, so remove it or name it {name}_..."
                )
            key = (_MODALITY[match["medium"]], _encoder(match["by"]))
            if any((stored.modality, stored.encoder) == key for stored in features):
                raise DataError(f"E118 {path}: there is another {' '.join(key)} set; keep one")
            rows = _check_numbered(path, import_matrix(path).shape[0], pairs, used, listed)
            features.append(RawFeatures(path, *key, tuple(map(str, range(1, rows + 1)))))
    return tuple(features)


def _encoder(name: str) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return _ENCODERS.get(slug, slug or "imported")


def _check_numbered(
    path: Path, rows: int, pairs: Path, used: pl.Series, listed: pl.Series | None
) -> int:
    """Refuse a matrix that cannot have one row for each of the items 1, 2, ..., n."""
    ids = used if listed is None else listed
    numbers = ids.drop_nulls().unique().cast(pl.Int64, strict=False)
    if numbers.null_count():
        raise DataError(
            f"E251 {path}: row i belongs to item i + 1, but items of {pairs.name} are not numbers; "
            "remove the file, or use the plain layout, which names the item of each row"
        )
    n_items = int(np.max(numbers.to_numpy(), initial=0))
    if rows < n_items or (listed is not None and rows > n_items):
        raise DataError(
            f"E251 {path}: {rows} rows, dataset has {n_items} items; row i belongs to item i + 1, "
            "so the matrix belongs to another dataset or is not complete"
        )
    return rows
