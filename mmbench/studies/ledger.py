"""The ledger of a search: its trials as JSON lines, beside the runs, each appended at once.

    <runs>/.tuning/<dataset>-<label>-<method>-<hash>.jsonl
        {"schema": 1, "method": .., "seed": .., "space": .., "recipe": .., ..}
        {"trial": 1, "point": {..}, "status": "complete", "run": folder, "value": ..}
        {"trial": 2, "point": {..}, "status": "failed", "error": ..}

Its folder begins with a dot, so that `compare runs/*` meets run folders alone. What is written is
never changed; a line that a kill cut short is dropped when the ledger is opened next.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmbench.errors import ConfigError, DataError
from mmbench.recipe import system_hash

FOLDER = ".tuning"
SCHEMA = 1


class Ledger:
    """The ledger of one search, held by this process alone until it is closed.

    Attributes:
        path: the file.
        entries: what it held when it was opened, by number of the trial.
    """

    def __init__(
        self, runs_dir: Path, name: str, identity: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        """Open or begin the ledger of a search.

        Args:
            name: what it is called, together with a hash of the identity.
            identity: what the trials are a function of; another one has another ledger.
            facts: what else the first line tells.

        Raises:
            ConfigError: another process holds it.
            DataError: it cannot be read or written.
        """
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
        self.path = runs_dir / FOLDER / f"{slug}-{system_hash(identity)[:8]}.jsonl"
        self.entries: dict[int, dict[str, Any]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as problem:
            raise DataError(
                f"{self.path} cannot be written ({problem.strerror}); choose another --runs-dir"
            ) from None
        try:
            self._hold()
            if not self._read():
                self._append({"schema": SCHEMA, **identity, **facts})
        except BaseException:
            self.close()
            raise

    def add(self, trial: int, entry: Mapping[str, Any]) -> None:
        """Append a finished trial, unless that is what the ledger says of it already."""
        line = _plain({"trial": trial, **entry})
        if self.entries.get(trial) != line:
            self.entries[trial] = line
            self._append(line)

    def check(self, trial: int, point: Mapping[str, Any], made_by: str) -> None:
        """Refuse to go on where the sampler now proposes something else.

        Raises:
            ConfigError: the ledger's trial of that number has other settings.
        """
        known = self.entries.get(trial)
        if known is not None and known.get("point") != _plain(point):
            raise ConfigError(
                f"{self.path}: its trial {trial} has the settings {known.get('point')}, but "
                f"{made_by} now proposes {_plain(point)}; go on with the version that its first "
                "line names, or remove the file for a new search (finished runs are kept)"
            )

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _hold(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process works on this search ({self.path}); wait for it to end"
            ) from None

    def _read(self) -> bool:
        """Read all lines; whether there is a first one."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        lines = data[:whole].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if number == 1 and entry["schema"] != SCHEMA:
                    raise ValueError(f"schema {entry['schema']}")
                if number > 1:
                    self.entries[int(entry["trial"])] = entry
            except (ValueError, KeyError, TypeError) as problem:
                raise DataError(
                    f"{self.path} line {number} cannot be read ({problem}); remove the file: the "
                    "same command makes it again from the runs"
                ) from None
        return bool(lines)

    def _append(self, entry: Mapping[str, Any]) -> None:
        """One write of one line, on the disk before it returns."""
        line = json.dumps(_plain(entry), sort_keys=True, allow_nan=False) + "\n"
        try:
            os.write(self._file, line.encode())
            os.fsync(self._file)
        except OSError as problem:
            raise DataError(
                f"{self.path} cannot be written ({problem.strerror}); free space; the same command "
                "resumes"
            ) from None


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that what is read and what is made now can be compared."""
    plain: dict[str, Any] = json.loads(json.dumps(entry, default=str))
    return plain
