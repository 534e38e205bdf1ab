"""Ranked lists: what every metric reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import ConfigError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class RankedLists:
    """The top-K lists of U users, best item first, and what was relevant to each user.

    Attributes:
        users: dataset index of each evaluated user, ascending [U].
        items: recommended items [U, K]; -1 pads a list when fewer than K candidates exist.
        hits: whether `items` is relevant to its user [U, K]; False at padding.
        relevant_offsets: where each user's relevant items begin in `relevant_items` [U + 1].
        relevant_items: relevant (held-out) items of all users, joined [R].
        popularity: number of training interactions of each item of the catalogue [I].
        activity: number of training interactions of each evaluated user [U].
    """

    users: IntArray
    items: IntArray
    hits: BoolArray
    relevant_offsets: IntArray
    relevant_items: IntArray
    popularity: IntArray
    activity: IntArray

    @property
    def n_users(self) -> int:
        """Number of evaluated users, U."""
        return int(self.items.shape[0])

    @property
    def depth(self) -> int:
        """Length of the stored lists, K."""
        return int(self.items.shape[1])

    @cached_property
    def n_relevant(self) -> IntArray:
        """Number of relevant items of each user [U]."""
        return np.diff(self.relevant_offsets)

    def items_at(self, k: int) -> IntArray:
        """The first k recommended items of each user [U, k], -1 where a list is shorter.

        Raises:
            ConfigError: k is below 1 or above the depth of the lists.
        """
        self._check(k)
        return self.items[:, :k]

    def hits_at(self, k: int) -> BoolArray:
        """Whether each of the first k items is relevant [U, k]; padding never is.

        Raises:
            ConfigError: k is below 1 or above the depth of the lists.
        """
        self._check(k)
        return self.hits[:, :k] & (self.items[:, :k] >= 0)

    def where_relevant(self, values: FloatArray) -> FloatArray:
        """`values` [U], with NaN for every user who has no relevant item."""
        return np.where(self.n_relevant > 0, values, np.nan)

    def _check(self, k: int) -> None:
        # Slicing would not complain: recall@200 of 100 items would silently be recall@100.
        if k < 1:
            raise ConfigError(f"a metric cannot be cut off at {k}; choose a cut-off of 1 or more")
        if k > self.depth:
            raise ConfigError(
                f"a metric at {k} needs lists of {k} items, but only {self.depth} were stored; "
                f"choose k <= {self.depth}, or train again with a larger evaluation.depth"
            )

    def restrict(self, keep: BoolArray) -> RankedLists:
        """The lists of the users where `keep` [U] is true."""
        per_row = np.repeat(keep, self.n_relevant)
        return replace(
            self,
            users=self.users[keep],
            items=self.items[keep],
            hits=self.hits[keep],
            relevant_offsets=np.concatenate([[0], np.cumsum(self.n_relevant[keep])]),
            relevant_items=self.relevant_items[per_row],
            activity=self.activity[keep],
        )
