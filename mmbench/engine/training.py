"""The training loop: one for every model, resumable at every epoch to the same bits.

All randomness comes from generators whose states belong to the loop's state; two runs that
start from equal states end in equal weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbench import seeding
from mmbench.engine.device import Compute
from mmbench.engine.end_to_end import EndToEnd
from mmbench.engine.exchange import from_first, summed
from mmbench.engine.optimisation import encoder_rate_factor, learning_rate_factor
from mmbench.engine.ranking import Ranker
from mmbench.engine.sampling import make_sampler
from mmbench.engine.step import Step
from mmbench.errors import TrainingError
from mmbench.metrics.base import parse_metric
from mmbench.models.base import Interactions, Recommender
from mmbench.recipe import RunRecipe
from mmbench.recipe_keys import EncoderTraining

Record = dict[str, Any]
"""One epoch of the history: epoch, losses, validation metrics, seconds; `learned`, where a model
describes its state; and `memory`, a sentence, where a batch did not fit."""


@dataclass
class Progress:
    """Where training stands; with the states of model, optimiser and generators it resumes."""

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = -math.inf
    stale: int = 0
    """Evaluations since the last gain."""
    train_s: float = 0.0
    evaluate_s: float = 0.0
    history: list[Record] = field(default_factory=list)
    finished: str | None = None
    """Why training is over: "patience", "epochs", or, where there is no epoch, "closed form" or
    "not trained here"."""
    parts: int = 1
    """Into how many parts a batch was cut in the end: the recipe's `accumulate`, or more."""
    steps_per_epoch: int = 0
    """Steps of the optimiser; 0 where there are none."""


