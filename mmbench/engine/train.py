"""One run from its recipe to its complete folder; an interrupted one goes on where it stopped."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save

from mmbench import runs as run_folder
from mmbench import seeding
from mmbench.engine.cost import Cost
from mmbench.engine.device import Compute
from mmbench.engine.encoding_facts import encoding_facts
from mmbench.engine.end_to_end import refresh
from mmbench.engine.foresight import foresee_run
from mmbench.engine.inputs import Inputs, Target, features_to_device, load_inputs, to_device
from mmbench.engine.ranking import Ranker
from mmbench.engine.ranks import ALONE
from mmbench.engine.start import (
    Start,
    find_start,
    read_weights,
    sizes_of,
    sizes_of_inputs,
    what_moves,
)
from mmbench.engine.step import is_out_of_memory
from mmbench.engine.training import EpochListener, Progress, TrainingLoop
from mmbench.errors import ConfigError, DataError, MMBenchError, TrainingError
from mmbench.metrics.lists import RankedLists
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS, ItemFeatures, Recommender
from mmbench.recipe import RunRecipe, system_hash
from mmbench.runs import Run, open_run, read_manifest, write_array, write_json, write_lists

CHECKPOINT = "checkpoint.pt"
CostListener = Callable[[RunRecipe, Cost], None]
"""Told what the encoders of a run will cost, before its first step; not where none learns."""
_UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EEXIST,
}  # fmt: skip


def run_path(recipe: RunRecipe, inputs: Inputs, runs_dir: Path) -> tuple[Path, str]:
    """The folder of a run and the hash of its system; equal settings and data, equal names.

    Raises:
        ConfigError, DataError: as `find_start`.
    """
    start = find_start(recipe)
    begins = {} if start is None else {"start": start.identity(recipe.seed)}
    system = system_hash({"recipe": recipe.identity(), "data": inputs.facts(), **begins})
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{recipe.dataset}-{recipe.label}").strip("-.")[:80]
    weights = "" if start is None else f"-from-{start.weights_sha256[:8]}"
    return runs_dir / f"{slug}-{system[:8]}-s{recipe.seed}{weights}", system


def build_model(
    recipe: RunRecipe, inputs: Inputs, compute: Compute, start: Start | None = None
) -> Recommender:
    """The freshly initialised model on its device, or one with the weights that it starts from.

    Raises:
        ConfigError: it does not train the encoders of the recipe, or cannot start so.
    """
    kind = MODELS.get(recipe.model).obj
    given = features_to_device(inputs.features, torch.device("cpu"))
    how, is_sequential = recipe.training.encoder, kind.family == "sequential"
    # Made before the generators are seeded, as what is kept of an encoder must move no draw.
    given += [
        source.make(
            seed=recipe.seed,
            precision=recipe.training.precision,
            compute=compute,
            is_sequential=is_sequential,
            fills=how is not None,
        )
        for source in inputs.live
    ]
    if not is_sequential:
        given = [_for_general(features, recipe) for features in given]
    given.sort(key=lambda features: MODALITIES.index(features.modality))
    seeding.seed_globals(recipe.seed, "init")
    train = to_device(inputs.train, torch.device("cpu"))
    model: Recommender = kind(recipe.settings, train, given)
    parts = set(model.modules())
    for features in given:
        tune = recipe.encoders[features.modality].tune if features.encoder is not None else "none"
        if features.encoder not in parts and tune != "none":
            raise _untrained(recipe, features.modality)
    if start is not None:
        start.begin(model, inputs, given)
        model.to(compute.device)
        refresh(model, compute)
    return model.to(compute.device)


def _for_general(features: ItemFeatures, recipe: RunRecipe) -> ItemFeatures:
    """A feature set as a general model is given it: with its encoder only if that learns.

    Raises:
        ConfigError: the encoder is to learn, and nothing says how.
    """
    how = recipe.training.encoder
    if how is not None and not how.trains_encoder:
        return replace(features, encoder=None, learns=True)
    if features.encoder is None or recipe.encoders[features.modality].tune == "none":
        return replace(features, encoder=None)  # its vectors will never change
    if how is None:
        raise _untrained(recipe, features.modality)
    return features


def _untrained(recipe: RunRecipe, modality: str) -> ConfigError:
    can = MODELS.get(recipe.model).obj.reads_features != "once"
    return ConfigError(
        f"{recipe.model} trains no encoders{' by itself' if can else ''}: "
        f"{'set training.encoder: end_to_end, or ' if can else ''}under encoders.{modality} set "
        "tune: none, or extract vectors and name them under features:"
    )


def make_ranker(recipe: RunRecipe, inputs: Inputs, target: Target, compute: Compute) -> Ranker:
    """The ranker of one part, with the seed's order of items."""
    order = seeding.stream(recipe.seed, "ties").permutation(inputs.dataset.n_items)
    return Ranker(
        target, inputs.popularity, inputs.activity, order, compute.device, ranks=compute.ranks
    )


