"""What disks refuse, as messages."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbench.data.fetch.web import size_text
from mmbench.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into a message.

    Raises:
        DataError: E108.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            reason = f"{reason}, {size_text(free_in(folder))} free"
        raise DataError(
            f"E108 cannot write to {folder} ({reason}); what came is kept: make room or choose "
            "another disk with --data-dir, and run this again"
        ) from error


def no_room(folder: Path, needed: int) -> DataError:
    """The message that a disk is too small."""
    return DataError(
        f"E108 {size_text(needed)} needed, {size_text(free_in(folder))} free in {folder}; make "
        "room or choose another disk with --data-dir"
    )


def free_in(folder: Path) -> int:
    """Free bytes of the disk that `folder` is, or will be, on."""
    return shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.exists())).free
