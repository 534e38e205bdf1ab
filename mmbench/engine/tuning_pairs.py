"""Items with a picture and a text: which are learnt from, which are held out, in which order.

Items with the same picture or the same text belong to one group. A group is held out as a whole,
since otherwise what is held out would have been seen; within a batch its members are no negatives
of each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbench import seeding
from mmbench.data.prepared import PreparedDataset
from mmbench.encoders.neural import NeuralEncoder
from mmbench.engine.contents import Contents
from mmbench.engine.device import Compute
from mmbench.engine.live_contents import FOLDER, Pictures, Texts
from mmbench.engine.shards import canonical_hash
from mmbench.engine.tuning_settings import FineTuning
from mmbench.errors import ConfigError, DataError

SHARE, LEAST, MOST_SHARE = 0.05, 256, 0.2
"""Held out are 5 % of the pairs, or 256, but no more than a fifth."""
FEWEST = 2
"""Pairs, and groups of them, to hold out, and to learn from, that make any sense at all."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of a dataset, ready to be read by batch.

    Attributes:
        train: items to learn from, int64, ascending.
        held: items held out, likewise.
        groups: group of each item of the dataset [I]; -1 where it is no pair.
        counts: how many items have what, for the manifest.
    """

    texts: Texts
    pictures: Pictures
    train: NDArray[np.int64]
    held: NDArray[np.int64]
    groups: NDArray[np.int64]
    counts: Mapping[str, int]
    device: torch.device

    @property
    def sha256(self) -> str:
        """Of which items are learnt from, held out and grouped."""
        parts = [self.train, self.held, self.groups]
        return canonical_hash([part.tolist() for part in parts])

    def batch(
        self, items: NDArray[np.int64]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Texts, pictures and groups [B] of some items, on the device."""
        there = torch.from_numpy(items).to(self.device)
        groups = torch.from_numpy(self.groups[items]).to(self.device)
        return self.texts.batch(there), self.pictures.batch(there), groups

    def order(self, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch, all full: a short one would be an easier task."""
        shuffled = seeding.stream(seed, "fine-tune", "order", str(epoch)).permutation(self.train)
        n = len(shuffled) // batch_size
        return [shuffled[k * batch_size : (k + 1) * batch_size] for k in range(n)]


def read_pairs(
    dataset: PreparedDataset,
    encoder: NeuralEncoder,
    contents: Contents,
    settings: FineTuning,
    compute: Compute,
) -> Pairs:
    """The pairs of a dataset, with a part of them held out.

    Raises:
        ConfigError: a batch that was asked for would be larger than all pairs to learn from.
        DataError: there are too few pairs to hold any out, or too many pictures are broken.
    """
    assert contents.texts is not None
    assert contents.pictures is not None
    # Told before the pictures are decoded, which may take long.
    _refuse_few(dataset, int(contents.has.sum()), contents)
    pictures = Pictures(encoder, contents, dataset.item_ids, settings.seed, compute.device)
    pictures.keep(dataset.root / FOLDER)
    has_text = np.array([bool(text) for text in contents.texts])
    has_picture = np.array(pictures.present)
    pairs = has_text & has_picture
    counts = {
        "items": dataset.n_items,
        "pairs": int(pairs.sum()),
        "text_only": int((has_text & ~has_picture).sum()),
        "picture_only": int((has_picture & ~has_text).sum()),
        "neither": int((~has_text & ~has_picture).sum()),
        "unreadable_pictures": len(pictures.problems),
    }
    if settings.warm is not None:
        split = dataset.split(settings.warm)
        warm = np.zeros(dataset.n_items, dtype=np.bool_)
        warm[np.asarray(dataset.item)[split.label == 0]] = True
        counts["cold_pairs"] = int((pairs & ~warm).sum())
        pairs &= warm
    chosen = np.flatnonzero(pairs)
    _refuse_few(dataset, len(chosen), contents)
    groups = group(chosen, contents.texts, contents.picture_hashes)
    train, held = hold_out(chosen, groups, settings.held_out, settings.seed)
    if min(len(np.unique(groups[part])) for part in (train, held)) < FEWEST:
        n_groups = len(np.unique(groups[chosen]))
        raise DataError(
            f"E412 the {len(chosen)} pairs of {dataset.name} are too alike to hold any out: they "
            f"make {n_groups} {'group' if n_groups == 1 else 'groups'} of equal pictures or "
            f"texts, and {2 * FEWEST} are needed at least. Extract with the published weights "
            "instead, without --finetune"
        )
    for size in settings.batch_size:
        if size > len(train) and not settings.adapts:
            raise ConfigError(
                f"batch-size {size} is more than the {len(train)} pairs of {dataset.name} to learn "
                f"from ({len(chosen)} items with picture and text, {len(held)} of them held out); "
                f"take at most {len(train)}, or --batch-size auto"
            )
    sizes = np.bincount(groups[train])
    counts |= {
        "groups": len(np.unique(groups[chosen])),
        "largest_group": int(sizes.max()),
        "train": len(train),
        "held_out": len(held),
    }
    texts = Texts(encoder, contents.texts)
    return Pairs(texts, pictures, train, held, groups, counts, compute.device)


def group(
    items: NDArray[np.int64], texts: Sequence[str], picture_hashes: Sequence[str | None]
) -> NDArray[np.int64]:
    """Groups [I] of items with the same picture or, but for case and blanks, the same text.

    Sameness is passed on: one item can join two others that differ. Items not given have -1.
    """
    parent = np.arange(len(texts), dtype=np.int64)

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    first: dict[tuple[str, str], int] = {}
    for item in items.tolist():
        keys = [("text", " ".join(texts[item].casefold().split()))]
        if picture_hashes[item] is not None:
            keys.append(("picture", str(picture_hashes[item])))
        for key in keys:
            ours, theirs = root(item), root(first.setdefault(key, item))
            parent[max(ours, theirs)] = min(ours, theirs)
    groups = np.full(len(texts), -1, dtype=np.int64)
    groups[items] = [root(item) for item in items.tolist()]
    return groups


def hold_out(
    items: NDArray[np.int64], groups: NDArray[np.int64], share: float | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items to learn from, and items held out: whole groups, drawn by the seed, until enough.

    A group that would take much more than is wanted is passed over, unless less than two were
    taken: what is told from nothing else measures nothing.
    """
    n = len(items)
    wanted = _wanted(n, share)
    most = max(wanted, int(n * max(MOST_SHARE, share or 0.0)))
    drawn = seeding.stream(seed, "fine-tune", "held-out").permutation(np.unique(groups[items]))
    sizes = np.bincount(groups[items])
    taken: list[int] = []
    n_taken = 0
    for one in drawn.tolist():
        if n_taken >= wanted:
            break
        if n_taken + int(sizes[one]) <= most:
            taken.append(one)
            n_taken += int(sizes[one])
    left = sorted(set(drawn.tolist()) - set(taken), key=lambda one: (int(sizes[one]), one))
    taken += left[: max(0, FEWEST - len(taken))]
    held = np.isin(groups[items], taken)
    return items[~held], items[held]


def _wanted(n: int, share: float | None) -> int:
    if share is not None:
        return max(1, round(share * n))
    return max(math.ceil(SHARE * n), min(LEAST, int(n * MOST_SHARE)))


def _refuse_few(dataset: PreparedDataset, n: int, contents: Contents) -> None:
    if int(n * MOST_SHARE) >= FEWEST:
        return
    assert contents.texts is not None
    assert contents.pictures is not None
    with_text = sum(bool(text) for text in contents.texts)
    with_picture = sum(path is not None for path in contents.pictures)
    raise DataError(
        f"E412 {dataset.name} has {n} items with both a picture and a text to learn from "
        f"({with_text} of {dataset.n_items} have a text, {with_picture} a picture), too few to "
        f"hold any out; at least {math.ceil(FEWEST / MOST_SHARE)} are needed. Extract with the "
        "published weights instead, without --finetune"
    )


def facts(pairs: Pairs, contents: Contents) -> dict[str, Any]:
    """What the manifest says of the data."""
    return {
        "contents_sha256": contents.sha256,
        "pairs_sha256": pairs.sha256,
        "text": contents.template,
        "counts": dict(pairs.counts),
    }
