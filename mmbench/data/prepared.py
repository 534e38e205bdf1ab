"""The prepared dataset: its canonical folder, written once, opened memory-mapped.

manifest.json            written last: a folder without it is unfinished
provenance.json          when, where and by which version it was made, and where pictures lie:
                         all that differs between two machines
report.json              counts per cleaning step, warnings, samples of what was dropped
interactions/*.npy       user, item (int32), timestamp (int64), rating (float32), source_row
users.jsonl items.jsonl  line k describes index k
splits/<name>/           label.npy (int8), split.json
features/<modality>__<encoder>/
images/                  pictures of sources that made them; those of others stay in their place
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.cold import read_cold
from mmbench.data.features import FeatureSet, load_features, stored_keys
from mmbench.data.hashing import sha256_array
from mmbench.errors import DataError, UnknownNameError
from mmbench.runs import write_json

SCHEMA = 1
TRAIN, VALID, TEST, EXCLUDED = 0, 1, 2, 3
COLUMNS: dict[str, np.dtype[Any]] = {
    "user": np.dtype("<i4"),
    "item": np.dtype("<i4"),
    "timestamp": np.dtype("<i8"),
    "rating": np.dtype("<f4"),
    "source_row": np.dtype("<i8"),
}
# Hashing is done on opening while it is cheap; larger arrays are checked by size alone.
_HASH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Split:
    """Labels of every interaction: 0 train, 1 validation, 2 test, 3 excluded; int8 [N]."""

    name: str
    label: NDArray[np.int8]
    fingerprint: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset, opened for reading; arrays are memory-mapped, all of length N.

    Attributes:
        user, item: int32 indices, ordered by user, then time.
        timestamp: int64 milliseconds UTC, -1 where unknown.
        rating: float32, NaN where unknown.
        manifest: manifest.json of the folder, and provenance.json under "provenance".
    """

    root: Path
    manifest: Mapping[str, Any]
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    timestamp: NDArray[np.int64]
    rating: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return str(self.manifest["name"])

    @property
    def fingerprint(self) -> str:
        """Hash of the interactions and of the ids."""
        return str(self.manifest["fingerprint"])

    @property
    def n_users(self) -> int:
        """Number of users."""
        return int(self.manifest["counts"]["users"])

    @property
    def n_items(self) -> int:
        """Number of items, those without interactions included."""
        return int(self.manifest["counts"]["items"])

    @property
    def split_names(self) -> list[str]:
        """Names of the stored splits, the default one first."""
        return [str(name) for name in self.manifest["split_names"]]

    def split(self, name: str | None = None) -> Split:
        """A split by name, or the default one.

        Raises:
            UnknownNameError: there is no such split.
            DataError: its labels are damaged.
        """
        name = name or self.split_names[0]
        if name not in self.manifest["splits"]:
            raise UnknownNameError(
                f"split of {self.name}",
                name,
                self.split_names,
                hint=f"Add one with: mmbench prepare {self.name} --split {name}",
            )
        facts = self.manifest["splits"][name]
        path = self.root / "splits" / name / "label.npy"
        label = read_column(path, np.dtype("i1"), self.user.size, facts["label_sha256"])
        return Split(name, label, str(facts["fingerprint"]), facts)

    def cold(self, name: str | None = None) -> dict[str, NDArray[np.int32]]:
        """What a cold split stores beside its labels: see `mmbench.data.cold`; else empty.

        Raises:
            UnknownNameError, DataError: as `split`.
        """
        split = self.split(name)
        return read_cold(self.root / "splits" / split.name, split.facts)

    @cached_property
    def user_ids(self) -> list[str]:
        """Raw id of each user index."""
        return [str(line["id"]) for line in read_lines(self.root / "users.jsonl", self.n_users)]

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """What items.jsonl says of each item index."""
        return read_lines(self.root / "items.jsonl", self.n_items)

    @property
    def item_ids(self) -> list[str]:
        """Raw id of each item index."""
        return [str(line["id"]) for line in self.items]

    @property
    def texts(self) -> list[str]:
        """Composed text of each item, "" where it has none."""
        return [str(line["text"]) for line in self.items]

    @property
    def image_paths(self) -> list[Path | None]:
        """Picture file of each item, None where it has none or it is unusable."""
        places = self.manifest["provenance"]["pictures"]
        # A relative place lies inside the dataset's folder, so that this one can be moved.
        roots = {key: self.root / place for key, place in places.items()}
        return [
            roots[line.get("image_from", "source")] / str(line["image"])
            if line["image_status"] == "ok"
            else None
            for line in self.items
        ]

    @property
    def feature_keys(self) -> list[str]:
        """Keys `<modality>__<encoder>` of the stored feature sets."""
        return stored_keys(self.root)

    def features(self, modality: str, encoder: str | None = None) -> FeatureSet:
        """The feature set of a modality; `encoder` may be left out where there is just one.

        Raises:
            DataError: there is none, or more than one and none was named; the message lists them.
        """
        keys = self.feature_keys
        if encoder is not None:
            return load_features(
                self.root, f"{modality}__{encoder}", self.fingerprint, self.n_items
            )
        fitting = [key for key in keys if key.startswith(f"{modality}__")]
        if len(fitting) == 1:
            return load_features(self.root, fitting[0], self.fingerprint, self.n_items)
        if fitting:
            encoders = [key.partition("__")[2] for key in fitting]
            raise DataError(
                f"{self.name} has several {modality} feature sets: {', '.join(encoders)}. Name one "
                f"in the recipe, for example features: {{{modality}: {encoders[0]}}}"
            )
        raise DataError(
            f"{self.name} has no {modality} features; stored are: {', '.join(keys) or 'none'}. "
            f"Import them with mmbench prepare, or make them with mmbench extract {self.name}"
        )


