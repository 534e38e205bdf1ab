"""Unfinished extractions on disk: what is done stays done when the process is killed.

    <dataset>/features/.<name>.lock                 held while somebody extracts into <name>
    <dataset>/features/.<key>~<config>.work/
        plan.json                  all that determines the result, and the batch size
        000012.joint.matrix.npy    rows of the items of shard 12; .tokens, .token_mask beside it
        000012.json                written after them: item range, hashes, problems

A shard counts once its JSON is there and its arrays have the hashes that it states.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.hashing import sha256_file
from mmbench.data.token_features import JoinedRows
from mmbench.errors import ConfigError, DataError
from mmbench.runs import write_array, write_json

POOLED_ITEMS, TOKEN_ITEMS = 1024, 256
"""Items of a shard, without and with token vectors."""


@dataclass(frozen=True)
class Shard:
    """Consecutive items [start, stop)."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Done:
    """What a finished shard says of itself.

    Attributes:
        problems: why items that have the content have no row, by item index.
        n_cut: texts that were cut.
        files: SHA-256 of its arrays, by file name.
    """

    problems: Mapping[int, str] = field(default_factory=dict)
    n_cut: int = 0
    files: Mapping[str, str] = field(default_factory=dict)


def make_shards(n_items: int, size: int) -> list[Shard]:
    """The shards of a dataset."""
    starts = range(0, n_items, size)
    return [Shard(k, start, min(start + size, n_items)) for k, start in enumerate(starts)]


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON value, the same for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class WorkFolder:
    """The folder of one unfinished extraction.

    Args:
        features: folder of the dataset's feature sets.
        key: what the folder is for.
        config: everything that determines the result, as JSON values.
    """

    def __init__(self, features: Path, key: str, config: Mapping[str, Any]) -> None:
        self.features, self.key, self.config = features, key, dict(config)
        self.config_hash = canonical_hash(self.config)
        # A tilde, which no key holds: what belongs to "clip" must not match "clip.b" too.
        self.path = features / f".{key}~{self.config_hash[:12]}.work"

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Make the folder, or open the one that an earlier process left.

        The batch size of the first start stays, as it can move the last bit of a vector; another
        one that is asked for (`batch["asked"]`) takes its place.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob("*.partial"):
            left.unlink()
        recorded = self.recorded()
        if recorded is None:
            shutil.rmtree(self.path)
            self.path.mkdir()
        if recorded is None or recorded.get("asked") != batch.get("asked"):
            self.record(batch)

    def recorded(self) -> dict[str, Any] | None:
        """The batch size to work with; None where there is no folder of this configuration."""
        try:
            plan = json.loads((self.path / "plan.json").read_text("utf-8"))
            if plan["config_sha256"] != self.config_hash:
                return None
            return dict(plan["batch"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def record(self, batch: Mapping[str, Any]) -> None:
        """Store the batch size that holds from now on."""
        plan = {"config": self.config, "config_sha256": self.config_hash, "batch": dict(batch)}
        write_json(self.path / "plan.json", plan)

    def read(self, shard: Shard) -> Done | None:
        """What is known of a shard; None where it is not finished, or damaged."""
        try:
            facts = json.loads((self.path / f"{shard.index:06d}.json").read_text("utf-8"))
            if facts["range"] != [shard.start, shard.stop]:
                return None
            if facts["config_sha256"] != self.config_hash:
                return None
            for name, sha256 in facts["files"].items():
                if sha256_file(self.path / name) != sha256:
                    return None
            problems = {int(item): str(why) for item, why in facts["problems"].items()}
            return Done(problems, int(facts["n_cut"]), dict(facts["files"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(
        self,
        shard: Shard,
        arrays: Mapping[str, NDArray[Any]],
        problems: Mapping[int, str],
        n_cut: int,
    ) -> Done:
        """Store a finished shard, whole or not at all.

        Args:
            arrays: rows by "<modality>.matrix", "<modality>.tokens", "<modality>.token_mask";
                none where no item of the shard has the content.
        """
        hashes = {}
        for name, array in arrays.items():
            path = self.path / f"{shard.index:06d}.{name}.npy"
            partial = path.with_name(path.name + ".partial")
            write_array(partial, array)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
            hashes[path.name] = sha256_file(path)
        facts = {
            "range": [shard.start, shard.stop],
            "config_sha256": self.config_hash,
            "files": hashes,
            "problems": {str(item): why for item, why in problems.items()},
            "n_cut": n_cut,
        }
        write_json(self.path / f"{shard.index:06d}.json", facts)
        return Done(problems, n_cut, hashes)

    def joined(self, shards: Sequence[Shard], name: str) -> JoinedRows | None:
        """The rows of all shards as one array; None where no shard has any."""
        parts: list[NDArray[Any] | int] = []
        for shard in shards:
            path = self.path / f"{shard.index:06d}.{name}.npy"
            if path.exists():
                parts.append(np.load(path, mmap_mode="r", allow_pickle=False))
            else:
                parts.append(shard.stop - shard.start)
        return None if all(isinstance(part, int) for part in parts) else JoinedRows(parts)

    def check_room(self, written: int, n_total: int) -> None:
        """Refuse to go on where the disk cannot hold the shards and the set made of them.

        Args:
            written: shards that are there; they tell how large the others will be.
            n_total: all shards.

        Raises:
            DataError: E108.
        """
        here = sum(path.stat().st_size for path in self.path.glob("*.npy"))
        needed = here * (2 * n_total - written) // max(1, written)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise DataError(
                f"E108 {self.features}: {needed / 2**30:.1f} GiB more are needed for {self.key}, "
                f"{free / 2**30:.1f} GiB are free; make room, then run this again: what is done "
                "stays done"
            )

    def remove(self) -> None:
        """Remove this folder and those of other configurations of the same key."""
        for left in self.features.glob(f".{self.key}~*.work"):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def alone(features: Path, name: str) -> Iterator[None]:
    """Keep other processes from extracting into `name`; the lock dies with the process.

    Raises:
        ConfigError: another process does.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    features.mkdir(parents=True, exist_ok=True)
    path = features / f".{name}.lock"
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is extracting {name} into {features}; wait for it to end"
                ) from None
            # Whoever held it may have removed the file after it was opened here.
            if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
