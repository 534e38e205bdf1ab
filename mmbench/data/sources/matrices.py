"""Matrices that a source has to put together itself, row by row, into one .npy file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from mmbench.errors import DataError


def write_rows(
    path: Path,
    n_rows: int,
    dim: int,
    dtype: np.dtype[Any],
    rows: Iterable[tuple[int, NDArray[Any]]],
) -> None:
    """Write a matrix [n_rows, dim] of which only one row is held at a time.

    Rows come with their place, in any order; those that never come are zeros. Plain writes
    rather than a memory map: on a full disk a map kills the process, a write raises.

    Raises:
        DataError: E108, the disk is full or the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            npy_format.write_array_header_1_0(
                file, {"descr": dtype.str, "fortran_order": False, "shape": (n_rows, dim)}
            )
            start, width = file.tell(), dim * dtype.itemsize
            file.truncate(start + n_rows * width)
            for place, row in rows:
                file.seek(start + place * width)
                file.write(row.astype(dtype, copy=False).tobytes())
    except OSError as error:
        raise DataError(
            f"E108 {path} ({n_rows * dim * dtype.itemsize:,} bytes) cannot be written "
            f"({error.strerror or error}); make room, or choose another --data-dir"
        ) from error
