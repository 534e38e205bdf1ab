"""Amazon product data 2014: Baby, Sports, Clothing, Beauty and twenty more categories.

reviews_<Category>_5.json.gz     the 5-core: reviewerID, asin, overall, unixReviewTime (days)
meta_<Category>.json.gz          a Python literal per line: asin, title, brand, categories, imUrl
image_features_<Category>.b      records of 10 characters (asin) and 4096 floats
reviews_<Category>.json.gz or ratings_<Category>.csv (user, item, rating, time, no header): all
ratings, read where there is no 5-core, or for the datasets whose names end with "-ratings".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from mmbench.data.cards import Card, Published, RemoteFile
from mmbench.data.features import open_image_records
from mmbench.data.source import RawFeatures, register_dataset
from mmbench.data.sources.amazon import TERMS, AmazonRelease, Form, ratings, reviews
from mmbench.data.sources.amazon_items import addresses_of, list_of, path_of, text_of
from mmbench.data.sources.amazon_names import CATEGORIES, short_name, with_category
from mmbench.errors import DataError

_BASE = "https://snap.stanford.edu/data/amazon/productGraph/"
_MIRROR = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon/"
_FILE = re.compile(
    r"(reviews|ratings|meta|image_features)_(\w+?)(_5)?\.(json|csv|b)(?:\.gz)?", re.ASCII
)
_KINDS = {
    ("reviews", True, "json"): "5-core",
    ("reviews", False, "json"): "reviews",
    ("ratings", False, "csv"): "ratings",
    ("meta", False, "json"): "meta",
    ("image_features", False, "b"): "features",
}
_UNSAID = ("Baby", "Beauty", "Clothing_Shoes_and_Jewelry", "Electronics", "Sports_and_Outdoors")
"""Categories that papers call "Amazon Baby" and so on, meaning this release."""
_FIELDS = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
_WITH_PICTURES: Mapping[str, object] = {"require": "image", "when": "after_core"}
_WITH_PICTURES_WHERE = "arXiv 2310.20343, items without a picture dropped after the core"


@register_dataset("amazon-2014")
class Amazon2014(AmazonRelease):
    """The 5-core of a category, with its metadata, picture addresses and image features."""

    title = "Amazon product data 2014, any category: 5-core reviews, metadata, image features"
    citation = (
        "J. McAuley, C. Targett, Q. Shi and A. van den Hengel. Image-based Recommendations on "
        "Styles and Substitutes. SIGIR 2015. R. He and J. McAuley. Ups and Downs: Modeling the "
        "Visual Evolution of Fashion Trends with One-Class Collaborative Filtering. WWW 2016."
    )
    terms = TERMS
    expects = (
        "reviews_<Category>_5.json.gz (or reviews_<Category>.json.gz or ratings_<Category>.csv), "
        "meta_<Category>.json.gz and, where you have it, image_features_<Category>.b"
    )
    year = 2014
    release = "Amazon product data 2014"
    page = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
    forms = (
        Form("", "5-core reviews", (("5-core",), ("reviews",), ("ratings",))),
        Form("ratings", "all ratings", (("ratings",), ("reviews",))),
    )
    listed = (
        *((category, "") for category in _UNSAID),
        *((name, "") for name in ("Office_Products", "Toys_and_Games", "Video_Games")),
        ("Clothing_Shoes_and_Jewelry", "ratings"),
    )
    columns = ("title", "brand", "categories", "all_categories", "description", "price", "image")
    published: ClassVar[Mapping[tuple[str, str], tuple[Published, ...]]] = {
        ("Baby", ""): (
            Published(19_445, 7_050, 160_792, where="MMRec's copy of the 5-core"),
            Published(19_445, 7_037, 160_522, _WITH_PICTURES_WHERE, _WITH_PICTURES),
        ),
        ("Sports_and_Outdoors", ""): (
            Published(35_598, 18_357, 296_337, where="MMRec's preprocessing of the 5-core"),
            Published(35_598, 18_287, 295_366, _WITH_PICTURES_WHERE, _WITH_PICTURES),
        ),
        ("Clothing_Shoes_and_Jewelry", ""): (
            Published(39_387, 23_033, 278_677, where="papers that use the 5-core"),
            Published(39_387, 22_499, 271_001, _WITH_PICTURES_WHERE, _WITH_PICTURES),
        ),
        ("Beauty", ""): (Published(22_363, 12_101, 198_502, where="papers that use the 5-core"),),
        ("Electronics", ""): (
            Published(192_403, 63_001, 1_689_188, where="MMRec's evaluation page"),
        ),
    }

    @classmethod
    def card_of(cls, category: str, form: Form) -> Card:
        """See `AmazonRelease.card_of`."""
        card = super().card_of(category, form)
        if category in _UNSAID and not form.suffix:
            card = replace(card, aliases=(*card.aliases, f"amazon-{short_name(category)}"))
        return card

    @classmethod
    def find_card(cls, name: str) -> Card | None:
        """See `AmazonRelease.find_card`; a few names without a release mean this one."""
        start, _, word = name.partition("-")
        if start != "amazon":
            return super().find_card(name)
        card = next((card for card in cls.cards() if name in card.aliases), None)
        known = with_category(word) if card is None else []
        if known and not known[0].startswith("amazon14-"):
            raise cls.no_category(word)
        if known:
            raise DataError(
                f"E102 '{name}' does not say which release of the Amazon reviews is meant; say "
                f"{' or '.join(known)}, or give data of your own another name"
            )
        return card

    @classmethod
    def remote_files(cls, category: str, form: Form) -> tuple[RemoteFile, ...]:
        """See `AmazonRelease.remote_files`."""
        core = f"ratings_{category}.csv" if form.suffix else f"reviews_{category}_5.json.gz"
        features = f"image_features_{category}.b"
        folder = "categoryFiles/"
        return (
            *(
                RemoteFile(name, (f"{_BASE}{folder}{name}", f"{_MIRROR}{folder}{name}"))
                for name in (core, f"meta_{category}.json.gz")
            ),
            RemoteFile(features, (f"{_BASE}image_features/{folder}{features}",), part="features"),
        )

    @classmethod
    def classify(cls, path: Path) -> tuple[str, str] | None:
        """See `AmazonRelease.classify`."""
        match = _FILE.fullmatch(path.name)
        if match is None or match[2] not in CATEGORIES[cls.year]:
            return None
        kind = _KINDS.get((match[1], match[3] is not None, match[4]))
        return (kind, match[2]) if kind is not None else None

    def read_file(self, kind: str, path: Path, cure: str, warnings: list[str]) -> pl.DataFrame:
        """See `AmazonRelease.read_file`."""
        if kind == "ratings":
            return ratings(path, ("user", "item", "rating", "timestamp"), cure, warnings)
        return reviews(path, _FIELDS, cure, warnings)

    def item_row(self, record: Mapping[str, object]) -> dict[str, str | None]:
        """See `AmazonRelease.item_row`; of the paths of categories the first is the main one."""
        paths = [list_of(path) for path in list_of(record.get("categories"))]
        price = record.get("price")
        return {
            "title": text_of(record.get("title")),
            "brand": text_of(record.get("brand")),
            "categories": path_of(paths[0]) if paths else None,
            "all_categories": path_of(name for path in paths for name in path),
            "description": text_of(record.get("description")),
            "price": str(price) if isinstance(price, (int, float)) else None,
            "image": addresses_of([record.get("imUrl")]),
        }

    def read_features(
        self, found: Mapping[tuple[str, str], Path], category: str, warnings: list[str]
    ) -> tuple[RawFeatures, ...]:
        """The image features where they are there; only the item of each record is read."""
        path = found.get(("features", category))
        if path is None:
            return ()
        names = np.ascontiguousarray(open_image_records(path)["item"])
        letters = names.view(np.uint8).reshape(len(names), -1)
        odd = ((letters <= ord(" ")) | (letters > ord("~"))).any(axis=1)
        if odd.any():
            row = int(odd.argmax())
            raise DataError(
                f"E117 {path}: record {row + 1} begins with {bytes(letters[row])!r}, which is no "
                f"item id; the file is damaged, get it again from {_BASE}"
            )
        ids = names.astype("U10").tolist()
        seen: set[str] = set()
        repeated = 0
        for row, name in enumerate(ids):
            if name in seen:
                repeated += 1
                ids[row] = f"{name} (record {row + 1})"  # the id of no item
            seen.add(name)
        if repeated:
            warnings.append(
                f"W261 {repeated} records of {path.name} repeat an item; the first of each is kept"
            )
        return (RawFeatures(path, "visual", "cnn-4096", tuple(ids)),)
