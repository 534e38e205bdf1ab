"""What a file is, by its content: archives, tables, and the login pages saved in their place."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from mmbench.data.fetch.asking import looks_like_page
from mmbench.errors import DataError

BLOCK = 2**20
_PAGES = (".html", ".htm", ".xhtml", ".xml")
_GZIP, _BZIP2, _XZ, _PARQUET = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"PAR1"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second is a zip with nothing in it
_STARTS = {
    ".gz": ("gzip", (_GZIP,)),
    ".tgz": ("gzip", (_GZIP,)),
    ".bz2": ("bzip2", (_BZIP2,)),
    ".xz": ("xz", (_XZ,)),
    ".zip": ("zip", _ZIP),
    ".npz": ("zip", _ZIP),
    ".npy": ("npy", (b"\x93NUMPY",)),
    ".parquet": ("Parquet", (_PARQUET,)),
}


class BrokenFile(DataError):  # noqa: N818 - it is an error by its base
    """A file is not what its name promises (E106)."""

    def __init__(self, file: Path | str, problem: str) -> None:
        super().__init__(f"E106 {file} {problem}; download it again")
        self.problem = problem


def check_kind(path: Path, *, name: str | None = None, whole: bool = False) -> None:
    """Check that a fetched file is what its suffix says (.gz, .zip, .json, .csv, .npy, ...).

    Cheap: beginnings, ends and headers are looked at. A truncated gzip file is found only with
    `whole`, which unpacks it to nowhere.

    Args:
        name: the file's true name, if `path` is a temporary one.

    Raises:
        BrokenFile: E106, for example for the login page of a site saved under the name.
    """
    name = path.name if name is None else name
    problem = _problem(path, Path(name).suffix.lower(), whole)
    if problem:
        raise BrokenFile(name, problem)


def starts_as(suffix: str, start: bytes) -> bool:
    """Whether a file with this suffix has a known beginning, and begins so."""
    return suffix.lower() in _STARTS and start.startswith(_STARTS[suffix.lower()][1])


def is_page_name(name: str) -> bool:
    """Whether a file is meant to be a web page."""
    return Path(name).suffix.lower() in _PAGES


def archive_kind(path: Path) -> str | None:
    """What kind of archive a file is by its content: zip, gzip, bzip2, xz, tar; None for others."""
    with path.open("rb") as file:
        start = file.read(512)
    for kind, marks in (("zip", _ZIP), ("gzip", (_GZIP,)), ("bzip2", (_BZIP2,)), ("xz", (_XZ,))):
        if start.startswith(marks):
            return kind
    is_tar = start[257:262] == b"ustar" or path.name.lower().removesuffix(".part").endswith(".tar")
    return "tar" if is_tar and len(start) == 512 else None


def _problem(path: Path, suffix: str, whole: bool) -> str:
    """What is wrong with a file, "" for nothing."""
    with path.open("rb") as file:
        start = file.read(512)
        if not start:
            return "is empty"
        if suffix not in _PAGES and looks_like_page(start):
            return "is a web page, perhaps a login"
        if suffix not in _STARTS:
            return ""
        kind = _STARTS[suffix][0]
        if not starts_as(suffix, start):
            return f"is not a {kind} file (it begins with {start[:8]!r})"
        reason = _CHECKS[kind](file, whole) if kind in _CHECKS else ""
    return f"is not a complete {kind} file ({reason})" if reason else ""


def _check_zip(file: BinaryIO, whole: bool) -> str:
    # The directory of a zip is its end, so that a truncated one has none.
    return "" if zipfile.is_zipfile(file) else "its end is missing"


def _check_gzip(file: BinaryIO, whole: bool) -> str:
    if not whole:
        return ""
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file) as content:
            while content.read(BLOCK):
                pass
    except EOFError:
        return "its end is missing"
    except (OSError, zlib.error) as error:
        return str(error)
    return ""


def _check_npy(file: BinaryIO, whole: bool) -> str:
    file.seek(0)
    try:
        version = npy_format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = npy_format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = npy_format.read_array_header_2_0(file)
        else:
            return ""
    except (ValueError, EOFError) as error:
        return f"its header is broken: {error}"
    if dtype.hasobject:
        return ""  # its length is not told by the header; readers refuse it
    wanted = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
    size = file.seek(0, 2)
    return "" if size >= wanted else f"{size} bytes, its header promises {wanted}"


def _check_parquet(file: BinaryIO, whole: bool) -> str:
    size = file.seek(0, 2)
    file.seek(max(size - 4, 0))
    return "" if size >= 12 and file.read() == _PARQUET else "its end is missing"


_CHECKS: dict[str, Callable[[BinaryIO, bool], str]] = {
    "zip": _check_zip,
    "gzip": _check_gzip,
    "npy": _check_npy,
    "Parquet": _check_parquet,
}
