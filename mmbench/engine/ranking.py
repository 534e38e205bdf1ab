"""Full ranking: the top-K lists of all users over all items, in bounded memory.

Users are ranked in blocks, so that a block's scores stay in the processor's cache; the masked
items of a block are set to minus infinity by one index write. The items are laid out in a
seeded random order, so that ties gain a model nothing and a constant scorer scores as chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmbench.engine.exchange import joined_rows
from mmbench.engine.inputs import Target
from mmbench.engine.ranks import ALONE, Ranks
from mmbench.errors import TrainingError
from mmbench.metrics.lists import BoolArray, IntArray, RankedLists
from mmbench.models.base import Recommender
from mmbench.models.sequential.base import SequentialRecommender, pad_sequences

BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
"""Bytes of one block of scores: about the cache of a processor, a fraction of a GPU's memory."""


GROUPING = 16
"""Items in one group of `_top_k`; measured best for lists of 20 to 100 out of 7,000 items."""


SEQUENCES = 1024
"""Sequences that are encoded at once when users are ranked."""


@dataclass(frozen=True)
class _Block:
    rows: slice
    masked: Tensor  # flat positions in the block's scores


class Ranker:
    """Ranks all items for the users of one part; built once, used every evaluation.

    Args:
        target: whom to rank for, what is relevant, what is masked.
        popularity: training interactions of each item [I].
        activity: training interactions of every user of the dataset.
        order: the seeded order of the items, a permutation [I].
        block_bytes: size of a block of scores; the default suits the device.
        ranks: the processes that share the users; each ranks for as many, and all are given all
            lists.
        candidates: the items that can be listed at all, bool [I]; None for all of them.
    """

    def __init__(
        self,
        target: Target,
        popularity: IntArray,
        activity: IntArray,
        order: IntArray,
        device: torch.device,
        block_bytes: int | None = None,
        ranks: Ranks = ALONE,
        candidates: BoolArray | None = None,
    ) -> None:
        self.whole, self.popularity, self.activity = target, popularity, activity
        self.ranks = ranks
        self.target = target = _share(target, self.ranks)
        self.device, self.n_items = device, len(order)
        self.order = torch.from_numpy(np.asarray(order)).to(device)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self.outside: Tensor | None = None
        if candidates is not None:
            self.outside = torch.from_numpy(np.sort(place[~candidates])).to(device)
        self.users = torch.from_numpy(target.users).to(device)
        self.histories: tuple[Tensor, Tensor] | None = None
        if (histories := target.histories) is not None:
            self.histories = (
                torch.from_numpy(histories.items).to(device),
                torch.from_numpy(histories.offsets).to(device),
            )
        block_bytes = block_bytes or BLOCK_BYTES[device.type]
        self.block = max(1, min(len(target.users), block_bytes // (4 * self.n_items)))
        # Rows of scores are padded, so that they divide into groups (see `_top_k`).
        self.width = -(-self.n_items // GROUPING) * GROUPING
        self.blocks = list(self._blocks(place))
        rows = np.repeat(np.arange(len(target.users)), target.relevant.counts)
        # Positions of relevant items in the laid-out order, one ascending key per pair.
        keys = np.sort(rows * self.n_items + place[target.relevant.items])
        self.relevant_keys = torch.from_numpy(keys).to(device)

    def _blocks(self, place: IntArray):  # type: ignore[no-untyped-def]
        offsets, masked = self.target.masked.offsets, place[self.target.masked.items]
        rows = np.repeat(np.arange(len(self.target.users)), self.target.masked.counts)
        for start in range(0, len(self.target.users), self.block):
            stop = min(start + self.block, len(self.target.users))
            inside = slice(offsets[start], offsets[stop])
            flat = (rows[inside] - start) * self.width + masked[inside]
            yield _Block(slice(start, stop), torch.from_numpy(flat).to(self.device))

    @torch.no_grad()
    def top(self, model: Recommender, depth: int) -> tuple[Tensor, Tensor]:
        """The best items of each user and whether they hit, [U, K] each, on the device.

        K is `depth`, or the number of items where that is smaller. An entry that no candidate
        is left for is -1.

        Raises:
            TrainingError: a vector or a score is NaN or infinite.
        """
        was_training = model.training
        model.eval()
        listed, hits, finite = self._top(model, min(depth, self.n_items))
        model.train(was_training)
        # Asked of all processes at once, so that all stop where one would.
        if not all(self.ranks.gather(bool(finite))):
            raise TrainingError(
                "a score is NaN or infinite; lower the learning rate, or look at the features"
            )
        if self.ranks.size == 1:
            return listed, hits
        n_users = len(self.whole.users)
        listed = joined_rows(self.ranks, listed, n_users)
        return listed, joined_rows(self.ranks, hits.byte(), n_users).bool()

    @torch.no_grad()
    def reranked(self, model: Recommender, candidates: IntArray) -> IntArray:
        """Candidates of each user, best first, by the model's scores of them alone.

        Ties stand in the seeded order of items. Factor models score the candidates only; others
        score all items, for they know no other way, and theirs of the rest are not looked at.

        Args:
            candidates: items of each ranked user [U, N]; -1 where there are fewer, which stays
                last.

        Raises:
            TrainingError: a score is NaN or infinite.
        """
        assert self.ranks.size == 1
        was_training = model.training
        model.eval()
        catalogue = self._catalogue(model)
        if model.factors:
            users, items = (vectors.float() for vectors in self._vectors(model, catalogue))
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(self.n_items, device=self.device)
        width = candidates.shape[1] * (items.shape[1] if model.factors else 1)
        block = max(1, min(self.block, BLOCK_BYTES[self.device.type] // (4 * max(1, width))))
        best = np.empty_like(candidates)
        for start in range(0, len(candidates), block):
            rows = slice(start, min(start + block, len(candidates)))
            listed = torch.from_numpy(candidates[rows]).to(self.device)
            known = listed.clamp(min=0)
            by_place = torch.where(listed >= 0, place[known], self.n_items).argsort(dim=1)
            listed, known = listed.gather(1, by_place), known.gather(1, by_place)
            if model.factors:
                scores = (users[rows, None] * items[known]).sum(dim=2)
            else:
                scores = self._scores(model, catalogue, rows).float().gather(1, known)
            if not bool(torch.isfinite(scores).all()):
                raise TrainingError("a score is NaN or infinite; train the run again")
            scores = scores.masked_fill(listed < 0, -torch.inf)
            order = scores.sort(dim=1, descending=True, stable=True).indices
            best[rows] = listed.gather(1, order).cpu().numpy()
        model.train(was_training)
        return best

    def _top(self, model: Recommender, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `top`, of this process's users; and whether all numbers are finite, a scalar."""
        n_users = len(self.users)
        listed = torch.empty((n_users, depth), dtype=torch.int64, device=self.device)
        hits = torch.empty((n_users, depth), dtype=torch.bool, device=self.device)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        catalogue = self._catalogue(model)
        if model.factors:
            users, items = (vectors.float() for vectors in self._vectors(model, catalogue))
            finite &= torch.isfinite(users).all() & torch.isfinite(items).all()
            items = items[self.order].T.contiguous()
        buffer = torch.full((self.block, self.width), -torch.inf, device=self.device)
        for block in self.blocks:
            scores = buffer[: block.rows.stop - block.rows.start]
            if model.factors:
                torch.mm(users[block.rows], items, out=scores[:, : self.n_items])
            else:
                given = self._scores(model, catalogue, block.rows)
                finite &= torch.isfinite(given).all()
                scores[:, : self.n_items] = given[:, self.order]
            scores.view(-1).index_fill_(0, block.masked, -torch.inf)
            if self.outside is not None:
                scores.index_fill_(1, self.outside, -torch.inf)
            best, places = _top_k(scores, depth)
            # Products of finite vectors overflow only where the best score shows it.
            finite &= (best < torch.inf).all()  # NaN is not below infinity either
            listed[block.rows], hits[block.rows] = self._look_up(block.rows, best, places)
        return listed, hits, finite

    def _catalogue(self, model: Recommender) -> Any:
        """What a sequential model reads of all items; costly ones are shared by the processes."""
        if not isinstance(model, SequentialRecommender):
            return None
        divides = model.content and type(model).catalogue is SequentialRecommender.catalogue
        if self.ranks.size == 1 or not divides or self.n_items < self.ranks.size:
            return model.catalogue()
        share = self.ranks.rows(self.n_items)
        items = torch.arange(share.start, share.stop, device=self.device)
        return joined_rows(self.ranks, model.vectors_of_many(items), self.n_items)

    def _vectors(self, model: Recommender, catalogue: Any) -> tuple[Tensor, Tensor]:
        """Vectors of the ranked users and of all items."""
        if not isinstance(model, SequentialRecommender):
            users, items = model.vectors()
            return users[self.users], items
        starts = range(0, max(1, len(self.users)), SEQUENCES)  # one, though empty, for the shape
        parts = [
            model.represent(
                catalogue,
                self._sequences(model, slice(start, min(start + SEQUENCES, len(self.users)))),
            ).float()
            for start in starts
        ]
        return torch.cat(parts), catalogue

    def _scores(self, model: Recommender, catalogue: Any, rows: slice) -> Tensor:
        if isinstance(model, SequentialRecommender):
            return model.score(catalogue, self._sequences(model, rows))
        return model.scores(self.users[rows])

    def _sequences(self, model: SequentialRecommender, rows: slice) -> Tensor:
        """The histories of some ranked users, padded on the left, int64 [B, L]."""
        assert self.histories is not None
        items, offsets = self.histories
        starts, ends = offsets[rows.start : rows.stop], offsets[rows.start + 1 : rows.stop + 1]
        return pad_sequences(items, ends, ends - starts, model.config.max_length, model.padding)

    def _look_up(self, rows: slice, best: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The items at some places, and whether they hit, for the users of a block."""
        users = torch.arange(rows.start, rows.stop, device=self.device)
        keys = places + users[:, None] * self.n_items
        found = torch.searchsorted(self.relevant_keys, keys).clamp_(max=len(self.relevant_keys) - 1)
        candidate = best > -torch.inf
        items = torch.where(candidate, self.order[places.clamp(max=self.n_items - 1)], -1)
        return items, (self.relevant_keys[found] == keys) & candidate

    def rank(self, model: Recommender, depth: int) -> RankedLists:
        """The ranked lists of all users of this part, `depth` long whatever there is to rank."""
        items, hits = self.top(model, depth)
        if missing := depth - items.shape[1]:  # a catalogue of ten items still has a recall@20
            items, hits = F.pad(items, (0, missing), value=-1), F.pad(hits, (0, missing))
        return RankedLists(
            users=self.whole.users,
            items=items.cpu().numpy(),
            hits=hits.cpu().numpy(),
            relevant_offsets=self.whole.relevant.offsets,
            relevant_items=self.whole.relevant.items,
            popularity=self.popularity,
            activity=self.activity[self.whole.users],
        )


def _share(target: Target, ranks: Ranks) -> Target:
    """The users of a part that a process ranks for."""
    if ranks.size == 1:
        return target
    share = ranks.rows(len(target.users))
    rows = np.arange(share.start, share.stop)
    histories = None if target.histories is None else target.histories.take(rows)
    return replace(
        target,
        users=target.users[rows],
        relevant=target.relevant.take(rows),
        masked=target.masked.take(rows),
        histories=histories,
    )


def _top_k(
    scores: Tensor, k: int, sizes: tuple[int, ...] = (GROUPING, GROUPING // 4)
) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places, exact, in steps where rows are long.

    A row's k largest values lie in the k groups with the largest maxima: taking those groups
    first leaves k * size values to choose from, and group maxima are cheap. What is left is
    narrowed down again with smaller groups.
    """
    n, width = scores.shape
    if not sizes or width // sizes[0] < 4 * k:
        return torch.topk(scores, k, dim=1)
    n_groups = width // sizes[0]
    maxima = scores.view(n, sizes[0], n_groups).amax(dim=1)
    groups = torch.topk(maxima, k, dim=1, sorted=False).indices
    members = torch.arange(sizes[0], device=scores.device) * n_groups
    places = (groups[:, None, :] + members[None, :, None]).view(n, -1)
    best, chosen = _top_k(scores.gather(1, places), k, sizes[1:])
    return best, places.gather(1, chosen)
