"""From a prepared dataset and a recipe to the tensors of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbench import seeding
from mmbench.data.features import FeatureSet
from mmbench.data.prepared import (
    EXCLUDED,
    TEST,
    TRAIN,
    VALID,
    PreparedDataset,
    Split,
    load_dataset,
)
from mmbench.engine.corruption import corrupted
from mmbench.engine.live_sources import LiveSource, find_sources
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.lists import IntArray
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS, Interactions, ItemFeatures
from mmbench.recipe import RunRecipe
from mmbench.recipe_keys import Corruption, UserSubset


@dataclass(frozen=True)
class Ragged:
    """A list of items per user: `items[offsets[u]:offsets[u + 1]]`, ascending unless said."""

    offsets: IntArray
    items: IntArray

    @classmethod
    def group(cls, users: NDArray[Any], items: NDArray[Any], n_users: int) -> Ragged:
        """Group pairs by user."""
        order = np.lexsort((items, users))
        counts = np.bincount(users, minlength=n_users)
        return cls(np.concatenate([[0], np.cumsum(counts)]), items[order].astype(np.int64))

    @classmethod
    def in_order(cls, users: NDArray[Any], items: NDArray[Any], n_users: int) -> Ragged:
        """Group pairs that are sorted by user already, keeping the order within each."""
        counts = np.bincount(users, minlength=n_users)
        return cls(np.concatenate([[0], np.cumsum(counts)]), items.astype(np.int64))

    @property
    def counts(self) -> IntArray:
        """Number of items of each user."""
        return np.diff(self.offsets)

    def take(self, users: IntArray) -> Ragged:
        """The lists of some users, in their order."""
        counts = self.counts[users]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[users], counts)
        return Ragged(offsets, self.items[rows])


@dataclass(frozen=True)
class Target:
    """One part to be ranked: whom, what is relevant, and what is masked.

    Attributes:
        users: users with a relevant item and a training item, ascending [U].
        relevant: relevant items of these users.
        masked: items of these users that are no candidates.
        histories: what a sequential model is shown of these users, in the order of time; None
            for a general one.
    """

    users: IntArray
    relevant: Ragged
    masked: Ragged
    histories: Ragged | None = None


@dataclass(frozen=True)
class Inputs:
    """All that a run reads: interactions, feature sets, and the two parts to be ranked."""

    dataset: PreparedDataset
    split: Split
    train: Interactions
    features: list[ItemFeatures]
    stored: list[FeatureSet]
    valid: Target
    test: Target
    live: list[LiveSource] = field(default_factory=list)
    """Encoders that learn with the model."""

    @property
    def modalities(self) -> list[str]:
        """Those that the model is given, in their order."""
        given = {f.modality for f in self.features} | {source.modality for source in self.live}
        return [modality for modality in MODALITIES if modality in given]

    @cached_property
    def popularity(self) -> IntArray:
        """Training interactions of each item [I]."""
        return np.bincount(self.train.items.numpy(), minlength=self.dataset.n_items)

    @cached_property
    def activity(self) -> IntArray:
        """Training interactions of each user [U]."""
        return np.bincount(self.train.users.numpy(), minlength=self.dataset.n_users)

    def facts(self) -> dict[str, Any]:
        """What was read, for the run's manifest and for its identity."""
        with_tokens = {features.name for features in self.features if features.tokens is not None}
        return {
            "dataset": {
                "name": self.dataset.name,
                "fingerprint": self.dataset.fingerprint,
                "users": self.dataset.n_users,
                "items": self.dataset.n_items,
                "train_interactions": len(self.train.users),
            },
            "split": {"name": self.split.name, "fingerprint": self.split.fingerprint},
            "features": [
                {
                    "key": s.key,
                    "modality": s.modality,
                    "encoder": s.encoder,
                    "sha256": s.manifest["sha256"],
                    **(
                        {"tokens_sha256": s.manifest["tokens"]["sha256"]}
                        if s.key in with_tokens
                        else {}
                    ),
                }
                for s in self.stored
            ],
            # Left out where there are none, so that the hashes of such runs stay what they were.
            **({"encoders": [source.facts() for source in self.live]} if self.live else {}),
        }


def check_modalities(recipe: RunRecipe) -> None:
    """Check that the model can use what the recipe gives it, and is given what it needs.

    Raises:
        ConfigError: it cannot, or has not.
    """
    model = MODELS.get(recipe.model).obj
    asked = [("features", name) for name in recipe.features]
    asked += [("encoders", name) for name in recipe.encoders]
    for section, modality in asked:
        if modality not in model.modalities:
            usable = ", ".join(sorted(model.modalities)) or "none"
            raise ConfigError(
                f"{section}.{modality}: {recipe.model} cannot use this modality (usable: "
                f"{usable}); remove the key. --set reaches every model of a command: one that "
                "takes other settings goes into a command, or a recipe file, of its own"
            )
    if model.requires_modality and not asked:
        raise ConfigError(
            f"{recipe.model} needs at least one feature set; name one under features: in its "
            "recipe, or for example with --set features.textual=tfidf-svd"
        )


