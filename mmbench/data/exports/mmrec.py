"""The layout of MMRec: NAME.inter with split labels, positional features, id mappings.

NAME.inter          userID, itemID, rating, timestamp (ms), x_label; tab-separated
image_feat.npy      row k belongs to item k; also text_feat.npy and audio_feat.npy
i_id_mapping.csv    raw item ids (tab-separated: asin, itemID), every item, used or not
u_id_mapping.csv    raw user ids (tab-separated: user_id, userID)
NAME.yaml           MMRec's dataset settings
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mmbench.data.exports.job import ExportJob, Written, write_table, write_text
from mmbench.data.store import write_array

PREFIXES = {"visual": "image", "textual": "text", "acoustic": "audio"}
"""How MMRec begins the name of a modality's file."""


def write(job: ExportJob, folder: Path) -> Written:
    """Write the layout into `folder`."""
    dataset = job.dataset
    columns = ("userID", "itemID", *job.columns, "x_label")
    rows = np.flatnonzero(job.kept)
    write_table(
        folder / f"{job.name}.inter",
        columns,
        (
            block.rename({"user": "userID", "item": "itemID", "label": "x_label"}).select(columns)
            for block in job.blocks(rows)
        ),
    )
    mappings = (
        ("i_id_mapping.csv", "asin", "itemID", dataset.item_ids),
        ("u_id_mapping.csv", "user_id", "userID", dataset.user_ids),
    )
    for name, raw, index, ids in mappings:
        frame = pl.DataFrame({raw: pl.Series(ids, dtype=pl.String), index: range(len(ids))})
        write_table(folder / name, (raw, index), [frame])
    for stored in job.features:
        # Rows of items without the modality are zero in the store already.
        write_array(folder / f"{PREFIXES[stored.modality]}_feat.npy", np.asarray(stored.matrix))
    write_text(folder / f"{job.name}.yaml", _settings(job))
    return Written(tuple(_warnings(job)), tuple(_usage(job)))


def _settings(job: ExportJob) -> list[str]:
    times = ["TIME_FIELD: timestamp"] if "timestamp" in job.columns else []
    return [
        f"# MMRec's settings of {job.name}: copy this file to src/configs/dataset/.",
        "USER_ID_FIELD: userID",
        "ITEM_ID_FIELD: itemID",
        *times,
        "inter_splitting_label: x_label",
        "filter_out_cod_start_users: True",
        f"inter_file_name: '{job.name}.inter'",
        "vision_feature_file: 'image_feat.npy'",
        "text_feature_file: 'text_feat.npy'",
        "user_graph_dict_file: 'user_graph_dict.npy'",
        'field_separator: "\\t"',
    ]


def _warnings(job: ExportJob) -> list[str]:
    counted = int(job.dataset.item[job.kept].max()) + 1
    lacking = job.dataset.n_items - counted
    if not lacking:
        return []
    return [
        f"the last {lacking} items have no interactions here. MMRec takes the largest itemID for "
        f"the number of items ({counted}), and features have {job.dataset.n_items} rows: its "
        "models of features will not fit"
    ]


def _usage(job: ExportJob) -> list[str]:
    modalities = {stored.modality for stored in job.features}
    lines = [
        f"copy {job.name}.yaml to MMRec's src/configs/dataset/ and this folder to its "
        f"data/{job.name}, then in src/: python main.py -m MODEL -d {job.name}",
        "fields: userID, itemID; inter_splitting_label: x_label (0 train, 1 valid, 2 test)",
        "like MMRec, keep a user's validation items in the test ranking: in the recipe "
        "protocol.mask_validation_at_test: false",
    ]
    if not modalities & {"visual", "textual"}:
        lines.append("without image_feat.npy or text_feat.npy set is_multimodal_model: False")
    return lines
