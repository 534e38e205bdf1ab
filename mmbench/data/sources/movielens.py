"""What the releases of MovieLens share: ratings of films, and what users join to the films.

tmdb.csv             movie_id, tagline, overview (and more columns), where the user has it
posters/<id>.jpg     posters, where the user has them

Both stand beside the files of GroupLens, or one folder above them, and are joined by film id.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mmbench.data.source import RawDataset
from mmbench.data.sources.agreement import check_ids_meet
from mmbench.data.sources.folders import find_file, list_pictures
from mmbench.data.tables import (
    id_column,
    need_columns,
    number_column,
    offenders,
    read_delimited,
    time_column,
)
from mmbench.errors import DataError

CITATION = (
    "F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. "
    "ACM TiiS 5(4), 2015."
)
TERMS = "research use with acknowledgement, no redistribution, no commercial use"
_TEXT_FIELDS = ("title", "genres", "tagline", "overview")


def read_ratings(path: Path, separator: str, *, cure: str, warnings: list[str]) -> pl.DataFrame:
    """The interactions of a file of `user item rating seconds` lines without header.

    Raises:
        DataError: the file is missing or malformed, or a rating lies outside 1..5.
    """
    frame = read_delimited(
        path,
        separator,
        columns=("user", "item", "rating", "timestamp"),
        cure=cure,
        warnings=warnings,
    )
    rating = number_column(frame, path, "rating", 1)
    outside = ((rating < 1) | (rating > 5)).fill_null(True)
    if outside.any():
        lines = frame.lines if frame.lines is not None else 1
        found = offenders(path, lines, outside.to_numpy(), frame["rating"], "rating")
        raise DataError(f"E211 {found}; ratings lie in 1..5")
    return pl.DataFrame(
        {
            "user": id_column(frame, path, "user"),
            "item": id_column(frame, path, "item"),
            "rating": rating,
            "timestamp": time_column(frame, path, "timestamp", 1),
            "split": pl.Series([None] * frame.height, dtype=pl.Int8),
        }
    )


def with_content(
    folder: Path,
    interactions: pl.DataFrame,
    ratings: Path,
    films: pl.DataFrame,
    titles: Path,
    warnings: list[str],
) -> RawDataset:
    """The dataset of GroupLens' own files, with texts and posters where there are any.

    Args:
        folder: the raw folder; the files are in it or one folder deeper.
        interactions, films: what was read from the files `ratings` and `titles`.

    Raises:
        DataError: tmdb.csv is malformed, or the ratings are of other films than those listed.
    """
    check_ids_meet(interactions["item"], ratings, films["item"], titles)
    files = [ratings, titles]
    places = list(dict.fromkeys([ratings.parent, folder]))
    texts = next(filter(None, (find_file(place, ["tmdb.csv"]) for place in places)), None)
    if texts is not None:
        films = films.join(_read_texts(texts, warnings), on="item", how="left")
        files.append(texts)
    posters = next((place / "posters" for place in places if (place / "posters").is_dir()), None)
    if posters is not None:
        held = list_pictures(posters)
        names = [held.get(film) for film in films["item"].to_list()]
        films = films.with_columns(pl.Series("image", names, dtype=pl.String))
    return RawDataset(
        interactions=interactions,
        items=films,
        text_fields=tuple(name for name in _TEXT_FIELDS if name in films.columns),
        image_root=posters,
        files=tuple(files),
        warnings=warnings,
    )


def _read_texts(path: Path, warnings: list[str]) -> pl.DataFrame:
    frame = read_delimited(path, ",", quoted=True, warnings=warnings)
    need_columns(frame, path, ("movie_id", "tagline", "overview"))
    if frame["movie_id"].is_duplicated().any() or frame["movie_id"].null_count():
        raise DataError(f"E261 {path}: movie_id must be unique and not empty; keep one row of each")
    return frame.select(pl.col("movie_id").alias("item"), "tagline", "overview")