class TrainingLoop:
    """Trains one model and keeps the weights that were best on validation.

    Args:
        recipe: the run's recipe.
        model: the model on its device, freshly initialised.
        train: the training interactions on the same device.
        ranker: ranks the validation part.
    """

    def __init__(
        self,
        recipe: RunRecipe,
        model: Recommender,
        train: Interactions,
        ranker: Ranker,
        compute: Compute,
    ) -> None:
        self.recipe, self.model, self.ranker, self.compute = recipe, model, ranker, compute
        self.training, self.ranks = recipe.training, compute.ranks
        self.select_by = parse_metric(self.training.select_by)
        self.metrics = dict.fromkeys([self.select_by, *recipe.evaluation.parsed])
        self.depth = max(metric.k for metric in self.metrics)
        self.sampling = torch.Generator(compute.device)
        self.sampling.manual_seed(seeding.integer(recipe.seed, "sampling"))
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.step: Step | None = None
        self.encoding: EndToEnd | None = None
        if model.fitting == "gradient":
            self.sampler = make_sampler(model, train, recipe.protocol.negatives)
            how, precision = self.training.encoder, self.training.precision
            if how is not None and how.trains_encoder:
                self.encoding = EndToEnd(model, how, precision, compute)
            self.step = Step(model, self.training, compute, self.encoding)

    def run(self) -> Iterator[Record]:
        """Train until patience or epochs end; yields each epoch's record when it is over.

        Raises:
            TrainingError: a loss or a score is NaN or infinite, or memory is not enough for a
                row; names the epoch.
        """
        progress = self.progress
        # All were drawn from one seed; this makes sure. What does not learn was read by all alike.
        learning = self.step.learning if self.step else []
        from_first(self.ranks, [parameter.data for parameter in learning])
        while progress.finished is None:
            record = self._epoch(progress.epoch + 1)
            progress.epoch += 1
            progress.history.append(record)
            if (
                progress.epoch % self.training.evaluate_every == 0
                or progress.epoch == self.training.epochs
            ):
                self._evaluate(record)
            patience = self.training.patience
            exceeds = self.recipe.protocol.stop == "exceeded"
            if patience is not None and progress.stale >= patience + exceeds:
                progress.finished = "patience"
            elif progress.epoch >= self.training.epochs:
                progress.finished = "epochs"
            yield record

    def _epoch(self, epoch: int) -> Record:
        begin = time.perf_counter()
        self.model.train()
        self._draw_alike()
        self.model.on_epoch_start(epoch)
        self._draw_apart(epoch)
        if self.step is None:
            losses = self.model.fit_epoch(self.sampling)
        else:
            factor = learning_rate_factor(self.training.schedule, epoch - 1, self.training.epochs)
            self.step.set_rate(factor)
            with self._named(epoch):
                losses = self._gradient_epoch(self.step, factor)
        self.compute.synchronise()
        with self._named(epoch):
            _check_finite(losses)
        seconds = time.perf_counter() - begin
        self.progress.train_s += seconds
        record = {"epoch": epoch, "losses": losses, "train_s": seconds}
        if learned := self.model.describe_state():
            record["learned"] = learned
        if self.step is not None:
            self.progress.parts = self.step.parts
            if self.step.note:
                record["memory"], self.step.note = self.step.note, ""
        if self.encoding is not None:
            record["encoder"] = {
                "items": self.encoding.n_encoded,
                "table_age": self.encoding.age,
            }
        return record

    def _gradient_epoch(self, step: Step, factor: float) -> dict[str, float]:
        """One pass over all rows; nothing in here waits for the device until its end."""
        drawn = self.sampler.epoch(self.sampling)
        size, n_rows = self.training.batch_size, len(self.sampler)
        self.progress.steps_per_epoch = -(-n_rows // size)
        if self.encoding is not None:
            self.encoding.start_epoch(self.progress.epoch + 1, self.progress.steps_per_epoch)
        total = torch.zeros((), device=self.compute.device)
        done, how = self.progress.epoch * self.progress.steps_per_epoch, self.training.encoder
        for start in range(0, n_rows, size):
            if how is not None and how.warmup_share:
                step.set_rate(factor, self._rise(how, done + start // size))
            batch = drawn.batch(slice(start, start + size))
            total = total + step(batch) * len(batch)
        step.check_scale()
        terms = self.ranks.say(step.terms)
        values = summed(self.ranks, total.expand(len(terms)).contiguous()) / n_rows
        return dict(zip(terms, values.tolist(), strict=True))

    def _rise(self, how: EncoderTraining, step: int) -> float:
        return encoder_rate_factor(how, step, self.progress.steps_per_epoch, self.training.epochs)

    def _draw_alike(self) -> None:
        """Give torch's generators the states of the first process.

        What a model draws at the start of an epoch, a thinned graph for example, is so the same
        everywhere, and all that resuming needs is in the first process.
        """
        if self.ranks.size > 1:
            device = self.compute.device
            states = [torch.get_rng_state()]
            if self.compute.is_cuda:
                states.append(torch.cuda.get_rng_state(device))
            from_first(self.ranks, states)
            torch.set_rng_state(states[0])
            if self.compute.is_cuda:
                torch.cuda.set_rng_state(states[1], device)

    def _draw_apart(self, epoch: int) -> None:
        """Give every process but the first states of its own: no dropout mask is drawn twice."""
        if not self.ranks.is_first:
            seeding.seed_globals(self.recipe.seed, "rank", str(self.ranks.rank), str(epoch))

    def _evaluate(self, record: Record) -> None:
        begin = time.perf_counter()
        if self.encoding is not None:
            self.encoding.bring_up_to_date()
            record["encoder"]["drift"] = self.encoding.drift()
        with self._named(record["epoch"]):
            lists = self.ranker.rank(self.model, self.depth)
        record["valid"] = {
            str(metric): float(metric.values(lists).mean()) for metric in self.metrics
        }
        value = record["valid"][str(self.select_by)]
        if (decimals := self.recipe.protocol.selection_decimals) is not None:
            value = round(value, decimals)
        progress = self.progress
        if value > progress.best_value:
            progress.best_value, progress.best_epoch, progress.stale = value, record["epoch"], 0
            self.best = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        else:
            progress.stale += 1
        record["evaluate_s"] = time.perf_counter() - begin
        progress.evaluate_s += record["evaluate_s"]

    @contextlib.contextmanager
    def _named(self, epoch: int) -> Iterator[None]:
        """Say in an error where training stood."""
        try:
            yield
        except TrainingError as problem:
            where = f"{self.recipe.label}, seed {self.recipe.seed}, epoch {epoch}"
            raise TrainingError(f"{where}: {problem}") from None

    def state(self) -> dict[str, Any]:
        """Everything that the rest of training depends on, as tensors and plain values."""
        device = self.compute.device
        return {
            "progress": dict(vars(self.progress)),
            "model": self.model.state_dict(),
            "step": self.step.state() if self.step else None,
            "encoding": self.encoding.state() if self.encoding else None,
            "best": self.best,
            "sampling": self.sampling.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if self.compute.is_cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state()` of the same recipe."""
        self.progress = Progress(**state["progress"])
        self.model.load_state(state["model"])
        if self.step is not None:
            self.step.restore(state["step"])
        if self.encoding is not None:
            self.encoding.restore(state["encoding"])
        device = self.compute.device
        self.best = {name: tensor.to(device) for name, tensor in state["best"].items()}
        self.sampling.set_state(state["sampling"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        if self.compute.is_cuda:
            torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _check_finite(losses: dict[str, float]) -> None:
    for term, value in losses.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"loss term {term!r} is {value}; lower training.learning_rate or set "
                "training.clip_norm"
            )


EpochListener = Callable[[RunRecipe, Record, Progress], None]