def load_inputs(recipe: RunRecipe, data_dir: Path) -> Inputs:
    """Open the dataset, split and feature sets that a recipe names.

    Raises:
        DataError: the dataset or a feature set is missing or unfit, or the split leaves nobody
            to train on or to rank for.
        ConfigError: the model cannot use a modality of the recipe.
    """
    check_modalities(recipe)
    dataset = load_dataset(recipe.dataset, data_dir)
    split = dataset.split(recipe.protocol.split)
    users, items, label = (
        np.asarray(dataset.user),
        np.asarray(dataset.item),
        np.asarray(split.label),
    )
    sequential = MODELS.get(recipe.model).obj.family == "sequential"
    learners = np.ones(dataset.n_users, dtype=bool)
    if recipe.subset is not None:
        label, learners = _within_subset(dataset, users, label, recipe.subset)
    learns = (label == TRAIN) & learners[users]
    if not sequential and recipe.subset is not None and (label == TRAIN).sum() > learns.sum():
        raise ConfigError(
            f"subset.test: {recipe.model} knows no user beyond the {recipe.subset.train:,} who "
            "train; test at most as many"
        )
    part = {
        k: Ragged.group(users[label == k], items[label == k], dataset.n_users)
        for k in (TRAIN, VALID, TEST)
    }
    lessons = Ragged.group(users[learns], items[learns], dataset.n_users)
    if not len(lessons.items):
        raise DataError(f"split {split.name!r} of {dataset.name} has no training interactions")
    known = part[TRAIN].counts > 0

    if sequential:
        _check_order(dataset)

    def seen(*parts: int) -> NDArray[np.bool_]:
        return np.isin(label, parts)

    def before(*parts: int) -> Ragged:
        rows = seen(*parts)
        return Ragged.in_order(users[rows], items[rows], dataset.n_users)

    def target(which: int, history: Ragged, hidden: Ragged) -> Target:
        word = {VALID: "validation", TEST: "test"}[which]
        ranked = np.flatnonzero(
            known & (part[which].counts > 0) & (learners if which == VALID else True)
        )
        if not len(ranked):
            raise DataError(
                f"split {split.name!r} of {dataset.name} has no user with both {word} and training "
                "items, so nothing can be measured; prepare it with another --split"
            )
        relevant = part[which].take(ranked)
        masked = _masked(recipe, hidden.take(ranked), relevant)
        return Target(ranked, relevant, masked, history.take(ranked) if sequential else None)

    trained, until_test = before(TRAIN), before(TRAIN, VALID)
    # What was shown before the test item is the model's to see, hidden as a candidate or not.
    hidden_at_test = until_test if recipe.protocol.mask_validation_at_test else trained
    chronological = torch.from_numpy(items[learns].astype(np.int64)) if sequential else None
    stored = [dataset.features(modality, encoder) for modality, encoder in recipe.features.items()]
    train_users = np.repeat(np.arange(dataset.n_users), lessons.counts)
    return Inputs(
        dataset=dataset,
        split=split,
        train=Interactions(
            dataset.n_users,
            dataset.n_items,
            torch.from_numpy(train_users),
            torch.from_numpy(lessons.items),
            chronological,
        ),
        features=[
            _for_model(
                f,
                recipe.corruptions.get(f.modality),
                reads_tokens=MODELS.get(recipe.model).obj.reads_tokens,
            )
            for f in stored
        ],
        stored=stored,
        valid=target(VALID, trained, trained),
        test=target(TEST, until_test, hidden_at_test),
        live=find_sources(dataset, recipe.encoders),
    )


