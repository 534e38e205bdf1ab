"""One step of training: a batch, whole or in parts, over one process or several.

    g = sum over parts p of (w_p / w) grad L(p)        w = sum of w_p, `Recommender.n_terms`

L(p) is the loss that the model computes of a part and w_p the number of terms it is the mean of:
rows, for sequential models real slots. So g is the gradient of the whole batch's loss wherever
that is such a mean, plus penalties of weights. What looks across the rows of a batch is not: a
norm that is not squared (`losses.frobenius`) is larger in parts than of their rows together,
in-batch negatives and contrasts between rows see the rows of their part alone (a loss of its own,
with fewer negatives), statistics over a batch are those of the part, terms over its distinct
items count an item once in each part, and what is drawn inside a step (dropout, the negatives of
sampled softmax, masked slots) is drawn for each part. A graph that the first batch of an epoch
builds with gradient (LATTICE, MICRO) gets that of the first part.

Several processes are the same once more: each takes a contiguous share of every batch's rows,
cut into parts in its turn, and gradients are added up over all. All draw the same batches. What a
model draws inside a step, each process draws for its own rows.

A batch that does not fit in memory is cut in halves, and so is every batch after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmbench.engine.device import Compute
from mmbench.engine.end_to_end import EndToEnd
from mmbench.engine.exchange import sum_gradients
from mmbench.engine.optimisation import clipped_groups, groups_of_encoders, make_optimizer
from mmbench.errors import TrainingError
from mmbench.models.base import Recommender
from mmbench.recipe_keys import Training

SMALLEST_SCALE = 2.0**-20
"""Of float16's losses; below it no gradient has been finite for some forty steps."""


class Step:
    """Turns batches into steps of the optimiser.

    Args:
        model: on its device; what learns has `requires_grad`.
        training: the recipe's section.
        encoding: what encodes for a general model that is trained end to end.

    Attributes:
        parts: into how many parts a batch is cut at present.
        note: what is to be said about memory; whoever says it empties it.
    """

    def __init__(
        self,
        model: Recommender,
        training: Training,
        compute: Compute,
        encoding: EndToEnd | None = None,
    ) -> None:
        self.model, self.compute, self.encoding = model, compute, encoding
        self.norms = clipped_groups(model, training)
        self.optimizer = make_optimizer(model, training)
        self.learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self._of_encoders = groups_of_encoders(model, self.optimizer)
        self.ranks = compute.ranks
        self.parts, self.note = training.accumulate, ""
        kind, device = training.precision, compute.device.type
        half = torch.float16 if kind == "float16" else torch.bfloat16
        self.autocast = torch.autocast(device, half, enabled=kind != "float32")
        # Gradients below 6e-8 are zero in float16: losses are scaled up, gradients down again.
        self.scaler = torch.amp.GradScaler(device, enabled=kind == "float16")
        self.terms: list[str] = []

    def set_rate(self, factor: float, of_encoders: float = 1.0) -> None:
        """Set every group's learning rate to a factor of its own.

        Args:
            of_encoders: a further factor on those of encoders.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for at in self._of_encoders:
            self.optimizer.param_groups[at]["lr"] *= of_encoders

    def __call__(self, batch: Any) -> Tensor:
        """Learn from a batch; returns its loss terms, in the order of `terms`, float32 [T].

        With several processes each is given the whole batch, learns from its share of the rows,
        and returns what that adds to the terms; a process without a row returns a scalar zero.

        Raises:
            TrainingError: not even parts of one row fit in memory, or the optimiser does not.
        """
        drawn = self.compute.drawn()
        while (losses := self._gradients(batch)) is None:
            self._halve(len(batch))
            self.compute.draw_from(drawn)
        if self.norms:
            self.scaler.unscale_(self.optimizer)
            for parameters, norm in self.norms:
                torch.nn.utils.clip_grad_norm_(parameters, norm)
        try:
            self.scaler.step(self.optimizer)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            raise TrainingError(
                "the state of the optimizer does not fit in memory; choose a smaller model, or "
                "training.optimizer=sgd, which keeps none"
            ) from None
        self.scaler.update()
        if self.encoding is not None:
            self.encoding.done()
        return losses

    def _gradients(self, batch: Any) -> Tensor | None:
        """Leave the gradient of a batch in the parameters; None where memory was not enough."""
        self.optimizer.zero_grad(set_to_none=True)
        total, failed = torch.zeros((), device=self.compute.device), False
        encoding = self.encoding
        try:
            if encoding is not None:
                encoding.begin()
            for part, share in self._shares(batch):
                if encoding is not None:
                    encoding.give(part)
                with self.autocast:
                    terms = self.model.training_step(part)
                losses = torch.stack([term.float() for term in terms.values()])
                if share is not None:
                    losses = losses * share
                self.scaler.scale(losses.sum()).backward()  # type: ignore[no-untyped-call]
                if encoding is not None:
                    encoding.take()
                self.terms = list(terms)
                total = total + losses.detach()
            if encoding is not None:
                encoding.end(self.scaler.scale(torch.ones((), device=self.compute.device)))
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            failed = True
            if encoding is not None:
                encoding.withdraw()
        if self.ranks.size > 1:
            failed = not sum_gradients(self.ranks, self.learning, failed=failed)
        return None if failed else total

    def _shares(self, batch: Any) -> Iterator[tuple[Any, Tensor | float | None]]:
        """This process's parts of a batch and what each counts; the whole counts as it is."""
        if self.parts == 1 and self.ranks.size == 1:
            yield batch, None
            return
        rows = self.ranks.rows(len(batch))
        whole, size = self.model.n_terms(batch), self._rows_at_once(len(batch))
        for start in range(rows.start, rows.stop, size):
            part = batch.batch(slice(start, min(start + size, rows.stop)))
            yield part, self.model.n_terms(part) / whole

    def _rows_at_once(self, n_rows: int) -> int:
        """Most rows of a part of a batch; the same in every process."""
        return -(-n_rows // (self.ranks.size * self.parts)) or 1

    def _halve(self, n_rows: int) -> None:
        """Cut batches into twice as many parts, and free what the attempt has left."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.compute.is_cuda:
            torch.cuda.empty_cache()
        if self._rows_at_once(n_rows) == 1:
            raise TrainingError(
                "not even one row of a batch fits in memory; choose a smaller model or a shorter "
                "model.max_length, or another device"
            )
        self.parts *= 2
        if self.encoding is not None:
            self.encoding.halve()
        self.note = (
            f"a batch of {n_rows} rows does not fit in memory; from here on each is cut into "
            f"{self.parts} parts, whose gradients are added up (training.accumulate)"
        )

    def check_scale(self) -> None:
        """Refuse to go on where float16 has no finite gradient left; waits for the device.

        Raises:
            TrainingError: the scale of the losses has fallen below any use.
        """
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise TrainingError(
                "no gradient is finite in float16, however small the losses are scaled; set "
                "training.precision to bfloat16 or float32"
            )

    def state(self) -> dict[str, Any]:
        """What the next step depends on, as tensors and plain values."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "parts": self.parts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state()` of the same model and recipe."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.parts = int(state["parts"])


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory was not enough, of a GPU or of the machine."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The allocator of the CPU and the libraries of CUDA have no error of their own for it.
    told = str(problem)
    return isinstance(problem, RuntimeError) and any(
        sign in told
        for sign in ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    )
