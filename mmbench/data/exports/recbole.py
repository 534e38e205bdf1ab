"""The atomic files of RecBole, with a ready settings file.

NAME.train.inter    user_id, item_id, rating, timestamp (ms); also NAME.valid.inter, NAME.test.inter
NAME.item           item_id, title, every text field, and the composed text
NAME.user           user_id
NAME.visual__clip   item id and vector of each item that has the modality; one file per feature set
NAME.yaml           RecBole's settings

Every table has a column `mmbench_index`, the place of its line in the prepared dataset, by which
`mmbench prepare` restores order and items without interactions; RecBole does not load it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmbench.data.exports.job import ExportJob, Written, write_table, write_text
from mmbench.data.features import FeatureSet
from mmbench.data.prepared import TEST, TRAIN, VALID
from mmbench.data.sources.recbole_tables import INDEX, NARROW, TEXT

PARTS = ("train", "valid", "test")
# What pandas, with which RecBole reads its files, takes for an empty cell, quoted or not.
_TAKEN_FOR_MISSING = frozenset({
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
})  # fmt: skip
_BLOCK_CELLS = 4 * 2**20
# White space in a cell would end it; the other control characters are no text. `clean_text`
# reads both the same, so that texts stay what they were.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BREAKS = re.compile(r"[\t\r\n]+")


def write(job: ExportJob, folder: Path) -> Written:
    """Write the layout into `folder`."""
    dataset = job.dataset
    users, items = (
        _quoted(pl.Series(ids, dtype=pl.String)) for ids in (dataset.user_ids, dataset.item_ids)
    )
    types = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    columns = ("user_id", "item_id", *job.columns)
    for part, label in zip(PARTS, range(len(PARTS)), strict=True):
        blocks = (
            block.with_columns(
                users.gather(block["user"]).alias("user_id"),
                items.gather(block["item"]).alias("item_id"),
                pl.col("row").alias(INDEX),
            ).select(*columns, INDEX)
            for block in job.blocks(np.flatnonzero(job.split.label == label))
        )
        header = [*(f"{name}:{types[name]}" for name in columns), f"{INDEX}:float"]
        write_table(folder / f"{job.name}.{part}.inter", header, blocks)
    write_table(
        folder / f"{job.name}.user",
        ("user_id:token", f"{INDEX}:float"),
        [pl.DataFrame({"user_id": users, INDEX: range(len(users))})],
    )
    table = pl.DataFrame({
        "item_id": items, INDEX: range(len(items)), **_texts(dataset.items)
    })  # fmt: skip
    kinds = {"item_id": "token", INDEX: "float"}
    write_table(
        folder / f"{job.name}.item",
        [f"{name}:{kinds.get(name, 'token_seq')}" for name in table.columns],
        [table],
    )
    for stored in job.features:
        write_table(
            folder / f"{job.name}.{stored.key}",
            (f"{stored.modality}_id:token", f"{_vector_field(stored)}:float_seq"),
            _vectors(stored, items),
        )
    write_text(folder / f"{job.name}.yaml", _settings(job))
    return Written(tuple(_warnings(job)), tuple(_usage(job, folder)))


def _quoted(cells: pl.Series) -> pl.Series:
    """Cells that begin with a quote sign in quotes, as RecBole's reader takes them off."""
    return pl.select(
        pl.when(cells.str.starts_with('"'))
        .then(pl.lit('"') + cells.str.replace_all('"', '""', literal=True) + pl.lit('"'))
        .otherwise(cells)
    ).to_series()


def _texts(items: list[dict[str, Any]]) -> dict[str, pl.Series]:
    """Title, text fields and composed text of the items, one column each, where any has one."""
    names = {name for line in items for name in line["fields"]} - {"title", TEXT}
    columns: dict[str, list[str]] = {
        "title": [_one_line(line["fields"].get("title") or line["title"]) for line in items]
    }
    for name in sorted(names):
        # RecBole splits a header at the colon.
        field = re.sub(r"[^\w.-]+", "_", name)
        while field in columns or field in {"item_id", INDEX, TEXT}:
            field += "_"
        columns[field] = [_one_line(line["fields"].get(name)) for line in items]
    columns[TEXT] = [_one_line(line["text"]) for line in items]
    return {
        name: _quoted(pl.Series(cells, dtype=pl.String))
        for name, cells in columns.items()
        if any(cells)
    }


