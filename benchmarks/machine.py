"""What this machine does, measured: rates that arithmetic floors are made of, and peak memory.

A floor is the time that the unavoidable FLOPs and bytes of a piece of work would take at the best
rate measured here, with operands of the very shapes that the work uses.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmbench.engine.device import Compute
from mmbench.models.graph import SymmetricOperator


@dataclass(frozen=True)
class Part:
    """One part of a floor: so much of something, at a measured rate per second."""

    what: str
    amount: float
    unit: str
    """"FLOP" or "B"."""
    rate: float

    @property
    def time_s(self) -> float:
        """Seconds this part takes at its rate."""
        return self.amount / self.rate

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "time_s": self.time_s}


class Machine:
    """Measures rates on one device; every rate is the best of many trials."""

    def __init__(self, compute: Compute, trial_s: float) -> None:
        self.compute, self.trial_s = compute, trial_s

    def best_time(self, call: Callable[[], Any]) -> float:
        """The shortest of all calls that fit into `trial_s`, at least ten, after one more."""
        call()
        best, end = float("inf"), time.perf_counter() + self.trial_s
        trials = 0
        while trials < 10 or time.perf_counter() < end:
            self.compute.synchronise()
            begin = time.perf_counter()
            call()
            self.compute.synchronise()
            best, trials = min(best, time.perf_counter() - begin), trials + 1
        return best

    def random(self, *shape: int) -> Tensor:
        """A random matrix on the device."""
        return torch.randn(*shape, device=self.compute.device)

    def product_rate(self, rows: int, inner: int, columns: int) -> float:
        """FLOP/s of a dense product [rows, inner] x [inner, columns]."""
        left, right = self.random(rows, inner), self.random(inner, columns)
        out = self.random(rows, columns)
        return 2 * rows * inner * columns / self.best_time(lambda: torch.mm(left, right, out=out))

    def triad_rate(self, n_values: int) -> float:
        """B/s of a + 2 b -> c over float32 vectors of this length, 12 bytes a value."""
        a, b, c = (self.random(n_values) for _ in range(3))
        return 12 * n_values / self.best_time(lambda: torch.add(a, b, alpha=2.0, out=c))

    def read_rate(self, n_values: int) -> float:
        """B/s of reading float32 values, by summing them."""
        values = self.random(n_values)
        return 4 * n_values / self.best_time(values.sum)

    def sparse_rate(self, operator: SymmetricOperator, columns: int) -> float:
        """FLOP/s of a sparse matrix times a dense one, the better of two kernels."""
        matrix, dense = operator.matrix(), self.random(operator.shape[0], columns)
        time_s = min(
            self.best_time(lambda: torch.addmm(dense, matrix, dense, beta=0.0)),
            self.best_time(lambda: operator.multiply_add(dense, 1.0, dense, 0.0)),
        )
        return 2 * operator.values.numel() * columns / time_s


def measure_memory(compute: Compute, work: Callable[[], Any]) -> tuple[Any, float | None]:
    """What `work` returns, and by how many MiB the peak memory rose above the state before it.

    On a GPU it is torch's own count. On a CPU it is the resident set, whose high-water mark
    Linux lets a process reset; where it does not, the growth is None.
    """
    gc.collect()
    if compute.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(compute.device)
        before = torch.cuda.memory_allocated(compute.device)
        value = work()
        return value, (torch.cuda.max_memory_allocated(compute.device) - before) / 2**20
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before_mib = _status_mib("VmRSS")
    except OSError:
        return work(), None
    value = work()
    return value, _status_mib("VmHWM") - before_mib


def _return_free_memory() -> None:
    """Give freed heap pages back; work that reuses them would seem to need no memory."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


def _status_mib(key: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {key}")
