"""Training triples: every interaction once an epoch, each with a negative item, on the device.

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
from mmbench.models.base import Batch, Interactions


class TripleSampler:
    """Draws shuffled (user, positive, negative) triples.

    Args:
        train: training interactions on the device, sorted by (user, item).
        candidates: "seen" draws negatives from items that occur in training, "all" from all.

    Raises:
        DataError: every user has every candidate item, so that no negative exists.
    """

    def __init__(self, train: Interactions, candidates: Literal["seen", "all"] = "seen") -> None:
        device = train.users.device
        occurs = train.item_degrees > 0
        if candidates == "all":
            occurs = torch.ones_like(occurs)
        self.candidates = occurs.nonzero().squeeze(1)
        n_candidates = len(self.candidates)
        index = torch.cumsum(occurs, 0) - 1  # item -> its place among the candidates
        degrees = train.user_degrees
        self.starts = torch.cumsum(degrees, 0) - degrees
        position = torch.arange(len(train.users), device=device) - self.starts[train.users]
        self.stride = n_candidates + 1
        self.keys = train.users * self.stride + index[train.items] - position
        self.free = n_candidates - degrees
        # A user who has every candidate item has no negative; those rows are left out.
        keep = self.free[train.users] > 0
        self.users, self.positives = train.users[keep], train.items[keep]
        if not len(self.users):
            raise DataError("every user has every item in training: there is no negative to draw")

    def __len__(self) -> int:
        return len(self.users)

    def negatives(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative item for each of `users` [N]."""
        uniform = torch.rand(
            len(users), generator=generator, device=users.device, dtype=torch.float64
        )
        free = self.free[users]
        # rand() may round up to 1.0 times `free`; the largest index stays free - 1.
        rank = torch.minimum((uniform * free).long(), free - 1)
        found = torch.searchsorted(self.keys, users * self.stride + rank, right=True)
        return self.candidates[rank + found - self.starts[users]]

    def epoch(self, generator: torch.Generator) -> Batch:
        """All triples of one epoch in random order; slice it for mini-batches."""
        # Drawn in user order, so that the binary search walks through memory, then shuffled.
        negatives = self.negatives(self.users, generator)
        order = torch.randperm(len(self.users), generator=generator, device=self.users.device)
        return Batch(self.users[order], self.positives[order], negatives[order])
