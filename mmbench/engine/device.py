"""Where and how exactly a run computes."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmbench.engine.ranks import ALONE, Ranks
from mmbench.errors import ConfigError

Drawn = tuple[torch.Tensor, torch.Tensor | None]
"""States of the generators of the CPU and of the device."""


@dataclass(frozen=True)
class Compute:
    """The device of a run and its settings; nothing here may move a CPU result."""

    device: torch.device
    deterministic: bool = False
    ranks: Ranks = ALONE
    """This process among those that share a run."""

    @property
    def is_cuda(self) -> bool:
        """Whether the device is an NVIDIA GPU."""
        return self.device.type == "cuda"

    def describe(self) -> dict[str, Any]:
        """Versions and hardware, for the manifest."""
        facts: dict[str, Any] = {
            "device": self.device.type,
            "deterministic": self.deterministic or not self.is_cuda,
            "threads": torch.get_num_threads(),
            "processes": self.ranks.size,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "platform": platform.platform(),
        }
        if self.is_cuda:
            facts["gpu"] = torch.cuda.get_device_name(self.device)
        return facts

    def reset_peak_memory(self) -> None:
        """Begin a new measurement of peak memory, where the device can."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_mib(self) -> float:
        """Peak memory in MiB: of the GPU, or of the whole process since it began on a CPU."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    def drawn(self) -> Drawn:
        """States of torch's global generators; microseconds, and no wait."""
        of_device = torch.cuda.get_rng_state(self.device) if self.is_cuda else None
        return torch.get_rng_state(), of_device

    def draw_from(self, states: Drawn) -> None:
        """Let torch's global generators go on from states that `drawn` told."""
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], self.device)

    def synchronise(self) -> None:
        """Wait until the device has done all that was asked, before a clock is read."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def choose(device: str = "auto", *, deterministic: bool = False) -> Compute:
    """The device named "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: the device does not exist here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device {device!r}; choose auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not supported; choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda":
        n_gpus = torch.cuda.device_count()
        if (chosen.index or 0) >= n_gpus:
            raise ConfigError(
                f"device {device!r} is not here: {n_gpus} CUDA devices found; try --device cpu"
            )
        if chosen.index is not None:
            # What a library makes on "the" GPU belongs on this process's own.
            torch.cuda.set_device(chosen)
    if deterministic and chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if chosen.type == "cpu":
        keep_freed_memory()
    return Compute(chosen, deterministic)


def keep_freed_memory() -> None:
    """Have the allocator of Linux (glibc) keep what is freed, for the next step to use.

    A training step frees and asks for the same megabytes again. By default they go back to the
    system each time, and every page comes anew as a page fault: 40 % of a LightGCN epoch.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    for threshold in (2**30, 2**25):  # older versions accept no more than the second
        if mallopt(mmap_threshold, threshold):
            break
    mallopt(trim_threshold, 2**30)
