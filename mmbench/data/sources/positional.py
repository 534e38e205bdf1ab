"""What LATTICE, MMSSL, DiffMM and LightGCN share: indices instead of ids, one file per split part.

{train,val,test}.json   an object: "user index" -> list of item indices, empty ones allowed
*_feat.npy              row k belongs to item k; also packed, as *_feat.npy.zip
item_list.txt           raw id and index on each line, where there is one; user_list.txt likewise
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.blocks import read_pieces
from mmbench.data.fetch.archives import unpack
from mmbench.data.source import RawFeatures
from mmbench.errors import DataError

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""User and item index of each interaction, int64 [n] each."""

PARTS = ("train", "val", "test")
LARGEST_INDEX = 999_999_999
_MODALITIES = {
    "image": "visual",
    "visual": "visual",
    "v": "visual",
    "text": "textual",
    "textual": "textual",
    "t": "textual",
    "audio": "acoustic",
    "acoustic": "acoustic",
    "a": "acoustic",
}
_BEGINNING = re.compile(rb'\s*\{\s*(\}|"\d+"\s*:\s*\[)')
_CORE = re.compile(r"\d+-core")
_INDEX = re.compile(r"0|[1-9]\d{0,8}")


def has_json_parts(folder: Path) -> bool:
    """Whether `folder` holds the three JSON files, and they begin like lists by user."""
    return all(_BEGINNING.match(beginning(folder / f"{part}.json")) for part in PARTS)


