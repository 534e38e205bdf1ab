"""Several processes that share one extraction or one training, as torchrun starts them.

What an extraction exchanges is a word at the end of each step, so gloo serves on GPUs too, and
it tells of a process that died at once, where NCCL would wait for a time-out. What a training
exchanges besides, tensors on GPUs, goes over NCCL.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from mmbench.errors import ConfigError, DataError, MMBenchError, TrainingError

PATIENCE = timedelta(days=7)  # one rank may have pictures to decode that the others lack
T = TypeVar("T")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work; alone, there is one of them."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that plans, merges and prints."""
        return self.rank == 0

    def share(self, work: Sequence[T]) -> list[T]:
        """What of the work is this process's."""
        return list(work[self.rank :: self.size])

    def rows(self, n_rows: int) -> slice:
        """Which of some rows, as many as can be equal, are this process's.

        The first process has a row wherever there is one.
        """
        start, stop = (-(-n_rows * rank // self.size) for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def say(self, word: T) -> T:
        """What the first process has to say; all processes call this.

        Raises:
            TrainingError: another process has ended.
        """
        if self.size == 1:
            return word
        words = [word]
        with self.listening():
            dist.broadcast_object_list(words, src=0)
        return words[0]

    def gather(self, word: T) -> list[T]:
        """What each process has to say, in their order; all processes call this.

        Raises:
            TrainingError: another process has ended.
        """
        if self.size == 1:
            return [word]
        words: list[Any] = [None] * self.size
        with self.listening():
            dist.all_gather_object(words, word)
        return words

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around an exchange: what fails in it is another process that has ended.

        Raises:
            TrainingError: it has.
        """
        global _is_broken
        try:
            yield
        except (RuntimeError, ValueError) as problem:
            _is_broken = True
            raise TrainingError(
                f"process {self.rank} of {self.size} stops, because another one has ended or "
                "cannot be reached; its own message says why; the same command resumes"
            ) from problem

    def leave(self) -> None:
        """Part from the others, who hear of it at their next exchange."""
        if self.size > 1:
            _leave()

    def together(self, step: Callable[[], Result], *, first_only: bool = False) -> Result | None:
        """Do a step of the work, and go on when all processes have.

        Args:
            first_only: the first process alone does it; for the others this is None.

        Raises:
            MMBenchError: the step failed here, or in another process.
        """
        result, failure = None, None
        try:
            if self.is_first or not first_only:
                result = step()
        except (MMBenchError, OSError) as problem:
            if self.size == 1:
                raise
            failure = problem
        if self.size > 1:
            told: list[str | None] = [None] * self.size
            try:
                dist.all_gather_object(told, None if failure is None else str(failure))
            except RuntimeError as problem:
                raise DataError(
                    f"E410 another process of the {self.size} ended ({problem}); run this again: "
                    "what is done stays done"
                ) from problem
            if failure is not None:
                raise failure
            for rank, message in enumerate(told):
                if message is not None:
                    raise DataError(f"rank {rank}: {message}")
        return result


ALONE = Ranks()
"""One process, which shares nothing."""


@contextmanager
def joined_ranks(*, gpu_tensors: bool = False) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone.

    Args:
        gpu_tensors: whether tensors on GPUs are to be exchanged too.

    Raises:
        ConfigError: the variables that torchrun sets are there in part or wrong.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    backend = "cpu:gloo,cuda:nccl" if gpu_tensors else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as problem:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes did not find one another "
            f"({problem}); start them with torchrun, or unset WORLD_SIZE"
        ) from problem
    # Left open for the next encoder: to meet a second time, processes would need another place.
    atexit.register(_leave)
    yield Ranks(dist.get_rank(), dist.get_world_size())


_is_broken = False
"""Whether an exchange has failed: to tear such a group down can abort the whole process."""


def _leave() -> None:
    if dist.is_initialized() and not _is_broken:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this process: with several processes, a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or int(os.environ.get("WORLD_SIZE", "1") or 1) == 1:
        return device
    if device == "cuda":
        return f"cuda:{local}"
    if device == "auto":
        import torch

        return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    return device
