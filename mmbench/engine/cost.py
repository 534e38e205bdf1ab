"""What encoders that learn cost: told before the first step, refused where memory cannot hold it.

    F    forward FLOPs of one item, G those of forward and backward of what learns: both measured
         by running one item (or a few) under PyTorch's counter of FLOPs, a multiply-add being two
    n    items encoded with gradient in an epoch, m those encoded without

    FLOPs = n G + m F

    G is 3 F where all learns, F + 2 F_k where the top with F_k of them does, 3 F_k where the trunk
    is read and not run, and includes what is computed again. By mode, with U distinct items in
    one of S steps, I items, W windows of gradients that are added up, E evaluations:

    mode         n      m
    table        0      0
    batch        S U    E I      and S U more where a step's items are encoded in parts
    stale        S U    R I      R tables: after so many steps and before each evaluation
    accumulate   W I    W I
    full         S I    S I + R I

    memory = 16 B of each weight that learns (itself, gradient, two moments) + 4 B of each other
           + what one item keeps for its backward pass x items whose graph is there at once
           + tables, I D 4 B each

The distinct items of a step are those of uniform draws, I (1 - (1 - 1/I)^draws), and a text is as
long as the longest: both are upper bounds. What the recommender itself computes is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mmbench.engine.device import Compute
from mmbench.errors import ConfigError

LEARNING, RESTING = 16, 4
"""Bytes of a weight with its gradient and the two moments of Adam; of one that rests."""


@dataclass(frozen=True)
class Item:
    """One item through an encoder.

    Attributes:
        forward: FLOPs without gradient.
        training: FLOPs forward and backward, of what learns.
        saved: bytes that are kept between the two.
    """

    forward: float
    training: float
    saved: float


@dataclass(frozen=True)
class Load:
    """What an epoch asks of one encoder.

    Attributes:
        learnt: items encoded with gradient in an epoch, n.
        read: items encoded without, m.
        at_once: items whose graph is in memory at once.
    """

    learnt: float
    read: float
    at_once: float


@dataclass(frozen=True)
class Part:
    """The cost of one encoder; `learning` and `resting` count its weights, `table` bytes."""

    name: str
    item: Item
    load: Load
    learning: int
    resting: int
    table: int = 0

    @property
    def flops(self) -> float:
        """Of an epoch."""
        return self.load.learnt * self.item.training + self.load.read * self.item.forward

    @property
    def weights_bytes(self) -> int:
        """Of the weights and what their optimiser keeps."""
        return LEARNING * self.learning + RESTING * self.resting

    @property
    def graph_bytes(self) -> float:
        """Of what is kept for the backward pass."""
        return self.item.saved * self.load.at_once


@dataclass(frozen=True)
class Cost:
    """What all encoders of a run cost.

    Attributes:
        steps: of an epoch.
        parts: of each encoder.
    """

    steps: int
    parts: tuple[Part, ...] = field(default=())

    @property
    def passes(self) -> float:
        """Items encoded in an epoch, with or without gradient; an item counts once per encoder."""
        return sum(part.load.learnt + part.load.read for part in self.parts)

    @property
    def flops(self) -> float:
        """Of the encoders in an epoch."""
        return sum(part.flops for part in self.parts)

    @property
    def weights_bytes(self) -> int:
        """Of the encoders' weights and what their optimiser keeps."""
        return sum(part.weights_bytes for part in self.parts)

    @property
    def graph_bytes(self) -> float:
        """Of what the encoders keep for the backward pass; all are there together."""
        return sum(part.graph_bytes for part in self.parts)

    @property
    def memory_bytes(self) -> float:
        """Of weights, graphs and tables."""
        return self.weights_bytes + self.graph_bytes + sum(part.table for part in self.parts)

    @property
    def held_bytes(self) -> int:
        """Of the weights, which are in memory before the first step."""
        return RESTING * sum(part.learning + part.resting for part in self.parts)

    def line(self) -> str:
        """One line for people, before the first step."""
        return (
            f"encoders: {self.passes:,.0f} items encoded in an epoch of {self.steps:,} steps, "
            f"{amount(self.flops, 'FLOP')}; memory about {bytes_text(self.memory_bytes)} "
            f"({bytes_text(self.weights_bytes)} weights and optimiser, "
            f"{bytes_text(self.graph_bytes)} for backward passes)"
        )

    def facts(self) -> dict[str, Any]:
        """Plain values for manifests."""
        return {
            "steps_per_epoch": self.steps,
            "passes_per_epoch": round(self.passes),
            "flops_per_epoch": float(self.flops),
            "memory_mib": self.memory_bytes / 2**20,
            "encoders": [
                {
                    "name": part.name,
                    "forward_flops": float(part.item.forward),
                    "training_flops": float(part.item.training),
                    "saved_bytes": float(part.item.saved),
                    "learnt_per_epoch": round(part.load.learnt),
                    "read_per_epoch": round(part.load.read),
                    "at_once": round(part.load.at_once),
                    "learning": part.learning,
                    "resting": part.resting,
                }
                for part in self.parts
            ],
        }

    def refuse_excess(self, compute: Compute, cheaper: Sequence[str]) -> None:
        """Refuse what does not fit into the memory that is free, before it is begun.

        Args:
            cheaper: settings that need less, as they are written.

        Raises:
            ConfigError: E413 it does not fit.
        """
        free = free_memory(compute)
        needed = self.memory_bytes - self.held_bytes
        if free is None or needed <= free:
            return
        raise ConfigError(
            f"E413 encoders that learn so need about {bytes_text(needed)} more memory "
            f"({bytes_text(self.graph_bytes)} of it for backward passes), and "
            f"{bytes_text(free)} of {compute.device} are free. Less takes: {', or '.join(cheaper)}"
        )


