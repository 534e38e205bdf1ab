"""Unpacking archives that nobody has looked into.

Nothing of an archive is believed: names, kinds and sizes are checked while it is unpacked, into
a folder that becomes visible only when all of it is well.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from mmbench.data.fetch.disk import FULL, free_in
from mmbench.data.fetch.kinds import BLOCK, BrokenFile, archive_kind, check_kind
from mmbench.data.fetch.web import Ticker, Watch, nobody, size_text
from mmbench.errors import DataError

_MAX_RATIO = 200
_ALWAYS_ALLOWED = 64 * 2**20
"""Bytes that any archive may hold, however small it is itself."""
_MAX_HEADER = 2**22
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
    NotImplementedError, ValueError, struct.error,
)  # fmt: skip


def unpack(
    archive: Path,
    target: Path,
    *,
    max_bytes: int = 200 * 2**30,
    max_files: int = 5_000_000,
    watch: Watch = nobody,
) -> tuple[str, ...]:
    """Unpack a zip, a (compressed) tar or a single .gz below `target`, whole or not at all.

    Files that `target` has already stay; those of the same name are replaced.

    Returns:
        The names that the content has directly below `target`, sorted.

    Raises:
        DataError: it is broken (E106), or a member is a link, a device, lies outside the target,
            or the whole is larger than allowed (E107), or the disk is too small (E108).
    """
    check_kind(archive)
    kind = archive_kind(archive)
    if kind is None:
        raise BrokenFile(archive, "is neither a zip nor a tar archive")
    ticker = Ticker(watch, f"unpacking {archive.name}", "bytes", archive.stat().st_size)
    made = _missing_folders(target)
    partial = target / f".unpacking-{os.getpid()}"
    try:
        _remove_stale(target)
        partial.mkdir(parents=True)
        room = _Room(archive, partial, max_bytes, max_files)
        if kind == "zip":
            _unpack_zip(room, ticker)
        elif kind == "tar" or _holds_tar(archive, kind):
            _unpack_tar(room, kind, ticker)
        else:
            _unpack_single(room, kind, ticker)
        ticker(archive.stat().st_size, last=True)
        names = tuple(sorted(entry.name for entry in os.scandir(partial)))
        _move_into(partial, target, room)
    except (*_BROKEN, OSError) as error:
        # bz2 says with an OSError that has no number that its input is broken.
        if isinstance(error, OSError) and error.errno is not None:
            raise _not_written(archive, target, error) from error
        reason = "its end is missing" if isinstance(error, EOFError) else str(error)
        raise BrokenFile(archive, f"is not a complete {kind} file ({reason})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:  # the deepest first; those that hold something stay
            with contextlib.suppress(OSError):
                folder.rmdir()
    return names


@dataclass
class _Room:
    """Where the members of one archive go, and how much more of them there may be."""

    archive: Path
    folder: Path
    max_bytes: int
    max_files: int

    def __post_init__(self) -> None:
        ratio = max(_ALWAYS_ALLOWED, _MAX_RATIO * self.archive.stat().st_size)
        self.limit = min(self.max_bytes, ratio)
        self.n_bytes = self.n_files = 0
        self.names: dict[str, Path] = {}

    def refuse(self, what: str) -> DataError:
        return DataError(f"E107 {self.archive}: {what}; nothing of it was unpacked")

    def take(self, n_bytes: int) -> None:
        """Count bytes that came out of the archive."""
        self.n_bytes += n_bytes
        if self.n_bytes <= self.limit:
            return
        if self.limit < self.max_bytes:
            raise self.refuse(
                f"its content is more than {_MAX_RATIO} times its own size, like a bomb's"
            )
        raise self.refuse(f"its content has more than the {self.max_bytes} bytes allowed")

    def place(self, name: str) -> Path:
        """Where a member goes.

        Raises:
            DataError: its name leads elsewhere, or there are too many members.
        """
        self.n_files += 1
        if self.n_files > self.max_files:
            raise self.refuse(f"it has more than the {self.max_files} files allowed")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if (
            name.startswith("/")
            or ".." in parts
            or "\\" in name
            or re.match(r"[A-Za-z]:", name)
            or re.search(r"[\x00-\x1f\x7f-\x9f]", name)
        ):
            raise self.refuse(f"unsafe member {name!a}")
        return self.folder.joinpath(*parts)

    def make_folder(self, name: str) -> None:
        path = self.place(name)
        if path.is_file():
            raise self.refuse(f"unsafe member {name!a}, a file and a folder")
        path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: IO[bytes], ticker: Ticker, read: Callable[[], int]) -> None:
        """Write one file; `read` tells how far the archive was read, for the ticker."""
        path = self.place(name)
        # Names that differ in case or accent form only are one file on some systems.
        key = unicodedata.normalize("NFC", path.relative_to(self.folder).as_posix()).casefold()
        first = self.names.setdefault(key, path)
        if first is not path:
            if not self._equal(first, content):
                raise self.refuse(f"unsafe member {name!a}, there twice with other content")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise self.refuse(f"unsafe member {name!a}, a file and a folder") from error
        with file:
            while block := content.read(BLOCK):
                self.take(len(block))
                file.write(block)
                ticker(read())

    def _equal(self, path: Path, content: IO[bytes]) -> bool:
        with path.open("rb") as file:
            while block := content.read(BLOCK):
                self.take(len(block))
                if file.read(len(block)) != block:
                    return False
            return not file.read(1)


def _unpack_zip(room: _Room, ticker: Ticker) -> None:
    with zipfile.ZipFile(room.archive) as archive:
        members = archive.infolist()
        if len(members) > room.max_files:
            raise room.refuse(f"it has more than the {room.max_files} files allowed")
        claimed = sum(member.file_size for member in members)
        if free_in(room.folder) < claimed <= room.limit:
            raise _no_room(room.archive, room.folder.parent, claimed)
        n_read = 0
        for member in members:
            # `filename` was cut at a NUL and had its backslashes replaced; this is what stands
            # in the archive.
            name = member.orig_filename
            form = stat.S_IFMT(member.external_attr >> 16)
            if form not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise room.refuse(f"unsafe member {name!a}, a link or a device")
            if member.flag_bits & 0x1:
                raise BrokenFile(room.archive, f"needs a password for {name!a}")
            if name.endswith("/"):
                room.make_folder(name)
                continue
            with archive.open(member) as content:
                n_read += member.compress_size
                room.write(name, content, ticker, lambda: n_read)  # noqa: B023 - called at once


def _unpack_tar(room: _Room, kind: str, ticker: Ticker) -> None:
    with room.archive.open("rb") as raw, _opened(raw, kind) as plain:
        stream = _Stream(plain, room)
        # Read as a stream, forwards only: an archive cannot send tarfile back and forth in it.
        with stream.at_most(_MAX_HEADER):
            archive = tarfile.open(  # noqa: SIM115 - closed below
                fileobj=cast("IO[bytes]", stream), mode="r|", bufsize=2**16, tarinfo=_Member
            )
        with archive:
            while (member := _next(archive, stream)) is not None:
                if member.isdir():
                    room.make_folder(member.name)
                    continue
                if not member.isreg() or member.issparse():
                    what = "a sparse file" if member.issparse() else "a link or a device"
                    raise room.refuse(f"unsafe member {member.name!a}, {what}")
                content = archive.extractfile(member)
                assert content is not None
                with content:
                    room.write(member.name, content, ticker, raw.tell)
        # The checksum of what was compressed is at its very end.
        while block := stream.read(BLOCK):
            room.take(len(block))


def _next(archive: tarfile.TarFile, stream: _Stream) -> tarfile.TarInfo | None:
    """The next member; its header must be short, since tarfile keeps it in memory."""
    with stream.at_most(_MAX_HEADER):
        member = archive.next()
    # Forgotten, or millions of them would stay.
    cast("Any", archive).members = []
    return member


class _Member(tarfile.TarInfo):
    """A header; where tarfile takes a broken or a missing one for the end, this raises."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) < tarfile.BLOCKSIZE:
                raise EOFError from error
            if any(buf):
                raise tarfile.ReadError(f"a header in it is broken: {error}") from error
            raise  # a block of zeros is the true end


