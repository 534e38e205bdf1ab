"""Vectors of items and users that a finished run's model ranks with, and their export.

    items.npy       float32 [I, D], in the order of item_ids.json
    users.npy       float32 [N, D], in the order of user_ids.json
    item_ids.json   raw ids, one per row
    user_ids.json   raw ids, one per row
    manifest.json   what the vectors are, and of which run; written last

A score is the product of a user's and an item's vector. The user of a sequential model is what
the test part ranks for: the vector after the whole history before the test item.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmbench.data.prepared import EXCLUDED
from mmbench.engine.inputs import Ragged
from mmbench.engine.ranking import SEQUENCES
from mmbench.engine.trained import Trained, stored_recipe
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.lists import IntArray
from mmbench.models.base import MODELS
from mmbench.models.sequential.base import SequentialRecommender, pad_sequences
from mmbench.runs import Run, write_array, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Representations:
    """What a model ranks with.

    Attributes:
        items: vectors of all items, float32 [I, D].
        users: vectors of `user_rows`, float32 [N, D].
        user_rows: which users of the dataset, ascending [N].
        owned: all items of every user of the dataset in this split, training and held out.
        what: a sentence on the users' vectors.
    """

    items: NDArray[np.float32]
    users: NDArray[np.float32]
    user_rows: IntArray
    owned: Ragged
    what: str


def check_vectors(runs: Sequence[Run]) -> None:
    """Refuse runs of models that score without vectors, before any is loaded.

    Raises:
        ConfigError: one does.
    """
    for run in runs:
        if not MODELS.get(stored_recipe(run).model).obj.factors:
            raise _no_vectors(run)


def _no_vectors(run: Run) -> ConfigError:
    return ConfigError(
        f"{run.path}: {run.label} scores without vectors of users and items, so it has none to "
        "export; leave it out"
    )


@torch.no_grad()
def representations(trained: Trained) -> Representations:
    """The vectors of a trained factor model.

    Raises:
        ConfigError: its scores are no products of vectors.
        DataError: a vector is NaN or infinite.
    """
    model, inputs = trained.model, trained.inputs
    if not model.factors:
        raise _no_vectors(trained.run)
    if isinstance(model, SequentialRecommender):
        items, users = _sequential(model, trained)
        rows = inputs.test.users
        what = "the vector after all items before the test item, of each user with a test item"
    else:
        users, items = model.vectors()
        rows = np.arange(inputs.dataset.n_users)
        what = "the vector that the model ranks with, of each user"
    vectors = items.float().cpu().numpy(), users.float().cpu().numpy()
    if not all(np.isfinite(each).all() for each in vectors):
        raise DataError(f"{trained.run.path}: a vector is NaN or infinite; train the run again")
    label = np.asarray(inputs.split.label)
    kept = label != EXCLUDED
    owned = Ragged.group(
        np.asarray(inputs.dataset.user)[kept],
        np.asarray(inputs.dataset.item)[kept],
        inputs.dataset.n_users,
    )
    return Representations(*vectors, rows, owned, what)


def _sequential(
    model: SequentialRecommender, trained: Trained
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of all items, and of the test users after their histories."""
    catalogue = model.catalogue()
    histories = trained.inputs.test.histories
    assert histories is not None
    items = torch.from_numpy(histories.items).to(catalogue.device)
    ends = torch.from_numpy(histories.offsets[1:]).to(catalogue.device)
    lengths = torch.from_numpy(histories.counts).to(catalogue.device)
    parts = []
    for start in range(0, len(ends), SEQUENCES):
        rows = slice(start, start + SEQUENCES)
        length, padding = model.config.max_length, model.padding
        sequences = pad_sequences(items, ends[rows], lengths[rows], length, padding)
        parts.append(model.represent(catalogue, sequences))
    return catalogue, torch.cat(parts)


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that holds something else, before any work is done.

    Raises:
        ConfigError: it exists and is no earlier export, or is one and `force` is not given.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name another folder with --to")
    if not any(folder.iterdir()):
        return
    ours = (folder / "manifest.json").is_file() and (folder / "items.npy").is_file()
    if not ours:
        raise ConfigError(f"{folder} holds other files; name another folder with --to")
    if not force:
        raise ConfigError(f"{folder} exists; replace it with --force, or name another with --to")


def write_representations(folder: Path, found: Representations, trained: Trained) -> Path:
    """Write vectors, ids and manifest; the folder appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    dataset, run = trained.inputs.dataset, trained.run
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_array(partial / "items.npy", found.items)
        write_array(partial / "users.npy", found.users)
        user_ids = dataset.user_ids
        _write_ids(partial / "item_ids.json", dataset.item_ids)
        _write_ids(partial / "user_ids.json", [user_ids[row] for row in found.user_rows])
        write_json(partial / "manifest.json", _manifest(found, trained))
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    except OSError as problem:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(
            f"{folder} cannot be written ({problem.strerror or problem}), so the vectors of "
            f"{run.path} are not stored; free space or name another folder with --to"
        ) from None
    return folder


def _manifest(found: Representations, trained: Trained) -> Mapping[str, Any]:
    run = trained.run
    return {
        "schema": SCHEMA,
        "tool": {"name": "mmbench", "version": version("mmbench")},
        "run": run.path.name,
        "label": run.label,
        "system": run.system,
        "seed": run.seed,
        "model": run.manifest["model"],
        **{key: run.manifest[key] for key in ("dataset", "split", "features")},
        "score": "the product of a user's and an item's vector",
        "items": {
            "file": "items.npy",
            "ids": "item_ids.json",
            "shape": list(found.items.shape),
            "what": "the vector that the model ranks with, of each item",
        },
        "users": {
            "file": "users.npy",
            "ids": "user_ids.json",
            "shape": list(found.users.shape),
            "what": found.what,
        },
        "agreement": trained.agreement,
    }


def _write_ids(path: Path, ids: list[str]) -> None:
    path.write_text(json.dumps(ids, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