def train_run(
    recipe: RunRecipe,
    *,
    data_dir: Path,
    runs_dir: Path,
    compute: Compute,
    on_epoch: EpochListener | None = None,
    checkpoint_every_s: float = 30.0,
    inputs: Inputs | None = None,
    on_cost: CostListener | None = None,
) -> Run:
    """Train, select on validation, rank the test part once, and write the run folder.

    A finished run of the same recipe, data and seed is returned as it is; an unfinished one is
    resumed exactly. Several processes (`compute.ranks`) share the batches and the users; the first
    one alone writes, and all of them read, so folders must be common to them. They stop together.

    Raises:
        DataError: the data are missing or unfit, or the folder cannot be written.
        ConfigError: another process is training this very run.
        TrainingError: a loss or a score is NaN or infinite, memory is not enough, or another of
            the processes has ended.
    """
    try:
        inputs = inputs or load_inputs(recipe, data_dir)
        path, system = run_path(recipe, inputs, runs_dir)
        start = find_start(recipe)
        run = _Training(
            path, recipe, system, inputs, compute, on_epoch, checkpoint_every_s, start, on_cost
        )
        return run.lead() if compute.ranks.is_first else run.follow()
    except BaseException:
        compute.ranks.leave()  # or the others would wait for this process
        raise


@dataclass(frozen=True)
class _Training:
    """One run, as `train_run` was given it."""

    path: Path
    recipe: RunRecipe
    system: str
    inputs: Inputs
    compute: Compute
    on_epoch: EpochListener | None
    checkpoint_every_s: float
    start: Start | None
    on_cost: CostListener | None = None

    def lead(self) -> Run:
        """Hold the folder, and train in it."""
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with _lock(self.path):
                begun = (self.path / "manifest.json").exists()
                complete = begun and read_manifest(self.path).get("status") == "complete"
                self.compute.ranks.say((self.path.name, complete))
                if complete:
                    return open_run(self.path)
                with _keeping_what_resumes(self.path):
                    if not begun:
                        _begin(self.path, self.recipe, self.system)
                    return self.train()

    def follow(self) -> Run:
        """Train as one of several processes; the first one has the folder.

        Raises:
            ConfigError: the processes do not train the same run.
        """
        name, complete = self.compute.ranks.say(("", False))
        if name != self.path.name:
            raise ConfigError(
                f"the processes were started with different recipes or data: the first one trains "
                f"{name}, this one {self.path.name}; start all with the same command and folders"
            )
        return open_run(self.path) if complete else self.train()

    def train(self) -> Run:
        """Train, and write the folder."""
        alone = MODELS.get(self.recipe.model).obj.fitting != "gradient"
        if not alone:
            with _within_memory(self.recipe):
                return self._train(self.compute)
        # There are no gradients to be shared: the first process does it, the others wait.
        if self.compute.ranks.is_first:
            with _within_memory(self.recipe):
                self._train(replace(self.compute, ranks=ALONE))
        self.compute.ranks.say("written")
        return open_run(self.path)

    def _train(self, compute: Compute) -> Run:
        recipe, inputs, begin = self.recipe, self.inputs, time.perf_counter()
        compute.reset_peak_memory()
        model = build_model(recipe, inputs, compute, self.start)
        ranker = make_ranker(recipe, inputs, inputs.valid, compute)
        progress = Progress(finished="closed form")
        cost = None
        if model.fitting == "gradient" and (self.start is None or self.start.how.train):
            cost = foresee_run(recipe, inputs, model, compute)
        if cost is not None and self.on_cost is not None and compute.ranks.is_first:
            self.on_cost(recipe, cost)
        if self.start is not None and not self.start.how.train:
            progress.finished = "not trained here"
        elif model.fitting == "closed-form":
            generator = torch.Generator()
            generator.manual_seed(seeding.integer(recipe.seed, "sampling"))
            model.fit(generator)
            compute.synchronise()
            progress.train_s = time.perf_counter() - begin
        else:
            train = to_device(inputs.train, compute.device)
            loop = TrainingLoop(recipe, model, train, ranker, compute)
            self._epochs(loop)
            progress = loop.progress
            model.load_state(loop.best)
            refresh(model, compute)
        return _finish(
            self.path, recipe, self.system, inputs, compute, model, ranker, progress, self.start,
            cost,
        )  # fmt: skip

    def _epochs(self, loop: TrainingLoop) -> None:
        """Train to the end, from where an earlier attempt stopped."""
        checkpoint, saved = self.path / CHECKPOINT, time.monotonic()
        if loop.ranks.say(checkpoint.exists()):
            _resume(checkpoint, loop)
        for record in loop.run():
            if not loop.ranks.is_first:
                continue
            if self.on_epoch:
                self.on_epoch(self.recipe, record, loop.progress)
            due = time.monotonic() - saved >= self.checkpoint_every_s
            if due and loop.progress.finished is None:
                _save(checkpoint, loop)
                saved = time.monotonic()


