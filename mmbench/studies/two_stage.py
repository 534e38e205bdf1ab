"""Two stages: one system finds N candidates, another one puts them in order.

Finished runs are paired by seed, for every ordered pair of systems: the first N items of the one
are re-ranked by the scores that the other's trained model gives to them. The lists are stored as
run folders of their own, so that whatever compares runs compares these with the same tests:

    recipe.yaml    the recipes of both stages and N
    manifest.json  as of any run; costs are the sums of both
    lists/test     the re-ranked lists, N deep
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmbench.engine.building import make_ranker
from mmbench.engine.device import Compute
from mmbench.engine.trained import load_trained
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.metrics.lists import RankedLists
from mmbench.recipe import system_hash
from mmbench.report.comparison import Comparison, compare
from mmbench.report.pairing import References
from mmbench.report.systems import (
    System,
    check_comparable,
    check_same_users,
    group_runs,
    recorded_metrics,
    resolved_recipe,
)
from mmbench.runs import SCHEMA, Run, open_run, read_manifest, write_array, write_json, write_lists

SUMMED = ("epochs", "seconds", "train_seconds", "seconds_per_epoch")


@dataclass(frozen=True)
class TwoStages:
    """One ordered pair, with its runs.

    Attributes:
        candidates: the system that finds.
        reranker: the system that puts in order.
        n: how many candidates.
        runs: one per seed that both have.
    """

    candidates: System
    reranker: System
    n: int
    runs: tuple[Run, ...]


def two_stages(
    runs: Sequence[Run],
    sizes: Sequence[int],
    *,
    data_dir: Path,
    folder: Path,
    compute: Compute,
    done: Callable[[Run, bool], None] = lambda run, was_there: None,
) -> list[TwoStages]:
    """Re-rank every system's candidates by every other system.

    Args:
        runs: finished runs of two or more systems.
        sizes: N, each once.
        data_dir: where the prepared datasets lie.
        folder: where the lists are stored; those that are there already are taken as they are.
        compute: on what the models score.
        done: told of each pair of runs.

    Raises:
        ConfigError: there is one system only, two have no seed in common, the runs are not
            comparable, or lists are shorter than N.
        DataError: a run or its data are damaged or gone, or the folder cannot be written.
    """
    systems = group_runs(runs)
    if len(systems) < 2:
        raise ConfigError("re-ranking needs two systems or more; name further runs")
    check_comparable(runs, "test")
    for run in runs:
        lists = run.lists("test")
        deepest = min(lists.depth, len(lists.popularity))
        if deepest < max(sizes):
            raise ConfigError(
                f"{run.path} stores {deepest:,} items per user, so it has no {max(sizes):,} "
                f"candidates; choose at most {deepest:,}, or train with "
                f"evaluation.depth={max(sizes)}"
            )
    pairs = list(permutations(systems, 2))
    common = {(a.hash, b.hash): [seed for seed in a.seeds if seed in b.seeds] for a, b in pairs}
    for a, b in pairs:
        if not common[a.hash, b.hash]:
            raise ConfigError(
                f"{a.label!r} and {b.label!r} have no seed in common; runs are paired by seed"
            )
    found: dict[tuple[str, str, int], list[Run]] = {}
    for reranker in systems:  # one model at a time is held
        for second in reranker.runs:
            score = _Scoring(second, data_dir, compute)
            for a in systems:
                if a is reranker or second.seed not in common[a.hash, reranker.hash]:
                    continue
                first = next(run for run in a.runs if run.seed == second.seed)
                for n in sizes:
                    run, was_there = _stored(first, second, a, reranker, n, folder, score)
                    done(run, was_there)
                    found.setdefault((a.hash, reranker.hash, n), []).append(run)
    return [TwoStages(a, b, n, tuple(found[a.hash, b.hash, n])) for n in sizes for a, b in pairs]


def against(pairs: Sequence[TwoStages], which: str, metrics: Sequence[str] = ()) -> Comparison:
    """Every pair of one N against one of its stages alone, in one family.

    Args:
        pairs: of one N.
        which: "candidates" or "reranker": the stage that stands alone as the reference.
        metrics: what is compared, no deeper than N; unless given what all runs recorded, at N
            where all of that is deeper.

    Raises:
        ConfigError: a metric is deeper than N.
    """
    n = pairs[0].n
    # Those seeds alone that both stages have, so that both sides are of the same trainings.
    alone: dict[str, dict[Path, Run]] = {}
    for pair in pairs:
        seeds = {run.seed for run in pair.runs}
        for system in (pair.candidates, pair.reranker):
            kept = alone.setdefault(system.hash, {})
            kept.update({run.path: run for run in system.runs if run.seed in seeds})
    singles = [run for kept in alone.values() for run in kept.values()]
    stages = [run for pair in pairs for run in pair.runs]
    if not metrics:
        metrics = _within(recorded_metrics(singles, "test"), n)
    for name in metrics:
        if parse_metric(name).k > n:
            raise ConfigError(f"{name} looks deeper than the {n} candidates that are re-ranked")
    of = {
        pair.runs[0].system: (pair.candidates if which == "candidates" else pair.reranker).hash
        for pair in pairs
    }
    named = "the system of its candidates alone" if which == "candidates" else "its re-ranker alone"
    return compare(
        [*singles, *stages],
        metrics=metrics,
        references=References(of, named),
        family="table",
    )


def _within(metrics: Sequence[Metric], n: int) -> list[str]:
    """The metrics that n items are enough for; where there are none, the same ones at n."""
    enough = [str(metric) for metric in metrics if metric.k <= n]
    return enough or list(dict.fromkeys(str(Metric(metric.name, n)) for metric in metrics))


def ceilings(pairs: Sequence[TwoStages]) -> list[tuple[str, int, float]]:
    """Of each system and N the share of held-out items among its candidates, mean over users.

    No re-ranking of them can have a higher recall.
    """
    found = {}
    for pair in pairs:
        metric = parse_metric(f"recall@{pair.n}")
        values = [np.nanmean(r.values(metric)) for r in pair.candidates.runs]
        found[pair.candidates.label, pair.n] = float(np.mean(values))
    return [(label, n, value) for (label, n), value in found.items()]


class _Scoring:
    """The second stage of one run; its model is loaded when it is first needed."""

    def __init__(self, run: Run, data_dir: Path, compute: Compute) -> None:
        self.run, self.data_dir, self.compute = run, data_dir, compute
        self.loaded: Any = None

    def __call__(self, lists: RankedLists, n: int) -> RankedLists:
        """The first n items of each user in the model's order."""
        if self.loaded is None:
            trained = load_trained(self.run, self.data_dir, self.compute)
            inputs = trained.inputs
            ranker = make_ranker(trained.recipe, inputs, inputs.test, self.compute)
            self.loaded = trained.model, ranker
        model, ranker = self.loaded
        items = ranker.reranked(model, np.ascontiguousarray(lists.items[:, :n]))
        rows = np.repeat(np.arange(lists.n_users), lists.n_relevant)
        width = len(lists.popularity)
        wanted = rows * width + lists.relevant_items
        keys = np.arange(lists.n_users)[:, None] * width + items
        hits = np.isin(keys, wanted) & (items >= 0)
        return replace(lists, items=items, hits=hits)


