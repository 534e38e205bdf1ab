"""The run folder: one resolved recipe and one seed, complete in itself.

    recipe.yaml            the resolved recipe of this run
    manifest.json          what was run on what, versions, cost, metrics; "status" says if complete
    history.jsonl          one line per epoch: losses, validation metrics, seconds
    weights.safetensors    the weights that were best on validation
    popularity.npy         training interactions of each item [I]
    lists/valid/*.npy      the ranked lists of the validation users (fields of RankedLists)
    lists/test/*.npy       the same for the test users, ranked once, with the best weights

The engine writes run folders; everyone else reads them here and needs no engine for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy_format

from mmbench.errors import DataError
from mmbench.metrics.base import Metric
from mmbench.metrics.lists import FloatArray, RankedLists

SCHEMA = 1
Part = Literal["valid", "test"]
_LIST_FIELDS = ("users", "items", "hits", "relevant_offsets", "relevant_items", "activity")
_AGAIN = "the run is damaged, delete its folder and train it again"


@dataclass(frozen=True)
class Run:
    """A complete run folder, opened for reading.

    `manifest` holds, among others: `label`, `system` (hash of everything but the seed), `seed`,
    `dataset` {name, fingerprint, users, items}, `split` {name, fingerprint}, `protocol`,
    `features` [{key, modality, sha256}], `encoding` [{modality, encoder, paradigm}], `alignment`
    of vectors that learnt, `model` {name, integration, parameters},
    `training` {epochs, best_epoch, select_by, seconds, seconds_per_epoch, peak_memory_mib},
    `environment`, `metrics` {valid: {..}, test: {..}}.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What tables call this system."""
        return str(self.manifest["label"])

    @property
    def system(self) -> str:
        """Hash of all that defines the run except its seed; equal for seeds of one system."""
        return str(self.manifest["system"])

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return int(self.manifest["seed"])

    def lists(self, part: Part) -> RankedLists:
        """The stored ranked lists of one part: "test", "valid", or one that a study has added.

        Raises:
            DataError: an array is missing or broken, or they do not belong together.
        """
        folder = self.path / "lists" / part
        arrays = {name: read_array(folder / f"{name}.npy") for name in _LIST_FIELDS}
        arrays["popularity"] = read_array(self.path / "popularity.npy")
        _check_lists(folder, **arrays)
        return RankedLists(**arrays)

    def values(self, metric: Metric, part: Part = "test") -> FloatArray:
        """The metric of each user [U], recomputed from the stored lists."""
        return metric.values(self.lists(part))


def _check_lists(folder: Path, **arrays: np.ndarray[Any, Any]) -> None:
    """Refuse arrays that are readable and yet no ranked lists together.

    Raises:
        DataError: one has another shape, kind of number or range than the others say.
    """

    def refuse(name: str, wanted: str) -> None:
        found = f"{arrays[name].dtype} of shape {arrays[name].shape}"
        raise DataError(
            f"{folder}: the arrays do not fit together: {name} ({found}) {wanted}; {_AGAIN}"
        )

    n_users, n_items = arrays["users"].size, arrays["popularity"].size
    for name, array in arrays.items():
        if array.dtype.kind != ("b" if name == "hits" else "i"):
            refuse(name, "are not marks" if name == "hits" else "are not whole numbers")
        if array.ndim != (2 if name in ("items", "hits") else 1):
            refuse(name, "has another number of dimensions than lists have")
    for name, rows in (("items", 0), ("hits", 0), ("activity", 0), ("relevant_offsets", 1)):
        if len(arrays[name]) != n_users + rows:
            refuse(name, f"does not fit {n_users} users")
    if arrays["hits"].shape != arrays["items"].shape:
        refuse("hits", "does not fit the items")
    offsets, relevant = arrays["relevant_offsets"], arrays["relevant_items"]
    if offsets[0] != 0 or offsets[-1] != len(relevant) or (np.diff(offsets) < 0).any():
        refuse("relevant_offsets", "does not cut the relevant items")
    for name, least in (("items", -1), ("relevant_items", 0)):
        array = arrays[name]
        if array.size and not least <= array.min() <= array.max() < n_items:
            refuse(name, f"names other items than the {n_items} that there are")


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """Read a numeric .npy file; never unpickles.

    Raises:
        DataError: it is missing, truncated, or holds objects.
    """
    try:
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {_AGAIN}") from None
    except (ValueError, EOFError, OSError) as problem:
        reason = str(problem)
        if "pickle" in reason.lower():  # numpy goes on to say how to unpickle it all the same
            reason = "no .npy file, or one of Python objects, which are never unpickled"
        raise DataError(f"{path} cannot be read ({reason}); {_AGAIN}") from None
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    return array


def write_lists(folder: Path, lists: RankedLists) -> None:
    """Store ranked lists, one .npy file per field, indices as int32."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _LIST_FIELDS:
        array = getattr(lists, name)
        wide = name == "relevant_offsets" or array.dtype == np.bool_
        write_array(folder / f"{name}.npy", array if wide else array.astype(np.int32))


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write a .npy file, version 1.0, little-endian.

    Not `numpy.save`: its error on a full disk has no error number to explain it by.
    """
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    with path.open("wb") as file:
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run folder, complete or not.

    Raises:
        DataError: there is none, it is not JSON, or another version of mmbench wrote it.
    """
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is not a run folder: it holds no manifest.json") from None
    except (ValueError, OSError) as problem:
        raise DataError(f"{file} cannot be read ({problem}); {_AGAIN}") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise DataError(
            f"{path} was written by another version of mmbench (run schema {found}, this version "
            f"reads {SCHEMA}); delete the folder and train it again, or use that version"
        )
    if not isinstance(manifest.get("seed", 0), int):
        raise DataError(f"{file}: the seed is {manifest['seed']!r}; {_AGAIN}")
    return manifest


def open_run(path: Path) -> Run:
    """Open a complete run folder.

    Raises:
        DataError: it is no run folder, is unfinished, or comes from another version.
    """
    manifest = read_manifest(path)
    if manifest.get("status") != "complete":
        raise DataError(f"{path} is unfinished; run its recipe again to resume it")
    return Run(path, manifest)


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Open run folders, and every run below a folder that is none itself.

    Raises:
        DataError: a path does not exist, holds no run, or a named run is unfinished.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; name run folders, for example runs/*")
        if (path / "manifest.json").exists():
            runs[path.resolve()] = open_run(path)
            continue
        inside = (
            sorted(file.parent for file in path.rglob("manifest.json")) if path.is_dir() else []
        )
        if not inside:
            raise DataError(f"{path} is not a run folder and holds none")
        for folder in inside:
            if read_manifest(folder).get("status") == "complete":
                runs[folder.resolve()] = open_run(folder)
    return list(runs.values())


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
