"""Amazon Clothing as distributed with Cornac: small, with texts and visual features.

rating.txt           tab-separated, no header: user, item, rating 1-5
text.txt             item::description, one item per line
image_features.npy   4096 values per item, rows as in item_ids.txt, one id per line
context.txt          pairs of items that were also viewed; fetched when asked for, not read

The products are of the Amazon release of 2014, chosen to have text, picture and context; the
users are not those of its 5-core.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl

from mmbench.data.cards import Card, Published, RemoteFile
from mmbench.data.fetch.archives import unpack
from mmbench.data.source import RawDataset, RawFeatures, Source, register_dataset
from mmbench.data.sources.agreement import check_ids_meet
from mmbench.data.sources.folders import find_file, find_home, need_home
from mmbench.data.sources.positional import beginning, read_text
from mmbench.data.tables import id_column, number_column, offenders, read_delimited
from mmbench.errors import DataError

_PLACE = "https://static.preferred.ai/cornac/datasets/amazon_clothing/"
_CURE = f"fetch the .zip files of {_PLACE} into one folder and pass it with --source"
_NEEDED = (["rating.txt", "rating.zip"], ["text.txt", "text.zip"])
_CARD = Card(
    name="cornac-amazon-clothing",
    title="Amazon Clothing of Cornac (5,377 users, 3,393 items) with texts and visual features",
    citation=(
        "A. Salah, Q.-T. Truong, H. W. Lauw. Cornac: A Comparative Framework for Multimodal "
        "Recommender Systems. JMLR 21(95), 2020. "
        "J. McAuley, C. Targett, Q. Shi, A. van den Hengel. Image-Based Recommendations on Styles "
        "and Substitutes. SIGIR 2015."
    ),
    terms="no licence is known; part of the Amazon data of 2014, for research, with citation",
    page="https://cornac.readthedocs.io/en/latest/datasets.html",
    files=tuple(
        RemoteFile(path=name, addresses=(_PLACE + name,), part=part, unpacks_to="")
        for name, part in (
            ("rating.zip", "core"),
            ("text.zip", "core"),
            ("image.zip", "features"),
            ("item_ids.zip", "features"),
            ("context.zip", "context"),
        )
    ),
    published=(Published(5_377, 3_393, 13_689, where="Cornac, table of datasets"),),
)


@register_dataset("cornac-amazon-clothing")
class CornacAmazonClothing(Source):
    """Amazon Clothing of Cornac: every rating counts as liked, and no core is taken."""

    title = _CARD.title
    citation = _CARD.citation
    terms = _CARD.terms
    expects = f"rating.txt and text.txt; image_features.npy with item_ids.txt, if any ({_PLACE})"
    defaults: ClassVar[Mapping[str, object]] = {"user_min": 0, "item_min": 0}

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The one dataset of this source."""
        return (_CARD,)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether ratings and texts are there, in Cornac's form or as its archives."""
        home = find_home(folder, *_NEEDED)
        if home is None:
            return False
        rating, text = (find_file(home, names) for names in _NEEDED)
        return _looks_like(rating, rb"[^\t]+\t[^\t]+\t[1-5](\.0*)?\s*") and _looks_like(
            text, rb"[^\t]+?::.*"
        )

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        home = need_home(source, *_NEEDED, cure=_CURE)
        files: list[Path] = []
        warnings: list[str] = []
        ratings = _open(home, "rating", "rating.txt", scratch, files)
        interactions = _read_ratings(ratings, warnings)
        texts = _open(home, "text", "text.txt", scratch, files)
        items = _read_texts(texts)
        check_ids_meet(interactions["item"], ratings, items["item"], texts)
        features: tuple[RawFeatures, ...] = ()
        matrix = _find(home, "image", "image_features.npy", scratch, files)
        ids = _find(home, "item_ids", "item_ids.txt", scratch, files)
        if matrix is not None and ids is None:
            raise DataError(
                f"E101 item_ids.txt not found under {home}; without it the rows of "
                f"image_features.npy belong to no item; {_CURE}"
            )
        if matrix is not None and ids is not None:
            features = (RawFeatures(matrix, "visual", "imported", _read_ids(ids)),)
        return RawDataset(
            interactions=interactions,
            items=items,
            text_fields=("description",),
            features=features,
            files=tuple(files),
            warnings=warnings,
        )


def _looks_like(path: Path | None, pattern: bytes) -> bool:
    """Whether the first line of a table fits; an archive is not looked into."""
    if path is None or path.suffix == ".zip":
        return path is not None
    return re.fullmatch(pattern, beginning(path).split(b"\n")[0], re.DOTALL) is not None


def _find(home: Path, archive: str, name: str, scratch: Path, files: list[Path]) -> Path | None:
    """A file as it lies there, or out of its archive; `files` gets what was used."""
    if (home / name).is_file():
        files.append(home / name)
        return home / name
    packed = home / f"{archive}.zip"
    if not packed.is_file():
        return None
    files.append(packed)
    target = scratch / archive
    unpack(packed, target)
    found = [path for path in sorted(target.rglob(name)) if path.is_file()]
    if len(found) != 1:
        raise DataError(
            f"E106 {packed} should hold one {name}, it holds {len(found)}; download it again"
        )
    return found[0]


def _open(home: Path, archive: str, name: str, scratch: Path, files: list[Path]) -> Path:
    path = _find(home, archive, name, scratch, files)
    if path is None:
        raise DataError(f"E101 {name} not found under {home}; {_CURE}")
    return path


def _read_ratings(path: Path, warnings: list[str]) -> pl.DataFrame:
    columns = ("user", "item", "rating")
    frame = read_delimited(path, "\t", columns=columns, cure=_CURE, warnings=warnings)
    rating = number_column(frame, path, "rating", 1)
    outside = ((rating < 1) | (rating > 5)).fill_null(True)
    if outside.any():
        found = offenders(path, 1, outside.to_numpy(), frame["rating"], "rating")
        raise DataError(f"E211 {found}; ratings lie in 1..5")
    n = frame.height
    return pl.DataFrame(
        {
            "user": id_column(frame, path, "user"),
            "item": id_column(frame, path, "item"),
            "rating": rating,
            "timestamp": pl.Series([None], dtype=pl.Int64).new_from_index(0, n),
            "split": pl.Series([None], dtype=pl.Int8).new_from_index(0, n),
        }
    )


def _read_texts(path: Path) -> pl.DataFrame:
    ids: list[str] = []
    texts: list[str | None] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        item, sign, text = line.partition("::")  # a text may hold :: too, and is taken whole
        if not sign or not item.strip():
            raise DataError(
                f"E112 {path}:{number}: no item id and :: before the text; mend the line"
            )
        ids.append(item.strip())
        texts.append(text.strip() or None)
    return pl.DataFrame({"item": ids, "description": pl.Series(texts, dtype=pl.String)})


def _read_ids(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in read_text(path).split("\n") if line.strip())
