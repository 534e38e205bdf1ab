"""Cleaning raw interactions: one fixed order of steps, each with its counts.

    normalise > rating threshold > duplicates > content > core > content > sample > index > order

The order matters (a threshold after the core would undo the core) and is the same for every
dataset; the settings say what each step does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mmbench.data.coding import (
    CodedRows,
    code_ids,
    occurring,
    read_ratings,
    read_times,
    refuse_control_characters,
)
from mmbench.data.hashing import hash_pairs, hash_parts, order_in_groups
from mmbench.errors import ConfigError, DataError

Requirement = Literal["none", "text", "image", "any", "all"]
Keep = Callable[[list[str]], NDArray[np.bool_]]


class PrepareConfig(BaseModel):
    """Settings of `mmbench prepare`, stored in the manifest of what it makes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_rating: float | None = None  # ratings below it are dropped; what is left counts as liked
    dedup: Literal["first", "last", "max_rating"] = "first"
    require: Requirement = "none"  # which content an item must have
    when: Literal["before_core", "after_core"] = "before_core"  # when `require` acts
    user_min: Annotated[int, Field(ge=0)] = 5  # interactions a user needs; 0 and 1 ask nothing
    item_min: Annotated[int, Field(ge=0)] = 5
    sample_users: Annotated[int, Field(ge=1)] | None = None
    ties: Literal["source", "hash", "item"] = "source"
    text_fields: tuple[Annotated[str, StringConstraints(min_length=1)], ...] | None = None
    seed: Annotated[int, Field(ge=0)] = 42


@dataclass
class Report:
    """What cleaning did: counts after each step, warnings, and samples of what was dropped."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, list[Any]] = field(default_factory=dict)

    def step(self, name: str, rows: int, users: int, items: int) -> None:
        """Record the counts after a step and refuse an emptied dataset.

        Raises:
            DataError: nothing is left.
        """
        counts = {"rows": rows, "users": users, "items": items}
        before = self.steps[-1] if self.steps else counts
        self.steps.append({"step": name, **counts})
        if rows == 0:
            was = f"{before['rows']} rows, {before['users']} users, {before['items']} items"
            raise DataError(
                f"E241 no interactions left after {name}; was {was}. Loosen that setting"
                if before["rows"]
                else f"E241 the source holds no interactions ({name}); check its files"
            )
        for what in ("users", "items", "rows"):
            lost = 1 - counts[what] / before[what]
            if lost > 0.5:
                self.warnings.append(f"W242 {name} removed {100 * lost:.1f} % of {what}")


@dataclass(frozen=True)
class Cleaned:
    """Cleaned and indexed interactions, ordered by user, time, tie key and source row.

    Attributes:
        user, item: int32 [N].  timestamp: int64 ms, -1 unknown.  rating: float32, NaN unknown.
        source_row: row number in the source, int64.  label: imported labels, int8, or None.
        user_ids, item_ids: raw id of each index.
        time_unit: unit the source's times were in, or None.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    timestamp: NDArray[np.int64]
    rating: NDArray[np.float32]
    source_row: NDArray[np.int64]
    label: NDArray[np.int8] | None
    user_ids: list[str]
    item_ids: list[str]
    time_unit: str | None


