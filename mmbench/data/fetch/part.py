"""A file that is only partly here: `<name>.part`, and `<name>.part.json` about its origin.

A later process can go on with it, because the notes say which version of which file it is a
beginning of. They are written before the first byte, so that no byte is ever without them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from mmbench.data.fetch.kinds import BLOCK
from mmbench.runs import write_json


@dataclass(frozen=True)
class Origin:
    """Which version of which file a part is the beginning of.

    Attributes:
        address: where it comes from, without password.
        etag, modified: what the server calls this version, "" if it does not.
        total: bytes of the whole file, None if unknown.
    """

    address: str
    etag: str = ""
    modified: str = ""
    total: int | None = None

    @property
    def validator(self) -> str:
        """What If-Range may hold: a weak tag does not promise equal bytes (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def fits(self, other: Origin) -> bool:
        """Whether a later answer is about the same version, as far as both tell."""
        pairs: list[tuple[object, object]] = [(self.total, other.total)]
        if self.address == other.address:
            pairs += [(self.etag, other.etag), (self.modified, other.modified)]
        return all(old == new for old, new in pairs if old and new)


class Part:
    """The partial file of `final`.

    Attributes:
        resumed: whether its bytes came in more than one piece.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(final.name + ".part")
        self.notes = final.with_name(final.name + ".part.json")
        self.resumed = False
        self._digest = hashlib.sha256()
        self._n_hashed = 0

    def size(self) -> int:
        """Bytes that are here."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def origin(self) -> Origin | None:
        """What the bytes are the beginning of, None where nobody knows."""
        try:
            found: Any = json.loads(self.notes.read_text(encoding="utf-8"))
            total = found["total"]
            return Origin(
                address=str(found["address"]),
                etag=str(found["etag"]),
                modified=str(found["modified"]),
                total=None if total is None else int(total),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, origin: Origin) -> None:
        """Start anew: drop what is here, and note what comes."""
        self.discard()
        self.final.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.notes, asdict(origin))

    @contextmanager
    def opened(self) -> Iterator[FileIO]:
        """The file, to be written to with `add`."""
        self.resumed = self.resumed or self.size() > 0
        # Unbuffered: what `add` was given is with the system, even if this process is killed.
        with self.path.open("ab", buffering=0) as file:
            yield file

    def add(self, file: FileIO, block: bytes) -> None:
        """Write one block at the end, and hash it if all before it is hashed."""
        at = file.tell()
        rest = memoryview(block)
        while rest:
            rest = rest[file.write(rest) :]
        if at == self._n_hashed:
            self._digest.update(block)
            self._n_hashed += len(block)

    def sha256(self) -> str:
        """The hash of all bytes; those that an earlier process wrote are read for it."""
        if self._n_hashed > self.size():  # somebody else shortened it
            self._digest, self._n_hashed = hashlib.sha256(), 0
        with self.path.open("rb") as file:
            file.seek(self._n_hashed)
            while block := file.read(BLOCK):
                self._digest.update(block)
                self._n_hashed += len(block)
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Remove it and its notes."""
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self._digest, self._n_hashed, self.resumed = hashlib.sha256(), 0, False

    def install(self) -> None:
        """Give the complete file its name; after a loss of power it is there whole or not."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(self.final)
        self.notes.unlink(missing_ok=True)
        with suppress(OSError):  # not every system lets a folder be synchronised
            handle = os.open(self.final.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
