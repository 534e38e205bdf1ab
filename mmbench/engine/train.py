"""One run from its recipe to its complete folder; an interrupted one goes on where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmbench import seeding
from mmbench.engine.building import build_model, make_ranker
from mmbench.engine.cost import Cost
from mmbench.engine.device import Compute
from mmbench.engine.end_to_end import refresh
from mmbench.engine.folder import (
    CHECKPOINT,
    begin,
    finish,
    keeping_what_resumes,
    lock,
    resume,
    run_path,
    save_checkpoint,
    writing,
)
from mmbench.engine.foresight import foresee_run
from mmbench.engine.inputs import Inputs, load_inputs, to_device
from mmbench.engine.ranks import ALONE
from mmbench.engine.start import Start, find_start
from mmbench.engine.step import is_out_of_memory
from mmbench.engine.training import EpochListener, Progress, TrainingLoop
from mmbench.errors import ConfigError, TrainingError
from mmbench.models.base import MODELS
from mmbench.recipe import RunRecipe
from mmbench.runs import Run, open_run, read_manifest

CostListener = Callable[[RunRecipe, Cost], None]
"""Told what the encoders of a run will cost, before its first step; not where none learns."""


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
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with lock(self.path):
                begun = (self.path / "manifest.json").exists()
                complete = begun and read_manifest(self.path).get("status") == "complete"
                self.compute.ranks.say((self.path.name, complete))
                if complete:
                    return open_run(self.path)
                with keeping_what_resumes(self.path):
                    if not begun:
                        begin(self.path, self.recipe, self.system)
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
        recipe, inputs, begun = self.recipe, self.inputs, time.perf_counter()
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
            progress.train_s = time.perf_counter() - begun
        else:
            train = to_device(inputs.train, compute.device)
            loop = TrainingLoop(recipe, model, train, ranker, compute)
            self._epochs(loop)
            progress = loop.progress
            model.load_state(loop.best)
            refresh(model, compute)
        return finish(
            self.path, recipe, self.system, inputs, compute, model, ranker, progress, self.start,
            cost,
        )  # fmt: skip

    def _epochs(self, loop: TrainingLoop) -> None:
        """Train to the end, from where an earlier attempt stopped."""
        checkpoint, saved = self.path / CHECKPOINT, time.monotonic()
        if loop.ranks.say(checkpoint.exists()):
            resume(checkpoint, loop)
        for record in loop.run():
            if not loop.ranks.is_first:
                continue
            if self.on_epoch:
                self.on_epoch(self.recipe, record, loop.progress)
            due = time.monotonic() - saved >= self.checkpoint_every_s
            if due and loop.progress.finished is None:
                save_checkpoint(checkpoint, loop)
                saved = time.monotonic()


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
