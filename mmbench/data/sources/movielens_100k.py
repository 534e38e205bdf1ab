"""MovieLens 100K: films and ratings by GroupLens, with texts and posters beside them.

u.data               tab-separated, no header: user, item, rating 1-5, Unix seconds
u.item               pipe-separated, latin-1, no header: id, title, dates, link, 19 genre flags
tmdb.csv             movie_id, title, tagline, overview, genres, where it is given
posters/<id>.jpg     posters, where they are given
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.tables import (
    id_column,
    need_columns,
    number_column,
    offenders,
    read_delimited,
    time_column,
)
from mmbench.errors import DataError

_ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_CURE = f"unzip {_ADDRESS} and pass its folder with --source"
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
_ITEM_COLUMNS = ("item", "title", "released", "video_released", "address", *_GENRES)


@register_dataset("movielens-100k")
class MovieLens100K(Source):
    """MovieLens 100K: every rating counts as liked, and no core is taken.

    Titles and genres are MovieLens' own; tagline, overview and poster are joined by film id.
    """

    title = "MovieLens 100K with texts and posters (943 users, 1,682 films)"
    citation = (
        "F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. "
        "ACM TiiS 5(4), 2015."
    )
    terms = "research use with acknowledgement, no redistribution, no commercial use"
    expects = f"u.data and u.item; tmdb.csv and posters/ where you have them ({_ADDRESS})"
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 0, "item_min": 0}

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is a u.data."""
        return (folder / "u.data").is_file()

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        files = [source / "u.data", source / "u.item"]
        frame = read_delimited(
            files[0], "\t", columns=("user", "item", "rating", "timestamp"), cure=_CURE
        )
        rating = number_column(frame, files[0], "rating", 1)
        outside = ((rating < 1) | (rating > 5)).fill_null(True)
        if outside.any():
            found = offenders(files[0], 1, outside.to_numpy(), frame["rating"], "rating")
            raise DataError(f"E211 {found}; ratings lie in 1..5")
        interactions = pl.DataFrame(
            {
                "user": id_column(frame, files[0], "user"),
                "item": id_column(frame, files[0], "item"),
                "rating": rating,
                "timestamp": time_column(frame, files[0], "timestamp", 1),
                "split": pl.Series([None] * frame.height, dtype=pl.Int8),
            }
        )
        items = _read_films(files[1])
        if (source / "tmdb.csv").is_file():
            files.append(source / "tmdb.csv")
            items = items.join(_read_texts(files[2]), on="item", how="left")
        text_fields = ("title", "genres", "tagline", "overview")
        posters = source / "posters"
        if posters.is_dir():
            held = {path.stem: path.name for path in posters.glob("*.jpg")}
            names = [held.get(item) for item in items["item"].to_list()]
            items = items.with_columns(pl.Series("image", names, dtype=pl.String))
        return RawDataset(
            interactions=interactions,
            items=items,
            text_fields=tuple(name for name in text_fields if name in items.columns),
            image_root=posters if posters.is_dir() else None,
            files=tuple(files),
        )


def _read_films(path: Path) -> pl.DataFrame:
    frame = read_delimited(path, "|", columns=_ITEM_COLUMNS, encoding="latin-1", cure=_CURE)
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


def _read_texts(path: Path) -> pl.DataFrame:
    frame = read_delimited(path, ",", quoted=True)
    need_columns(frame, path, ("movie_id", "tagline", "overview"))
    if frame["movie_id"].is_duplicated().any() or frame["movie_id"].null_count():
        raise DataError(f"E261 {path}: movie_id must be unique and not empty; keep one row of each")
    return frame.select(pl.col("movie_id").alias("item"), "tagline", "overview")