def _begin(path: Path, recipe: RunRecipe, system: str) -> None:
    write_json(
        path / "manifest.json",
        {
            "schema": run_folder.SCHEMA,
            "status": "unfinished",
            "label": recipe.label,
            "system": system,
            "seed": recipe.seed,
        },
    )


def _save(path: Path, loop: TrainingLoop) -> None:
    with (partial := path.with_suffix(".partial")).open("wb") as file:
        try:
            torch.save(loop.state(), file)
        except RuntimeError as problem:
            # The archive writer covers a failed write with an error of its own.
            if isinstance(problem.__context__, OSError):
                raise problem.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _resume(path: Path, loop: TrainingLoop) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        loop.restore(state)
    except (
        RuntimeError,
        LookupError,
        TypeError,
        EOFError,
        ValueError,
        OSError,
        UnpicklingError,
    ) as problem:
        raise DataError(
            f"{path} cannot be resumed ({type(problem).__name__}); delete the folder {path.parent} "
            "and train again"
        ) from None


def _finish(
    path: Path,
    recipe: RunRecipe,
    system: str,
    inputs: Inputs,
    compute: Compute,
    model: Recommender,
    ranker: Ranker,
    progress: Progress,
    start: Start | None = None,
    cost: Cost | None = None,
) -> Run:
    """Rank both parts with the chosen weights and write all but the manifest, then that."""
    depth = recipe.evaluation.depth
    tester = make_ranker(recipe, inputs, inputs.test, compute)
    try:
        lists = {"valid": ranker.rank(model, depth), "test": tester.rank(model, depth)}
    except TrainingError as problem:
        raise TrainingError(f"{recipe.label}, seed {recipe.seed}: {problem}") from None
    costs = compute.ranks.gather(
        {"train_seconds": progress.train_s, "peak_memory_mib": compute.peak_memory_mib()}
    )
    if not compute.ranks.is_first:
        compute.ranks.say("written")
        return open_run(path)
    (path / "recipe.yaml").write_text(
        yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    with (path / "history.jsonl").open("w", encoding="utf-8") as file:
        for record in progress.history:
            file.write(json.dumps(record, sort_keys=True, allow_nan=False) + "\n")
    weights = {name: t.detach().contiguous().cpu() for name, t in model.state_dict().items()}
    # Not safetensors' own writer: its error on a full disk is no OSError.
    (path / "weights.safetensors").write_bytes(save(weights))
    write_array(path / "popularity.npy", inputs.popularity.astype(np.int32))
    for part, ranked in lists.items():
        write_lists(path / "lists" / part, ranked)
    manifest = {
        "schema": run_folder.SCHEMA,
        "status": "complete",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tool": {"name": "mmbench", "version": version("mmbench")},
        "label": recipe.label,
        "system": system,
        "seed": recipe.seed,
        "trial": recipe.trial,
        **inputs.facts(),
        **encoding_facts(recipe, inputs, model),
        **({} if start is None else {"start": _started(start, model, inputs)}),
        "protocol": recipe.protocol.model_dump(mode="json"),
        "model": {
            "name": recipe.model,
            "family": model.family,
            "integration": getattr(recipe.settings, "integration", model.integration),
            "modalities": inputs.modalities,
            "parameters": sum(p.numel() for p in model.parameters()),
            **({"learned": learned} if (learned := model.describe_state()) else {}),
        },
        "training": {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "stopped_by": progress.finished,
            "steps_per_epoch": progress.steps_per_epoch,
            "select_by": recipe.training.select_by,
            "accumulate": progress.parts,
            "seconds": progress.train_s + progress.evaluate_s,
            "train_seconds": progress.train_s,
            "seconds_per_epoch": progress.train_s / max(1, progress.epoch),
            "peak_memory_mib": max(cost["peak_memory_mib"] for cost in costs),
            **({"processes": costs} if len(costs) > 1 else {}),
        },
        **({} if cost is None else {"encoder_cost": cost.facts()}),
        "environment": compute.describe(),
        "users": {part: ranked.n_users for part, ranked in lists.items()},
        "metrics": {part: _aggregate(recipe, ranked) for part, ranked in lists.items()},
    }
    write_json(path / "manifest.json", manifest)
    (path / CHECKPOINT).unlink(missing_ok=True)
    compute.ranks.say("written")
    return open_run(path)


def _started(start: Start, model: Recommender, inputs: Inputs) -> dict[str, Any]:
    """What the manifest says of the run that this one starts from."""
    moved = what_moves(model, read_weights(start.run), sizes_of(start.run), sizes_of_inputs(inputs))
    return start.facts(moved)


def _aggregate(recipe: RunRecipe, lists: RankedLists) -> dict[str, float]:
    names = dict.fromkeys([*recipe.evaluation.parsed])
    return {str(metric): float(np.nanmean(metric.values(lists))) for metric in names}


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into one message; remove a folder left empty."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in _UNWRITABLE:
            raise
        with contextlib.suppress(OSError):  # it is not there, or holds a run that can be resumed
            (path / ".lock").unlink(missing_ok=True)
            path.rmdir()
        raise DataError(
            f"{path} cannot be written ({os.strerror(problem.errno)}); free space or choose "
            "another --runs-dir; the same command resumes"
        ) from None


@contextlib.contextmanager
def _within_memory(recipe: RunRecipe) -> Iterator[None]:
    """Turn a lack of memory outside of a training step, which copes by itself, into a message."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise TrainingError(
            f"{recipe.label}, seed {recipe.seed}: memory is not enough to build this model or to "
            "rank with it; choose a smaller model or another device (its batches are not the cause)"
        ) from problem


@contextlib.contextmanager
def _keeping_what_resumes(path: Path) -> Iterator[None]:
    """After an error keep a run that can go on from a checkpoint, and remove any other.

    An unfinished folder that nothing can finish would stand in the way of `compare runs/*`.
    """
    try:
        yield
    except (OSError, MMBenchError):
        with contextlib.suppress(OSError):  # the error to be told is the first one
            (path / CHECKPOINT).with_suffix(".partial").unlink(missing_ok=True)
        if not (path / CHECKPOINT).exists():
            shutil.rmtree(path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the run folder alone; the lock is the operating system's and dies with the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is training {path}; wait for it to end") from None
        yield
    (path / ".lock").unlink(missing_ok=True)
