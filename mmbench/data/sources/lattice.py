"""LATTICE's layout: a split of indices as JSON, id lists, raw texts, features.

5-core/{train,val,test}.json   "user index" -> list of item indices, in the order of the reviews
5-core/item_list.txt           raw id and index, tab-separated; user_list.txt likewise
5-core/raw_text.txt            line i is the text of item i
{image,text}_feat.npy          row i belongs to item i
0-core/{train,val,test}.json   another split of the same interactions: items held out of training

The numbering differs between copies, so matrices are valid only with the JSON they came with.
The 0-core split is read by the layout `lattice-0core`. user-item-dict.json holds the parts of the
split together, and s_*_adj_mat.npz are caches; both are ignored.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.positional import (
    PARTS,
    check_listed,
    find_features,
    has_json_parts,
    is_core_folder,
    labelled,
    read_id_list,
    read_json_lists,
    read_text,
)
from mmbench.errors import DataError

COLD = "0-core"
_CORE = re.compile(r"[1-9]\d*-core")


@register_dataset("lattice")
class LATTICEFolder(Source):
    """Any dataset in LATTICE's layout; indices, labels and features are taken as they are."""

    title = "a folder in LATTICE's layout (5-core/train.json, item_list.txt, *_feat.npy)"
    layout = True
    expects = (
        "5-core/train.json, val.json and test.json; item_list.txt, *_feat.npy where there are any"
    )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is a 5-core folder with its three JSON files, or this is one."""
        if core_folders(folder):
            return True
        return has_json_parts(folder) and is_core_folder(folder)

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        cores = core_folders(source)
        if not cores and has_json_parts(source):
            _refuse_inner_folder(source)
            return read_split(source, source, source, scratch)
        if len(cores) > 1 and cores[0].name != "5-core":
            names = ", ".join(core.name for core in cores)
            raise DataError(
                f"E103 {source} holds {names}; move all but one elsewhere, features belong to one"
            )
        core = cores[0] if cores else source / "5-core"
        return read_split(source, core, core, scratch)


def core_folders(folder: Path) -> list[Path]:
    """The folders 5-core, 10-core, ... of `folder` that hold a split; 5-core comes first."""
    try:
        found = [path for path in folder.iterdir() if _CORE.fullmatch(path.name)]
    except OSError:
        return []
    found = [path for path in found if has_json_parts(path)]
    return sorted(found, key=lambda path: (path.name != "5-core", path.name))


def read_split(source: Path, split: Path, lists: Path, scratch: Path) -> RawDataset:
    """Read the JSON files in `split`, lists and texts in `lists`, features in `source`.

    Raises:
        DataError: a file is missing or broken, or they contradict each other.
    """
    parts = [read_json_lists(split / f"{part}.json") for part in PARTS]
    files = [split / f"{part}.json" for part in PARTS]
    interactions = labelled(parts, split)
    ids: dict[str, tuple[str, ...] | None] = {}
    for what in ("item", "user"):
        path = lists / f"{what}_list.txt"
        ids[what] = read_id_list(path) if path.is_file() else None
        files += [path] if path.is_file() else []
        check_listed(ids[what], path, interactions[what], what)
    items = None
    texts = lists / "raw_text.txt"
    if texts.is_file():
        listed = ids["item"]
        n_items = len(listed) if listed is not None else None
        items = _read_texts(texts, n_items)
        files.append(texts)
    facts: dict[str, object] = {
        "source_layout": f"LATTICE: {split.name if split != source else 'one folder'}"
    }
    cold = source / COLD
    if split != cold and has_json_parts(cold):
        facts["further_split"] = f"{COLD} (items held out of training): --format lattice-0core"
    return RawDataset(
        interactions=interactions,
        items=items,
        positional=True,
        text_fields=("text",) if items is not None else (),
        features=find_features(source, scratch, files),
        files=tuple(files),
        facts=facts,
        item_ids=ids["item"],
        user_ids=ids["user"],
    )


def _read_texts(path: Path, n_items: int | None) -> pl.DataFrame:
    # Only \n ends a line: the texts were taken from reviews and hold other line ends.
    lines = read_text(path).removesuffix("\n").split("\n")
    if n_items is not None and len(lines) != n_items:
        raise DataError(
            f"E251 {path}: {len(lines)} lines, item_list.txt has {n_items} items; line i must be "
            "the text of item i, take both files of one copy"
        )
    texts = [line.strip() or None for line in lines]
    return pl.DataFrame(
        {
            "item": pl.Series([str(k) for k in range(len(texts))]),
            "text": pl.Series(texts, dtype=pl.String),
        }
    )


def _refuse_inner_folder(folder: Path) -> None:
    """Refuse a folder whose features, or whose lists, lie outside of it."""
    above = folder.resolve().parent
    option = " --format lattice-0core" if folder.resolve().name == COLD else ""
    if option or any(above.glob("*_feat.npy")):
        raise DataError(
            f"E103 {folder} is a part of a folder in LATTICE's layout; pass the folder above it: "
            f"--source {above}{option}"
        )
