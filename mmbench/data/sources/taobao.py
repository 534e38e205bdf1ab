"""Taobao clothes matching (Tianchi): purchases of clothes, with pictures and no readable text.

dim_items.txt               item_id cat_id terms: terms are numbers of words, in mixed order
user_bought_history.txt     user_id item_id YYYYMMDD
dim_fashion_matchsets.txt   sets of matching clothes: no interactions, not needed
images/<item_id>.jpg        pictures, directly or in folders one deeper

The tables are separated by a blank and have no header. Times are days.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mmbench.data.cards import Card
from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.agreement import check_ids_meet
from mmbench.data.sources.days import read_days
from mmbench.data.sources.folders import find_file, find_home, list_pictures, need_home
from mmbench.data.tables import read_delimited

_PAGE = "https://tianchi.aliyun.com/dataset/52"
_CURE = f"download it from {_PAGE} and unpack it there"
_ITEMS = ["dim_items.txt", "dim_items"]
_HISTORY = ["user_bought_history.txt", "user_bought_history"]
_CARD = Card(
    name="taobao",
    title="Taobao clothes matching (Tianchi): purchases and pictures of clothes, no readable text",
    citation="Tianchi. Taobao clothes matching data. Alibaba Cloud, 2015.",
    terms="the terms of Tianchi's data sets, which are accepted there",
    page=_PAGE,
    aliases=("taobao-match",),
    by_hand=(
        f"Log in, accept the terms, and download from {_PAGE}:\n"
        "  dim_items.txt             items: id, category, numbers of the title's words; needed\n"
        "  user_bought_history.txt   purchases: user, item, day; needed\n"
        "  the pictures, ITEM.jpg    leave them out and go without\n"
        "Unpack what is packed, and put them here:\n"
        "  {folder}/dim_items.txt\n"
        "  {folder}/user_bought_history.txt\n"
        "  {folder}/images/ITEM.jpg (folders below images/ are looked into)\n"
        "Then run the same command again, or name another folder: mmbench prepare taobao "
        "--source DIR"
    ),
)


@register_dataset("taobao")
class Taobao(Source):
    """Taobao clothes matching: a purchase is an interaction.

    The words of a title are known by number alone, so items have no text; the numbers are kept
    as the field `terms`.
    """

    title = _CARD.title
    citation = _CARD.citation
    terms = _CARD.terms
    expects = f"dim_items.txt, user_bought_history.txt, and images/ for pictures ({_PAGE})"

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The one dataset of this source."""
        return (_CARD,)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there are both tables, under Tianchi's names."""
        return find_home(folder, _ITEMS, _HISTORY) is not None

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        home = need_home(source, _ITEMS, _HISTORY, cure=_CURE)
        listed, history = find_file(home, _ITEMS), find_file(home, _HISTORY)
        assert listed is not None
        assert history is not None
        items: pl.DataFrame = read_delimited(
            listed, " ", columns=("item", "category", "terms"), cure=_CURE, warnings=warnings
        )
        interactions = _read_history(history, warnings)
        check_ids_meet(interactions["item"], history, items["item"], listed)
        root = home / "images"
        if root.is_dir():
            held = list_pictures(root)
            names = [held.get(item) for item in items["item"].to_list()]
            items = items.with_columns(pl.Series("image", names, dtype=pl.String))
        else:
            warnings.append(
                f"W262 {root} is not there, so no item has a picture; put the pictures there to "
                "have them"
            )
        return RawDataset(
            interactions=interactions,
            items=items,
            image_root=root if root.is_dir() else None,
            files=(listed, history),
            warnings=warnings,
        )


def _read_history(path: Path, warnings: list[str]) -> pl.DataFrame:
    table = read_delimited(
        path, " ", columns=("user", "item", "day"), cure=_CURE, warnings=warnings
    )
    lines = table.lines
    assert lines is not None
    return table.select(
        "user",
        "item",
        pl.lit(None, pl.Float64).alias("rating"),
        read_days(table["day"], "%Y%m%d", path, lines.of, "20140911").alias("timestamp"),
        pl.lit(None, pl.Int8).alias("split"),
    )
