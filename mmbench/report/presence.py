"""Which items truly have which modality, and which users' histories do: read from prepared data.

Runs keep ranked lists and not what items show, so the dataset they were trained on is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

import numpy as np

from mmbench.data.features import load_features
from mmbench.data.prepared import TRAIN, load_dataset
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.lists import BoolArray, FloatArray
from mmbench.modality import MODALITIES
from mmbench.report.breakdown import Group
from mmbench.report.systems import check_comparable
from mmbench.runs import Part, Run

MOSTLY = 0.5


@dataclass(frozen=True)
class Presence:
    """What items and histories have.

    Attributes:
        items: by modality, which items have it [I]; in the order of `MODALITIES`.
        complete: of each user, the share of training items that have every modality [U]; NaN for
            a user without any.
    """

    items: Mapping[str, BoolArray]
    complete: FloatArray

    def item_groups(self) -> list[Group]:
        """A group for each combination of modalities that items lack, those with all first."""
        names = list(self.items)
        groups = []
        for lacking in _subsets(names):
            members = np.ones_like(self.items[names[0]])
            for name in names:
                members &= ~self.items[name] if name in lacking else self.items[name]
            said = f"items without {', '.join(lacking)}" if lacking else "items with all"
            groups.append(Group(said, items=members))
        return groups

    def user_groups(self, users: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[Group]:
        """Users by how many of their training items have every modality.

        Args:
            users: dataset index of each evaluated user [U'].
        """
        share = self.complete[users]
        return [
            Group("history complete", users=share == 1),
            Group("mostly complete", users=(share >= MOSTLY) & (share < 1)),
            Group("mostly incomplete", users=share < MOSTLY),
        ]


def presence_of(runs: Sequence[Run], data_dir: Path, part: Part = "test") -> Presence:
    """What the items of the runs' dataset have.

    The feature sets that any of the runs was given count; those that the dataset stores if they
    used IDs alone. Of several sets of a modality one that has the item is enough.

    Raises:
        ConfigError: the runs are not comparable; or every item has every modality, or no features
            are stored, so there are no groups.
        DataError: the dataset is not prepared, is damaged, or is not the one of the runs.
    """
    check_comparable(runs, part)
    facts = runs[0].manifest["dataset"]
    dataset = load_dataset(str(facts["name"]), data_dir)
    if dataset.fingerprint != facts["fingerprint"]:
        raise DataError(
            f"the {dataset.name} prepared in {data_dir} is not the one that was trained on (its "
            f"fingerprint is {dataset.fingerprint[:12]} and not {facts['fingerprint'][:12]}); name "
            "the right folder with --data-dir"
        )
    given = [features for run in runs for features in run.manifest.get("features") or []]
    keys = {str(features.get("key")) for features in given} or set(dataset.feature_keys)
    items: dict[str, BoolArray] = {}
    for key in sorted(keys):
        modality = key.partition("__")[0]
        stored = load_features(dataset.root, key, dataset.fingerprint, dataset.n_items)
        mask = np.array(stored.mask)
        items[modality] = items[modality] | mask if modality in items else mask
    items = {name: items[name] for name in MODALITIES if name in items}
    if not items:
        raise ConfigError(
            f"{dataset.name} stores no features, so nobody knows which items have a modality; "
            f"make some with mmbench extract {dataset.name}"
        )
    if all(mask.all() for mask in items.values()):
        raise ConfigError(
            f"every item of {dataset.name} has {', '.join(items)}: there is nothing to break down "
            "by presence; what absence does shows mmbench ablate --ladder missing"
        )
    label = np.asarray(dataset.split(str(runs[0].manifest["split"]["name"])).label)
    users, trained = (np.asarray(x)[label == TRAIN] for x in (dataset.user, dataset.item))
    whole = np.logical_and.reduce(list(items.values()))
    total = np.bincount(users, minlength=dataset.n_users)
    having = np.bincount(users, weights=whole[trained], minlength=dataset.n_users)
    complete = np.divide(having, total, out=np.full(len(total), np.nan), where=total > 0)
    return Presence(items, complete)


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))
