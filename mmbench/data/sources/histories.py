"""What MicroLens, PixelRec, NineRec and MoRec share: pairs or histories, and a folder of covers.

Interactions come as pairs (one line per interaction, usually with its time) or as histories (one
line per user, items from old to new, no times). Where both are there, pairs with times are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from mmbench.data.sources.agreement import check_ids_meet
from mmbench.data.sources.folders import list_pictures
from mmbench.data.tables import read_delimited
from mmbench.errors import DataError

_BLOCK = 100_000
"""Histories that are taken apart at a time; bounds what is held beside the result."""
_MEDIA = re.compile(r"(cover|image|picture|poster|video|audio|frame)s?(_|$)|\.lmdb$", re.I)
_PACKED = (".zip", ".7z", ".tar", ".tar.gz", ".tgz", ".rar")


def matching_files(folder: Path, pattern: re.Pattern[str], depth: int) -> list[Path]:
    """Files with a name that fits `pattern`, in `folder` or up to `depth` folders below it.

    Those nearest to `folder` come first. Folders of pictures and the like are not entered, for
    listing them takes long; a folder that cannot be read holds nothing.
    """
    files: list[Path] = []
    folders: list[Path] = []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return []
    for entry in entries:
        if entry.is_dir():
            folders += [Path(entry.path)] if not _MEDIA.search(entry.name) else []
        elif pattern.fullmatch(entry.name):
            files.append(Path(entry.path))
    deeper = [matching_files(inner, pattern, depth - 1) for inner in folders] if depth else []
    return files + sorted(
        (path for found in deeper for path in found), key=lambda path: len(path.parts)
    )


def first_line(path: Path) -> str:
    """The first line of a file, of a long one the beginning; "" where it cannot be read.

    For looking only: whoever reads the file is told what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            return file.readline(4096).decode("utf-8-sig", errors="replace").strip("\r\n")
    except OSError:
        return ""


def choose(found: Mapping[str, Path], wanted: str | None, folder: Path, name: str) -> str:
    """Which of the datasets in a folder is meant.

    Args:
        found: the datasets that are there, each with one of its files.
        wanted: the one that the card names, None where the folder alone must tell.
        name: name of the card, for messages.

    Raises:
        DataError: another dataset is there than the one asked for, or several and none named.
    """
    if wanted is not None:
        for label in found:
            if label.lower() == wanted.lower():
                return label
        others = ", ".join(sorted(found))
        raise DataError(
            f"E103 {folder} holds {others} ({next(iter(found.values())).name}), but {name} is "
            f"{wanted}; pass the folder of {wanted}, or prepare it under the name of what it holds"
        )
    if len(found) > 1:
        raise DataError(
            f"E103 {folder} holds {', '.join(sorted(found))}; pass the folder of one of them, or "
            "prepare one by its own name"
        )
    return next(iter(found))


def interactions(pairs: pl.DataFrame) -> pl.DataFrame:
    """The interaction table of a dataset without ratings and split labels.

    Args:
        pairs: columns `user`, `item`, and `timestamp` where there are times.
    """
    given = {"user", "item", "timestamp"} & set(pairs.columns)
    types = {"rating": pl.Float64(), "timestamp": pl.Int64(), "split": pl.Int8()}
    return pairs.with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in types.items() if name not in given
    ).select("user", "item", "rating", "timestamp", "split")


def read_histories(path: Path, *, cure: str, warnings: list[str]) -> pl.DataFrame:
    """Pairs from a file of histories: `user<TAB>item item ...`, items from old to new.

    Returns:
        Columns `user` and `item` (str), in the order of the file.

    Raises:
        DataError: the file is missing, malformed, or holds no item.
    """
    lines = _read_lines(path, cure, warnings)
    blocks = []
    for start in range(0, lines.height, _BLOCK):
        block = lines.slice(start, _BLOCK)
        block = block.with_columns(pl.col("item").str.split(" ")).explode("item")
        blocks.append(block.filter(pl.col("item") != ""))
    pairs = pl.concat(blocks)
    if pairs.height == 0:
        raise DataError(f"E241 {path} names no item; {cure}")
    empty = lines.height - int(lines["item"].str.contains(r"[^ ]").fill_null(False).sum())
    if empty:
        warnings.append(f"W201 {empty} users of {path.name} have an empty history; left out")
    repeated = lines.height - lines["user"].n_unique()
    if repeated:
        user = lines["user"].filter(lines["user"].is_duplicated())[0]
        warnings.append(
            f"W268 {repeated} users of {path.name} have a second line, e.g. '{user}'; their "
            "items are joined in the order of the file"
        )
    return pairs


