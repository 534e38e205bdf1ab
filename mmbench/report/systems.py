"""Systems: runs that differ only in seed belong together, and what may be compared at all.

Two runs are comparable if the same users are ranked for, over the same candidates, with the
same items held out. Everything else may differ: that is what a comparison is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from mmbench.errors import ConfigError, DataError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.metrics.lists import RankedLists
from mmbench.runs import Part, Run

CANDIDATE_RULES: Mapping[str, tuple[object, tuple[Part, ...]]] = {
    "mask_validation_at_test": (None, ("test",)),
    "history_mask": ("all", ("valid", "test")),
}
"""Keys of a run's protocol that change what is ranked, with what a run has that names none (it was
trained before there was a choice) and the parts they touch; other keys change training alone."""
FEW_KEYS = 3
_HASH = ".sha256"
NONE = "none"


@dataclass(frozen=True)
class System:
    """Runs of one recipe, one per seed, by seed."""

    label: str
    hash: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs."""
        return tuple(run.seed for run in self.runs)


def group_runs(runs: Sequence[Run]) -> list[System]:
    """Group runs by system, in the order of their first runs, under labels that are distinct.

    Raises:
        ConfigError: there is no run, or one system and seed is given twice.
        DataError: a manifest lacks a field, or a recipe cannot be read.
    """
    if not runs:
        raise ConfigError("no complete run to compare; name run folders, for example runs/*")
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = groups.setdefault(str(_fact(run, "system")), {})
        seed = int(_fact(run, "seed"))
        if seed in seeds:
            raise ConfigError(
                f"{seeds[seed].path} and {run.path} are the same system ({run.label}) with the "
                f"same seed {seed}; name only one of them"
            )
        seeds[seed] = run
    systems = [
        System(
            str(_fact(next(iter(seeds.values())), "label")),
            key,
            tuple(seeds[s] for s in sorted(seeds)),
        )
        for key, seeds in groups.items()
    ]
    clashing = {label for label, count in Counter(s.label for s in systems).items() if count > 1}
    for label in clashing:
        same = [system for system in systems if system.label == label]
        renamed = dict(zip((s.hash for s in same), _distinct_labels(same), strict=True))
        systems = [replace(s, label=renamed.get(s.hash, s.label)) for s in systems]
    return systems


def check_comparable(runs: Sequence[Run], part: Part) -> None:
    """Check what the manifests tell: dataset, split and candidates.

    Raises:
        ConfigError: two runs differ in one of them; it names the runs and every difference.
        DataError: a manifest lacks a field.
    """
    facts = [_comparable_facts(run, part) for run in runs]
    for run, found in zip(runs[1:], facts[1:], strict=True):
        differences = [
            f"{what}: {facts[0][what]} and {found[what]}"
            for what in found
            if found[what] != facts[0][what]
        ]
        if differences:
            raise _refusal(runs[0], run, "; ".join(differences))


def check_same_users(first: Run, lists: RankedLists, other: Run, others: RankedLists) -> None:
    """Check that two runs rank for the same users with the same items held out.

    Raises:
        ConfigError: they do not; it names the runs and what differs.
    """
    if len(lists.popularity) != len(others.popularity):
        counts = f"{len(lists.popularity)} and {len(others.popularity)} items"
        raise _refusal(first, other, f"the catalogue: {counts}")
    if not np.array_equal(lists.users, others.users):
        left, right = (
            len(np.setdiff1d(lists.users, others.users)),
            len(np.setdiff1d(others.users, lists.users)),
        )
        raise _refusal(
            first,
            other,
            f"the evaluated users: {lists.n_users} and {others.n_users}, of whom {left} are only "
            f"in the first and {right} only in the second",
        )
    if not np.array_equal(_held_out(lists), _held_out(others)):
        raise _refusal(first, other, "the held-out items of the same users")


def check_depth(run: Run, lists: RankedLists, metrics: Sequence[Metric]) -> None:
    """Check that the stored lists are long enough.

    Raises:
        ConfigError: a metric looks deeper than the lists are.
    """
    deepest = max(metrics, key=lambda metric: metric.k)
    if deepest.k > lists.depth:
        raise ConfigError(
            f"{deepest} needs lists of {deepest.k} items, but {run.path} stores {lists.depth}; "
            f"choose a cut-off of at most {lists.depth}, or train with evaluation.depth={deepest.k}"
        )


