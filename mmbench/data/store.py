"""Writing a prepared dataset: into a folder beside the target, renamed when it is complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from mmbench.data.hashing import sha256_array
from mmbench.data.prepared import split_fingerprint
from mmbench.data.splits import MadeSplit
from mmbench.errors import DataError
from mmbench.runs import write_json


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target` that takes its place when the block ends well.

    Whatever goes wrong inside, the folder is removed and `target` is as it was.

    Raises:
        DataError: the place cannot be written to or the disk is full.
    """
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    had_parent = target.parent.exists()
    try:
        _remove_stale(target)
        partial.mkdir(parents=True)
        yield partial
        _take_place(partial, target)
    except OSError as error:
        raise not_writable(target.parent, error) from error
    except DataError as error:
        if str(partial) not in str(error):
            raise
        # Names of files inside the folder that is being removed would mislead.
        raise DataError(str(error).replace(str(partial), str(target))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not had_parent and not target.exists():
            with suppress(OSError):  # somebody else may have put something there
                target.parent.rmdir()


def not_writable(folder: Path, error: OSError) -> DataError:
    """The message of a failed write below `folder`."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = "free some space or choose another --data-dir"
    else:
        cure = "choose a --data-dir that you may write to"
    return DataError(f"E108 cannot write below {folder}: {reason}; nothing was kept, {cure}")


def _remove_stale(target: Path) -> None:
    """Remove what a killed process left behind; folders of living processes stay."""
    for path in target.parent.glob(f"{target.name}.partial-*"):
        pid = path.name.rpartition("-")[2]
        try:
            if pid.isdecimal() and int(pid) != os.getpid():
                os.kill(int(pid), 0)
                continue
        except PermissionError:
            continue  # alive, and somebody else's
        except OSError:
            pass  # no such process
        shutil.rmtree(path, ignore_errors=True)


def _take_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_array(path: Path, array: NDArray[Any]) -> str:
    """Store an array as .npy version 1.0 and return the hash of its elements."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not numpy.save: on a full disk its error has no error number to explain it by.
    with path.open("wb") as file:
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(array))
        # As bytes first, because a view of no elements cannot be cast to bytes.
        file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    return sha256_array(array)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Store records as JSON lines with sorted keys."""
    # One encoder for all: json.dumps with settings makes a new one for each record.
    encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False).encode
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{encode(record)}\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def sha256_ids(ids: Sequence[str]) -> str:
    """Hash of ids in index order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def write_split(root: Path, name: str, split: MadeSplit, dataset: str) -> dict[str, Any]:
    """Store one split below `root` by a rename and return its facts with hashes.

    `dataset` is the dataset's fingerprint.
    """
    folder = root / "splits" / name
    partial = folder.with_name(f".{name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        sha256 = write_array(partial / "label.npy", split.label)
        arrays = {
            key: write_array(partial / f"{key}.npy", array) for key, array in split.arrays.items()
        }
        full = {
            **split.facts,
            "name": name,
            "label_sha256": sha256,
            "fingerprint": _fingerprint(dataset, split, arrays),
        }
        if arrays:
            full["arrays"] = arrays
        write_json(partial / "split.json", full)
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that died before the manifest
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return full


def _fingerprint(dataset: str, split: MadeSplit, arrays: Mapping[str, str]) -> str:
    """Hash that results cite: what is judged depends on the arrays as well as on the labels."""
    of_labels = split_fingerprint(dataset, split.label)
    if not arrays:
        return of_labels
    parts = [of_labels, *(f"{key} {sha256}" for key, sha256 in sorted(arrays.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def copy_pictures(root: Path, paths: Iterable[str], folder: Path) -> None:
    """Copy pictures below `root` to the same paths below `folder`."""
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target)
