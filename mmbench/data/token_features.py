"""Feature sets with a sequence of vectors per item: tokens, patches, grid cells or regions.

    tokens.npy       float16 [n_items, N, E]; zero where `token_mask` is false
    token_mask.npy   bool [n_items, N]; all false for an item without the modality

They stand beside the pooled matrix of the same items. Such sets can be larger than the memory,
so they are written in blocks and read memory-mapped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from mmbench.errors import DataError

BLOCK_BYTES = 32 * 2**20
# Hashed on opening while that is cheap; larger files are checked by type and size alone.
HASH_BYTES = 256 * 2**20
TOKENS, TOKEN_MASK = "tokens.npy", "token_mask.npy"


class JoinedRows:
    """Arrays of consecutive rows, read as one array and never held in memory as a whole.

    Args:
        parts: arrays [rows, ...] of one type that differ at most in the rows and, where there
            are three dimensions, in the second; a number stands for so many rows of zeros.

    Attributes:
        shape: of the whole; where parts have fewer columns than others, zeros fill them up.
        dtype: of every part.
    """

    def __init__(self, parts: Sequence[NDArray[Any] | int]) -> None:
        arrays = [part for part in parts if not isinstance(part, int)]
        if not arrays:
            raise ValueError("no part has any rows")
        self.dtype: np.dtype[Any] = arrays[0].dtype
        inner = tuple(max(part.shape[k] for part in arrays) for k in range(1, arrays[0].ndim))
        lengths = [part if isinstance(part, int) else len(part) for part in parts]
        self._parts = list(parts)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self.shape = (int(self._starts[-1]), *inner)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice | int) -> NDArray[Any]:
        """A block of rows, or one row, as an array in memory."""
        if isinstance(rows, int):
            found: NDArray[Any] = self[rows : rows + 1][0]
            return found
        start, stop, _ = rows.indices(len(self))
        block = np.zeros((max(0, stop - start), *self.shape[1:]), dtype=self.dtype)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for part, begin in zip(self._parts[first:], self._starts[first:], strict=False):
            if begin >= stop:
                break
            if isinstance(part, int):
                continue
            low, high = max(start, begin), min(stop, begin + len(part))
            if low < high:
                inner = tuple(slice(0, size) for size in part.shape[1:])
                block[(slice(low - start, high - start), *inner)] = part[low - begin : high - begin]
        return block


def write_tokens(
    folder: Path,
    tokens: NDArray[Any] | JoinedRows,
    token_mask: NDArray[np.bool_] | JoinedRows,
    mask: NDArray[np.bool_],
    where: str,
) -> dict[str, Any]:
    """Stream token vectors [n, N, E] and their mask [n, N] into `folder`.

    Vectors of items outside `mask` and those that `token_mask` leaves out are stored as zeros.

    Returns:
        What the manifest says of them.

    Raises:
        DataError: wrong shapes, a vector that is not finite in float16, or an item of `mask`
            without a token.
    """
    shape = tuple(tokens.shape)
    if len(shape) != 3 or not shape[1] or not shape[2] or shape[:2] != tuple(token_mask.shape):
        raise DataError(
            f"E118 {where}: tokens {list(shape)} and their mask {list(token_mask.shape)} do not fit"
        )
    if len(tokens) != len(mask) or token_mask.dtype != np.bool_:
        raise DataError(f"E118 {where}: tokens of {len(tokens)} items, the set has {len(mask)}")
    hashes = hashlib.sha256(), hashlib.sha256()
    rows = max(1, BLOCK_BYTES // (shape[1] * shape[2] * 4))
    with (folder / TOKENS).open("wb") as data, (folder / TOKEN_MASK).open("wb") as masks:
        _header(data, "<f2", shape)
        _header(masks, "|b1", shape[:2])
        for start in range(0, len(mask), rows):
            here = mask[start : start + rows]
            known = np.asarray(token_mask[start : start + rows]) & here[:, None]
            if (lacking := here & ~known.any(axis=1)).any():
                row = start + int(lacking.argmax())
                raise DataError(f"E118 {where}: row {row} has a vector and no tokens")
            with np.errstate(over="ignore", invalid="ignore"):  # checked in the next lines
                block = np.asarray(tokens[start : start + rows]).astype("<f2", copy=False)
            block = np.where(known[:, :, None], block, np.float16(0))
            if not np.isfinite(block).all():
                row = start + int((~np.isfinite(block)).any(axis=(1, 2)).argmax())
                raise DataError(
                    f"E118 {where}: tokens of row {row} hold NaN, infinity or numbers beyond "
                    "65,504, which float16 cannot store; take the pooled vectors alone"
                )
            for file, digest, content in ((data, hashes[0], block), (masks, hashes[1], known)):
                digest.update(content.tobytes())
                file.write(content.tobytes())
        for file in (data, masks):
            file.flush()
            os.fsync(file.fileno())
    return {
        "shape": list(shape),
        "dtype": "float16",
        "sha256": hashes[0].hexdigest(),
        "mask_sha256": hashes[1].hexdigest(),
    }


def read_tokens(
    folder: Path, facts: Mapping[str, Any], n_items: int, again: str
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Token vectors and their mask, memory-mapped.

    Args:
        facts: what `write_tokens` returned.
        again: what a message advises.

    Raises:
        DataError: they are missing, damaged, or of other items.
    """
    shape = facts.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or shape[0] != n_items:
        raise DataError(f"E251 {folder / TOKENS}: tokens {shape} of {n_items} items; {again}")
    wanted = (
        (TOKENS, np.dtype("<f2"), tuple(shape), facts.get("sha256")),
        (TOKEN_MASK, np.dtype(np.bool_), tuple(shape[:2]), facts.get("mask_sha256")),
    )
    opened = []
    for name, dtype, expected, sha256 in wanted:
        try:
            array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise DataError(f"E302 {folder / name} is damaged ({problem}); {again}") from None
        if array.dtype != dtype or array.shape != expected:
            raise DataError(
                f"E302 {folder / name} holds {array.dtype} {list(array.shape)}, expected {dtype} "
                f"{list(expected)}; {again}"
            )
        if array.nbytes <= HASH_BYTES and _hash(array) != sha256:
            raise DataError(f"E302 {folder / name} does not match its recorded hash; {again}")
        opened.append(array)
    return opened[0], opened[1]


def _header(file: Any, descr: str, shape: tuple[int, ...]) -> None:
    npy_format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )


def _hash(array: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for block in _blocks(array):
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
