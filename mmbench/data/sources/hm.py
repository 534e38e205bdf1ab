"""H&M personalized fashion recommendations: 31.8 million purchases, texts and pictures.

articles.csv             25 columns: article_id, prod_name, types, colours, sections, detail_desc
transactions_train.csv   t_dat (day), customer_id (64 hex), article_id, price, sales_channel_id
images/<3>/<id>.jpg      pictures, in folders named by the first three digits of the id

An article_id is ten digits that begin with a zero: text, never a number. Repeated rows are
several units in one purchase; the cleaning merges them. Times are days, so the items of one day
have no order of their own. Kaggle's third table, customers.csv, is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.cards import Card
from mmbench.data.delimited import DelimitedFile, Form
from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.agreement import check_ids_meet
from mmbench.data.sources.days import read_days
from mmbench.data.sources.folders import find_home, list_pictures, need_home
from mmbench.data.tables import need_columns, read_delimited
from mmbench.errors import DataError

_PAGE = "https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations"
_CURE = f"download it from {_PAGE}/data and unzip it there"
_NEEDED = (["articles.csv"], ["transactions_train.csv"])
_TAGS = (
    "product_type_name", "product_group_name", "graphical_appearance_name", "colour_group_name",
    "department_name", "index_name", "index_group_name", "section_name", "garment_group_name",
)  # fmt: skip
BLOCK = 64 << 20
"""Bytes of the purchases held at a time; each block costs one look at all ids known so far."""
_CARD = Card(
    name="hm",
    title=(
        "H&M personalized fashion recommendations (Kaggle): 31,788,324 purchases of 104,547 "
        "articles by 1,362,281 customers, before repeats are merged"
    ),
    citation=(
        "Carlos García Ling, ElizabethHMGroup, FridaRim, inversion, Jaime Ferrando, Maggie, "
        "neuraloverflow, xlsrln. H&M Personalized Fashion Recommendations. Kaggle, 2022."
    ),
    terms="the rules of the Kaggle competition, which are accepted there",
    page=_PAGE,
    aliases=("h-and-m", "handm"),
    by_hand=(
        f"Log in, accept the rules, and download from {_PAGE}/data:\n"
        "  articles.csv             36 MB, needed\n"
        "  transactions_train.csv   3.5 GB, needed\n"
        "  images/                  about 30 GB, for pictures; leave it out and go without\n"
        "Unzip what comes as .zip, and put them here:\n"
        "  {folder}/articles.csv\n"
        "  {folder}/transactions_train.csv\n"
        "  {folder}/images/010/0108775015.jpg and so on\n"
        "Then run the same command again, or name another folder: mmbench prepare hm --source DIR"
    ),
)


@register_dataset("hm")
class HM(Source):
    """H&M: a purchase is an interaction; customers with fewer than five purchases are dropped.

    The text is the name of the article, its description, and its category tags. The core
    is that of MMSR (arXiv 2403.17372): customers are filtered once, articles are not.
    """

    title = _CARD.title
    citation = _CARD.citation
    terms = _CARD.terms
    expects = f"articles.csv, transactions_train.csv, and images/ for pictures ({_PAGE})"
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 5, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The one dataset of this source."""
        return (_CARD,)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there are both tables, under Kaggle's names."""
        return find_home(folder, *_NEEDED) is not None

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        home = need_home(source, *_NEEDED, cure=_CURE)
        articles, purchases = home / "articles.csv", home / "transactions_train.csv"
        items = _read_articles(articles, warnings)
        interactions = _read_purchases(purchases, warnings)
        check_ids_meet(interactions["item"], purchases, items["item"], articles)
        root = home / "images"
        if root.is_dir():
            held = list_pictures(root)
            names = [held.get(item) for item in items["item"].to_list()]
            items = items.with_columns(pl.Series("image", names, dtype=pl.String))
        else:
            warnings.append(
                f"W262 {root} is not there, so no article has a picture; unzip images/ there to "
                "have them"
            )
        return RawDataset(
            interactions=interactions,
            items=items,
            text_fields=(
                "title", "detail_desc", "product_type_name", "product_group_name",
                "section_name", "garment_group_name",
            ),
            image_root=root if root.is_dir() else None,
            files=(articles, purchases),
            warnings=warnings,
        )  # fmt: skip


def _read_articles(path: Path, warnings: list[str]) -> pl.DataFrame:
    frame = read_delimited(path, ",", quoted=True, cure=_CURE, warnings=warnings)
    need_columns(frame, path, ("article_id", "prod_name", "detail_desc", *_TAGS))
    return frame.select(
        pl.col("article_id").alias("item"),
        pl.col("prod_name").alias("title"),
        "detail_desc",
        *_TAGS,
    )


def _read_purchases(path: Path, warnings: list[str]) -> pl.DataFrame:
    """The interactions, block by block.

    Of a row only numbers are kept, for the customer, the article and the day. Every id is held
    once, and the rows of the result point to it.
    """
    wanted = ("t_dat", "customer_id", "article_id")
    file = DelimitedFile(path, Form(",", quoted=True), cure=_CURE, warnings=warnings, block=BLOCK)
    need_columns(file.names, path, wanted)
    customers, articles = _Numbered(), _Numbered()
    blocks = []
    for shaped in file.shaped():
        block = file.parse(shaped, wanted, {})
        days = read_days(block["t_dat"], "%Y-%m-%d", path, shaped.lines.item, "2018-09-20")
        user, item = customers.number(block["customer_id"]), articles.number(block["article_id"])
        blocks.append(pl.DataFrame({"user": user, "item": item, "timestamp": days}))
    if not blocks:
        raise DataError(f"E241 {path} has a header and no rows; {_CURE}")
    rows = pl.concat(blocks)
    del blocks
    return rows.select(
        customers.ids.gather(rows["user"]).alias("user"),
        articles.ids.gather(rows["item"]).alias("item"),
        pl.lit(None, pl.Float64).alias("rating"),
        "timestamp",
        pl.lit(None, pl.Int8).alias("split"),
    )


class _Numbered:
    """Ids in the order in which they first appear."""

    def __init__(self) -> None:
        self._known = pl.DataFrame(schema={"id": pl.String, "number": pl.Int32})

    @property
    def ids(self) -> pl.Series:
        """The id of each number, in one piece: only then do rows gathered from it point to it."""
        return self._known["id"].rechunk()

    def number(self, ids: pl.Series) -> pl.Series:
        """The number of each id, null where there is none; ids not seen before get the next."""
        here = ids.alias("id").to_frame()
        distinct = here.unique(maintain_order=True).drop_nulls()
        new = distinct.join(self._known, on="id", how="anti", maintain_order="left")
        n_known = self._known.height
        numbers = pl.int_range(n_known, n_known + new.height, dtype=pl.Int32, eager=True)
        # Copied through a list: a piece of a column keeps the text of its whole block in memory.
        copied = pl.Series("id", new["id"].to_list(), dtype=pl.String)
        self._known = pl.concat([self._known, pl.DataFrame([copied, numbers.alias("number")])])
        found = distinct.join(self._known, on="id", how="left")
        return here.join(found, on="id", how="left", maintain_order="left")["number"]