def _within_subset(
    dataset: PreparedDataset,
    users: NDArray[np.int32],
    label: NDArray[np.int8],
    subset: UserSubset,
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """The labels with the rows of others excluded, and which users a model is made by, bool [U].

    One order of all users who train and are tested is drawn, and its first ones are taken: the
    users of a smaller subset are among those of a larger one. The rows of users who are tested
    alone stay as their histories, so that a user is asked the same in every subset.

    Raises:
        DataError: there are not as many users.
    """
    eligible = np.intersect1d(users[label == TRAIN], users[label == TEST])
    n_tested = len(eligible) if subset.test == "all" else subset.test or subset.train
    if max(subset.train, n_tested) > len(eligible):
        raise DataError(
            f"{dataset.name} has {len(eligible):,} users who train and are tested, fewer than the "
            f"{max(subset.train, n_tested):,} asked for; ask for fewer"
        )
    order = seeding.stream(subset.seed, "user subset").permutation(eligible)
    everyone = np.arange(dataset.n_users)
    learners, tested = (np.isin(everyone, order[:count]) for count in (subset.train, n_tested))
    kept = np.where(label == TEST, tested[users], (learners | tested)[users])
    return np.where(kept, label, np.int8(EXCLUDED)), learners


def _check_order(dataset: PreparedDataset) -> None:
    """Refuse data whose rows have no order in time.

    Raises:
        DataError: there are neither times nor ordered histories.
    """
    has_order = dataset.manifest["facts"].get("has_order", False)
    if not (has_order or dataset.manifest["time"]["has_timestamps"]):
        raise DataError(
            f"{dataset.name} has no timestamps and no ordered histories, so there is no next item; "
            "a sequential model needs one: prepare data that have, or choose a general model"
        )


def _masked(recipe: RunRecipe, histories: Ragged, relevant: Ragged) -> Ragged:
    """What is no candidate, by the protocol's `history_mask`; ascending."""
    rule, n_users = recipe.protocol.history_mask, len(histories.counts)
    rows = np.repeat(np.arange(n_users), histories.counts)
    if rule == "none":
        return Ragged.group(rows[:0], histories.items[:0], n_users)
    items, keep = histories.items, np.ones(len(rows), dtype=bool)
    length = getattr(recipe.settings, "max_length", None)
    if rule == "public-code" and length is not None:
        # The last L + 1 items alone: of a longer history the oldest may be recommended again.
        from_end = histories.offsets[1:][rows] - np.arange(len(rows))
        keep = from_end <= length + 1
    elif rule == "except-target":
        pairs = np.repeat(np.arange(n_users), relevant.counts) + 1j * relevant.items
        keep = ~np.isin(rows + 1j * items, pairs)
    return Ragged.group(rows[keep], items[keep], n_users)


def _for_model(
    stored: FeatureSet, corruption: Corruption | None = None, *, reads_tokens: bool = False
) -> ItemFeatures:
    """A feature set in float32; items without the modality get the mean of those that have it.

    Args:
        reads_tokens: whether the set's tokens are read too, where it has them.
    """
    matrix = np.array(stored.matrix, dtype=np.float32)
    present = np.array(stored.mask)
    if not present.any():
        raise DataError(f"feature set {stored.key} has no item with the modality; extract it again")
    reads_tokens = reads_tokens and stored.tokens is not None
    if corruption is not None:
        if reads_tokens:
            raise ConfigError(
                f"corruptions.{stored.modality}: the model reads the tokens of {stored.key}, but "
                "only pooled vectors can be spoilt; extract the set without --tokens"
            )
        matrix, present = corrupted(stored.modality, matrix, present, corruption)
    matrix[~present] = matrix[present].mean(axis=0, dtype=np.float64)
    features = ItemFeatures(
        stored.key, stored.modality, torch.from_numpy(matrix), torch.from_numpy(present)
    )
    if not reads_tokens:
        return features
    tokens, mask = _tokens(stored)
    return replace(features, tokens=torch.from_numpy(tokens), token_mask=torch.from_numpy(mask))


def _tokens(stored: FeatureSet) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Token states [I, T, E] and which are real [I, T].

    An item without the modality gets one, the mean of the others' mean tokens. Any other item
    has a token, or the set could not have been stored.
    """
    tokens, mask = np.array(stored.tokens), np.array(stored.token_mask)
    having = np.flatnonzero(stored.mask)
    total = np.zeros(tokens.shape[2])
    for start in range(0, len(having), 1024):  # a copy in float64 of all would not fit
        rows = having[start : start + 1024]
        weights = mask[rows] / mask[rows].sum(axis=1, keepdims=True)
        total += np.einsum("nt,nte->e", weights, tokens[rows].astype(np.float64))
    lacking = np.flatnonzero(~stored.mask)
    tokens[lacking, 0], mask[lacking, 0] = total / len(having), True
    return tokens, mask


def to_device(train: Interactions, device: torch.device) -> Interactions:
    """The training interactions on a device."""
    move = _mover(device)
    order = train.chronological
    return Interactions(
        train.n_users,
        train.n_items,
        move(train.users),
        move(train.items),
        None if order is None else move(order),
    )


def features_to_device(features: list[ItemFeatures], device: torch.device) -> list[ItemFeatures]:
    """Feature sets on a device."""
    move = _mover(device)
    return [
        replace(
            f,
            matrix=move(f.matrix),
            present=move(f.present),
            tokens=None if f.tokens is None else move(f.tokens),
            token_mask=None if f.token_mask is None else move(f.token_mask),
        )
        for f in features
    ]


def _mover(device: torch.device) -> Any:
    def move(tensor: Tensor) -> Tensor:
        if device.type == "cuda":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    return move