def _one_line(value: Any) -> str:
    """A text field that fits into one cell."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _BREAKS.sub(" ", _CONTROL.sub("", text))


def _vector_field(stored: FeatureSet) -> str:
    """Name of a feature set's vectors; its end tells float16, which digits do not."""
    narrow = NARROW if stored.matrix.dtype == np.float16 else ""
    return f"{stored.modality}_emb{narrow}"


def _vectors(stored: FeatureSet, items: pl.Series) -> Iterator[pl.DataFrame]:
    """Ids and vectors of the items that have the modality."""
    present = np.flatnonzero(stored.mask)
    dim = stored.matrix.shape[1]
    step = max(1, _BLOCK_CELLS // dim)
    for start in range(0, present.size, step):
        at = present[start : start + step]
        # The fewest digits that give the same float32 again; float16 fits into it exactly.
        numbers = pl.Series(np.asarray(stored.matrix[at], dtype=np.float32).ravel())
        vectors = numbers.cast(pl.String).reshape((at.size, dim)).arr.join(" ")
        yield pl.DataFrame({"id": items.gather(at), "vector": vectors})


def _settings(job: ExportJob) -> list[str]:
    lines = [
        f"# RecBole's settings of {job.name}. Its files are looked for in <data_path>/{job.name}.",
        "USER_ID_FIELD: user_id",
        "ITEM_ID_FIELD: item_id",
        *(["RATING_FIELD: rating"] if "rating" in job.columns else []),
        *(["TIME_FIELD: timestamp"] if "timestamp" in job.columns else []),
        'field_separator: "\\t"',
        'seq_separator: " "',
        "# The item file is loaded for items without interactions: they are candidates too.",
        "load_col:",
        f"  inter: [{', '.join(('user_id', 'item_id', *job.columns))}]",
        "  item: [item_id]",
        "# The split as it is; the split in eval_args is not used then.",
        f"benchmark_filename: [{', '.join(PARTS)}]",
        "eval_args:",
        "  split: {RS: [0.8, 0.1, 0.1]}",
        "  group_by: user",
        "  order: RO",
        "  mode: full",
    ]
    if job.features:
        lines += ["# For models that use item vectors, add those that they need:"]
        lines += [f"# additional_feat_suffix: [{', '.join(s.key for s in job.features)}]"]
        lines += ["# load_col: as above, and"]
        lines += [f"#   {s.key}: [{s.modality}_id, {_vector_field(s)}]" for s in job.features]
        names = list(dict.fromkeys(f"{s.modality}_id" for s in job.features))
        lines += [f"# alias_of_item_id: [{', '.join(names)}]"]
        by_modality: Mapping[str, str] = {
            f"{s.modality}_id": _vector_field(s) for s in reversed(job.features)
        }
        pairs = ", ".join(f"{name}: {by_modality[name]}" for name in names)
        lines += [f"# preload_weight: {{{pairs}}}"]
    return lines


def _warnings(job: ExportJob) -> list[str]:
    warnings = []
    user, label = job.dataset.user, job.split.label
    held_out = np.isin(label, (VALID, TEST))
    unseen = np.setdiff1d(user[held_out], user[label == TRAIN])
    if unseen.size:
        warnings.append(
            f"{unseen.size} users have no training rows; RecBole ranks for them too, mmbench does "
            "not"
        )
    for what, ids in (("user", job.dataset.user_ids), ("item", job.dataset.item_ids)):
        lost = [name for name in ids if name in _TAKEN_FOR_MISSING]
        if lost:
            shown = ", ".join(repr(name) for name in lost[:5])
            warnings.append(
                f"RecBole takes {len(lost)} {what} ids for empty cells ({shown}) and their rows "
                "for padding; rename them before you compare"
            )
    return warnings


def _usage(job: ExportJob, folder: Path) -> list[str]:
    return [
        f"python run_recbole.py --model=MODEL --dataset={job.name} --data_path={folder.parent} "
        f"--config_files={folder.parent / job.name / job.name}.yaml",
        "fields: user_id, item_id; benchmark_filename: [train, valid, test]; eval_args mode: full",
        "like RecBole, hide a user's validation items from the test ranking: in the recipe "
        "protocol.mask_validation_at_test: true",
    ]
