"""Amazon review data 2018: Arts, Luxury Beauty, Clothing and twenty-six more categories.

<Category>_5.json.gz       the 5-core: reviewerID, asin, overall, unixReviewTime (days)
meta_<Category>.json.gz    asin, title, brand, category, description, imageURL, imageURLHighRes
<Category>.json.gz or <Category>.csv (item, user, rating, time: the item first, no header): all
ratings, read where there is no 5-core, or for the datasets whose names end with "-ratings".

The 5-core counts repeated reviews of one user and item; they are merged here, so that a core
taken afterwards is a little smaller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.cards import Published, RemoteFile
from mmbench.data.source import register_dataset
from mmbench.data.sources.amazon import (
    TERMS,
    AmazonRelease,
    Form,
    first_line,
    ratings,
    reviews,
)
from mmbench.data.sources.amazon_items import addresses_of, list_of, path_of, text_of
from mmbench.data.sources.amazon_names import CATEGORIES

_BASES = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/",
    "https://jmcauley.ucsd.edu/data/amazon_v2/",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2/",
)
_FILE = re.compile(r"(meta_)?(\w+?)(_5)?\.(json|csv)(?:\.gz)?", re.ASCII)
_KINDS = {
    (False, True, "json"): "5-core",
    (False, False, "json"): "reviews",
    (False, False, "csv"): "ratings",
    (True, False, "json"): "meta",
}
_RATING = re.compile(r"[^,]+,[^,]+,[0-9.]+,[0-9]{9,10}")  # seconds: 2023's tables have milliseconds
_FIELDS = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
_COUNTED = "papers that use the 5-core, repeated reviews counted"


@register_dataset("amazon-2018")
class Amazon2018(AmazonRelease):
    """The 5-core of a category, with its metadata and picture addresses."""

    title = "Amazon review data 2018, any category: 5-core reviews and metadata"
    citation = (
        "J. Ni, J. Li and J. McAuley. Justifying Recommendations using Distantly-Labeled Reviews "
        "and Fine-Grained Aspects. EMNLP-IJCNLP 2019."
    )
    terms = TERMS
    expects = (
        "<Category>_5.json.gz (or <Category>.json.gz or <Category>.csv) and meta_<Category>.json.gz"
    )
    year = 2018
    release = "Amazon review data 2018"
    page = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"
    forms = (
        Form("", "5-core reviews", (("5-core",), ("reviews",), ("ratings",))),
        Form("ratings", "all ratings", (("ratings",), ("reviews",))),
    )
    listed = (
        ("Arts_Crafts_and_Sewing", ""),
        ("All_Beauty", ""),
        ("Luxury_Beauty", ""),
        ("Clothing_Shoes_and_Jewelry", ""),
        ("Clothing_Shoes_and_Jewelry", "ratings"),
        ("Sports_and_Outdoors", ""),
        ("Toys_and_Games", ""),
    )
    columns = ("title", "brand", "categories", "description", "features", "image")
    scrap = "getTime"
    published: ClassVar[Mapping[tuple[str, str], tuple[Published, ...]]] = {
        ("Arts_Crafts_and_Sewing", ""): (
            Published(56_210, 22_917, 494_485, _COUNTED, {"user_min": 0, "item_min": 0}),
        ),
    }

    @classmethod
    def remote_files(cls, category: str, form: Form) -> tuple[RemoteFile, ...]:
        """See `AmazonRelease.remote_files`."""
        core = f"{category}.csv" if form.suffix else f"{category}_5.json.gz"
        places = {core: "categoryFilesSmall/", f"meta_{category}.json.gz": "metaFiles2/"}
        return tuple(
            RemoteFile(name, tuple(f"{base}{folder}{name}" for base in _BASES))
            for name, folder in places.items()
        )

    @classmethod
    def classify(cls, path: Path) -> tuple[str, str] | None:
        """See `AmazonRelease.classify`."""
        match = _FILE.fullmatch(path.name)
        if match is None or match[2] not in CATEGORIES[cls.year]:
            return None
        kind = _KINDS.get((match[1] is not None, match[3] is not None, match[4]))
        if kind is None or (kind == "ratings" and not _RATING.fullmatch(first_line(path))):
            return None
        return kind, match[2]

    def read_file(self, kind: str, path: Path, cure: str, warnings: list[str]) -> pl.DataFrame:
        """See `AmazonRelease.read_file`."""
        if kind == "ratings":
            return ratings(path, ("item", "user", "rating", "timestamp"), cure, warnings)
        return reviews(path, _FIELDS, cure, warnings)

    def item_row(self, record: Mapping[str, object]) -> dict[str, str | None]:
        """See `AmazonRelease.item_row`; the picture in high resolution comes first."""
        pictures = (list_of(record.get(name))[:1] for name in ("imageURLHighRes", "imageURL"))
        return {
            "title": text_of(record.get("title")),
            "brand": text_of(record.get("brand")),
            "categories": path_of(list_of(record.get("category"))),
            "description": text_of(record.get("description")),
            "features": text_of(record.get("feature")),
            "image": addresses_of(address for first in pictures for address in first),
        }
