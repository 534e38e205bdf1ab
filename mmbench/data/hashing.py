"""The hash that decides everything random about a dataset: splits, samples, ties.

    H(seed, purpose, parts...) = first 8 bytes, big-endian, of blake2b(digest_size=8)
                                 over the UTF-8 of all parts joined by U+001F

It reads raw ids, so a split is the same whatever the order of the rows, the numbering of the
ids, the platform, or the version of NumPy, whose random streams may change between releases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNIT = "\x1f"
_BLOCK = 1 << 18  # rows that are hashed before their digests become numbers


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


def hash_pairs(
    seed: int,
    purpose: str,
    user: NDArray[np.int32],
    item: NDArray[np.int32],
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    *,
    last: str = "",
) -> NDArray[np.uint64]:
    """H(seed, purpose, user, item[, last]) of many rows, uint64 [N].

    `user` and `item` are indices into the raw ids [N]. Fastest where a user's rows stand
    together: what they share is hashed once.
    """
    head = f"{seed}{_UNIT}{purpose}{_UNIT}"
    end = f"{_UNIT}{last}" if last else ""
    tails = [f"{name}{end}".encode() for name in item_ids]
    hashes = np.empty(user.size, dtype=np.uint64)
    for start in range(0, user.size, _BLOCK):
        users, items = user[start : start + _BLOCK], item[start : start + _BLOCK].tolist()
        begins = np.flatnonzero(np.append(True, users[1:] != users[:-1])).tolist()
        digests = []
        for begin, stop in pairwise([*begins, users.size]):
            prefix = f"{head}{user_ids[users[begin]]}{_UNIT}".encode()
            copy = hashlib.blake2b(prefix, digest_size=8).copy
            for index in items[begin:stop]:
                state = copy()
                state.update(tails[index])
                digests.append(state.digest())
        hashes[start : start + _BLOCK] = np.frombuffer(b"".join(digests), dtype=">u8")
    return hashes


def order_in_groups(group: NDArray[np.int32], key: NDArray[Any]) -> NDArray[np.int64]:
    """Row numbers ordered by group, then key, then position, int64 [N].

    `group` holds non-negative, `key` any whole numbers. Where both fit into one number of 64
    bits, that number is sorted, which takes half the time of sorting by two.
    """
    if not key.size:
        return np.arange(0)
    low = key.min()
    bits = (int(key.max()) - int(low)).bit_length()  # Python's numbers do not overflow
    if bits + int(group.max()).bit_length() > 64:
        return np.lexsort((key, group))
    packed = group.astype(np.uint64) << np.uint64(bits)
    packed |= (key - low).astype(np.uint64)
    return np.argsort(packed, kind="stable")


def byte_rank(ids: list[str]) -> NDArray[np.int64]:
    """Rank of each id in UTF-8 byte order, int64 [n]; it decides between equal hashes."""
    rank = np.empty(len(ids), dtype=np.int64)
    # Code point order is UTF-8 byte order.
    rank[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return rank


def sha256_array(array: NDArray[Any]) -> str:
    """Hash of the bytes of an array's elements in C order, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's content, read in blocks of 1 MiB, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