def measure(run: Callable[[], Tensor], learning: Sequence[Tensor], n_items: int) -> Item:
    """What one item costs, by running some.

    Args:
        run: encodes `n_items` items; called twice.
        learning: weights that learn.
    """
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        run()
    saved: dict[int, int] = {}
    rests = {weight.untyped_storage().data_ptr() for weight in learning}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in rests:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as training, torch.enable_grad():
        with saved_tensors_hooks(note, lambda tensor: tensor):
            result = run().float().sum()
        if result.requires_grad and learning:
            torch.autograd.grad(result, list(learning), allow_unused=True)
    return Item(
        forward.get_total_flops() / n_items,
        training.get_total_flops() / n_items,
        sum(saved.values()) / n_items,
    )


def distinct(n_items: int, n_draws: float) -> float:
    """Expected number of distinct items among uniform draws."""
    if n_items <= 1:
        return float(min(n_items, n_draws))
    return n_items * -math.expm1(n_draws * math.log1p(-1 / n_items))


def load_of(
    mode: str,
    *,
    steps: int,
    drawn: float,
    n_items: int,
    refresh: int | None,
    at_once: int | None,
    evaluations: float = 1.0,
) -> Load:
    """What an epoch of end-to-end training asks of an encoder, by its mode.

    Args:
        drawn: items that a step reads, repetitions included.
        n_items: those that have the modality.
        refresh: steps between two tables (or two updates, for accumulate); None for an epoch.
        at_once: most items that are encoded at once with gradient; None for all of a step.
        evaluations: in an epoch.

    Raises:
        ConfigError: there is no such mode.
    """
    unique = distinct(n_items, drawn)
    size = unique if at_once is None else min(unique, at_once)
    tables = evaluations if refresh is None else max(evaluations, steps // refresh)
    if mode == "table":
        return Load(0.0, 0.0, 0.0)
    if mode in ("batch", "stale"):
        again = steps * unique if unique > size else 0.0
        count = evaluations if mode == "batch" else tables
        return Load(steps * unique, again + count * n_items, size)
    whole = n_items if at_once is None else min(n_items, at_once)
    if mode == "accumulate":
        windows = 1 if refresh is None else math.ceil(steps / refresh)
        return Load(windows * n_items, windows * n_items, whole)
    if mode == "full":
        return Load(steps * n_items, (steps + tables) * n_items, whole)
    raise ConfigError(f"unknown mode {mode!r} of end-to-end training")


def free_memory(compute: Compute) -> float | None:
    """Bytes that are free on the device; None where the system does not say."""
    if compute.is_cuda:
        free, _ = torch.cuda.mem_get_info(compute.device)
        # What torch's allocator holds unused is as free as the rest.
        held = torch.cuda.memory_reserved(compute.device)
        return float(free + held - torch.cuda.memory_allocated(compute.device))
    found = [_available(), _left_of_group()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _available() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return float(sizes[0]) * 1024 if sizes else None


def _left_of_group() -> float | None:
    """What a container's limit leaves; files that are cached can be dropped."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = float((root / "memory.current").read_text(encoding="ascii"))
        stated = (root / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = next(float(s.split()[1]) for s in stated if s.startswith("inactive_file "))
        return None if limit == "max" else max(0.0, float(limit) - used + cached)
    except (OSError, ValueError, StopIteration):
        return None


def weights_of(parameters: Iterable[Tensor], learning: Iterable[Tensor]) -> tuple[int, int]:
    """How many weights learn, and how many rest."""
    chosen = {id(weight) for weight in learning}
    counts = [0, 0]
    for weight in parameters:
        counts[id(weight) not in chosen] += weight.numel()
    return counts[0], counts[1]


def amount(value: float, unit: str) -> str:
    """A number with the letter of its thousands: "41.1 GFLOP"."""
    for letter in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000 or letter == "E":
            break
        value /= 1000
    return f"{value:.3g} {letter}{unit}" if value < 100 else f"{value:.0f} {letter}{unit}"


def bytes_text(value: float) -> str:
    """Bytes as people read them."""
    return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"
