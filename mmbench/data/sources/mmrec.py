"""MMRec's layout: NAME.inter with split labels, id lists, and features by position.

NAME.inter           tab-separated, header; userID, itemID, x_label (0 train, 1 valid, 2 test);
                     rating and timestamp where there are any
*_feat.npy           row k belongs to item k: image_feat, text_feat, audio_feat, ...
i_id_mapping.csv     raw item ids (tab-separated: asin, itemID), where there are any
u_id_mapping.csv     raw user ids (tab-separated: user_id, userID), where there are any
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.positional import find_features
from mmbench.data.tables import (
    index_column,
    need_columns,
    number_column,
    offenders,
    read_delimited,
    read_header,
    time_column,
)
from mmbench.errors import DataError

_FIRST_LINE = 2  # line 1 is the header


@register_dataset("mmrec")
class MMRecFolder(Source):
    """Any dataset in MMRec's layout; indices, labels and features are taken as they are."""

    title = "a folder in MMRec's layout (NAME.inter, *_feat.npy)"
    layout = True
    expects = "NAME.inter (tab-separated userID, itemID, x_label), *_feat.npy where there are any"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is an .inter file whose header has no `name:type` fields (RecBole's)."""
        for path in folder.glob("*.inter"):
            try:
                with path.open("rb") as file:
                    if b":" not in file.readline(4096):
                        return True
            except OSError:  # a folder of that name, or one that may not be read
                continue
        return False

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        path = _find_interactions(source)
        needed = ("userID", "itemID", "x_label")
        need_columns(read_header(path, "\t"), path, needed)
        warnings: list[str] = []
        frame = read_delimited(
            path,
            "\t",
            keep=(*needed, "rating", "timestamp"),
            numbers=("rating",),
            times=("timestamp",),
            warnings=warnings,
        )
        if frame.height == 0:
            raise DataError(f"E241 {path} has a header and no rows; check the file")
        user = index_column(frame, path, "userID", _FIRST_LINE)
        item = index_column(frame, path, "itemID", _FIRST_LINE)
        label = frame["x_label"].str.strip_chars()
        wrong = ~label.is_in(["0", "1", "2"]).fill_null(False)
        if wrong.any():
            lines = frame.lines or _FIRST_LINE
            found = offenders(path, lines, wrong.to_numpy(), frame["x_label"], "x_label")
            raise DataError(f"E221 {found}; labels are 0 train, 1 valid, 2 test")
        interactions = pl.DataFrame(
            {
                "user": pl.Series(user).cast(pl.String),
                "item": pl.Series(item).cast(pl.String),
                "rating": number_column(frame, path, "rating", _FIRST_LINE)
                if "rating" in frame.columns
                else pl.repeat(None, frame.height, dtype=pl.Float64, eager=True),
                "timestamp": time_column(frame, path, "timestamp", _FIRST_LINE)
                if "timestamp" in frame.columns
                else pl.repeat(None, frame.height, dtype=pl.Int64, eager=True),
                "split": label.cast(pl.Int8),
            }
        )
        files = [path]
        features = find_features(source, scratch, files)
        item_ids = _read_mapping(source / "i_id_mapping.csv", "itemID", files)
        user_ids = _read_mapping(source / "u_id_mapping.csv", "userID", files)
        for name, ids, index in (("item", item_ids, item), ("user", user_ids, user)):
            if ids is not None and len(ids) <= int(index.max()):
                raise DataError(
                    f"E213 {path}: {name} index {int(index.max())} has no row in {name[0]}_id_"
                    f"mapping.csv ({len(ids)} ids); the mapping belongs to another file"
                )
        return RawDataset(
            interactions=interactions,
            positional=True,
            features=features,
            files=tuple(files),
            item_ids=item_ids,
            user_ids=user_ids,
            warnings=warnings,
        )


def _find_interactions(source: Path) -> Path:
    found = sorted(source.glob("*.inter"))
    if not found:
        raise DataError(f"E101 no NAME.inter found under {source}; pass the folder that holds it")
    named = [path for path in found if path.stem == source.name]
    if len(found) > 1 and not named:
        names = ", ".join(path.name for path in found)
        raise DataError(f"E103 {source} holds {names}; keep one, or name one {source.name}.inter")
    return named[0] if named else found[0]


def _read_mapping(path: Path, column: str, files: list[Path]) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    frame = read_delimited(path, "\t")
    need_columns(frame, path, (column,))
    others = [name for name in frame.columns if name != column]
    if len(others) != 1:
        raise DataError(
            f"E113 {path}: expected two tab-separated columns, found {', '.join(frame.columns)}"
        )
    index = index_column(frame, path, column, _FIRST_LINE)
    ids = frame[others[0]]
    if not np.array_equal(np.sort(index), np.arange(frame.height)):
        raise DataError(f"E213 {path}: {column} must hold each of 0..{frame.height - 1} once")
    if ids.null_count() or ids.n_unique() != frame.height:
        raise DataError(f"E213 {path}: the raw ids in '{others[0]}' must be unique and not empty")
    files.append(path)
    return tuple(ids.gather(np.argsort(index)).to_list())
