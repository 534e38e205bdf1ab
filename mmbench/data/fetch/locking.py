"""One process at a time in a folder of raw files."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mmbench.errors import DataError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".fetching.lock"
_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from fetching into `folder`, which is created.

    The system itself lets go of the lock when a process dies, so none is ever left behind.

    Raises:
        DataError: another process is fetching into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(handle)
            # It may have been removed, by the one who held it, after it was opened here.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _HELD:
                break  # a file system without locks: better to work than to refuse
            holder = _holder(path)
            os.close(handle)
            raise DataError(
                f"E104 {folder}: another process{holder} is fetching into it; wait until it has "
                "ended and run this again: nothing is fetched twice"
            ) from error
        os.close(handle)
    try:
        os.truncate(handle, 0)
        os.write(handle, b"%d" % os.getpid())
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove what is open
            path.unlink()
        os.close(handle)
        if sys.platform == "win32":
            path.unlink(missing_ok=True)


def _take(handle: int) -> None:
    if sys.platform == "win32":
        # A byte far behind the process number, which others must be able to read.
        os.lseek(handle, 2**20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    try:
        number = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    return f" (number {number})" if number else ""