class _Stream:
    """Reads forwards; refuses to give more than `at_most` so many bytes inside such a block."""

    def __init__(self, inner: IO[bytes], room: _Room) -> None:
        self._inner, self._room = inner, room
        self._left: int | None = None

    @contextlib.contextmanager
    def at_most(self, n_bytes: int) -> Iterator[None]:
        self._left = n_bytes
        yield
        self._left = None

    def read(self, n_bytes: int) -> bytes:
        block = self._inner.read(n_bytes)
        if self._left is not None:
            self._left -= len(block)
            if self._left < 0:
                raise self._room.refuse("a header in it is too long")
        return block


@contextlib.contextmanager
def _opened(raw: IO[bytes], kind: str) -> Iterator[IO[bytes]]:
    openers: dict[str, Callable[[IO[bytes]], Any]] = {
        "gzip": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
        "bzip2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
    }
    if kind == "tar":
        yield raw
        return
    with openers[kind](raw) as plain:
        yield plain


def _holds_tar(archive: Path, kind: str) -> bool:
    """Whether a compressed file is an archive, by its name or by what it begins with."""
    name = archive.name.lower()
    if re.search(r"\.(tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", name):
        return True
    with archive.open("rb") as raw, _opened(raw, kind) as plain:
        return plain.read(512)[257:262] == b"ustar"


