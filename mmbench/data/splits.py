"""Splits: which interactions train, which validate, which test.

    random-per-user   8:1:1 within each user, rows in hash order (`odd_to` as below)
    random-global     8:1:1 over all interactions, rows in hash order
    leave-one-out     by time: a user's last item tests, the one before validates
    user-temporal     the counts of random-per-user, rows in time order
    global-temporal   one cut in time for everybody, at the 0.8 and 0.9 quantiles
    cold-items        all rows of a fifth of the items are held out, half of the items each; the
                      rows of the others all train, or (`warm=RULE`) are split by another rule,
                      so that seen and unseen items can be measured side by side
    cold-sequences    leave-one-out; judged are the histories that end in an item of fewer than
                      `below` training rows, at held-out positions or (`positions=all`) at any
    imported          the labels that came with the dataset, untouched

A user with n rows under the per-user rules: n < 3 all train; 3 <= n < 10 one valid, one test;
else h = n // 5 rows are held out, floor(h / 2) of them for validation (`odd_to=test`, MMRec's
way) or for test (`odd_to=valid`, LATTICE's). All counts are integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.cold import Arrays, cases_of, draw_cold_items, rare_items
from mmbench.data.hashing import byte_rank, hash_pairs, order_in_groups
from mmbench.data.prepared import EXCLUDED, TEST, TRAIN, VALID
from mmbench.data.split_requests import PARAMETERS, SplitRequest
from mmbench.errors import DataError

Labels = NDArray[np.int8]


@dataclass(frozen=True)
class Rows:
    """The cleaned interactions a split is made of, ordered by user, then time.

    Attributes:
        user, item: int32 indices [N].
        timestamp: int64 milliseconds, -1 where unknown [N].
        user_ids, item_ids: raw id of each index.
        label: labels that came with the dataset, int8 [N], or None.
        origin: how messages call the dataset.
        has_order: whether a user's rows are in the order of time though no time is known.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    timestamp: NDArray[np.int64]
    user_ids: list[str]
    item_ids: list[str]
    label: Labels | None = None
    origin: str = "the dataset"
    has_order: bool = False

    @property
    def has_timestamps(self) -> bool:
        """Whether every row has a time."""
        return bool(self.timestamp.size) and bool((self.timestamp >= 0).all())

    def hashes(self, seed: int, purpose: str) -> NDArray[np.uint64]:
        """H(seed, purpose, user, item, 0) of each row, uint64 [N]."""
        # The last part numbers repetitions of a pair; cleaning leaves exactly one.
        return hash_pairs(
            seed, purpose, self.user, self.item, self.user_ids, self.item_ids, last="0"
        )

    def id_ranks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sort keys that decide between equal hashes: byte order of the item, then of the user."""
        return byte_rank(self.item_ids)[self.item], byte_rank(self.user_ids)[self.user]


@dataclass(frozen=True)
class MadeSplit:
    """A split that is to be stored.

    Attributes:
        label: int8 [N].
        facts: what its manifest says of it.
        arrays: what it stores beside the labels, by file name; see `mmbench.data.cold`.
    """

    label: Labels
    facts: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)


def make_split(request: SplitRequest, rows: Rows, seed: int) -> MadeSplit:
    """Label every row by the rule of `request`; `seed` serves where the request names none.

    Raises:
        DataError: the rule needs times or labels that the dataset does not have.
    """
    params = {key: default for key, (default, _) in PARAMETERS[request.rule].items()}
    params.update(request.params)
    if "seed" in params:
        params["seed"] = seed if params["seed"] is None else params["seed"]
    label = RULES[request.rule](rows, **params)
    own = {key: value for key, value in params.items() if key != "seed"}
    facts = {"rule": request.rule, "seed": params.get("seed"), "params": own}
    facts |= split_facts(rows, label)
    arrays: Arrays = {}
    if request.rule in _COLD:
        arrays, contract = _COLD[request.rule](rows, label, **params)
        facts |= {"candidates": ["all", "cold"], **contract}
    else:
        facts["candidates"] = ["all"]
    return MadeSplit(label, facts, arrays)


def split_facts(rows: Rows, label: Labels) -> dict[str, Any]:
    """Counts that a reader needs to judge a split."""
    parts = (TRAIN, VALID, TEST, EXCLUDED)
    n_users, n_items = len(rows.user_ids), len(rows.item_ids)
    users = [_present(rows.user[label == part], n_users) for part in parts]
    items = [_present(rows.item[label == part], n_items) for part in parts]
    untrained = ~users[TRAIN][rows.user] | ~items[TRAIN][rows.item]
    return {
        "rows": [int((label == part).sum()) for part in parts],
        "users": [int(found.sum()) for found in users[:EXCLUDED]],
        "items": [int(found.sum()) for found in items[:EXCLUDED]],
        "items_train": int(items[TRAIN].sum()),
        "items_unseen_in_valid": int((items[VALID] & ~items[TRAIN]).sum()),
        "items_unseen_in_test": int((items[TEST] & ~items[TRAIN]).sum()),
        "users_without_train": int(((users[VALID] | users[TEST]) & ~users[TRAIN]).sum()),
        "rows_without_train": [int((untrained & (label == p)).sum()) for p in (VALID, TEST)],
    }


def _present(index: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    found = np.zeros(size, dtype=bool)
    found[index] = True
    return found


def held_out_counts(n: NDArray[np.int64], odd_to: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows for validation and for test of users with `n` rows, by the per-user rule."""
    held_out = np.where(n < 3, 0, np.where(n < 10, 2, n // 5))
    smaller = held_out // 2
    larger = held_out - smaller
    return (smaller, larger) if odd_to == "test" else (larger, smaller)


def _label_by_position(rows: Rows, order: NDArray[np.int64], valid: Any, test: Any) -> Labels:
    """Label each user's last `test` rows in `order` test, the `valid` before them valid."""
    counts = np.bincount(rows.user, minlength=len(rows.user_ids))
    ends = np.cumsum(counts)
    ordered_user = rows.user[order]
    # Distance from the end of the user's block: 1 is the last row.
    from_end = ends[ordered_user] - np.arange(order.size)
    ordered = np.full(order.size, TRAIN, dtype=np.int8)
    ordered[from_end <= (valid + test)[ordered_user]] = VALID
    ordered[from_end <= test[ordered_user]] = TEST
    label = np.empty_like(ordered)
    label[order] = ordered
    return label


def random_per_user(rows: Rows, *, odd_to: str, seed: int) -> Labels:
    """8:1:1 within each user, in hash order."""
    hashes = rows.hashes(seed, "random_per_user")
    # The leading bits of the hash tell two rows of one user apart, but for the rarest case.
    leading = hashes >> np.uint64(len(rows.user_ids).bit_length())
    order = order_in_groups(rows.user, leading)
    if _equal_neighbours(leading[order], rows.user[order]):
        order = np.lexsort((*rows.id_ranks(), hashes, rows.user))
    counts = np.bincount(rows.user, minlength=len(rows.user_ids))
    return _label_by_position(rows, order, *held_out_counts(counts, odd_to))


def random_global(rows: Rows, *, seed: int) -> Labels:
    """8:1:1 over all rows in hash order: the last N // 10 test, the N // 10 before validate."""
    hashes = rows.hashes(seed, "random_global")
    order = np.argsort(hashes)
    if _equal_neighbours(hashes[order]):
        order = np.lexsort((*rows.id_ranks(), hashes))
    n, tenth = order.size, order.size // 10
    label = np.full(n, TRAIN, dtype=np.int8)
    label[order[n - 2 * tenth : n - tenth]] = VALID
    label[order[n - tenth :]] = TEST
    return label


def _equal_neighbours(*columns: NDArray[Any]) -> bool:
    """Whether two neighbouring rows are equal in every column."""
    same = np.ones(columns[0].size - 1, dtype=bool)
    for column in columns:
        same &= column[1:] == column[:-1]
    return bool(same.any())


def leave_one_out(rows: Rows) -> Labels:
    """A user's last row by time tests, the one before validates; fewer than 3 rows all train."""
    _need_order(rows, "leave-one-out")
    counts = np.bincount(rows.user, minlength=len(rows.user_ids))
    one = (counts >= 3).astype(np.int64)
    return _label_by_position(rows, np.arange(rows.user.size), one, one)


def user_temporal(rows: Rows, *, odd_to: str) -> Labels:
    """The counts of `random_per_user`, in time order."""
    _need_order(rows, "user-temporal")
    counts = np.bincount(rows.user, minlength=len(rows.user_ids))
    return _label_by_position(rows, np.arange(rows.user.size), *held_out_counts(counts, odd_to))


def global_temporal(rows: Rows, *, drop_new_users: bool) -> Labels:
    """One cut for everybody: before the 0.8 quantile of time train, before the 0.9 valid.

    With `drop_new_users` the held-out rows of users without a training row are labelled
    excluded: nothing is known about such a user, so no model can be judged by them.
    """
    _need_times(rows, "global-temporal")
    first, second = time_cuts(rows.timestamp)
    label = np.where(rows.timestamp < first, TRAIN, np.where(rows.timestamp < second, VALID, TEST))
    label = label.astype(np.int8)
    if drop_new_users:
        known = _present(rows.user[label == TRAIN], len(rows.user_ids))
        label[~known[rows.user]] = EXCLUDED
    return label


def cold_items(rows: Rows, *, seed: int, warm: str) -> Labels:
    """All rows of a fifth of the items are held out, chosen by hash (LATTICE's rule).

    Drawn from are the items that have a row. Users may be left without a training row. The rows
    of the other items train, or are labelled by the rule `warm` as if there were no others.
    """
    part = _cold_parts(rows, seed)
    label = part[rows.item]
    if warm == "train":
        return label
    kept = label == TRAIN
    others = replace(
        rows, user=rows.user[kept], item=rows.item[kept], timestamp=rows.timestamp[kept]
    )
    label[kept] = (
        leave_one_out(others)
        if warm == "leave-one-out"
        else random_per_user(others, odd_to="test", seed=seed)
    )
    return label


def _cold_parts(rows: Rows, seed: int) -> NDArray[np.int8]:
    """Where the rows of each item belong: to training, or as cold ones to another part."""
    present = np.flatnonzero(_present(rows.item, len(rows.item_ids)))
    part = np.full(len(rows.item_ids), TRAIN, dtype=np.int8)
    valid, test = draw_cold_items(present, rows.item_ids, seed)
    part[valid], part[test] = VALID, TEST
    return part


def _cold_items(
    rows: Rows, label: Labels, *, seed: int, warm: str
) -> tuple[Arrays, dict[str, Any]]:
    part = _cold_parts(rows, seed)
    counts = np.bincount(part[rows.item], minlength=TEST + 1).tolist()
    items = {name: int((part == which).sum()) for name, which in (("valid", VALID), ("test", TEST))}
    return (
        {"cold_items": np.flatnonzero(part != TRAIN).astype(np.int32)},
        {
            "cold_items": sum(items.values()),
            "cold_items_in": items,
            "cold_cases": {"valid": counts[VALID], "test": counts[TEST]},
        },
    )


def cold_sequences(rows: Rows, *, below: int, positions: str) -> Labels:
    """Labels of `leave_one_out`; the parameters say which of its histories are judged."""
    _need_order(rows, "cold-sequences")
    return leave_one_out(rows)


def _cold_sequences(
    rows: Rows, label: Labels, *, below: int, positions: str
) -> tuple[Arrays, dict[str, Any]]:
    """The cold items and the cases of a `cold-sequences` split (MMSR's rule).

    With `positions=all` training rows are among the cases, as the paper's "complete sequence"
    can be read; their targets were seen in training.
    """
    cold = rare_items(rows.item[label == TRAIN], len(rows.item_ids), below)
    is_cold = _present(cold, len(rows.item_ids))
    is_case = is_cold[rows.item]
    if positions == "heldout":
        is_case &= label != TRAIN
    cases, at = cases_of(rows.user, is_case)
    counts = np.bincount(label[at], minlength=TEST + 1).tolist()
    return (
        {"cold_items": cold, "cold_cases": cases},
        {
            "cold_items": cold.size,
            "cold_cases": dict(zip(("train", "valid", "test"), counts, strict=True)),
        },
    )


def time_cuts(timestamp: NDArray[np.int64]) -> tuple[float, float]:
    """The 0.8 and 0.9 quantiles of all times, by linear interpolation in float64."""
    first, second = np.quantile(timestamp.astype(np.float64), [0.8, 0.9])
    return float(first), float(second)


def imported(rows: Rows) -> Labels:
    """The labels that came with the dataset.

    Raises:
        DataError: none came, or one of the three parts is empty.
    """
    if rows.label is None:
        raise DataError(
            f"E221 {rows.origin} brings no split labels; choose --split random-per-user or another"
        )
    for part, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
        if not (rows.label == part).any():
            raise DataError(f"E222 imported split has no {name} rows; choose another --split")
    return rows.label.astype(np.int8)


def _need_order(rows: Rows, rule: str) -> None:
    if not rows.has_order:
        _need_times(rows, rule)


def _need_times(rows: Rows, rule: str) -> None:
    if rows.has_timestamps:
        return
    if rows.has_order:
        raise DataError(
            f"E271 {rule} needs timestamps; {rows.origin} has only the order of each user's "
            "interactions. Use --split leave-one-out"
        )
    raise DataError(
        f"E271 {rule} needs timestamps; {rows.origin} has none. Use --split random-per-user"
    )


RULES: dict[str, Callable[..., Labels]] = {
    "imported": imported,
    "random-per-user": random_per_user,
    "random-global": random_global,
    "leave-one-out": leave_one_out,
    "user-temporal": user_temporal,
    "global-temporal": global_temporal,
    "cold-items": cold_items,
    "cold-sequences": cold_sequences,
}
_COLD: dict[str, Callable[..., tuple[Arrays, dict[str, Any]]]] = {
    "cold-items": _cold_items,
    "cold-sequences": _cold_sequences,
}
TEMPORAL = frozenset({"leave-one-out", "user-temporal", "global-temporal", "cold-sequences"})
"""Rules under which the order of a user's interactions decides."""
