"""Breakdowns: the same lists, looked at by kind of user, by kind of item, and by cut-off.

A breakdown turns each metric into several columns. A column knows how to narrow ranked lists to
what it is about; the comparison does not care how many there are or why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from mmbench.errors import ConfigError
from mmbench.metrics.base import Metric
from mmbench.metrics.lists import BoolArray, IntArray, RankedLists

By = Literal["user-activity", "item-popularity", "k", "modality-presence", "history-presence"]
OF_PRESENCE = ("modality-presence", "history-presence")
OF_ITEMS = ("item-popularity", "modality-presence")
"""Breakdowns that restrict what is relevant; metrics that read no relevant items have none."""
CUTOFFS = (1, 5, 10, 20, 50, 100)
ACTIVITY_GROUPS = 4
POPULARITY_GROUPS = ("head", "mid", "tail")


@dataclass(frozen=True)
class Group:
    """A kind of user or item.

    Attributes:
        name: what tables call it.
        users: the users that belong to it [U]; None for all.
        items: the items that belong to it [I]; None for all.
    """

    name: str
    users: BoolArray | None = None
    items: BoolArray | None = None

    def narrow(self, lists: RankedLists) -> RankedLists:
        """The lists as this group sees them."""
        if self.users is not None:
            lists = lists.restrict(self.users)
        return lists if self.items is None else restrict_items(lists, self.items)


@dataclass(frozen=True)
class Column:
    """One column of a comparison: a metric, and for whom or what it is taken.

    Attributes:
        metric: the metric with its cut-off.
        family: columns with the same family are corrected together under `family="metric"`.
        group: the kind of user or item it is restricted to; None for all.
    """

    metric: Metric
    family: str
    group: Group | None = None

    @property
    def head(self) -> str:
        """Column head, for example "Recall@20" or "Recall@20 tail"."""
        return self.metric.label if self.group is None else f"{self.metric.label} {self.group.name}"


class Presence(Protocol):
    """What items and histories have; see mmbench.report.presence, which reads it."""

    def item_groups(self) -> list[Group]:
        """Items by the modalities that they lack."""

    def user_groups(self, users: IntArray) -> list[Group]:
        """Users by what their training items lack."""


def columns_of(
    metrics: Sequence[Metric],
    by: By | None,
    lists: RankedLists,
    cutoffs: Sequence[int] = CUTOFFS,
    presence: Presence | None = None,
) -> list[Column]:
    """The columns that a comparison of `metrics` has under a breakdown.

    Args:
        metrics: what is measured.
        by: the breakdown; None for one column per metric.
        lists: the lists of any of the runs; users, activity and popularity are read.
        cutoffs: for "k": the cut-offs; those deeper than the stored lists are left out.
        presence: for "modality-presence" and "history-presence": what items have. Groups without
            a held-out item or without users are left out.

    Raises:
        ConfigError: no cut-off is within the stored depth, a metric of the whole system is to be
            broken down by items, or it is not known what items have.
    """
    if by is None:
        return [Column(metric, str(metric)) for metric in metrics]
    if by == "k":
        depths = sorted({k for k in cutoffs if 1 <= k <= lists.depth})
        if not depths:
            raise ConfigError(f"no cut-off is within the {lists.depth} items that were stored")
        names = dict.fromkeys(metric.name for metric in metrics)
        return [Column(Metric(name, k), name) for name in names for k in depths]
    whole = [str(metric) for metric in metrics if not metric.per_user]
    if whole and by in OF_ITEMS:
        raise ConfigError(
            f"{', '.join(whole)} cannot be broken down by {by}: it reads no relevant items"
        )
    if by == "user-activity":
        groups = activity_groups(lists.activity)
    elif by == "item-popularity":
        groups = popularity_groups(lists.popularity)
    else:
        groups = _presence_groups(by, lists, presence)
    return [Column(metric, str(metric), group) for metric in metrics for group in groups]


def _presence_groups(by: By, lists: RankedLists, presence: Presence | None) -> list[Group]:
    if presence is None:
        raise ConfigError(f"{by} needs the prepared dataset; say where it is with --data-dir")
    if by == "history-presence":
        return [
            g for g in presence.user_groups(lists.users) if g.users is not None and g.users.any()
        ]
    held_out = np.unique(lists.relevant_items)
    return [g for g in presence.item_groups() if g.items is not None and g.items[held_out].any()]


def activity_groups(activity: IntArray, n_groups: int = ACTIVITY_GROUPS) -> list[Group]:
    """Quantile groups of users by training interactions, least active first.

    Users of equal activity stay together, so groups can differ in size, and there are fewer of
    them where one activity covers more than one quantile.

    Args:
        activity: training interactions of each evaluated user [U].
        n_groups: number of quantile groups aimed at.
    """
    shares = np.arange(1, n_groups) / n_groups
    edges = np.unique(np.quantile(activity, shares, method="inverted_cdf"))
    place = np.searchsorted(
        edges, activity, side="left"
    )  # group g holds edges[g - 1] < a <= edges[g]
    groups = []
    for number in np.unique(place):
        members = place == number
        low, high = int(activity[members].min()), int(activity[members].max())
        groups.append(Group(f"users {_span(low, high)}", users=members))
    return groups


def popularity_groups(popularity: IntArray) -> list[Group]:
    """Head, mid and tail: items that collect a third of all training interactions each.

    Items are taken from the most popular down; items of equal popularity stay together. Items
    without any interaction belong to the tail.

    Args:
        popularity: training interactions of each item [I].
    """
    levels, counts = np.unique(popularity, return_counts=True)
    levels, mass = levels[::-1], (levels * counts)[::-1]  # the most popular level first
    before = (np.cumsum(mass) - mass) / max(1, mass.sum())
    n_groups = len(POPULARITY_GROUPS)
    number = np.where(
        levels > 0, np.minimum((before * n_groups).astype(int), n_groups - 1), n_groups - 1
    )
    groups = []
    for index, name in enumerate(POPULARITY_GROUPS):
        if (number == index).any():
            inside = levels[number == index]
            low, high = int(inside.min()), int(inside.max())
            members = (popularity >= low) & (popularity <= high)
            groups.append(Group(f"{name} {_span(low, high)}", items=members))
    return groups


def restrict_items(lists: RankedLists, keep: BoolArray) -> RankedLists:
    """The lists as if only the items where `keep` [I] is true could be relevant.

    The ranking stays as it is; hits on other items no longer count, nor do those items count as
    relevant. A user who is left without relevant items becomes undefined in every metric.
    """
    kept = keep[lists.relevant_items]
    before = np.concatenate([[0], np.cumsum(kept)])
    # Padding is -1 and reads the last item; it is never a hit, so that does no harm.
    return replace(
        lists,
        hits=lists.hits & keep[lists.items],
        relevant_offsets=before[lists.relevant_offsets],
        relevant_items=lists.relevant_items[kept],
    )


def _span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}-{high}"