def _unpack_single(room: _Room, kind: str, ticker: Ticker) -> None:
    name = re.sub(r"\.(gz|bz2|xz)$", "", room.archive.name, flags=re.IGNORECASE)
    with room.archive.open("rb") as raw, _opened(raw, kind) as plain:
        room.write(name, plain, ticker, raw.tell)


def _move_into(partial: Path, target: Path, room: _Room) -> None:
    """Move what was unpacked into place; looked through first, so that nothing is half moved."""
    moves: list[tuple[Path, Path]] = []

    def look(source: Path, place: Path) -> None:
        if not place.exists() and not place.is_symlink():
            moves.append((source, place))
        elif source.is_dir() and place.is_dir():
            for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
                look(Path(entry.path), place / entry.name)
        elif source.is_dir() or place.is_dir():
            raise room.refuse(f"{place} is in the way of what it holds; move it away")
        else:
            moves.append((source, place))

    look(partial, target)
    for source, place in moves:
        source.replace(place)


def _remove_stale(target: Path) -> None:
    """Remove what processes left that were killed while they unpacked."""
    for folder in target.glob(".unpacking-*"):
        number = folder.name.removeprefix(".unpacking-")
        if number.isdecimal() and not _lives(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(process: int) -> bool:
    if os.name != "posix" or process == os.getpid():
        return process != os.getpid()  # asking Windows this way would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _missing_folders(target: Path) -> list[Path]:
    """The folders that have to be made for `target`, the deepest first."""
    return [folder for folder in (target, *target.parents) if not folder.exists()]


def _not_written(archive: Path, target: Path, error: OSError) -> DataError:
    if error.errno in FULL:
        return _no_room(archive, target, None)
    return DataError(
        f"E108 {archive} cannot be unpacked to {target}: {error.strerror or error}; nothing of it "
        "was unpacked"
    )


def _no_room(archive: Path, target: Path, needed: int | None) -> DataError:
    need = "more than that is" if needed is None else f"{size_text(needed)} are"
    return DataError(
        f"E108 {size_text(free_in(target))} free in {target}, {need} needed to unpack "
        f"{archive.name}; make room and run this again: the archive is kept"
    )
