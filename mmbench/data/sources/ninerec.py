"""NineRec: two source sets of short videos (Bili) and nine target sets from five sites.

D_pair.csv           no header: user, item, timestamp, or item, user, timestamp; ids of users
                     begin with u, ids of items with v; QB and TN have no times
D_behaviour.tsv      user<TAB>item item ..., from old to new; comes with QB and TN
D_item.csv           no header: item, Chinese text, English text (quoted where they hold commas)
D_cover/             <item>.jpg; Bili_2M and Bili_500K share Source_Bili_2M_cover

The English text is the field `title` and the default; `--text-fields title_zh` takes the Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from mmbench.data.cards import Card, Published
from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.histories import (
    check_listed,
    choose,
    compare_histories,
    first_line,
    interactions,
    matching_files,
    named_items,
    places_of,
    read_histories,
    with_pictures,
)
from mmbench.data.tables import Lines, read_delimited, read_header
from mmbench.errors import DataError

_PAGE = "https://github.com/westlake-repl/NineRec"
_CURE = f"take the file from {_PAGE}"
_CITATION = (
    "J. Zhang, Y. Cheng, Y. Ni, Y. Pan, Z. Yuan, J. Fu, Y. Li, J. Wang and F. Yuan. NineRec: A "
    "Benchmark Dataset Suite for Evaluating Transferable Recommendation. TPAMI 2024."
)
_TERMS = "research use; offering modified copies of the data for download is prohibited"
_FILES = re.compile(r"(?P<name>.+)_(?P<kind>pair\.csv|behaviou?r\.tsv)", re.I)
_PAIR = re.compile(r"(u[^,]*,v[^,]*|v[^,]*,u[^,]*)(,[^,]*)?\s*")
_HISTORY = re.compile(r"u[^\t ]*\tv[^\t ]*( v[^\t ]*)*\s*")
_SHARED = ("Bili_2M", "Bili_500K")


def _card(domain: str, users: int, items: int, rows: int, aliases: tuple[str, ...] = ()) -> Card:
    timeless = domain in ("QB", "TN")
    needed = f"{domain}_behaviour.tsv" if timeless else f"{domain}_pair.csv"
    cover = "Source_Bili_2M_cover" if domain in _SHARED else f"{domain}_cover"
    archive = "Source Datasets" if domain in _SHARED else "Downstream Datasets"
    times = ", without times" if timeless else ""
    return Card(
        name="ninerec-" + domain.lower().replace("_", "-"),
        title=f"NineRec {domain}: {items:,} items with text and cover{times}",
        citation=_CITATION,
        terms=_TERMS,
        page=_PAGE,
        aliases=aliases,
        by_hand=(
            f"{domain} lies in the archive '{archive}' on Google Drive, which {_PAGE} links. "
            f"Unpack it, and put {needed}, {domain}_item.csv and the folder {cover} (it may be "
            "left out) into {folder}. Or pass the folder that holds them with --source."
        ),
        published=(Published(users, items, rows, where="its authors, README of the data"),),
        facts={"dataset": domain},
    )


_CARDS = (
    _card("Bili_2M", 2_000_000, 144_146, 24_497_157, ("ninerec-bili",)),
    _card("Bili_500K", 500_000, 138_033, 7_845_805),
    _card("Bili_Food", 6_549, 1_579, 39_740),
    _card("Bili_Dance", 10_715, 2_307, 83_392),
    _card("Bili_Movie", 16_525, 3_509, 115_576),
    _card("Bili_Cartoon", 30_300, 4_724, 215_443),
    _card("Bili_Music", 50_664, 6_038, 360_177),
    _card("KU", 2_034, 5_370, 18_519, ("ninerec-kwai",)),
    _card("QB", 17_722, 6_121, 133_664),
    _card("TN", 20_211, 3_334, 122_576),
    _card("DY", 20_398, 8_299, 139_834),
)


@register_dataset("ninerec")
class NineRec(Source):
    """A set of NineRec, or any dataset in its files; no core is taken, the text is English."""

    title = "NineRec and folders like it (D_pair.csv or D_behaviour.tsv, D_item.csv, D_cover/)"
    citation = _CITATION
    terms = _TERMS
    layout = True
    expects = (
        "D_pair.csv (user u..., item v..., time; no header) or D_behaviour.tsv (user<TAB>item item "
        "...); D_item.csv (item, Chinese, English) and D_cover/ where you have them"
    )
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 0, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The source sets and the nine targets."""
        return _CARDS

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there are pairs or histories of u... and v... ids."""
        return any(
            (_HISTORY if path.suffix.lower() == ".tsv" else _PAIR).match(first_line(path))
            for path in matching_files(folder, _FILES, depth=2)
        )

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        card = self.card
        wanted = card.facts["dataset"] if card else None
        found: dict[str, dict[str, Path]] = {}
        for path in matching_files(source, _FILES, depth=2):
            match = _FILES.fullmatch(path.name)
            assert match is not None
            found.setdefault(match["name"], {}).setdefault(path.suffix.lower(), path)
        if not found:
            raise DataError(
                f"E101 {wanted or 'D'}_pair.csv and {wanted or 'D'}_behaviour.tsv not found under "
                f"{source}; {_CURE}"
            )
        name = choose(
            {name: next(iter(kinds.values())) for name, kinds in found.items()},
            wanted,
            source,
            card.name if card else "",
        )
        kinds = found[name]
        pairs, path, facts = _read_interactions(kinds, warnings)
        files = list(kinds.values())
        items = None
        listed = path.with_name(f"{name}_item.csv")
        if listed.is_file():
            items = _read_items(listed, warnings)
            files.append(listed)
            check_listed(pairs["item"], path, items["item"], listed, warnings)
        shared = ("Source_Bili_2M_cover",) if name in _SHARED else ()
        covers = (*shared, f"{name}_cover", f"{name}_covers", "cover", "covers", "images")
        table, pictures = with_pictures(
            items, pairs["item"], places_of(path, source), covers, warnings
        )
        return RawDataset(
            interactions=interactions(pairs),
            items=table,
            text_fields=("title",) if items is not None else (),
            image_root=pictures,
            files=tuple(files),
            facts=facts,
            warnings=warnings,
        )


def _read_interactions(
    kinds: Mapping[str, Path], warnings: list[str]
) -> tuple[pl.DataFrame, Path, dict[str, object]]:
    """The interactions, the file they are from, and what to say of them.

    Pairs come first if they have times; without times, histories at least tell the order.
    """
    pairs_file, histories = kinds.get(".csv"), kinds.get(".tsv")
    if pairs_file is not None:
        pairs = _read_pairs(pairs_file, warnings)
        timed = "timestamp" in pairs.columns and pairs["timestamp"].null_count() < pairs.height
        used = pairs_file if timed or histories is None else histories
        if histories is not None:
            compare_histories(pairs, pairs_file, histories, used, cure=_CURE, warnings=warnings)
        if used == pairs_file:
            return pairs, pairs_file, {"interactions_from": pairs_file.name}
    assert histories is not None
    pairs = read_histories(histories, cure=_CURE, warnings=warnings)
    _check_prefixes(pairs["user"], pairs["item"], histories, None)
    return pairs, histories, {"interactions_from": histories.name, "has_order": True}


def _read_pairs(path: Path, warnings: list[str]) -> pl.DataFrame:
    """Pairs with the columns told apart by the prefixes of their ids."""
    start = read_header(path, ",", cure=_CURE)  # the first row: there is no header
    columns = ("first", "second", "timestamp")[: len(start)]
    if len(start) not in (2, 3):
        raise DataError(
            f"E112 {path}:1: {len(start)} fields, expected user, item and time; mend the file"
        )
    prefixes = start[0][:1] + start[1][:1]
    if prefixes not in ("uv", "vu"):
        raise _untold(path, 1, start[0], start[1], 1)
    user, item = ("first", "second") if prefixes == "uv" else ("second", "first")
    frame = read_delimited(
        path, ",", columns=columns, times=("timestamp",), cure=_CURE, warnings=warnings
    )
    _check_prefixes(frame[user], frame[item], path, frame.lines)
    return frame.rename({user: "user", item: "item"})


def _read_items(path: Path, warnings: list[str]) -> pl.DataFrame:
    columns = ("item", "title_zh", "title")
    items = read_delimited(path, ",", columns=columns, quoted=True, cure=_CURE, warnings=warnings)
    return named_items(items.select("item", "title", "title_zh"), path, warnings)


def _check_prefixes(users: pl.Series, items: pl.Series, path: Path, lines: Lines | None) -> None:
    """Refuse ids that do not tell which is the user and which the item.

    Args:
        lines: of the rows, None where a line holds several.
    """
    for ids, prefix in ((users, "u"), (items, "v")):
        wrong = ~ids.str.strip_chars().str.starts_with(prefix).fill_null(True)
        if wrong.any():
            row = int(np.flatnonzero(wrong.to_numpy())[0])
            line = lines.of(row) if lines is not None else None
            raise _untold(path, line, users[row], items[row], int(wrong.sum()))


def _untold(path: Path, line: int | None, user: str, item: str, n_rows: int) -> DataError:
    where = path if line is None else f"{path}:{line}"
    return DataError(
        f"E113 {where}: '{user}' and '{item}' do not tell user from item ({n_rows} such rows); "
        "ids of users begin with u, ids of items with v, and the order is the same in every line"
    )
