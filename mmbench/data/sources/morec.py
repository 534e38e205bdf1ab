"""MoRec and studies after it: histories, an item list, a folder of pictures.

*_users.tsv          user<TAB>item item ..., items from old to new; no times
*_items.tsv          one line per item: id, or id<TAB>title, or id<TAB>title<TAB>abstract
<name>_images/       <item id>.jpg; an LMDB holds pickled objects and is never read

The two files share what stands around `users` and `items` in their names: hm_50w_users.tsv and
hm_50w_items.tsv, hm_pick_users_20W.tsv and hm_pick_items_20W.tsv. MoRec's loaders skip users with
fewer than five entries, and so do we, but an item that comes back counts once; every history is
kept whole, while theirs cut it to a setting of the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.cards import Card
from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.histories import (
    check_listed,
    choose,
    first_line,
    interactions,
    matching_files,
    named_items,
    places_of,
    read_histories,
    with_pictures,
)
from mmbench.data.tables import read_delimited, read_header
from mmbench.errors import DataError

_USERS = re.compile(r"(?P<before>.+_)users(?P<after>(_[^.]*)?)\.tsv", re.I)
_HISTORY = re.compile(r"[^\t]+\t[^\t ]+( [^\t ]+)*\s*")
_COLUMNS = ("item", "title", "abstract")
_PAGE = "https://github.com/westlake-repl/IDvs.MoRec"
_CURE = f"take the file from {_PAGE}"
_CITATION = (
    "Z. Yuan, F. Yuan, Y. Song, Y. Li, J. Fu, F. Yang, Y. Pan and Y. Ni. Where to Go Next for "
    "Recommender Systems? ID- vs. Modality-based Recommender Models Revisited. SIGIR 2023."
)
_TERMS = "research use; see the terms of the shop or site that the data comes from"


def _card(name: str, title: str, label: str, folder: str, pictures: str) -> Card:
    return Card(
        name=name,
        title=title,
        citation=_CITATION,
        terms=_TERMS,
        page=_PAGE,
        by_hand=(
            f"Put {label.replace('*', 'users')}.tsv and {label.replace('*', 'items')}.tsv from "
            f"dataset/{folder} of that repository into {{folder}}{pictures}. Or pass the folder "
            "that holds them with --source."
        ),
        facts={"dataset": label.replace("_*", "")},
    )


_CARDS = (
    _card(
        "morec-hm", "H&M as MoRec selected it (histories without times, pictures)", "hm_50w_*",
        "HM", ", and unpack hm_images.zip (linked there) to {folder}/hm_images",
    ),
    _card(
        "morec-mind", "MIND news as MoRec selected it (histories without times, titles)",
        "mind_60w_*", "MIND", "",
    ),
)  # fmt: skip


@register_dataset("morec")
class MoRec(Source):
    """Any dataset in the files of MoRec; an item's text is its title."""

    title = "histories in MoRec's files (*_users.tsv, *_items.tsv, a folder of pictures)"
    citation = _CITATION
    terms = _TERMS
    layout = True
    expects = (
        "*_users.tsv (user<TAB>item item ...) and *_items.tsv (item, title, abstract); a folder "
        "of pictures *_images where you have it"
    )
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 5, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """Those whose files are public; Kwai and the Bili of MMSR are not."""
        return _CARDS

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is a file of histories with its item list."""
        return any(_HISTORY.match(first_line(path)) for path in _find_histories(folder).values())

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        found = _find_histories(source)
        if not found:
            raise DataError(f"E101 no *_users.tsv with its *_items.tsv under {source}; {_CURE}")
        card = self.card
        label = choose(
            found,
            card.facts["dataset"] if card else None,
            source,
            card.name if card else "",
        )
        users = found[label]
        listed = _item_list(users)
        pairs = read_histories(users, cure=_CURE, warnings=warnings)
        items = _read_items(listed, warnings)
        check_listed(pairs["item"], users, items["item"], listed, warnings)
        names = (
            f"{label}_images",
            f"{label.split('_')[0]}_images",
            *("images", "image", "covers", "cover"),
        )
        described, pictures = with_pictures(
            items, pairs["item"], places_of(users, source), names, warnings
        )
        return RawDataset(
            interactions=interactions(pairs),
            items=described,
            text_fields=("title",) if "title" in items.columns else (),
            image_root=pictures,
            files=(users, listed),
            facts={"has_order": True, "interactions_from": users.name},
            warnings=warnings,
        )


def _find_histories(folder: Path) -> dict[str, Path]:
    """Files of histories that have an item list, by the name of the dataset."""
    found: dict[str, Path] = {}
    for path in matching_files(folder, _USERS, depth=1):
        match = _USERS.fullmatch(path.name)
        if match is not None and _item_list(path).is_file():
            label = match["before"].rstrip("_") + match["after"]
            found.setdefault(label, path)
    return found


def _item_list(users: Path) -> Path:
    match = _USERS.fullmatch(users.name)
    assert match is not None
    word = users.name[match.end("before") : match.start("after")]
    items = "ITEMS" if word.isupper() else "Items" if word[0].isupper() else "items"
    return users.with_name(f"{match['before']}{items}{match['after']}{users.suffix}")


def _read_items(path: Path, warnings: list[str]) -> pl.DataFrame:
    n_columns = len(read_header(path, "\t", cure=_CURE))
    if n_columns > len(_COLUMNS):
        raise DataError(
            f"E112 {path}:1: {n_columns} fields, expected at most {len(_COLUMNS)} separated by tab "
            "(item, title, abstract); mend the file"
        )
    columns = _COLUMNS[:n_columns]
    items = read_delimited(path, "\t", columns=columns, cure=_CURE, warnings=warnings)
    return named_items(items, path, warnings)
