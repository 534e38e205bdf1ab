"""The hash that decides everything random about a dataset: splits, samples, ties.

    H(seed, purpose, parts...) = first 8 bytes, big-endian, of blake2b(digest_size=8)
                                 over the UTF-8 of all parts joined by U+001F

It reads raw ids, so a split is the same whatever the order of the rows, the numbering of the
ids, the platform, or the version of NumPy, whose random streams may change between releases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNIT = "\x1f"


def hash_parts(seed: int, purpose: str, tails: Iterable[str]) -> NDArray[np.uint64]:
    """H(seed, purpose, ...) of many rows, uint64 [N].

    `tails` holds the remaining parts of each row, already joined by U+001F.
    """
    head = hashlib.blake2b(f"{seed}{_UNIT}{purpose}{_UNIT}".encode(), digest_size=8)
    digests = []
    for tail in tails:
        state = head.copy()
        state.update(tail.encode())
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def pair_tails(users: list[str], items: list[str], *, suffix: str = "") -> list[str]:
    """The tails `user U+001F item` of rows given by raw ids, with an optional last part."""
    end = f"{_UNIT}{suffix}" if suffix else ""
    return [f"{user}{_UNIT}{item}{end}" for user, item in zip(users, items, strict=True)]


def byte_rank(ids: list[str]) -> NDArray[np.int64]:
    """Rank of each id in UTF-8 byte order, int64 [n]; it decides between equal hashes."""
    rank = np.empty(len(ids), dtype=np.int64)
    # Code point order is UTF-8 byte order.
    rank[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return rank


def sha256_array(array: NDArray[Any]) -> str:
    """Hash of the bytes of an array's elements in C order, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's content, read in blocks of 1 MiB, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
