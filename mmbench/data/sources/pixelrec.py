"""PixelRec: videos of one site with covers, titles, tags and descriptions.

interactions         CSV, header item_id,user_id,timestamp (in this order); Unix seconds
item information     CSV, header item_id, seven counters, title, tag, description; quoted cells
cover/               <item_id>.jpg; item ids i0 to i408373 mean the same item in every subset

Pixel200K, Pixel1M, Pixel8M and PixelRec lie in two folders as files of the same name
(Pixel200K.csv and Pixel200K.csv); PixelRec50K is interaction.csv and item_info.csv. The header
tells them apart. The feature files (text_feature.json, image_feature.json) are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.cards import Card, Published
from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.histories import (
    check_listed,
    choose,
    first_line,
    interactions,
    matching_files,
    named_items,
    places_of,
    with_pictures,
)
from mmbench.data.tables import need_columns, read_delimited, read_header
from mmbench.errors import DataError

_PAGE = "https://github.com/westlake-repl/PixelRec"
_CURE = f"take the file from {_PAGE}"
_CITATION = (
    "Y. Cheng, Y. Pan, J. Zhang, Y. Ni, A. Sun and F. Yuan. An Image Dataset for Benchmarking "
    "Recommender Systems with Raw Pixels. SDM 2024."
)
_TERMS = "non-commercial research and education only; no redistribution, modified or not"
_TABLE = re.compile(r"(pixel\w*|interaction|item_?info)\.csv", re.I)
_HEADER = ("item_id", "user_id", "timestamp")
_TEXT = ("title", "tag", "description")
_FIFTY = "PixelRec50K"


def _card(dataset: str, name: str, counts: tuple[int, int, int], where: str) -> Card:
    files = (
        f"from the folder Interaction {dataset}.csv into {{folder}}/interaction, from the folder "
        f"Item Information {dataset}.csv into {{folder}}/item_info, and the unpacked pictures of "
        "Cover into {folder}/cover"
        if dataset != _FIFTY
        else "interaction.csv and item_info.csv from the folder of PixelRec50K into {folder}, and "
        "the unpacked pictures of cover.7z into {folder}/cover"
    )
    users, items, rows = counts
    return Card(
        name=name,
        title=f"{dataset}: {users:,} users of a video site, {items:,} covers with texts",
        citation=_CITATION,
        terms=_TERMS,
        page=_PAGE,
        by_hand=(
            f"The files lie on Google Drive; {_PAGE} links them. Put {files} (pictures may be "
            "left out). Or pass the folder that holds them with --source."
        ),
        published=(Published(users, items, rows, where=where),),
        facts={"dataset": dataset},
    )


_CARDS = (
    _card(_FIFTY, "pixelrec-50k", (50_000, 82_865, 989_494), "its authors, README of the data"),
    _card("Pixel200K", "pixelrec-200k", (200_000, 96_282, 3_965_656), "Cheng et al. 2024"),
    _card("Pixel1M", "pixelrec-1m", (1_001_822, 100_541, 19_886_579), "Cheng et al. 2024"),
    _card("Pixel8M", "pixelrec-8m", (8_886_078, 407_082, 158_488_652), "Cheng et al. 2024"),
)


@register_dataset("pixelrec")
class PixelRec(Source):
    """PixelRec, or any dataset in its files; no core is taken, an item's text is its title."""

    title = "PixelRec and folders like it (item_id,user_id,timestamp; item information; cover/)"
    citation = _CITATION
    terms = _TERMS
    layout = True
    expects = (
        "Pixel*.csv or interaction.csv (header item_id,user_id,timestamp); Pixel*.csv or "
        "item_info.csv with item_id and title, and cover/ where you have them"
    )
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 0, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The subsets that its authors published."""
        return _CARDS

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is a table of interactions with PixelRec's name and header."""
        return bool(_find_tables(folder)[0])

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        card = self.card
        found, described = _find_tables(source)
        if not found:
            raise _not_found(source)
        name = choose(
            found, card.facts["dataset"] if card else None, source, card.name if card else ""
        )
        path = found[name]
        pairs = pl.DataFrame(
            read_delimited(path, ",", times=("timestamp",), cure=_CURE, warnings=warnings)
        ).rename({"user_id": "user", "item_id": "item"})
        if pairs.height == 0:
            raise DataError(f"E241 {path} has a header and no rows; {_CURE}")
        files = [path]
        items = None
        # Ids mean the same in every subset, so the information of another one serves as well.
        information = described.get(name) or next(iter(described.values()), None)
        if information is not None:
            items = _read_items(information, warnings)
            files.append(information)
            check_listed(pairs["item"], path, items["item"], information, warnings)
        table, pictures = with_pictures(
            items,
            pairs["item"],
            places_of(path, source),
            ("cover", "covers", "images", "image"),
            warnings,
        )
        return RawDataset(
            interactions=interactions(pairs),
            items=table,
            text_fields=("title",) if items is not None else (),
            image_root=pictures,
            files=tuple(files),
            facts={"interactions_from": path.name},
            warnings=warnings,
        )


def _find_tables(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Tables of interactions and of items by the dataset, told apart by their headers."""
    pairs: dict[str, Path] = {}
    items: dict[str, Path] = {}
    for path in matching_files(folder, _TABLE, depth=2):
        header = {cell.strip().strip('"') for cell in first_line(path).split(",")}
        name = path.stem if path.stem.lower().startswith("pixel") else _FIFTY
        if header == set(_HEADER):
            pairs.setdefault(name, path)
        elif {"item_id", "title"} <= header and "user_id" not in header:
            items.setdefault(name, path)
    return pairs, items


def _not_found(source: Path) -> DataError:
    seen = matching_files(source, _TABLE, depth=2)
    for path in seen:
        read_header(path, ",", cure=_CURE)  # says what is wrong with a file of another kind
    wanted = f"the first line of the interactions must be {','.join(_HEADER)}"
    if not seen:
        return DataError(
            f"E101 no Pixel*.csv or interaction.csv found under {source}; {wanted}; {_CURE}"
        )
    lines = "; ".join(f"{path}:1 is '{first_line(path)[:80]}'" for path in seen[:3])
    return DataError(f"E113 {lines}; {wanted}, which tells the columns apart")


def _read_items(path: Path, warnings: list[str]) -> pl.DataFrame:
    frame = read_delimited(path, ",", quoted=True, cure=_CURE, warnings=warnings)
    need_columns(frame, path, ("item_id", "title"))
    others = [name for name in frame.columns if name not in ("item_id", "item")]
    fields = [*(name for name in _TEXT if name in others), *(n for n in others if n not in _TEXT)]
    items = frame.select(pl.col("item_id").alias("item"), *fields)
    return named_items(items, path, warnings)
