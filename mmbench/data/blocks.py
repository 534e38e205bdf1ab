"""Raw text files in blocks of whole lines: plain or gzip, of any size, in bounded memory.

What a file is, its first bytes tell, not its name: people rename files, browsers unpack them on
the way, and a server that wants a login answers with a web page under the name of the file.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from mmbench.errors import DataError

BLOCK = 32 << 20
"""Bytes of unpacked text that are worked on at a time."""
LINE_CAP = 64 << 20
"""Bytes of the longest line; a file with a longer one is no text of lines."""
MALFORMED_SHARE = 0.001
"""Share of malformed lines up to which they are counted and skipped, not refused."""

_CURE = "check the path given by --source"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PIECE = 1 << 18
_SHOWN = 3
_HOPELESS = 10_000  # lines after which a file that is mostly malformed is not read to its end
_OTHER_KINDS = {
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1": ("a Parquet file", "give it the suffix .parquet"),
    b"BZh": ("a bzip2 file", "unpack it"),
    b"\xfd7zXZ\x00": ("an xz file", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "unpack it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"\x89HDF\r\n": ("an HDF5 file", "export it as text"),
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def line_blocks(path: Path, *, cure: str = "", size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    r"""The lines of a file in blocks: the number of the first line, and whole lines.

    Every block ends with a line feed, `\r\n` is read as `\n`, and neither the byte order mark
    nor empty lines at the end of the file are given out.

    Args:
        cure: what to do about a missing or broken file; ends the message.
        size: bytes of a block, more or less; only longer lines make longer blocks.

    Raises:
        DataError: the file is missing (E101), empty (E113), not what its name says (E106), not a
            complete gzip file (E106), or has a line of more than `LINE_CAP` bytes (E112).
    """
    line, given = 1, False
    rest = b""  # of a line whose end is still to come
    blank = b""  # empty lines, until a line after them shows that they are not the end
    for piece in read_pieces(path, cure=cure, size=size):
        cut = piece.rfind(b"\n") + 1
        if not cut:
            rest += piece
            if len(rest) > LINE_CAP:
                raise too_long(path, line + blank.count(b"\n"))
            continue
        block = blank + _line_feeds(rest + piece[:cut])
        rest, end = piece[cut:], _end_of_text(block)
        if not end or (not given and block.isspace()):
            blank = block
            continue
        blank = block[end + 1 :]
        yield line, block[: end + 1]  # no copy where nothing is cut off
        line += block.count(b"\n", 0, end + 1)
        given = True
    last = blank + _line_feeds(rest + b"\n")
    last = last[: _end_of_text(last) + 1]
    if not given and last.isspace():
        raise empty(path, cure)
    if last != b"\n":
        yield line, last


def _line_feeds(block: bytes) -> bytes:
    # Text written twice as on Windows ends its lines with two carriage returns.
    while b"\r\n" in block:
        block = block.replace(b"\r\n", b"\n")
    return block


def _end_of_text(block: bytes) -> int:
    end = len(block)
    while end and block[end - 1] == ord("\n"):
        end -= 1
    return end


def read_pieces(path: Path, *, cure: str = "", size: int = BLOCK) -> Iterator[bytes]:
    """The content of a text file in pieces of about `size` bytes, unpacked, without the mark.

    Raises:
        DataError: as `line_blocks`, but for what takes lines to know.
    """
    check_is_file(path, cure)
    try:
        with path.open("rb") as file:
            head = file.read(512)
        packed = head.startswith(b"\x1f\x8b")
        if not packed:
            _refuse_other_kinds(path, head)
            if path.suffix == ".gz" and b"\x00" in head:
                raise _broken(path, "it does not begin like one")
        pieces = _unpack(path) if packed else _read(path, size)
        yield from _gather(path, pieces, packed, size)
    except OSError as error:
        raise unreadable(path, error, cure) from error


def _read(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(size):
            yield piece


def _unpack(path: Path) -> Iterator[bytes]:
    """Small pieces, so that all that comes before the fault of a broken file is given out."""
    n_lines = 0
    with gzip.open(path, "rb") as file:
        while True:
            try:
                piece = file.read1(_PIECE)
            except EOFError as error:
                raise _broken(path, f"truncated gzip after {n_lines:,} lines") from error
            except (gzip.BadGzipFile, zlib.error) as error:
                raise _broken(path, f"{error} after {n_lines:,} lines") from error
            if not piece:
                return
            n_lines += piece.count(b"\n")
            yield piece


def _gather(path: Path, pieces: Iterator[bytes], packed: bool, size: int) -> Iterator[bytes]:
    """Pieces of `size` bytes of smaller ones, the first one looked at."""
    held: list[bytes] = []
    n_held, first = 0, True
    try:
        for piece in pieces:
            held.append(piece)
            n_held += len(piece)
            # The first piece has to be long enough to be looked at.
            if n_held >= (max(size, 512 if packed else 3) if first else size):
                whole = b"".join(held)
                if first:
                    whole = _look_at(path, whole, packed)
                yield whole
                held, n_held, first = [], 0, False
    except DataError:
        # What came before the fault is told of first, where it is at fault itself.
        if held and first:
            _look_at(path, b"".join(held), packed)
        raise
    if held:
        whole = b"".join(held)
        yield _look_at(path, whole, packed) if first else whole


def _look_at(path: Path, piece: bytes, packed: bool) -> bytes:
    if packed:
        _refuse_other_kinds(path, piece[:512])
    return piece.removeprefix(_BYTE_ORDER_MARK)


def refuse_web_page(path: Path, head: bytes) -> None:
    """Refuse a file that begins as a web page does.

    Raises:
        DataError: E106.
    """
    start = head.removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    # Comments and an XML declaration may stand before what makes it a page.
    if start.startswith(b"<") and (b"<!doctype html" in start or b"<html" in start):
        raise DataError(
            f"E106 {path} is a web page, perhaps a login or an error page, not the file; "
            "download it again"
        )


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    refuse_web_page(path, head)
    if head.startswith(_UTF_16):
        raise DataError(f"E111 {path} is UTF-16 text, not UTF-8; save the file as UTF-8")
    if head[257:262] == b"ustar":
        raise DataError(f"E106 {path} is a tar archive, not a text file; unpack it")
    for sign, (kind, cure) in _OTHER_KINDS.items():
        if head.startswith(sign):
            raise DataError(f"E106 {path} is {kind}, not a text file; {cure}")


def _broken(path: Path, reason: str) -> DataError:
    return DataError(f"E106 {path} is not a complete gzip file ({reason}); download it again")


def check_is_file(path: Path, cure: str = "") -> None:
    """Refuse a path that is no file.

    Raises:
        DataError: E101.
    """
    try:
        if path.is_file():
            return
        is_folder = path.is_dir()
    except OSError as error:  # a folder above it may not be looked into
        raise unreadable(path, error, cure) from error
    if is_folder:
        raise DataError(f"E101 {path} is a folder, not a file; {cure or _CURE}")
    raise DataError(f"E101 {path.name} not found under {path.parent}; {cure or _CURE}")


def unreadable(path: Path, error: OSError, cure: str) -> DataError:
    """What to say of a file that the system does not let us read."""
    return DataError(f"E101 {path} cannot be read: {error.strerror or error}; {cure or _CURE}")


def empty(path: Path, cure: str) -> DataError:
    """What to say of a file that holds nothing."""
    return DataError(f"E113 {path} is empty; {cure or _CURE}")


def too_long(path: Path, line: int) -> DataError:
    """What to say of a line, or of a quoted cell, that does not end."""
    return DataError(
        f"E112 {path}:{line}: does not end within {LINE_CAP >> 20} MiB; this is no text of lines, "
        "or a quote in it is not closed"
    )


def check_utf8(path: Path, first_line: int, block: bytes) -> None:
    """Refuse a block of text that is not UTF-8.

    Raises:
        DataError: naming line and byte (E111).
    """
    if block.isascii():
        return
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + block.count(b"\n", 0, error.start)
        raise DataError(
            f"E111 {path}:{line}: byte 0x{block[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from error


class Malformed:
    """The malformed lines of one file: counted, the first three kept to be shown.

    Args:
        code: number of the message, after its E or W.
        warnings: is told of the lines left out; None where none may be.
        cure: what to do about the lines; ends the message of an error.
        separated_by: name of what stands between the fields of a line.
    """

    def __init__(
        self,
        path: Path,
        code: str,
        warnings: list[str] | None,
        cure: str,
        separated_by: str = "",
    ) -> None:
        self.path, self.code, self.warnings, self.cure = path, code, warnings, cure
        self.separated_by = separated_by
        self.n = 0
        self.shown: list[str] = []

    def add(self, line: int, reason: str, n_lines: int = 1) -> None:
        """Count a malformed line, or a malformed cell of several lines."""
        if len(self.shown) < _SHOWN:
            self.shown.append(f"line {line}: {reason}")
        self.n += n_lines

    def give_up(self, n_read: int) -> None:
        """Refuse a file most of whose lines so far are malformed, whatever may still come.

        Raises:
            DataError: naming the first three.
        """
        if self.n > n_read / 2 and n_read >= _HOPELESS:
            raise self._refusal_of(f"the first {n_read:,}")

    def refusal(self) -> DataError:
        """What to say of a file that may have no malformed line."""
        more = f" ({self.n:,} such lines)" if self.n > 1 else ""
        return DataError(f"E{self.code} {self._first()}{more}; {self.cure}")

    def _first(self) -> str:
        first = f"{self.path}:{self.shown[0].removeprefix('line ')}"
        is_count = self.separated_by and " fields, expected " in first
        return f"{first} separated by {self.separated_by}" if is_count else first

    def close(self, n_lines: int) -> None:
        """Tell of the malformed lines, once the file of `n_lines` lines is read.

        Raises:
            DataError: they are more than `MALFORMED_SHARE` of the lines.
        """
        if not self.n:
            return
        if self.warnings is None or self.n > MALFORMED_SHARE * n_lines:
            raise self._refusal_of(f"{n_lines:,}")
        self.warnings.append(
            f"W{self.code} {self.n:,} of {n_lines:,} lines of {self.path} are malformed and "
            f"left out, e.g. {'; '.join(self.shown)}"
        )

    def _refusal_of(self, n_lines: str) -> DataError:
        shown = "; ".join([self._first(), *self.shown[1:]])
        return DataError(
            f"E{self.code} {shown}; {self.n:,} of {n_lines} lines are malformed, more than "
            f"{MALFORMED_SHARE:.1%}; {self.cure}"
        )
