"""Amazon Reviews 2023: Baby Products, Sports, Clothing, Arts, Beauty and 29 more categories.

benchmark/5core/rating_only/<Category>.csv    user_id, parent_asin, rating, timestamp (ms)
benchmark/0core/rating_only/<Category>.csv    the same without a core: "-ratings"
benchmark/5core/last_out/<Category>.{train,valid,test}.csv    the published split "-last-out"
benchmark/5core/timestamp/<Category>.{train,valid,test}.csv   the published split "-timestamp"
raw/meta_categories/meta_<Category>.jsonl     parent_asin, title, store, categories, images
raw_meta_<Category>/full-*.parquet            the same
raw/review_categories/<Category>.jsonl        all reviews, read where there is no table

Items are parent products: variants such as colours share one `parent_asin`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from mmbench.data.cards import RemoteFile
from mmbench.data.lines import read_scalars
from mmbench.data.source import register_dataset
from mmbench.data.sources.amazon import TERMS, AmazonRelease, Form, first_line, ratings
from mmbench.data.sources.amazon_items import addresses_of, list_of, path_of, text_of
from mmbench.data.sources.amazon_names import CATEGORIES

_REVISION = "2b6d039ed471f2ba5fd2acb718bf33b0a7e5598e"
_BASE = f"https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/{_REVISION}/"
_MIRROR = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/"
_FILE = re.compile(r"(meta_)?(\w+?)(?:\.(train|valid|test))?\.(jsonl|csv)(?:\.gz)?", re.ASCII)
_SHARD = re.compile(r"full-\d+-of-\d+\.parquet", re.ASCII)
_HEADERLESS = re.compile(r"[^,]+,[^,]+,[0-9.]+,[0-9]{12,13}(,.*)?")  # milliseconds
_COLUMNS = ("user", "item", "rating", "timestamp", "history")
_SPLITS = {"last_out": "last-out", "timestamp": "timestamp"}


def _split(kind: str) -> tuple[str, ...]:
    return tuple(f"{kind}/{part}" for part in ("train", "valid", "test"))


@register_dataset("amazon-2023")
class Amazon2023(AmazonRelease):
    """The published 5-core of a category, with its metadata and picture addresses."""

    title = "Amazon Reviews 2023, any category: 5-core ratings, published splits, metadata"
    citation = (
        "Y. Hou, J. Li, Z. He, A. Yan, X. Chen and J. McAuley. Bridging Language and Items for "
        "Retrieval and Recommendation. arXiv:2403.03952, 2024."
    )
    terms = TERMS
    expects = (
        "<Category>.csv of benchmark/5core/rating_only (or <Category>.train.csv, .valid.csv and "
        ".test.csv, or <Category>.jsonl with all reviews) and meta_<Category>.jsonl"
    )
    year = 2023
    release = "Amazon Reviews 2023"
    page = "https://amazon-reviews-2023.github.io/"
    forms = (
        Form("", "5-core ratings", (("5core",), ("table",), ("reviews",), ("0core",))),
        Form("ratings", "all ratings", (("0core",), ("table",), ("reviews",))),
        Form(
            "last-out",
            "5-core, published split by last item",
            (_split("last-out"), _split("split")),
        ),
        Form(
            "timestamp", "5-core, published split by time", (_split("timestamp"), _split("split"))
        ),
    )
    listed = (
        ("Baby_Products", ""),
        ("Sports_and_Outdoors", ""),
        ("Clothing_Shoes_and_Jewelry", ""),
        ("Arts_Crafts_and_Sewing", ""),
        ("All_Beauty", ""),
        ("Beauty_and_Personal_Care", ""),
        ("Baby_Products", "last-out"),
        ("Baby_Products", "timestamp"),
    )
    columns = ("title", "brand", "categories", "description", "features", "image")
    key = "parent_asin"

    @classmethod
    def remote_files(cls, category: str, form: Form) -> tuple[RemoteFile, ...]:
        """See `AmazonRelease.remote_files`.

        The mirror has the same files compressed; readers tell by the content.
        """
        tables = "benchmark/5core/"
        if form.suffix in _SPLITS.values():
            folder = next(name for name, suffix in _SPLITS.items() if suffix == form.suffix)
            paths = [
                f"{tables}{folder}/{category}.{part}.csv" for part in ("train", "valid", "test")
            ]
        elif form.suffix == "ratings":
            paths = [f"benchmark/0core/rating_only/{category}.csv"]
        else:
            paths = [f"{tables}rating_only/{category}.csv"]
        paths.append(f"raw/meta_categories/meta_{category}.jsonl")
        return tuple(RemoteFile(path, (_BASE + path, f"{_MIRROR}{path}.gz")) for path in paths)

    @classmethod
    def classify(cls, path: Path) -> tuple[str, str] | None:
        """See `AmazonRelease.classify`."""
        if _SHARD.fullmatch(path.name):
            category = path.parent.name.removeprefix("raw_meta_")
            return ("meta", category) if category in CATEGORIES[cls.year] else None
        match = _FILE.fullmatch(path.name)
        if match is None or match[2] not in CATEGORIES[cls.year]:
            return None
        is_meta, category, part, suffix = match[1] is not None, match[2], match[3], match[4]
        if suffix == "jsonl" and part is None:
            return "meta" if is_meta else "reviews", category
        if suffix != "csv" or is_meta or not _is_table(path):
            return None
        folders = path.parts[-4:-1]
        if part is not None:
            kinds = [
                _SPLITS[name.removesuffix("_w_his")]
                for name in folders
                if name.removesuffix("_w_his") in _SPLITS
            ]
            return f"{kinds[-1] if kinds else 'split'}/{part}", category
        return next((name for name in ("0core", "5core") if name in folders), "table"), category

    def read_file(self, kind: str, path: Path, cure: str, warnings: list[str]) -> pl.DataFrame:
        """See `AmazonRelease.read_file`; tables come with a header and without one."""
        if kind != "reviews":
            head = first_line(path)
            named = head.startswith("user_id,")
            columns = None if named else _COLUMNS[: 5 if head.count(",") == 4 else 4]
            return ratings(path, columns, cure, warnings)
        times = ("timestamp", "sortTimestamp")  # the second in early copies
        frame = read_scalars(
            path,
            {
                "user_id": pl.String,
                "parent_asin": pl.String,
                "rating": pl.Float64,
                **dict.fromkeys(times, pl.Int64),
            },
            warnings=warnings,
            cure=cure,
        )
        return frame.select(
            pl.col("user_id").alias("user"),
            pl.col("parent_asin").alias("item"),
            pl.col("rating"),
            pl.coalesce(times).alias("timestamp"),
        )

    def item_row(self, record: Mapping[str, object]) -> dict[str, str | None]:
        """See `AmazonRelease.item_row`; the shop's name stands for the brand."""
        return {
            "title": text_of(record.get("title")),
            "brand": text_of(record.get("store")),
            "categories": path_of(list_of(record.get("categories"))),
            "description": text_of(record.get("description")),
            "features": text_of(record.get("features")),
            "image": addresses_of(_main_picture(record.get("images"))),
        }


def _is_table(path: Path) -> bool:
    head = first_line(path)
    return head.startswith("user_id,parent_asin,") or bool(_HEADERLESS.fullmatch(head))


def _main_picture(images: object) -> Iterator[object]:
    """The addresses of the picture of variant MAIN, else of the first one, the largest first."""
    if isinstance(images, dict):  # one list per field, as in the Parquet form
        lists = map(list_of, images.values())
        images = [dict(zip(images, row, strict=True)) for row in zip(*lists, strict=False)]
    pictures = [image for image in list_of(images) if isinstance(image, dict)]
    main = next((image for image in pictures if image.get("variant") == "MAIN"), None)
    chosen = main if main is not None else next(iter(pictures), {})
    yield from (chosen.get("hi_res"), chosen.get("large"))
