"""MovieLens 100K: films and ratings by GroupLens, with texts and posters beside them.

u.data               tab-separated, no header: user, item, rating 1-5, Unix seconds
u.item               pipe-separated, latin-1, no header: id, title, dates, link, 19 genre flags
tmdb.csv, posters/   texts and posters, where they are given: see movielens.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.cards import Card, Published, RemoteFile
from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.folders import find_home, need_home
from mmbench.data.sources.movielens import CITATION, TERMS, read_ratings, with_content
from mmbench.data.tables import read_delimited

_ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_CURE = f"unzip {_ADDRESS} and pass its folder with --source"
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
_ITEM_COLUMNS = ("item", "title", "released", "video_released", "address", *_GENRES)
_CARD = Card(
    name="movielens-100k",
    title="MovieLens 100K (943 users, 1,682 films); texts and posters where you have them",
    citation=CITATION,
    terms=TERMS,
    page="https://grouplens.org/datasets/movielens/100k/",
    aliases=("ml-100k",),
    files=(
        RemoteFile(
            path="ml-100k.zip",
            addresses=(_ADDRESS,),
            bytes=4_924_029,
            sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            unpacks_to="",
        ),
    ),
    published=(Published(943, 1_682, 100_000, where="GroupLens, README of the archive"),),
)


@register_dataset("movielens-100k")
class MovieLens100K(Source):
    """MovieLens 100K: every rating counts as liked, and no core is taken.

    Titles and genres are MovieLens' own; tagline, overview and poster are joined by film id.
    """

    title = _CARD.title
    citation = CITATION
    terms = TERMS
    expects = f"u.data and u.item; tmdb.csv and posters/ where you have them ({_ADDRESS})"
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 0, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The one dataset of this source."""
        return (_CARD,)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is a u.data."""
        return find_home(folder, ["u.data"]) is not None

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        home = need_home(source, ["u.data"], cure=_CURE)
        ratings, titles = home / "u.data", home / "u.item"
        interactions = read_ratings(ratings, "\t", cure=_CURE, warnings=warnings)
        films = _read_films(titles, warnings)
        return with_content(source, interactions, ratings, films, titles, warnings)


def _read_films(path: Path, warnings: list[str]) -> pl.DataFrame:
    frame = read_delimited(
        path, "|", columns=_ITEM_COLUMNS, encoding="latin-1", cure=_CURE, warnings=warnings
    )
    # The first flag, "unknown", is no genre.
    named = [
        pl.when(pl.col(genre) == "1").then(pl.lit(genre)).otherwise(None) for genre in _GENRES[1:]
    ]
    return frame.select(
        pl.col("item"),
        pl.col("title"),
        pl.concat_str(named, separator=", ", ignore_nulls=True).alias("genres"),
        pl.col("released"),
    )
