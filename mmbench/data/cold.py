"""Cold items: which ones a split keeps from training, and what it stores beside its labels.

cold_items.npy   int32 [C], the cold items in ascending order
cold_cases.npy   int32 [K, 2], where only some of the held-out rows count: user, and the position
                 in that user's ordered history whose item is to be found from those before it

In a `cold-items` split every row of a cold item is held out, and its label says in which half the
item is. In a `cold-sequences` split the labels are those of leave-one-out and the cases matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.hashing import byte_rank, hash_parts, sha256_array
from mmbench.errors import DataError

Arrays = Mapping[str, NDArray[np.int32]]
_WIDTH = {"cold_items": None, "cold_cases": 2}  # columns of each array; None for a vector


def draw_cold_items(
    items: NDArray[np.int64], item_ids: list[str], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A fifth of `items`, in hash order: half of it for validation, half for test.

    LATTICE's rule: of m = n // 5 items the first m // 2 test and the other validate.

    Returns:
        the items of validation and those of test.
    """
    names = [item_ids[item] for item in items.tolist()]
    order = np.lexsort((byte_rank(names), hash_parts(seed, "cold_items", names)))
    n_cold = order.size // 5
    return items[order[n_cold // 2 : n_cold]], items[order[: n_cold // 2]]


def rare_items(item: NDArray[np.int32], n_items: int, below: int) -> NDArray[np.int32]:
    """Items with fewer than `below` rows, those without any included; int32, ascending."""
    counts = np.bincount(item, minlength=n_items)
    return np.flatnonzero(counts < below).astype(np.int32)


def cases_of(
    user: NDArray[np.int32], is_case: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """User and position of the rows that are cases and have at least one row before them.

    `user` is ordered. Returns int32 [K, 2] and the numbers of these rows.
    """
    first = np.searchsorted(user, user[is_case])  # where the user's rows begin
    rows = np.flatnonzero(is_case)
    position = rows - first
    rows, position = rows[position >= 1], position[position >= 1]
    return np.column_stack([user[rows], position]).astype(np.int32), rows


def read_cold(folder: Path, facts: Mapping[str, Any]) -> dict[str, NDArray[np.int32]]:
    """The arrays that a split in `folder` has beside its labels; empty for most splits.

    Args:
        folder: the folder of the split.
        facts: what split.json says; `arrays` holds the hash of each array by its name.

    Raises:
        DataError: one is missing, of another form, or its hash differs.
    """
    again = "prepare the dataset again with --force"
    found = {}
    for name, sha256 in facts.get("arrays", {}).items():
        path = folder / f"{name}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"E302 {path} cannot be read ({error}); {again}") from error
        width = _WIDTH.get(name)
        shape_fits = array.ndim == 1 if width is None else array.shape[1:] == (width,)
        if array.dtype != np.dtype("<i4") or not shape_fits:
            raise DataError(f"E302 {path} holds {array.dtype} {list(array.shape)}; {again}")
        if sha256_array(array) != sha256:
            raise DataError(f"E302 {path} does not match its recorded hash; {again}")
        found[name] = array
    return found