def clean(
    raw: pl.DataFrame,
    config: PrepareConfig,
    report: Report,
    *,
    origin: str,
    has_content: Keep,
    positional_items: int | None = None,
    user_names: tuple[str, ...] | None = None,
    item_names: tuple[str, ...] | None = None,
    has_order: bool = False,
) -> Cleaned:
    """Run the whole cleaning on the interactions of a `RawDataset`.

    `origin` is what messages call the source. `has_content` says of item ids which fulfil
    `config.require` and is asked only when that is set. `positional_items` is the number of
    items of a positional layout, whose indices are kept; `user_names` and `item_names` are the
    raw ids of its indices. With `has_order` a user's rows are in the order of time even where no
    time is given.

    Raises:
        DataError: the rows contradict each other or nothing is left.
    """
    user, users, n_users = code_ids(raw["user"])
    item, items, n_items = code_ids(raw["item"])
    report.step("read", raw.height, n_users, n_items)
    labelled = raw["split"].null_count() < raw.height
    if labelled and raw["split"].null_count():
        raise DataError(
            f"E221 {raw['split'].null_count()} of {raw.height} rows of {origin} lack a split "
            "label; give all of them one or none"
        )
    rows = CodedRows(
        user, item, users, items, np.arange(raw.height, dtype=np.int64), None,
        read_ratings(raw["rating"]), raw["split"].to_numpy() if labelled else None,
    )  # fmt: skip
    del user, item  # `rows` alone holds the columns, so that dropped rows free their memory
    times = raw["timestamp"]
    has_id = (rows.user >= 0) & (rows.item >= 0)
    if not has_id.all():
        without = rows.source_row[~has_id]
        report.warnings.append(f"W201 {without.size} rows without user or item id dropped")
        report.samples["rows without id"] = without[:20].tolist()
        rows.keep(has_id)
        times = times.filter(has_id)
        _count("rows with ids", rows, report)
    refuse_control_characters(rows, origin)
    rows.timestamp, unit = read_times(times, rows.source_row, origin)
    if config.min_rating is not None:
        if rows.rating is None:
            raise DataError(
                f"E274 min_rating={config.min_rating:g} needs ratings; {origin} has none"
            )
        rows.keep(rows.rating >= config.min_rating)  # false where there is no rating
        _count(f"min_rating {config.min_rating:g}", rows, report)
    deduplicate(rows, config.dedup, report, has_order=has_order)
    if config.require != "none" and config.when == "before_core":
        _require(rows, config.require, has_content, report)
    if config.user_min > 1 or config.item_min > 1:
        rows.keep(k_core(rows.user, rows.item, config.user_min, config.item_min))
        _count(f"{config.user_min}/{config.item_min}-core", rows, report)
    if config.require != "none" and config.when == "after_core":
        _require(rows, config.require, has_content, report)
    if config.sample_users is not None:
        _sample_users(rows, config.sample_users, config.seed, report)
    ties = config.ties
    if has_order and rows.timestamp is None:
        ties = "source"  # the order of the rows is all that is known of time
    return _index_and_order(rows, ties, config.seed, unit, positional_items, user_names, item_names)


def _count(step: str, rows: CodedRows, report: Report) -> None:
    report.step(step, rows.user.size, rows.users().size, rows.items().size)


def deduplicate(rows: CodedRows, rule: str, report: Report, *, has_order: bool = False) -> None:
    """Keep one row of each (user, item).

    `first` keeps the earliest, then the highest rating; `last` the latest, then the highest
    rating; `max_rating` the highest rating, then the earliest. The source row decides the rest;
    where the source `has_order` and no times, it is the time.

    Raises:
        DataError: an imported split has a pair in two of its parts.
    """
    pair = rows.user.astype(np.int64) * len(rows.item_names) + rows.item
    order = pl.Series(pair).arg_sort().to_numpy()  # several times as fast as NumPy's
    pair = pair[order]
    same = pair[1:] == pair[:-1]
    repeated = int(same.sum())
    if not repeated:
        return
    # From here on only the rows of repeated pairs; group k is the k-th such pair in id order.
    in_group = np.zeros(order.size, dtype=bool)
    in_group[1:] |= same
    in_group[:-1] |= same
    members, pair = order[in_group], pair[in_group]
    group = np.cumsum(np.append(False, pair[1:] != pair[:-1]))
    if rows.label is not None:
        _refuse_torn_pairs(rows, members, group)
    source_row = rows.source_row[members]
    time = source_row if has_order else np.zeros_like(source_row)
    if rows.timestamp is not None:
        time = rows.timestamp[members]
    worse = np.zeros(members.size)  # the lower rating; none at all is the worst
    if rows.rating is not None:
        worse = -rows.rating[members]
        worse[np.isnan(worse)] = np.inf
    best_first = {
        "first": (source_row, worse, time, group),
        "last": (source_row, worse, -time, group),
        "max_rating": (source_row, time, worse, group),
    }[rule]
    ranked = np.lexsort(best_first)
    is_best = np.append(True, group[1:] != group[:-1])  # `group` is sorted, ranked or not
    kept = np.ones(rows.user.size, dtype=bool)
    kept[members[ranked[~is_best]]] = False
    rows.keep(kept)
    report.warnings.append(f"W232 {repeated} repeated pairs merged (kept {rule})")
    _count("duplicates", rows, report)


def _refuse_torn_pairs(
    rows: CodedRows, members: NDArray[np.uint32], group: NDArray[np.int64]
) -> None:
    assert rows.label is not None
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    label = rows.label[members]
    torn = np.minimum.reduceat(label, starts) != np.maximum.reduceat(label, starts)
    if torn.any():
        first = members[starts[int(torn.argmax())]]
        user, item = rows.user_names[int(rows.user[first])], rows.item_names[int(rows.item[first])]
        raise DataError(
            f"E231 {int(torn.sum())} user-item pairs are in more than one split, e.g. "
            f"({user},{item}); each pair may have one label"
        )


def _require(rows: CodedRows, requirement: str, has_content: Keep, report: Report) -> None:
    codes = rows.items()
    has = np.asarray(has_content(rows.item_names.gather(codes).to_list()))
    dropped = rows.item_names.gather(codes[~has][:20])
    report.samples[f"items dropped by require {requirement}"] = dropped.to_list()
    rows.keep(occurring(codes[has], len(rows.item_names))[rows.item])
    _count(f"require {requirement}", rows, report)