def recorded_metrics(runs: Sequence[Run], part: Part) -> list[Metric]:
    """The metrics that all runs recorded, in the order of the first run's recipe.

    Raises:
        ConfigError: they have none in common.
        DataError: a manifest or recipe lacks them.
    """
    recorded: list[set[str]] = [set(_fact(run, "metrics", part)) for run in runs]
    common = set.intersection(*recorded)
    if not common:
        kinds = sorted({", ".join(sorted(names)) or "none" for names in recorded})
        raise ConfigError(
            f"the runs have no metric in common ({' | '.join(kinds)}); name one, for example "
            "--metric recall@20"
        )
    metrics = sorted(
        (parse_metric(name) for name in common), key=lambda metric: (metric.name, metric.k)
    )
    # JSON keeps no order, the recipe does.
    wanted = list((resolved_recipe(runs[0]).get("evaluation") or {}).get("metrics", []))
    return sorted(metrics, key=lambda m: wanted.index(str(m)) if str(m) in wanted else len(wanted))


def resolved_recipe(run: Run) -> dict[str, Any]:
    """The recipe that a run folder keeps, as plain values.

    Raises:
        DataError: it is missing or broken.
    """
    file = run.path / "recipe.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file} is missing; the run folder is damaged, train it again") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise DataError(f"{file} cannot be read ({problem}); train the run again") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} is no recipe; the run folder is damaged, train it again")
    return values


def _fact(run: Run, *keys: str) -> Any:
    value: Any = run.manifest
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise DataError(
                f"{run.path / 'manifest.json'} lacks {'.'.join(keys)}; the run folder is damaged, "
                "train it again"
            )
        value = value[key]
    return value


def _comparable_facts(run: Run, part: Part) -> dict[str, str]:
    def named(what: str) -> str:
        return f"{_fact(run, what, 'name')} ({str(_fact(run, what, 'fingerprint'))[:12]})"

    protocol = _fact(run, "protocol")
    facts = {"the dataset": named("dataset"), "the split": named("split")}
    if isinstance(protocol, Mapping):
        for rule, (before, parts) in CANDIDATE_RULES.items():
            if part in parts:
                facts[f"protocol.{rule}"] = str(protocol.get(rule, before)).lower()
    return facts


def _refusal(first: Run, other: Run, what: str) -> ConfigError:
    return ConfigError(
        f'"{first.label}" ({first.path}) and "{other.label}" ({other.path}) cannot be compared; '
        f"they differ in {what}. Name the runs of one kind alone; a study with a --runs-dir of its "
        "own keeps runs/* comparable"
    )


def _held_out(lists: RankedLists) -> np.ndarray[Any, Any]:
    """One sorted key per user and held-out item [R]; the order within a user is immaterial."""
    rows = np.repeat(np.arange(lists.n_users), lists.n_relevant)
    return np.sort(rows * len(lists.popularity) + lists.relevant_items)


def _distinct_labels(systems: Sequence[System]) -> list[str]:
    """Labels of systems that share one, told apart by the settings in which they differ."""
    settings = [_settings(system.runs[0]) for system in systems]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    differing = [key for key in keys if len({values.get(key, NONE) for values in settings}) > 1]
    # A hash says nothing where a name tells the features apart already.
    named = [key for key in differing if not key.endswith(_HASH)]
    if len({tuple(values.get(key, NONE) for key in named) for values in settings}) == len(settings):
        differing = named
    shown = differing if len(differing) <= FEW_KEYS else _fewest(differing, settings)
    labels = [
        f"{system.label} ({', '.join(f'{key}={values.get(key, NONE)}' for key in shown)})"
        for system, values in zip(systems, settings, strict=True)
    ]
    if len(set(labels)) < len(labels):  # the recipes are equal: code or data changed under them
        return [f"{system.label} [{system.hash[:8]}]" for system in systems]
    return labels


def _fewest(differing: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """A short list of keys that tells all systems apart, the first useful ones."""
    shown: list[str] = []
    kinds = 1
    for key in differing:
        now = len({tuple(values.get(name) for name in [*shown, key]) for values in settings})
        if now > kinds:
            shown, kinds = [*shown, key], now
    return shown


def _settings(run: Run) -> dict[str, str]:
    """What defines a run as flat text values, the model's settings first."""
    recipe = resolved_recipe(run)
    rest = {key: value for key, value in recipe.items() if key not in ("label", "seeds", "model")}
    values = dict(_flatten({"model": recipe.get("model", {}), **rest}))
    for features in run.manifest.get("features") or []:
        values[f"features.{features.get('modality')}{_HASH}"] = str(features.get("sha256"))[:8]
    return values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, Mapping):
            yield f"{prefix}{key}", NONE if value is None else str(value)
