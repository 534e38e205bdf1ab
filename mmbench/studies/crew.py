"""Who trains the runs of a study: this process, several processes, or a Ray cluster.

Each run is a function of its recipe, its data and its seed, and is trained by the same code with
the same number of threads; so it does not matter who trains it, nor in which order.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits

from mmbench.engine import device as devices
from mmbench.engine.inputs import Inputs, load_inputs
from mmbench.engine.train import train_run
from mmbench.errors import ConfigError, DataError, MMBenchError
from mmbench.recipe import Recipe
from mmbench.studies.training import data_key

ATTEMPTS = 2


@dataclass(frozen=True)
class Task:
    """One run: a recipe as it was written, one point of its search space, and a seed."""

    raw: Mapping[str, Any]
    source: str
    point: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Site:
    """Where and how whoever trains a run does it; plain values, which travel anywhere."""

    data_dir: str
    runs_dir: str
    device: str
    deterministic: bool
    checkpoint_every_s: float
    threads: int
    """Of each run, whoever trains it: sums of floats depend on their number."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a task ended."""

    number: int
    """Place of the task among those given."""
    error: str | None
    final: bool
    """False where it is tried again."""


class Crew(Protocol):
    """Trains runs."""

    size: int

    def work(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Train all runs, in any order; one that fails is tried again once, then given up.

        What fails is told and does not stop the others. An attempt goes on from the checkpoint
        of the one before.
        """

    def close(self) -> None:
        """Let go of processes and clusters."""


class Trainer:
    """Trains one run after the other in the process that it is made in."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._compute = devices.choose(site.device, deterministic=site.deterministic)
        self._inputs: dict[str, Inputs] = {}

    def train(self, task: Task) -> str | None:
        """Train a run; returns what went wrong, in words."""
        site = self.site
        try:
            plan = Recipe(task.raw, task.source).at(task.point, task.seed)
            if (key := data_key(plan)) not in self._inputs:
                self._inputs[key] = load_inputs(plan, Path(site.data_dir))
            with limited_threads(site.threads):
                train_run(
                    plan,
                    data_dir=Path(site.data_dir),
                    runs_dir=Path(site.runs_dir),
                    compute=self._compute,
                    checkpoint_every_s=site.checkpoint_every_s,
                    inputs=self._inputs[key],
                )
        except MMBenchError as problem:
            return str(problem)
        return None


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Compute with so many threads, in torch and in the libraries below numpy."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


class Alone:
    """This process."""

    size = 1

    def __init__(self, site: Site) -> None:
        self._trainer = Trainer(site)

    def work(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Train all runs, one after the other."""
        for number, task in enumerate(tasks):
            for attempt in range(1, ATTEMPTS + 1):
                error = self._trainer.train(task)
                final = error is None or attempt == ATTEMPTS
                yield Outcome(number, error, final)
                if final:
                    break

    def close(self) -> None:
        """There is nothing to let go of."""


class Processes:
    """Several processes of this machine; they stay for the next tasks until they are closed.

    Not an executor of the library: the death of one of its workers ends all their tasks.
    """

    def __init__(self, site: Site, size: int) -> None:
        if size < 1:
            raise ConfigError(f"--processes {size}: at least one process is needed")
        self.site, self.size = site, size
        self._workers: list[_Worker] = []

    def work(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Train all runs, as many at a time as there are processes."""
        waiting, attempts = deque(range(len(tasks))), [0] * len(tasks)
        workers = self._workers
        while len(workers) < min(self.size, len(tasks)):
            workers.append(_Worker(_placed(self.site, len(workers))))
        for worker in workers:
            worker.give(tasks, waiting, attempts)
        while busy := {worker.pipe: worker for worker in workers if worker.number is not None}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]  # pipes are all that was waited for
                number, error = worker.answer()
                final = error is None or attempts[number] == ATTEMPTS
                if not final:
                    waiting.append(number)
                worker.give(tasks, waiting, attempts)
                yield Outcome(number, error, final)

    def close(self) -> None:
        """End the processes; a run that one was training resumes from its checkpoint."""
        for worker in self._workers:
            worker.end()
        self._workers = []


def _placed(site: Site, place: int) -> Site:
    """The site of one of several workers: GPUs are dealt out in turn."""
    n_gpus = torch.cuda.device_count() if site.device == "cuda" else 0
    return replace(site, device=f"cuda:{place % n_gpus}") if n_gpus else site


class _Worker:
    """A process that trains what it is given; a new one takes the place of one that died."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.number: int | None = None
        self._start()

    def _start(self) -> None:
        # Not a fork: CUDA and threads do not survive one.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._site), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def give(self, tasks: Sequence[Task], waiting: deque[int], attempts: list[int]) -> None:
        """Take the next task, if there is one."""
        self.number = waiting.popleft() if waiting else None
        if self.number is None:
            return
        attempts[self.number] += 1
        with contextlib.suppress(OSError):  # it died while idle; `answer` finds the pipe closed
            self.pipe.send(tasks[self.number])

    def answer(self) -> tuple[int, str | None]:
        """The task that was worked on and what went wrong, once the pipe has something."""
        number = self.number
        assert number is not None
        try:
            return number, self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode or 0
            how = f"was killed by signal {-status}" if status < 0 else f"ended ({status})"
            self.pipe.close()
            self._start()
            return number, f"its process {how}"

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, site: Site) -> None:
    """Train what comes through the pipe, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends us
    trainer = Trainer(site)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(trainer.train(task))


def check_alone(ranks: int) -> None:
    """Refuse to tune under torchrun.

    Raises:
        ConfigError: several processes were started from outside.
    """
    if ranks > 1:
        raise ConfigError(
            "a search starts its own processes; run it without torchrun, with --processes N"
        )


def check_runs_dir(runs_dir: Path) -> None:
    """Make the folder of the runs.

    Raises:
        DataError: it cannot be written.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(
            f"{runs_dir} cannot be written ({problem.strerror}); choose another --runs-dir"
        ) from None