def k_core(
    user: NDArray[Any], item: NDArray[Any], user_min: int, item_min: int
) -> NDArray[np.bool_]:
    """Which rows stay when users and items with too few rows go until nothing changes, bool [N].

    `user` and `item` are non-negative integer codes [N]. The fixed point does not depend on the
    order of removal.
    """
    kept: NDArray[np.int64] | None = None  # all rows; few data sets lose rows in many rounds
    mask = np.ones(user.size, dtype=bool)
    while user.size:
        users, items = np.bincount(user) >= user_min, np.bincount(item) >= item_min
        stays = users[user] & items[item]
        if stays.all():
            break
        kept = np.flatnonzero(stays) if kept is None else kept[stays]
        user, item = user[stays], item[stays]
    if kept is not None:
        mask[:] = False
        mask[kept] = True
    return mask


def _sample_users(rows: CodedRows, n: int, seed: int, report: Report) -> None:
    codes = rows.users()  # in byte order, which decides between equal hashes
    names = rows.user_names.gather(codes).to_list()
    chosen = codes[np.argsort(hash_parts(seed, "sample_users", names), kind="stable")[:n]]
    rows.keep(occurring(chosen, len(rows.user_names))[rows.user])
    _count(f"sample_users {n}", rows, report)


def parse_count(text: str) -> int:
    """A count as people write it: "500", "10K", "1M".

    Raises:
        ConfigError: it is no positive whole number.
    """
    found = re.fullmatch(r"([0-9]{1,12})([kKmM]?)", text.strip())
    count = int(found[1]) * {"": 1, "k": 10**3, "m": 10**6}[found[2].lower()] if found else 0
    if count < 1:
        raise ConfigError(f"E274 {text!r} is no count; write for example 500, 10K or 1M")
    return count


def _index(codes: NDArray[np.int64], names: pl.Series) -> tuple[NDArray[np.int32], list[str]]:
    """Index of each code that is left (`codes`) of all in `names`, and the ids in index order.

    Ids that are all plain decimal integers are numbered in numeric order, others in byte order.
    """
    left = names.gather(codes)
    if left.str.contains(r"^(0|[1-9][0-9]{0,17})$").all():
        order = np.argsort(left.cast(pl.Int64).to_numpy(), kind="stable")
        codes, left = codes[order], left.gather(order)
    index = np.full(len(names), -1, dtype=np.int32)
    index[codes] = np.arange(codes.size)
    return index, left.to_list()


def _index_and_order(
    rows: CodedRows,
    ties: str,
    seed: int,
    unit: str | None,
    positional_items: int | None,
    user_names: tuple[str, ...] | None,
    item_names: tuple[str, ...] | None,
) -> Cleaned:
    of_user, user_ids = _index(rows.users(), rows.user_names)
    if user_names is not None:
        user_ids = [user_names[int(index)] for index in user_ids]
    if positional_items is None:
        of_item, item_ids = _index(rows.items(), rows.item_names)
    else:
        of_item = rows.item_names.cast(pl.Int32).to_numpy()
        item_ids = list(item_names or map(str, range(positional_items)))
    user, item = of_user[rows.user], of_item[rows.item]
    time = rows.timestamp if rows.timestamp is not None else np.full(user.size, -1, dtype=np.int64)
    order = order_in_groups(user, time)  # stable: equal times stay in the order of the source
    if ties != "source":
        ordered_user, ordered_time = user[order], time[order]
        same = (ordered_user[1:] == ordered_user[:-1]) & (ordered_time[1:] == ordered_time[:-1])
        tied = np.append(same, False) | np.append(False, same)
        members = order[tied]
        run = np.cumsum(~np.append(False, same))[tied]
        keys: tuple[NDArray[Any], ...] = (item[members], run)
        if ties == "hash":
            hashes = hash_pairs(seed, "ties", user[members], item[members], user_ids, item_ids)
            keys = (item[members], hashes, run)
        order[tied] = members[np.lexsort(keys)]
    rating = np.full(user.size, np.nan) if rows.rating is None else rows.rating
    rating = rating.astype(np.float32)
    return Cleaned(
        user=user[order],
        item=item[order],
        timestamp=time[order],
        # One pattern of bits for every "no rating", or hashes would differ.
        rating=np.where(np.isnan(rating), np.float32("nan"), rating)[order],
        source_row=rows.source_row[order],
        label=None if rows.label is None else rows.label[order].astype(np.int8),
        user_ids=user_ids,
        item_ids=item_ids,
        time_unit=unit,
    )
