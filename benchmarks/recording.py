"""What a training step or a ranking really multiplies, recorded, and how fast each of it can go.

Formulas of the unavoidable are short for BPR-MF and LightGCN (`floors.py`); for the multimodal
models the products themselves are recorded while they run, and each is timed alone at its best:

    dense     every matrix product [m, k] x [k, n] of the forward and the backward pass, 2 m k n
              FLOPs, at the best rate measured for this very shape
    sparse    every weighted sum of rows (the product of a graph with a matrix): its own indices
              and weights once more, alone, 2 FLOPs for each value gathered

What elementwise functions, losses, sampling, autograd and Python cost is not counted, nor what
could be saved by doing other products.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from machine import Machine, Part
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_SPARSE = {aten._embedding_bag.default, aten._embedding_bag_forward_only.default}
_MOST_SHAPES = 6
"""Dense shapes that are timed; the FLOPs of smaller ones count at the best of their rates."""

Shape = tuple[int, ...]


class Recorder(TorchDispatchMode):
    """Counts products while it is entered: `with recorder: ...`.

    Attributes:
        dense: how often each product (stacked, m, k, n) ran; stacked is 1 for a single one.
        sparse: how often each sum of rows (values gathered, columns, rows of the table) ran.
        calls: arguments of one call of each sum of rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dense: Counter[Shape] = Counter()
        self.sparse: Counter[Shape] = Counter()
        self.calls: dict[Shape, Callable[[], Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the call and notes it down."""
        kwargs = dict(kwargs or {})
        name = func.overloadpacket
        if func in _SPARSE:
            weight, indices = args[0], args[1]
            self._add_sparse((indices.numel(), weight.shape[1], weight.shape[0]), func, args)
        elif name in (aten.mm, aten.bmm):
            self._add_product(args[0], args[1], func, args)
        elif name in (aten.addmm, aten.addmm_, aten.baddbmm):
            self._add_product(args[1], args[2], func, args)
        return func(*args, **kwargs)

    def _add_product(self, left: Tensor, right: Tensor, func: Any, args: tuple[Any, ...]) -> None:
        if left.layout != torch.strided:  # the sparse product of a GPU
            self._add_sparse((left.values().numel(), right.shape[1], right.shape[0]), func, args)
            return
        stacked = left.shape[0] if left.dim() == 3 else 1
        self.dense[stacked, left.shape[-2], left.shape[-1], right.shape[-1]] += 1

    def _add_sparse(self, shape: Shape, func: Any, args: tuple[Any, ...]) -> None:
        self.sparse[shape] += 1
        self.calls.setdefault(shape, lambda: func(*args))


def parts(recorded: list[tuple[Recorder, int]], machine: Machine) -> list[Part]:
    """The parts of a floor: what was recorded, each so many times, at rates measured here."""
    dense: Counter[Shape] = Counter()
    sparse: Counter[Shape] = Counter()
    calls: dict[Shape, Callable[[], Any]] = {}
    for recorder, times in recorded:
        calls.update(recorder.calls)
        for shape, n in recorder.dense.items():
            dense[shape] += n * times
        for shape, n in recorder.sparse.items():
            sparse[shape] += n * times
    return _dense_parts(dense, machine) + _sparse_parts(sparse, calls, machine)


def _dense_parts(dense: Counter[Shape], machine: Machine) -> list[Part]:
    flops = {shape: 2.0 * math.prod(shape) * n for shape, n in dense.items()}
    largest = sorted(flops, key=lambda shape: -flops[shape])
    found = []
    for shape in largest[:_MOST_SHAPES]:
        stacked, m, k, n = shape
        pile = f"{stacked} x " if stacked > 1 else ""
        what = f"{dense[shape]:,} of {pile}[{m}, {k}] [{k}, {n}]"
        found.append(Part(what, flops[shape], "FLOP", _rate(shape, machine)))
    rest = sum(flops[shape] for shape in largest[_MOST_SHAPES:])
    if rest:
        rate = max(part.rate for part in found)
        found.append(Part("smaller dense products", rest, "FLOP", rate))
    return found


def _rate(shape: Shape, machine: Machine) -> float:
    stacked, m, k, n = shape
    if stacked == 1:
        return machine.product_rate(m, k, n)
    left, right = machine.random(stacked, m, k), machine.random(stacked, k, n)
    return 2.0 * math.prod(shape) / machine.best_time(lambda: torch.bmm(left, right))


def _sparse_parts(
    sparse: Counter[Shape], calls: Mapping[Shape, Callable[[], Any]], machine: Machine
) -> list[Part]:
    found = []
    for shape, n in sparse.items():
        n_values, columns, _ = shape
        amount = 2.0 * n_values * columns
        with torch.no_grad():
            rate = amount / machine.best_time(calls[shape])
        found.append(Part(f"{n:,} sparse, {columns} columns", amount * n, "FLOP", rate))
    return found