def load_dataset(name: str, data_dir: Path) -> PreparedDataset:
    """Open the prepared dataset `data_dir/name`.

    Raises:
        DataError: it is not prepared (the message says how to), unfinished, damaged, or of
            another version.
        UnknownNameError: nobody knows a dataset of this name.
    """
    root = data_dir / name
    if not root.is_dir():
        raise _not_prepared(name, data_dir)
    return open_dataset(root)


def open_dataset(root: Path) -> PreparedDataset:
    """Open the prepared dataset in the folder `root`, checking all that is cheap to check.

    Raises:
        DataError: it is unfinished, damaged, or of another version.
    """
    manifest = read_manifest(root)
    n = int(manifest["counts"]["interactions"])
    columns = {
        name: read_column(
            root / "interactions" / f"{name}.npy",
            dtype,
            n,
            manifest["arrays"][f"interactions/{name}.npy"],
        )
        for name, dtype in COLUMNS.items()
        if name != "source_row"  # provenance only; nothing is computed from it
    }
    return PreparedDataset(root=root, manifest=manifest, **columns)


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        DataError: there is none, it cannot be read, or it is of another version.
    """
    path = root / "manifest.json"
    again = "prepare the dataset again with --force"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"E302 {root} is no prepared dataset (it has no manifest.json); remove the folder and "
            "prepare the dataset again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"E302 {path} cannot be read ({error}); {again}") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"E302 {root} was written by another version of mmbench (schema {schema}, this "
            f"version reads {SCHEMA}); {again}"
        )
    for key in ("name", "counts", "arrays", "fingerprint", "splits", "split_names", "images"):
        if key not in manifest:
            raise DataError(f"E302 {path} is damaged ('{key}' is missing); {again}")
    beside = root / "provenance.json"
    try:
        manifest["provenance"] = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"E302 {beside} cannot be read ({error}); {again}") from error
    return manifest


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Store a manifest; what `read_manifest` put under "provenance" has a file of its own."""
    write_json(root / "manifest.json", {k: v for k, v in manifest.items() if k != "provenance"})


def read_column(path: Path, dtype: np.dtype[Any], n: int, sha256: str) -> NDArray[Any]:
    """Open one stored array of `n` elements, memory-mapped.

    Raises:
        DataError: it is missing, of another type or length, or its hash differs.
    """
    again = "prepare the dataset again with --force"
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"E302 {path} cannot be read ({error}); {again}") from error
    if array.dtype != dtype or array.shape != (n,):
        raise DataError(
            f"E302 {path} holds {array.dtype} {list(array.shape)}, expected {dtype} [{n}]; {again}"
        )
    if array.nbytes <= _HASH_BYTES and sha256_array(array) != sha256:
        raise DataError(f"E302 {path} does not match its recorded hash; {again}")
    return array


def read_lines(path: Path, n: int) -> list[dict[str, Any]]:
    """The `n` records of a JSON-lines file.

    Raises:
        DataError: it is missing, damaged, or of another length.
    """
    again = "prepare the dataset again with --force"
    try:
        # Not splitlines(): JSON may hold U+2028, which that would split at.
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise DataError(f"E302 {path} cannot be read ({error}); {again}") from error
    if len(lines) != n:
        raise DataError(f"E302 {path} has {len(lines)} lines, expected {n}; {again}")
    return lines


def dataset_fingerprint(arrays: Mapping[str, str], ids: Mapping[str, str]) -> str:
    """Hash that results cite: the interactions and the ids, not source rows, dates or paths.

    Args:
        arrays: hash of each stored array, by its path.
        ids: hash of the users' and of the items' ids.
    """
    parts = [str(SCHEMA)]
    parts += [arrays[f"interactions/{key}.npy"] for key in ("user", "item", "timestamp", "rating")]
    parts += [ids["users"], ids["items"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def split_fingerprint(dataset: str, label: NDArray[np.int8]) -> str:
    """Hash that results cite for a split: the dataset's fingerprint and the labels."""
    return hashlib.sha256(f"{dataset}\n{sha256_array(label)}".encode()).hexdigest()


def _not_prepared(name: str, data_dir: Path) -> DataError | UnknownNameError:
    # Late, because naming the sources reads their files and only an error needs it.
    from mmbench.data.finding import find_known, known_names

    stored = sorted(path.parent.name for path in data_dir.glob("*/manifest.json"))
    if find_known(name) is not None:
        return DataError(
            f"dataset '{name}' is not prepared under {data_dir}. Run: mmbench prepare {name}"
        )
    return UnknownNameError(
        "dataset",
        name,
        {*stored, *known_names()},
        hint=f"Prepare your own with: mmbench prepare {name} --source DIR",
        listing="mmbench prepare --list",
    )
