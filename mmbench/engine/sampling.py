"""What an epoch is made of: triples or sequences with negative items, drawn on the device.

A negative is uniform over the candidate items that the user has no training interaction with.
It is drawn exactly and without a loop: for a user with d sorted candidate indices
t_0 < ... < t_{d-1} out of C, draw r uniform in 0..C-d-1; the r-th index that is not among the t
is r + j, where j counts the t with t_i - i <= r. The keys u * (C + 1) + t_i - i are ascending,
so one binary search finds j for every row at once.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmbench.errors import DataError
from mmbench.models.base import Batch, Interactions, Recommender
from mmbench.models.sequential.base import (
    SequenceBatch,
    SequentialRecommender,
    pad_sequences,
)


class NegativeSampler:
    """Draws items that a user has not.

    Args:
        n_users: number of users.
        users: users of pairs, int64 [E], sorted by (user, item), no pair twice.
        items: their items, int64 [E].
        occurs: which items may be drawn, bool [I]; those of the pairs among them.
    """

    def __init__(self, n_users: int, users: Tensor, items: Tensor, occurs: Tensor) -> None:
        self.candidates = occurs.nonzero().squeeze(1)
        n_candidates = len(self.candidates)
        index = torch.cumsum(occurs, 0) - 1  # item -> its place among the candidates
        degrees = torch.bincount(users, minlength=n_users)
        self.starts = torch.cumsum(degrees, 0) - degrees
        position = torch.arange(len(users), device=users.device) - self.starts[users]
        self.stride = n_candidates + 1
        self.keys = users * self.stride + index[items] - position
        self.free = n_candidates - degrees
        """Items that each user may be given, [U]; a user without any must not be drawn for."""

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative item for each of `users` [N]."""
        uniform = torch.rand(
            len(users), generator=generator, device=users.device, dtype=torch.float64
        )
        free = self.free[users]
        # rand() may round up to 1.0 times `free`; the largest index stays free - 1.
        rank = torch.minimum((uniform * free).long(), free - 1)
        found = torch.searchsorted(self.keys, users * self.stride + rank, right=True)
        return self.candidates[rank + found - self.starts[users]]


class TripleSampler:
    """Every training interaction once an epoch, as a (user, positive, negative) triple.

    Args:
        train: training interactions on the device, sorted by (user, item).
        candidates: "seen" draws negatives from items that occur in training, "all" from all.

    Raises:
        DataError: every user has every candidate item, so that no negative exists.
    """

    def __init__(self, train: Interactions, candidates: Literal["seen", "all"] = "seen") -> None:
        self.negatives = NegativeSampler(
            train.n_users, *_distinct(train.users, train.items), _candidates(train, candidates)
        )
        # A user who has every candidate item has no negative; those rows are left out.
        keep = self.negatives.free[train.users] > 0
        self.users, self.positives = train.users[keep], train.items[keep]
        if not len(self.users):
            raise DataError("every user has every item in training: there is no negative to draw")

    def __len__(self) -> int:
        return len(self.users)

    def epoch(self, generator: torch.Generator) -> Batch:
        """All triples in random order, to be asked for its mini-batches."""
        # Drawn in user order, so that the binary search walks through memory, then shuffled.
        negatives = self.negatives.draw(self.users, generator)
        order = torch.randperm(len(self.users), generator=generator, device=self.users.device)
        return Batch(self.users[order], self.positives[order], negatives[order])


class SequenceSampler:
    """Every user's training sequence once an epoch: the last L + 1 items in the order of time.

    Args:
        train: training interactions with `chronological`, on the device.
        max_length: L.
        candidates: "seen" draws negatives from items that occur in training, "all" from all;
            never one of the user's kept items.

    Raises:
        DataError: nobody has two training items and one item without.
    """

    def __init__(
        self, train: Interactions, max_length: int, candidates: Literal["seen", "all"] = "all"
    ) -> None:
        assert train.chronological is not None
        device = train.users.device
        self.padding = train.n_items
        degrees = train.user_degrees
        users = torch.arange(train.n_users, device=device)
        # As many bytes as the histories themselves, so that a batch is one gather.
        self.sequences = pad_sequences(
            train.chronological, train.pointers[1:], degrees, max_length + 1, self.padding
        )
        real = self.sequences != self.padding
        kept = torch.unique(
            (users[:, None] * (train.n_items + 1) + self.sequences)[real], sorted=True
        )
        self.negatives = NegativeSampler(
            train.n_users,
            kept // (train.n_items + 1),
            kept % (train.n_items + 1),
            _candidates(train, candidates),
        )
        self.users = users[(degrees >= 2) & (self.negatives.free > 0)]
        if not len(self.users):
            raise DataError(
                "no user has two training items (and an item without), so there is no next item "
                "to learn; sequential models need longer histories"
            )

    def __len__(self) -> int:
        return len(self.users)

    def epoch(self, generator: torch.Generator) -> Sequences:
        """All users in random order."""
        order = torch.randperm(len(self.users), generator=generator, device=self.users.device)
        return Sequences(self, self.users[order], generator)


class Sequences:
    """The shuffled sequences of one epoch; a batch's negatives are drawn when it is asked for."""

    def __init__(self, sampler: SequenceSampler, users: Tensor, generator: torch.Generator) -> None:
        self.sampler, self.users, self.generator = sampler, users, generator

    def __len__(self) -> int:
        return len(self.users)

    def batch(self, rows: slice) -> SequenceBatch:
        """A mini-batch; to be asked for in order, since it draws."""
        users, padding = self.users[rows], self.sampler.padding
        sequences = self.sampler.sequences[users]
        drawn = self.sampler.negatives.draw(
            users.repeat_interleave(sequences.shape[1]), self.generator
        )
        negatives = torch.where(sequences == padding, padding, drawn.view_as(sequences))
        return SequenceBatch(users, sequences, negatives)


def make_sampler(
    model: Recommender, train: Interactions, candidates: Literal["seen", "all"]
) -> TripleSampler | SequenceSampler:
    """The sampler that a model trains from."""
    if isinstance(model, SequentialRecommender):
        return SequenceSampler(train, model.config.max_length, candidates)
    return TripleSampler(train, candidates)


def _candidates(train: Interactions, which: Literal["seen", "all"]) -> Tensor:
    occurs = train.item_degrees > 0
    return torch.ones_like(occurs) if which == "all" else occurs


def _distinct(users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted pairs without those that are there twice."""
    new = torch.ones_like(users, dtype=torch.bool)
    new[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return users[new], items[new]