def beginning(path: Path) -> bytes:
    """The first bytes of a file, b"" where there is none that can be read; for looking at it."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def is_core_folder(folder: Path) -> bool:
    """Whether JSON files in `folder` are LATTICE's: by its name (5-core), or by a list of ids.

    MMSSL's have the matrix `train_mat` beside them and no lists.
    """
    if _CORE.fullmatch(folder.name):
        return True
    return (folder / "item_list.txt").is_file() and not (folder / "train_mat").is_file()


def read_text(path: Path) -> str:
    """The text of a file of moderate size, plain or gzip, without a byte order mark.

    Raises:
        DataError: it is missing (E101), a web page or broken (E106), empty (E113), or not UTF-8
            (E111).
    """
    content = b"".join(read_pieces(path))
    if not content.strip():
        raise DataError(f"E113 {path} is empty; check the path given by --source")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"E111 {path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file "
            "as UTF-8"
        ) from None


def read_json_lists(path: Path) -> Pairs:
    """Read one part of a split: an object of lists of item indices by user index.

    Raises:
        DataError: the file is missing or empty, a web page or cut off (E106), not UTF-8 (E111),
            not such an object (E114), or an index is no whole number from 0 (E212).
    """
    text = read_text(path)
    try:
        # Numbers that are not whole are kept as text, to be named below like any other misfit.
        lists = json.loads(text, object_pairs_hook=_Object, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise DataError(f"E106 {path} is not complete JSON ({error}); download it again") from None
    if not isinstance(lists, _Object):
        raise DataError(f'E114 {path}: it is no object {{"user": [items]}}; check the file')
    users = [user for user, _ in lists]
    for user, items in lists:
        if not _INDEX.fullmatch(user):
            raise DataError(f"E212 {path}: user {user!r}; users are indices, whole numbers from 0")
        if not isinstance(items, list) or isinstance(items, _Object):
            raise DataError(f"E114 {path}: user {user} has no list of items; check the file")
    if len(set(users)) < len(users):
        twice = Counter(users).most_common(1)[0][0]
        raise DataError(f"E114 {path}: user {twice} is listed twice; keep one list")
    flat: list[Any] = list(chain.from_iterable(items for _, items in lists))
    if set(map(type, flat)) - {int} or (flat and (min(flat) < 0 or max(flat) > LARGEST_INDEX)):
        user, item = next(
            (user, item)
            for user, items in lists
            for item in items
            if type(item) is not int or not 0 <= item <= LARGEST_INDEX
        )
        raise DataError(
            f"E212 {path}: user {user} has item {str(item)[:40]!r}; items are indices, whole "
            "numbers from 0"
        )
    owners = chain.from_iterable(repeat(int(user), len(items)) for user, items in lists)
    n = len(flat)
    return np.fromiter(owners, np.int64, n), np.fromiter(flat, np.int64, n)


class _Object(list[Any]):
    """A JSON object as its pairs, so that a key that comes twice is seen."""


def labelled(parts: Sequence[Pairs], where: Path) -> pl.DataFrame:
    """The interactions of the parts 0, 1, 2 of a split one after another, as `RawDataset` wants.

    Raises:
        DataError: there is not one interaction.
    """
    user, item = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    if not user.size:
        raise DataError(f"E241 the split files in {where} hold no interactions; check them")
    label = np.repeat(np.arange(len(parts), dtype=np.int8), [part[0].size for part in parts])
    n = user.size
    return pl.DataFrame(
        {
            "user": pl.Series(user).cast(pl.String),
            "item": pl.Series(item).cast(pl.String),
            "rating": pl.Series([None], dtype=pl.Float64).new_from_index(0, n),
            "timestamp": pl.Series([None], dtype=pl.Int64).new_from_index(0, n),
            "split": pl.Series(label),
        }
    )


def find_features(folder: Path, scratch: Path, files: list[Path]) -> tuple[RawFeatures, ...]:
    """The positional matrices in `folder`; packed ones are unpacked into `scratch`.

    `files` gets every file that is used.

    Raises:
        DataError: a file name tells no modality, two tell the same, or an archive is broken or
            lacks its matrix.
    """
    features: dict[str, RawFeatures] = {}
    loose = sorted(folder.glob("*_feat.npy"))
    packed = sorted(folder.glob("*_feat.npy.zip"))
    names = {path.name for path in loose}
    for path in (*loose, *(path for path in packed if path.stem not in names)):
        prefix = path.name.partition("_feat.npy")[0]
        modality = _MODALITIES.get(prefix.lower())
        if modality is None:
            raise DataError(
                f"E118 {path}: no modality is called '{prefix}'; rename the file to "
                "image_feat.npy, text_feat.npy or audio_feat.npy, or remove it"
            )
        if modality in features:
            raise DataError(
                f"E118 {path}: {features[modality].path.name} has {modality} features already; "
                "keep one of the two"
            )
        matrix = _unpack_matrix(path, scratch) if path.suffix == ".zip" else path
        features[modality] = RawFeatures(matrix, modality, "imported")
        files.append(path)
    return tuple(features.values())


def _unpack_matrix(archive: Path, scratch: Path) -> Path:
    target = scratch / archive.stem.removesuffix(".npy")
    unpack(archive, target)
    # Beside the matrix, archives made on a Mac hold __MACOSX/._image_feat.npy.
    found = [path for path in sorted(target.rglob(archive.stem)) if path.is_file()]
    if len(found) != 1:
        raise DataError(
            f"E106 {archive} should hold one {archive.stem}, it holds {len(found)}; download it "
            "again, or unzip the right file beside it"
        )
    return found[0]


def read_id_list(path: Path) -> tuple[str, ...]:
    """Read a list of raw ids and their indices: `raw<TAB>index`, or with a header, by its names.

    Returns:
        the raw id of each index.

    Raises:
        DataError: a line does not fit, an id comes twice, or the indices are not 0..n-1.
    """
    lines = read_text(path).split("\n")
    rows = [(k, line.strip("\r")) for k, line in enumerate(lines, start=1) if line.strip()]
    places = (0, 1)
    header = rows[0][1].split()
    if "remap_id" in header:  # LightGCN's and KGAT's lists: org_id remap_id, blanks between
        places = (header.index("org_id") if "org_id" in header else 0, header.index("remap_id"))
        rows = rows[1:]
    ids: dict[int, str] = {}
    for number, line in rows:
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) <= max(places):
            raise DataError(f"E112 {path}:{number}: {len(cells)} fields, expected raw id and index")
        raw, index = cells[places[0]].strip(), cells[places[1]].strip()
        if not _INDEX.fullmatch(index):
            raise DataError(
                f"E212 {path}:{number}: index {index!r}; a whole number from 0 belongs here"
            )
        if not raw or int(index) in ids:
            what = f"index {index} comes twice" if raw else "there is no raw id"
            raise DataError(f"E213 {path}:{number}: {what}; mend the line")
        ids[int(index)] = raw
    if not ids or max(ids) != len(ids) - 1:
        raise DataError(f"E213 {path}: the indices must be each of 0..{len(ids) - 1} once")
    listed = tuple(ids[k] for k in range(len(ids)))
    if len(set(listed)) < len(listed):
        twice = Counter(listed).most_common(1)[0][0]
        raise DataError(f"E261 {path}: raw id '{twice}' has several indices; keep one of them")
    return listed


def check_listed(ids: tuple[str, ...] | None, path: Path, used: pl.Series, what: str) -> None:
    """Refuse a list of ids that is too short for the indices that are used.

    Raises:
        DataError: an index has no line in the list.
    """
    largest = int(used.cast(pl.Int64).max())  # type: ignore[arg-type]
    if ids is not None and len(ids) <= largest:
        raise DataError(
            f"E213 {path}: {what} index {largest} is used but has no line here ({len(ids)} ids); "
            "the list belongs to another copy of the dataset"
        )


def numbered(
    n_items: int, used: pl.Series, features: Sequence[RawFeatures]
) -> tuple[str, ...] | None:
    """Ids of `n_items` items that are only numbered; None where the largest index tells as much.

    Raises:
        DataError: there are more items than features or interactions can be of.
    """
    indices = used.cast(pl.Int64).unique()
    if n_items == int(indices.max()) + 1:  # type: ignore[arg-type]
        return None
    confirmed = False
    for stored in features:
        try:
            rows = np.load(stored.path, mmap_mode="r", allow_pickle=False).shape[0]
        except (OSError, ValueError, EOFError, IndexError):
            continue  # what is wrong with it is told when it is imported
        if rows != n_items:
            raise DataError(
                f"E251 {stored.path}: {rows} rows, dataset has {n_items} items; the matrix belongs "
                "to another item order or filter"
            )
        confirmed = True
    if not confirmed and n_items > 2 * indices.len():
        raise DataError(
            f"E213 {n_items} items are announced, {indices.len()} have interactions; number the "
            "items 0, 1, 2, ... without gaps"
        )
    return tuple(map(str, range(n_items)))
