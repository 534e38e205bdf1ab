"""Cleaning raw interactions: one fixed order of steps, each with its counts.

    normalise > rating threshold > duplicates > content > core > content > sample > index > order

The order matters (a threshold after the core would undo the core) and is the same for every
dataset; the settings say what each step does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mmbench.data.hashing import hash_parts
from mmbench.errors import DataError

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

    def step(self, name: str, frame: pl.DataFrame) -> None:
        """Record the counts after a step and refuse an emptied dataset.

        Raises:
            DataError: nothing is left.
        """
        rows, users, items = frame.height, frame["user"].n_unique(), frame["item"].n_unique()
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
) -> Cleaned:
    """Run the whole cleaning on the interactions of a `RawDataset`.

    `origin` is what messages call the source. `has_content` says of item ids which fulfil
    `config.require` and is asked only when that is set. `positional_items` is the number of
    items of a positional layout, whose indices are kept; `user_names` and `item_names` are the
    raw ids of its indices.

    Raises:
        DataError: the rows contradict each other or nothing is left.
    """
    labelled = raw["split"].null_count() < raw.height
    frame = raw.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("source_row"))
    report.step("read", frame)
    frame, unit = normalise(frame, report, origin)
    if config.min_rating is not None:
        if frame["rating"].null_count() == frame.height:
            raise DataError(
                f"E274 min_rating={config.min_rating:g} needs ratings; {origin} has none"
            )
        frame = frame.filter(pl.col("rating") >= config.min_rating)
        report.step(f"min_rating {config.min_rating:g}", frame)
    frame = deduplicate(frame, config.dedup, report, labelled)
    if config.require != "none" and config.when == "before_core":
        frame = _require(frame, config.require, has_content, report)
    if config.user_min > 1 or config.item_min > 1:
        frame = _core(frame, config.user_min, config.item_min, report)
    if config.require != "none" and config.when == "after_core":
        frame = _require(frame, config.require, has_content, report)
    if config.sample_users is not None:
        frame = _sample_users(frame, config.sample_users, config.seed, report)
    return _index_and_order(frame, config, labelled, unit, positional_items, user_names, item_names)


def normalise(frame: pl.DataFrame, report: Report, origin: str) -> tuple[pl.DataFrame, str | None]:
    """Strip ids, drop rows without one, and bring times to milliseconds UTC.

    Returns:
        the frame, and the unit its times were in (None without times).

    Raises:
        DataError: control characters in an id, or times that are partly missing, of mixed units
            or implausible.
    """
    frame = frame.with_columns(pl.col("user", "item").str.strip_chars(" \t\r\n"))
    no_id = pl.any_horizontal(pl.col("user", "item").fill_null("") == "")
    without = frame.filter(no_id)
    if without.height:
        report.warnings.append(f"W201 {without.height} rows without user or item id dropped")
        report.samples["rows without id"] = without["source_row"].head(20).to_list()
        frame = frame.filter(~no_id)
        report.step("rows with ids", frame)
    for column in ("user", "item"):
        control = frame.filter(pl.col(column).str.contains(r"\p{Cc}"))
        if control.height:
            row, bad = int(control["source_row"][0]), control[column][0]
            raise DataError(
                f"E217 {origin}: data row {row + 1}: {column} id {bad!r} holds a control "
                "character; remove it from the file"
            )
    return _to_milliseconds(frame, origin)


def _to_milliseconds(frame: pl.DataFrame, origin: str) -> tuple[pl.DataFrame, str | None]:
    missing = frame["timestamp"].null_count()
    if missing == frame.height:
        return frame.with_columns(pl.lit(-1, pl.Int64).alias("timestamp")), None
    if missing:
        raise DataError(
            f"E215 {missing} of {frame.height} rows of {origin} lack a timestamp; give all of "
            "them or none"
        )
    times = frame["timestamp"].to_numpy()
    positive = times[times > 0]
    limits = {"s": 1e11, "ms": 1e14, "us": 1e17}
    median = float(np.median(positive)) if positive.size else 0.0
    unit = next((name for name, limit in limits.items() if median < limit), "us")
    low = {"s": 0.0, "ms": 1e11, "us": 1e14}[unit]
    other = int(((positive < low) | (positive >= limits[unit])).sum())
    if other > times.size / 1000:
        names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
        raise DataError(
            f"E214 timestamps of {origin} mix {names[unit]} and another unit ({other} of "
            f"{times.size}); bring them to one"
        )
    scaled = {"s": times * 1000, "ms": times, "us": times // 1000}[unit]
    earliest, latest = 788_918_400_000, int((time.time() + 86_400) * 1000)  # 1995-01-01 .. tomorrow
    bad = (scaled < earliest) | (scaled > latest)
    if bad.any():
        first = int(bad.argmax())
        raise DataError(
            f"E216 {int(bad.sum())} timestamps of {origin} outside 1995..today, e.g. "
            f"{int(times[first])} in data row {int(frame['source_row'][first]) + 1}; mend or "
            "remove them"
        )
    return frame.with_columns(pl.Series("timestamp", scaled)), unit


def deduplicate(frame: pl.DataFrame, rule: str, report: Report, labelled: bool) -> pl.DataFrame:
    """Keep one row of each (user, item).

    `first` keeps the earliest, then the highest rating; `last` the latest, then the highest
    rating; `max_rating` the highest rating, then the earliest. The source row decides the rest.

    Raises:
        DataError: an imported split has a pair in two of its parts.
    """
    repeated = frame.height - frame.select(pl.struct("user", "item").n_unique()).item()
    if not repeated:
        return frame
    if labelled:
        parts = frame.group_by("user", "item").agg(pl.col("split").n_unique())
        torn = parts.filter(pl.col("split") > 1).sort("user", "item")
        if torn.height:
            raise DataError(
                f"E231 {torn.height} user-item pairs are in more than one split, e.g. "
                f"({torn['user'][0]},{torn['item'][0]}); each pair may have one label"
            )
    keys, descending = {
        "first": (["timestamp", "rating", "source_row"], [False, True, False]),
        "last": (["timestamp", "rating", "source_row"], [True, True, False]),
        "max_rating": (["rating", "timestamp", "source_row"], [True, False, False]),
    }[rule]
    frame = (
        frame.sort(keys, descending=descending, nulls_last=True, maintain_order=True)
        .unique(["user", "item"], keep="first", maintain_order=True)
        .sort("source_row")
    )
    report.warnings.append(f"W232 {repeated} repeated pairs merged (kept {rule})")
    report.step("duplicates", frame)
    return frame


def _require(
    frame: pl.DataFrame, requirement: str, has_content: Keep, report: Report
) -> pl.DataFrame:
    ids = frame["item"].unique().sort()
    kept = ids.filter(pl.Series(has_content(ids.to_list())))
    report.samples[f"items dropped by require {requirement}"] = sorted(
        set(ids.to_list()) - set(kept.to_list())
    )[:20]
    frame = frame.join(kept.to_frame("item"), on="item", how="semi")
    report.step(f"require {requirement}", frame)
    return frame


def _core(frame: pl.DataFrame, user_min: int, item_min: int, report: Report) -> pl.DataFrame:
    user, item = (_codes(frame[name])[0] for name in ("user", "item"))
    frame = frame.filter(pl.Series(k_core(user, item, user_min, item_min)))
    report.step(f"{user_min}/{item_min}-core", frame)
    return frame


def k_core(
    user: NDArray[Any], item: NDArray[Any], user_min: int, item_min: int
) -> NDArray[np.bool_]:
    """Which rows stay when users and items with too few rows go until nothing changes, bool [N].

    `user` and `item` are non-negative integer codes [N]. The fixed point does not depend on the
    order of removal.
    """
    kept = np.arange(user.size)
    while kept.size:
        degrees_u, degrees_i = np.bincount(user[kept]), np.bincount(item[kept])
        stays = (degrees_u[user[kept]] >= user_min) & (degrees_i[item[kept]] >= item_min)
        if stays.all():
            break
        kept = kept[stays]
    mask = np.zeros(user.size, dtype=bool)
    mask[kept] = True
    return mask


def _sample_users(frame: pl.DataFrame, n: int, seed: int, report: Report) -> pl.DataFrame:
    ids = frame["user"].unique().sort()  # byte order, which decides between equal hashes
    order = np.argsort(hash_parts(seed, "sample_users", ids.to_list()), kind="stable")
    chosen = ids.gather(order[:n])
    frame = frame.join(chosen.to_frame("user"), on="user", how="semi")
    report.step(f"sample_users {n}", frame)
    return frame


def _codes(ids: pl.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Index of each raw id and the ids in index order.

    Ids that are all plain decimal integers are numbered in numeric order, others in byte order.
    """
    unique = ids.unique()
    if unique.str.contains(r"^(0|[1-9][0-9]{0,17})$").all():
        names = unique.cast(pl.Int64).sort().cast(pl.String)
    else:
        names = unique.sort()
    return ids.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64), names.to_list()


