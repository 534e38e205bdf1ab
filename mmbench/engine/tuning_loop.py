"""The loop of a fine-tuning: steps over batches of pairs, and a judgement on held-out ones.

A contrastive loss needs the vectors of a whole batch. Where these do not fit into memory with
their graph, they are computed without one, by parts; the gradient of the loss is taken to the
vectors; and each part is computed again and given its share of it (Gao et al., arXiv 2101.06983).
The encoder draws nothing at random, so the second pass repeats the first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmbench import seeding
from mmbench.encoders.contrastive import same_group
from mmbench.encoders.objectives import Draws, Objective, Plan, Vectors
from mmbench.encoders.trunks import used_names
from mmbench.engine.device import Compute
from mmbench.engine.encoding import Watch
from mmbench.engine.tuning_optimisation import make_optimizer, rate_factor
from mmbench.engine.tuning_pairs import Pairs
from mmbench.engine.tuning_settings import FineTuning
from mmbench.engine.tuning_state import Progress, StateFolder
from mmbench.errors import TrainingError
from mmbench.metrics import alignment

JUDGED = 256
"""Held-out items whose loss is taken together, whatever the batch: so results compare."""
RUNAWAY = 100
"""Steps with a temperature at its limit, after which that is told."""
COLLAPSED = 2.0
"""Effective number of directions below which vectors have collapsed."""
FORGOTTEN = 0.5
"""Mean cosine with the published vectors below which they count as forgotten."""
Slices = list[slice]


@dataclass
class Tuner:
    """One encoder that learns.

    Args:
        chunk: items that are computed at a time; moves no result but its last bits.
        precision: type that is computed in, None for float32.

    Attributes:
        learning: what learns, by name; "own." before what is not of the encoder's module.
    """

    objective: Objective
    pairs: Pairs
    settings: FineTuning
    compute: Compute
    state: StateFolder
    chunk: int
    precision: torch.dtype | None = None
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        (self._batch_size,) = self.settings.batch_size
        (self._rate,) = self.settings.learning_rate
        self._first: tuple[Tensor, Tensor] | None = None
        self._steps: list[dict[str, float]] = []
        module = self.objective.encoder.module
        names = self.objective.learning(self.settings.tune, self.settings.blocks)
        used = used_names(module, names, self.trial)
        self.learning = {n: p for n, p in module.named_parameters() if n in set(used)}
        for name, weight in module.named_parameters():
            weight.requires_grad_(name in self.learning)
        self.learning |= {f"own.{name}": weight for name, weight in self.objective.own.items()}
        new = self.objective.encoder.new
        self._optimizer = make_optimizer(module, self.learning, new, self.settings)

    def run(self) -> Progress:
        """Learn until the held-out result does not improve any more.

        An epoch that was finished before a process was killed is not computed again.

        Raises:
            TrainingError: a loss, a gradient or a temperature is not finite.
        """
        found = self.state.read()
        if found is not None:
            progress, tensors = found
            if progress.diverged:
                raise TrainingError(progress.diverged)
            if not progress.is_done:
                self._first = self._held_out_vectors()["itc"]  # of the published weights
                self._restore(tensors, progress.step)
        else:
            progress = Progress()
            self._end_epoch(progress, {}, time.monotonic())
        steps = len(self.pairs.train) // self._batch_size
        self.watch.begin(self.state.name, progress.epoch, self.settings.epochs, "epochs")
        try:
            while not progress.is_done:
                began = time.monotonic()
                terms = self._epoch(progress, steps)
                progress.epoch += 1
                self._end_epoch(progress, terms, began)
                self.watch.advance(1)
        except TrainingError as problem:
            progress.diverged = str(problem)
            self.state.write(progress, {}, None)
            raise
        return progress

    def restore_best(self, progress: Progress) -> None:
        """Give the encoder the weights of the best epoch."""
        self._copy_in(self.state.best(progress))

    # -- steps ---------------------------------------------------------------------------------

    def _epoch(self, progress: Progress, steps: int) -> dict[str, float]:
        """One pass over the pairs; mean losses, and how fast and how evenly it went."""
        total: dict[str, float] = {}
        n_clipped = n_limited = n_tokens = 0
        largest, began = 0.0, time.monotonic()
        self._steps = []
        for items in self.pairs.order(self._batch_size, self.settings.seed, progress.epoch):
            factor = rate_factor(self.settings, progress.step, steps * self.settings.epochs)
            for group in self._optimizer.param_groups:
                group["lr"] = group["highest"] * factor
            self._optimizer.zero_grad(set_to_none=True)
            # The order of an epoch and what a step draws depend on their numbers alone, so that
            # a resumption needs no generator's state.
            draws = self._draws(len(items), "step", str(progress.step))
            losses = self._losses(items, draws, learns=True)
            norm = self._clip()
            progress.step += 1
            names = [*losses, "gradient"]
            values = torch.stack([*(loss.detach() for loss in losses.values()), norm]).tolist()
            for name, value in zip(names, values, strict=True):
                if not math.isfinite(value):
                    self._diverged(progress, progress.epoch + 1, f"{_what(name)} is {value}")
                total[name] = total.get(name, 0.0) + value
            n_clipped += values[-1] > (self.settings.clip_norm or math.inf)
            largest = max(largest, values[-1])
            self._optimizer.step()
            scales = self.objective.clamp()
            for name, scale in scales.items():
                if not math.isfinite(scale):
                    what = f"the temperature of {name} is {scale}"
                    self._diverged(progress, progress.epoch + 1, what)
            n_limited += any(self.objective.is_limited(name, scales[name]) for name in scales)
            n_tokens += int(self.pairs.texts.lengths[items].sum())
            told = {f"temperature.{name}": scale for name, scale in scales.items()}
            given = dict(zip(names, values, strict=True))
            rate = self._rate * factor
            self._steps.append({"step": progress.step, "rate": rate, **given, **told})
        means = {name: value / steps for name, value in total.items()}
        time_s = max(1e-9, time.monotonic() - began)
        return {
            **means,
            "gradient_largest": largest,
            "rate": self._rate * factor,
            "clipped_steps": n_clipped,
            "limited_steps": n_limited,
            "pairs_per_second": round(steps * self._batch_size / time_s, 3),
            "tokens_per_second": round(n_tokens / time_s, 3),
        }

    def _diverged(self, progress: Progress, epoch: int, what: str) -> NoReturn:
        if not progress.history:
            raise TrainingError(
                f"the published weights are not usable: {what} before anything was learnt; take "
                "others with --weights"
            )
        raise TrainingError(
            f"the fine-tuning diverged in epoch {epoch}, by step "
            f"{progress.step}: {what} (learning rate {self._rate:g}, batch size "
            f"{self._batch_size}); lower --learning-rate, or let less learn with --tune top"
        )

    def _losses(self, items: NDArray[np.int64], draws: Draws, *, learns: bool) -> dict[str, Tensor]:
        """Mean losses of a batch; their weighted sum is taken back to what learns."""
        texts, pictures, groups = self.pairs.batch(items)
        same = same_group(groups)
        parts = _parts(len(items), self.chunk)
        with torch.set_grad_enabled(learns and len(parts) == 1):
            vectors = _joined([self._vectors(texts, pictures, part) for part in parts])
        leaves = vectors
        if learns and len(parts) > 1:
            leaves = {
                name: (seen.detach().requires_grad_(), read.detach().requires_grad_())
                for name, (seen, read) in vectors.items()
            }
        with torch.set_grad_enabled(learns):
            losses = self.objective.coupled(leaves, same)
            if learns:
                self._weighted(losses).backward()  # type: ignore[no-untyped-call]
        if leaves is not vectors:
            for part in parts:
                self._share_gradient(self._vectors(texts, pictures, part), leaves, part)
        with torch.no_grad(), self.autocast():
            bare = {name: (a.detach(), b.detach()) for name, (a, b) in vectors.items()}
            plan = self.objective.plan(bare, texts, same, draws)
        return {**losses, **self._apart(plan, texts, pictures, learns=learns)}

    def _vectors(
        self, texts: Mapping[str, Tensor], pictures: Mapping[str, Tensor], part: slice
    ) -> Vectors:
        with self.autocast():
            return self.objective.vectors(_cut(texts, part), _cut(pictures, part))

    def _share_gradient(self, again: Vectors, leaves: Vectors, part: slice) -> None:
        outputs, gradients = [], []
        for name, sides in again.items():
            for side, leaf in zip(sides, leaves[name], strict=True):
                assert leaf.grad is not None
                outputs.append(side)
                gradients.append(leaf.grad[part])
        torch.autograd.backward(outputs, gradients)

    def _apart(
        self,
        plan: Plan,
        texts: Mapping[str, Tensor],
        pictures: Mapping[str, Tensor],
        *,
        learns: bool,
    ) -> dict[str, Tensor]:
        counts = plan.counts
        longest = max((len(rows) for rows in (plan.pairs, plan.ids) if rows is not None), default=0)
        found: dict[str, Tensor] = {}
        for part in _parts(longest, self.chunk):
            with torch.set_grad_enabled(learns), self.autocast():
                sums = self.objective.apart(plan, texts, pictures, part)
                means = {name: total / max(1, counts[name]) for name, total in sums.items()}
            if learns and means:
                self._weighted(means).backward()  # type: ignore[no-untyped-call]
            for name, mean in means.items():
                found[name] = found.get(name, torch.zeros_like(mean)) + mean.detach()
        return found

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.objective.weights[n] * loss for n, loss in losses.items()]).sum()

    def _clip(self) -> Tensor:
        parameters = list(self.learning.values())
        most = self.settings.clip_norm
        return nn.utils.clip_grad_norm_(parameters, math.inf if most is None else most)

    def _draws(self, n: int, *purpose: str) -> Draws:
        seed = seeding.integer(self.settings.seed, "fine-tune", *purpose)
        generator = torch.Generator().manual_seed(seed)
        device, length = self.compute.device, self.pairs.texts.longest
        negatives = torch.rand(2, n, generator=generator).to(device)
        return Draws(negatives, torch.rand(3, n, length, generator=generator).to(device))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that vectors and losses are computed in."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.compute.device.type, dtype=self.precision)

    def trial(self) -> Tensor:
        """The sum of all losses of two items, by which is seen what has a gradient."""
        items = self.pairs.train[: min(4, len(self.pairs.train))]
        texts, pictures, groups = self.pairs.batch(items)
        groups = torch.arange(len(groups), device=groups.device)
        same = same_group(groups)
        draws = self._draws(len(items), "trial")
        vectors = self.objective.vectors(texts, pictures)
        losses = self.objective.coupled(vectors, same)
        plan = self.objective.plan(vectors, texts, same, draws)
        found = {**losses, **self.objective.apart(plan, texts, pictures, slice(None))}
        return torch.stack(list(found.values())).sum()

    # -- held-out items ------------------------------------------------------------------------

    def _end_epoch(self, progress: Progress, terms: Mapping[str, float], began: float) -> None:
        """Judge, note, decide whether it goes on, and store the state."""
        judged = self._judge(progress)
        record: dict[str, Any] = {
            "epoch": progress.epoch,
            "step": progress.step,
            "held_out": judged,
        }
        if terms:
            record["train"] = dict(terms)
        record["temperatures"] = self.objective.clamp()
        record["seconds"] = round(time.monotonic() - began, 3)
        record["peak_memory_mib"] = round(self.compute.peak_memory_mib(), 1)
        if warnings := list(self._warnings(record, progress)):
            record["warnings"] = warnings
        for warning in warnings:
            self.watch.say(f"{self.state.name}: epoch {progress.epoch}: {warning}")
        progress.history.append(record)
        best = progress.history[progress.best_epoch]["held_out"]
        is_best = progress.epoch == 0 or self._score(judged) > self._score(best)
        if is_best:
            progress.best_epoch = progress.epoch
        since = progress.epoch - progress.best_epoch
        progress.is_done = progress.epoch >= self.settings.epochs or since >= self.settings.patience
        weights = {f"weights.{name}": weight for name, weight in self.learning.items()}
        self.state.note_steps(progress.epoch, self._steps)
        self.state.write(progress, {**weights, **self._moments()}, weights if is_best else None)

    def _warnings(self, record: Mapping[str, Any], progress: Progress) -> Iterator[str]:
        """What goes wrong slowly: told, not stopped."""
        judged = record["held_out"]
        limited = sum(one.get("train", {}).get("limited_steps", 0) for one in progress.history)
        limited += record.get("train", {}).get("limited_steps", 0)
        began = progress.history[0]["temperatures"] if progress.history else {}
        # The public weights of CLIP stand there from the beginning.
        rose = not any(self.objective.is_limited(name, began[name]) for name in began)
        if rose and limited > RUNAWAY >= limited - record["train"]["limited_steps"]:
            yield (
                f"the temperature stood at its limit for {limited} steps; a lower --learning-rate "
                "may help"
            )
        first = progress.history[0]["held_out"] if progress.history else judged
        least = min(judged["rank_first"], judged["rank_second"])
        if least < COLLAPSED and min(first["rank_first"], first["rank_second"]) >= COLLAPSED:
            yield (
                f"all vectors lie in about {least:.1f} directions; they collapse: lower "
                "--learning-rate, or enlarge --batch-size"
            )
        drifted = min(judged["drift_first"], judged["drift_second"])
        if drifted < FORGOTTEN and judged["recall"] < first["recall"]:
            yield (
                f"vectors moved away from the published ones (cosine {drifted:.2f}) and retrieval "
                "fell; lower --learning-rate, or let less learn with --tune top"
            )

    def _score(self, judged: Mapping[str, Any]) -> tuple[float, float]:
        """What is to be as high as possible; the other of loss and recall decides a tie."""
        both = (float(judged["recall"]), -float(judged["losses"]["itc"]))
        return both if self.settings.select_by == "recall" else (both[1], both[0])

    def _judge(self, progress: Progress) -> dict[str, Any]:
        """Losses, retrieval and alignment of the held-out items."""
        held = self.pairs.held
        totals: dict[str, float] = {}
        self.objective.hits = {}
        with torch.no_grad():
            for part in _parts(len(held), JUDGED):
                draws = self._draws(len(held[part]), "held-out", str(part.start))
                for name, loss in self._losses(held[part], draws, learns=False).items():
                    totals[name] = totals.get(name, 0.0) + float(loss) * len(held[part])
        accuracy = {
            name: float(right) / max(1, count)
            for name, (right, count) in self.objective.hits.items()
        }
        self.objective.hits = None
        vectors = self._held_out_vectors()["itc"]
        losses = {name: total / len(held) for name, total in totals.items()}
        seen, read = (side.numpy() for side in vectors)
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if bad or not (np.isfinite(seen).all() and np.isfinite(read).all()):
            what = _what(bad[0]) if bad else "a vector"
            self._diverged(progress, progress.epoch, f"{what} of held-out items is not finite")
        measured = alignment.measure(seen, read)
        self._first = self._first or vectors
        drift = [
            float((now * then).sum(dim=1).mean())
            for now, then in zip(vectors, self._first, strict=True)
        ]
        return {
            "losses": losses,
            "recall": measured.recall,
            **_plain(asdict(measured)),
            "drift_first": drift[0],
            "drift_second": drift[1],
            **({"accuracy": accuracy} if accuracy else {}),
        }

    @torch.no_grad()
    def _held_out_vectors(self) -> Vectors:
        """Unit vectors of the held-out items, float32 on the CPU."""
        found: list[Vectors] = []
        for part in _parts(len(self.pairs.held), self.chunk):
            texts, pictures, _ = self.pairs.batch(self.pairs.held[part])
            found.append(self._vectors(texts, pictures, slice(None)))
        return {
            name: (seen.float().cpu(), read.float().cpu())
            for name, (seen, read) in _joined(found).items()
        }

    # -- state ---------------------------------------------------------------------------------

    def _moments(self) -> dict[str, Tensor]:
        known = self._optimizer.state
        found = {}
        for name, weight in self.learning.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if weight in known:
                    found[f"{key}.{name}"] = known[weight][key]
        return found

    def _restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self._copy_in(tensors)
        for name, weight in self.learning.items():
            if f"exp_avg.{name}" in tensors:
                self._optimizer.state[weight] = {
                    "step": torch.tensor(float(step)),
                    **{
                        key: tensors[f"{key}.{name}"].to(weight.device)
                        for key in ("exp_avg", "exp_avg_sq")
                    },
                }

    def _copy_in(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.learning.items():
                weight.copy_(tensors[f"weights.{name}"])


def _parts(n: int, size: int) -> Slices:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _cut(batch: Mapping[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: tensor[part] for name, tensor in batch.items()}


def _joined(found: list[Vectors]) -> Vectors:
    if len(found) == 1:
        return found[0]
    return {
        name: (
            torch.cat([one[name][0] for one in found]),
            torch.cat([one[name][1] for one in found]),
        )
        for name in found[0]
    }


def _what(name: str) -> str:
    return "the gradient" if name == "gradient" else f"the loss {name}"


def _plain(value: Any) -> Any:
    """As JSON has it: keys are texts."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return value
