"""What was fetched into a folder, from where and with which hash: `downloads.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmbench.runs import write_json

LEDGER = "downloads.json"
_LISTED = 20


@dataclass(frozen=True)
class Entry:
    """One fetched file.

    Attributes:
        address: where it came from, "" for a file that was brought by hand.
        bytes, sha256: as they were when it was complete.
        date: when that was, UTC.
        unpacked: some names that its content has below `unpacks_to`; None if it was not unpacked.
    """

    address: str
    bytes: int
    sha256: str
    date: str
    unpacked: tuple[str, ...] | None = None


def now() -> str:
    """The time, as entries hold it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_ledger(folder: Path) -> dict[str, Entry]:
    """The entries by path; none where the ledger cannot be read, since it only spares work."""
    try:
        found: Any = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
        entries = {}
        for path, fields in found["files"].items():
            unpacked = fields["unpacked"]
            entries[path] = Entry(
                address=str(fields["address"]),
                bytes=int(fields["bytes"]),
                sha256=str(fields["sha256"]),
                date=str(fields["date"]),
                unpacked=None if unpacked is None else tuple(map(str, unpacked)),
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return entries


def record(folder: Path, path: str, entry: Entry | None) -> None:
    """Write one entry, or take it away; only while `alone_in(folder)`."""
    entries = read_ledger(folder)
    entries.pop(path, None)
    if entry is not None:
        entries[path] = entry
    write_json(folder / LEDGER, {"files": {key: asdict(value) for key, value in entries.items()}})


def is_unpacked(entry: Entry | None, target: Path) -> bool:
    """Whether what an archive held is still below `target`; a look at some names must do."""
    if entry is None or entry.unpacked is None:
        return False
    return all((target / name).exists() for name in entry.unpacked[:_LISTED])