def _index_and_order(
    frame: pl.DataFrame,
    config: PrepareConfig,
    labelled: bool,
    unit: str | None,
    positional_items: int | None,
    user_names: tuple[str, ...] | None,
    item_names: tuple[str, ...] | None,
) -> Cleaned:
    user, user_ids = _codes(frame["user"])
    if user_names is not None:
        user_ids = [user_names[int(index)] for index in user_ids]
    if positional_items is None:
        item, item_ids = _codes(frame["item"])
    else:
        item = frame["item"].cast(pl.Int64).to_numpy()
        item_ids = list(item_names or map(str, range(positional_items)))
    timestamp, source_row = frame["timestamp"].to_numpy(), frame["source_row"].to_numpy()
    tie: NDArray[Any] = source_row
    if config.ties == "item":
        tie = item
    elif config.ties == "hash":
        users, items = user.tolist(), item.tolist()
        tie = hash_parts(
            config.seed,
            "ties",
            [f"{user_ids[u]}\x1f{item_ids[i]}" for u, i in zip(users, items, strict=True)],
        )
    order = np.lexsort((source_row, tie, timestamp, user))
    rating = frame["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    return Cleaned(
        user=user[order].astype(np.int32),
        item=item[order].astype(np.int32),
        timestamp=timestamp[order].astype(np.int64),
        rating=np.where(np.isnan(rating), np.float32("nan"), rating)[order].astype(np.float32),
        source_row=source_row[order].astype(np.int64),
        label=frame["split"].to_numpy()[order].astype(np.int8) if labelled else None,
        user_ids=user_ids,
        item_ids=item_ids,
        time_unit=unit,
    )