def _stored(
    first: Run, second: Run, a: System, b: System, n: int, folder: Path, score: _Scoring
) -> tuple[Run, bool]:
    """The run folder of one pair of runs, and whether it was there already."""
    system = system_hash({"candidates": first.system, "reranker": second.system, "n": n})
    label = f"{a.label} > {b.label} @{n}"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{first.manifest['dataset']['name']}-{label}")
    path = folder / f"{slug.strip('-.')[:80]}-{system[:8]}-s{first.seed}"
    if (path / "manifest.json").exists() and read_manifest(path).get("system") == system:
        return open_run(path), True
    stored, others = first.lists("test"), second.lists("test")
    check_same_users(first, stored, second, others)
    lists = score(stored, n)
    recipes = resolved_recipe(first), resolved_recipe(second)
    recorded = _within(recorded_metrics([first, second], "test"), n)
    recipe = {
        "dataset": first.manifest["dataset"]["name"],
        "label": label,
        "model": {"name": "two-stage", "candidates": a.label, "reranker": b.label, "n": n},
        "stages": {"candidates": recipes[0], "reranker": recipes[1]},
        "evaluation": {"metrics": recorded, "depth": n},
        "seeds": [first.seed],
    }
    manifest = _manifest(first, second, label, system)
    manifest["users"] = {"test": lists.n_users}
    manifest["metrics"] = {
        "valid": {},
        "test": {m: float(np.nanmean(parse_metric(m).values(lists))) for m in recorded},
    }
    partial = folder / f".partial-{os.getpid()}-{path.name}"
    try:
        partial.mkdir(parents=True)
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        (partial / "recipe.yaml").write_text(text, encoding="utf-8")
        write_array(partial / "popularity.npy", lists.popularity.astype(np.int32))
        write_lists(partial / "lists" / "test", lists)
        write_json(partial / "manifest.json", manifest)
        if path.exists():
            raise DataError(
                f"{path} is there and holds something else; remove it, or choose another --to"
            )
        partial.rename(path)
    except OSError as problem:
        raise DataError(
            f"{path} cannot be written ({problem.strerror or problem}); free space or choose "
            "another --to"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_run(path), False


def _manifest(first: Run, second: Run, label: str, system: str) -> dict[str, Any]:
    one, other = first.manifest, second.manifest
    features = {each["key"]: each for each in [*one["features"], *other["features"]]}
    models = [one["model"], other["model"]]
    training = [one.get("training", {}), other.get("training", {})]
    return {
        "schema": SCHEMA,
        "status": "complete",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tool": {"name": "mmbench", "version": version("mmbench")},
        "label": label,
        "system": system,
        "seed": first.seed,
        "stages": {"candidates": str(first.path), "reranker": str(second.path)},
        "dataset": one["dataset"],
        "split": one["split"],
        "features": list(features.values()),
        "protocol": one["protocol"],
        "model": {
            "name": "two-stage",
            "family": "two-stage",
            "integration": "none",
            "modalities": sorted({m for model in models for m in model.get("modalities", [])}),
            "parameters": sum(int(model.get("parameters", 0)) for model in models),
        },
        "training": {
            **{key: sum(each.get(key) or 0 for each in training) for key in SUMMED},
            "peak_memory_mib": max(each.get("peak_memory_mib") or 0 for each in training),
        },
        "environment": other.get("environment", {}),
    }
