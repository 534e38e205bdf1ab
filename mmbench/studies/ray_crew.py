"""Training on a Ray cluster, of one machine or many.

Every node needs mmbench and the folders of data and runs under the same path, as a folder shared
by all; what a run reads and writes is what it would be here. Ray places the runs; that one is
tried again is decided and told by us, not by Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from mmbench.errors import ConfigError
from mmbench.studies.crew import ATTEMPTS, Outcome, Site, Task, Trainer


class OnRay:
    """The nodes of a Ray cluster."""

    def __init__(self, site: Site, address: str) -> None:
        """Join a cluster.

        Args:
            site: where the folders are, on every node.
            address: "auto" for the cluster of this machine, "local" to start one, or HOST:PORT.

        Raises:
            ConfigError: Ray is not installed, or there is no such cluster.
        """
        try:
            import ray
        except ImportError:
            raise ConfigError(
                "--ray needs Ray, which is not installed: pip install 'mmbench[ray]'"
            ) from None
        self._ray: Any = ray
        self._joined = not ray.is_initialized()
        if self._joined:
            try:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as problem:
                raise ConfigError(
                    f"--ray {address}: no Ray cluster there ({problem}); start one with `ray start "
                    "--head`, or give --ray local"
                ) from None
        n_gpus = 1 if site.device.startswith("cuda") else 0
        # One attempt each: a second one of Ray's own would be told to nobody.
        self._train = ray.remote(_train).options(
            num_cpus=site.threads, num_gpus=n_gpus, max_retries=0
        )
        self._site = ray.put(site)
        total = ray.cluster_resources()
        fits = [total.get("CPU", 0) // site.threads] + ([total.get("GPU", 0)] if n_gpus else [])
        self.size = int(min(fits))
        if self.size < 1:
            raise ConfigError(
                f"--ray {address}: the cluster has {total.get('CPU', 0):.0f} processors and "
                f"{total.get('GPU', 0):.0f} GPUs; a run needs {site.threads} and {n_gpus}"
            )

    def work(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Train all runs, as many at a time as the cluster has room for."""
        attempts = [0] * len(tasks)
        running: dict[Any, int] = {}

        def begin(number: int) -> None:
            attempts[number] += 1
            running[self._train.remote(self._site, tasks[number])] = number

        for number in range(len(tasks)):
            begin(number)
        try:
            while running:
                (ended, *_), _ = self._ray.wait(list(running), num_returns=1)
                number = running.pop(ended)
                error = self._answer(ended)
                final = error is None or attempts[number] == ATTEMPTS
                if not final:
                    begin(number)
                yield Outcome(number, error, final)
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._joined:
            self._ray.shutdown()

    def _answer(self, ended: Any) -> str | None:
        try:
            error: str | None = self._ray.get(ended)
        except self._ray.exceptions.RayError as problem:
            first = str(problem).strip().splitlines()
            return f"its worker on Ray ended ({type(problem).__name__}: {' '.join(first[:1])})"
        return error


@lru_cache(maxsize=1)
def _trainer(site: Site) -> Trainer:
    """Made once in each of Ray's processes, which keep what they have read."""
    return Trainer(site)


def _train(site: Site, task: Task) -> str | None:
    return _trainer(site).train(task)