def compare_histories(
    pairs: pl.DataFrame,
    read_from: Path,
    histories: Path,
    used: Path,
    *,
    cure: str,
    warnings: list[str],
) -> None:
    """Warn where a file of histories contradicts the pairs; one of the two files is used."""
    lines = _read_lines(histories, cure, warnings)
    items = lines["item"].str.count_matches(r"[^ ]+").sum()
    there = (lines["user"].n_unique(), int(items))
    here = (pairs["user"].n_unique(), pairs.height)
    if here != there:
        warnings.append(
            f"W267 {histories.name} holds {there[0]} users with {there[1]} interactions, "
            f"{read_from.name} {here[0]} with {here[1]}; {used.name} is used"
        )


def _read_lines(path: Path, cure: str, warnings: list[str]) -> pl.DataFrame:
    return read_delimited(path, "\t", columns=("user", "item"), cure=cure, warnings=warnings)


def named_items(items: pl.DataFrame, path: Path, warnings: list[str]) -> pl.DataFrame:
    """An item table with its ids stripped, without the rows that have none."""
    items = items.with_columns(pl.col("item").str.strip_chars())
    named = items.filter(pl.col("item").fill_null("") != "")
    if named.height < items.height:
        nameless = items.height - named.height
        warnings.append(f"W201 {nameless} rows of {path.name} without item id dropped")
    return named


def check_listed(
    used: pl.Series, used_in: Path, listed: pl.Series, listed_in: Path, warnings: list[str]
) -> None:
    """Compare the items of the interactions with those of the item file.

    Raises:
        DataError: they have none in common.
    """
    check_ids_meet(used, used_in, listed, listed_in)
    used = used.drop_nulls().unique()
    unknown = used.filter(~used.is_in(listed.implode())).sort()
    if len(unknown):
        shown = ", ".join(f"'{item}'" for item in unknown[:3].to_list())
        warnings.append(
            f"W269 {len(unknown)} of the {len(used)} items of {used_in.name} are not in "
            f"{listed_in.name}, e.g. {shown}; they have no text"
        )


def with_pictures(
    items: pl.DataFrame | None,
    used: pl.Series,
    places: Sequence[Path],
    names: Sequence[str],
    warnings: list[str],
) -> tuple[pl.DataFrame | None, Path | None]:
    """The item table with the column `image`, and the folder of the pictures, if there is one.

    Args:
        items: the item table, None where nothing but pictures describes the items.
        used: item ids of the interactions.
        places: folders that the folder of pictures may be in.
        names: names it may have, in any case, the likeliest first.
    """
    folder = _find_folder(places, names)
    if folder is None:
        warnings.extend(_unusable_pictures(places, names))
        return items, None
    if items is None:
        items = pl.DataFrame({"item": used.drop_nulls().unique().sort()})
    held = list_pictures(folder)
    files = pl.DataFrame(
        {"item": list(held), "image": list(held.values())},
        schema={"item": pl.String, "image": pl.String},
    )
    return items.join(files, on="item", how="left", maintain_order="left"), folder


def _find_folder(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    for place in places:
        inside = _names(place)
        for name in names:
            held = inside.get(name.lower())
            if held is not None and (place / held).is_dir():
                return place / held
    return None


def _unusable_pictures(places: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Why there are no pictures, where something lies there that should have been some."""
    wanted = {name.lower() + suffix for name in names for suffix in _PACKED}
    found = []
    for place in places:
        for lower, name in sorted(_names(place).items()):
            if lower in wanted:
                found.append(
                    f"W263 {name} is still packed, so its pictures are not used; unpack it where "
                    "it lies"
                )
            elif lower.endswith(".lmdb") or (place / name / "data.mdb").is_file():
                found.append(
                    f"W263 {name} is an LMDB of pickled Python objects, which are never read, so "
                    f"its pictures are not used; put the folder of picture files ({names[0]}) "
                    "beside it"
                )
    return list(dict.fromkeys(found))


def _names(folder: Path) -> dict[str, str]:
    """Names in a folder by their lower case; a folder that cannot be read holds nothing."""
    try:
        names = sorted((path.name for path in folder.iterdir()), reverse=True)
    except OSError:
        return {}
    return {name.lower(): name for name in names}


def places_of(path: Path, folder: Path) -> list[Path]:
    """The folder of a file and those above it up to the raw folder, where covers may lie."""
    places = [path.parent]
    while places[-1] != folder and folder in places[-1].parents:
        places.append(places[-1].parent)
    return places
