"""MovieLens 1M: a million ratings of films by GroupLens.

ratings.dat          user::item::rating::seconds, no header, ratings 1-5
movies.dat           id::title::genre|genre, latin-1, no header; 177 of them are never rated
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

_ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
_CURE = f"unzip {_ADDRESS} and pass its folder with --source"
_NEEDED = (["ratings.dat"], ["movies.dat"])
_CARD = Card(
    name="movielens-1m",
    title="MovieLens 1M (6,040 users, 3,706 rated films); texts and posters where you have them",
    citation=CITATION,
    terms=TERMS,
    page="https://grouplens.org/datasets/movielens/1m/",
    aliases=("ml-1m",),
    files=(
        RemoteFile(
            path="ml-1m.zip",
            addresses=(_ADDRESS,),
            bytes=5_917_549,
            sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            unpacks_to="",
        ),
    ),
    published=(
        Published(
            6_040, 3_706, 1_000_209, where="GroupLens, README of the archive; rated films counted"
        ),
    ),
)


@register_dataset("movielens-1m")
class MovieLens1M(Source):
    """MovieLens 1M: every rating counts as liked, and no core is taken."""

    title = _CARD.title
    citation = CITATION
    terms = TERMS
    expects = f"ratings.dat and movies.dat; tmdb.csv and posters/ where you have them ({_ADDRESS})"
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 0, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The one dataset of this source."""
        return (_CARD,)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there are ratings.dat and movies.dat, without the fields that 10M added.

        MovieLens 10M has files of the same names, with half stars and tags.dat beside them.
        """
        home = find_home(folder, *_NEEDED)
        return home is not None and not (home / "tags.dat").exists()

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        warnings: list[str] = []
        home = need_home(source, *_NEEDED, cure=_CURE)
        ratings, titles = home / "ratings.dat", home / "movies.dat"
        interactions = read_ratings(ratings, "::", cure=_CURE, warnings=warnings)
        frame = read_delimited(
            titles,
            "::",
            columns=("item", "title", "genres"),
            encoding="latin-1",
            cure=_CURE,
            warnings=warnings,
        )
        films = frame.with_columns(pl.col("genres").str.replace_all("|", ", ", literal=True))
        return with_content(source, interactions, ratings, films, titles, warnings)
