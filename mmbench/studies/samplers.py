"""What a search tries next: every point, points at random, or what one of Optuna's samplers says.

A sampler is asked for points in rounds whose size is fixed, whatever number of processes works on
them, and is told all values of a round in its order; so its sequence is a function of the space,
the seed and the values alone.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mmbench import seeding
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.search_space import Dimension, Space, n_points

ROUND = 4
"""Points that one of Optuna's samplers is asked for before it is told their values."""
OPTUNA = ("tpe", "cmaes", "gp", "qmc")
METHODS = ("random", "grid", "optuna", *(f"optuna:{name}" for name in OPTUNA))
MOST_POINTS = 10_000

Point = dict[str, Any]


class Sampler(Protocol):
    """Proposes the points of one search."""

    @property
    def round_size(self) -> int | None:
        """Points of a round; None where values play no part: all can be tried at once."""

    def propose(self, count: int) -> list[Point]:
        """The next points; fewer than asked for where there are no others."""

    def tell(self, values: Sequence[float | None]) -> None:
        """The values of the last points proposed, in their order; None where one failed."""


def make_sampler(method: str, space: Space, seed: int) -> Sampler:
    """The sampler of a method; a space without any key has one point, the recipe itself.

    Raises:
        UnknownNameError: there is no such method.
        ConfigError: the space cannot be searched like that, or Optuna is missing.
    """
    if method not in METHODS:
        raise UnknownNameError("way to tune", method, METHODS)
    if method == "grid" or not space:
        return _Listed(_all_points(space))
    if method == "random":
        return _Listed(_random_points(space, seed))
    return _Optuna(method.partition(":")[2] or "tpe", space, seed)


class _Listed:
    """Points that do not depend on values."""

    round_size = None

    def __init__(self, points: Iterator[Point]) -> None:
        self._points = points

    def propose(self, count: int) -> list[Point]:
        return list(itertools.islice(self._points, count))

    def tell(self, values: Sequence[float | None]) -> None:
        pass


def _all_points(space: Space) -> Iterator[Point]:
    for key, dimension in space.items():
        if dimension.size is None or (dimension.log and dimension.is_whole):
            raise ConfigError(
                f"search.{key}: a grid needs a list of values or a step; random and optuna take "
                "ranges as they are"
            )
    if (count := n_points(space) or 0) > MOST_POINTS:
        raise ConfigError(f"the grid has {count} points, more than {MOST_POINTS}; tune at random")
    values = [[d.value(place) for place in range(d.size or 0)] for d in space.values()]
    return (dict(zip(space, point, strict=True)) for point in itertools.product(*values))


def _random_points(space: Space, seed: int) -> Iterator[Point]:
    """Points at random, each one once.

    Every key has a stream of its own, so conditions of a study that share a key try the same
    values of it, whatever other keys they have.
    """
    streams = {key: seeding.stream(seed, "tuning", key) for key in space}
    seen: set[str] = set()
    limit = n_points(space)
    while limit is None or len(seen) < limit:
        point = {key: dimension.draw(streams[key]) for key, dimension in space.items()}
        if (name := repr(point)) not in seen:
            seen.add(name)
            yield point


class _Optuna:
    """One of Optuna's samplers, asked and told; nothing is stored, as the ledger can replay it."""

    round_size = ROUND

    def __init__(self, name: str, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                "--tune optuna needs Optuna, which is not installed: pip install 'mmbench[tune]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        number = seeding.integer(seed, "tuning", name) % 2**32
        samplers: Any = optuna.samplers
        with warnings.catch_warnings():
            # That a sampler may change with Optuna's version is why the ledger names the version.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                sampler = {
                    # Points of one round keep apart from one another.
                    "tpe": lambda: samplers.TPESampler(seed=number, constant_liar=True),
                    # Choices are not its kind; it draws them independently.
                    "cmaes": lambda: samplers.CmaEsSampler(
                        seed=number, warn_independent_sampling=False
                    ),
                    "gp": lambda: samplers.GPSampler(seed=number),
                    "qmc": lambda: samplers.QMCSampler(
                        scramble=True, seed=number, warn_independent_sampling=False
                    ),
                }[name]()
            except ImportError as problem:
                raise ConfigError(
                    f"--tune optuna:{name} needs another package ({problem.name or problem}): "
                    "pip install 'mmbench[tune]'"
                ) from None
            self._study: Any = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: list[Any] = []

    def propose(self, count: int) -> list[Point]:
        self._asked = [self._study.ask() for _ in range(count)]
        return [
            {key: _suggested(trial, key, d) for key, d in self._space.items()}
            for trial in self._asked
        ]

    def tell(self, values: Sequence[float | None]) -> None:
        from optuna.trial import TrialState

        for trial, value in zip(self._asked, values, strict=True):
            if value is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, value)


def _suggested(trial: Any, key: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        # By place: Optuna takes plain values alone as choices.
        return dimension.choices[trial.suggest_categorical(key, range(len(dimension.choices)))]
    low, high = dimension.edges()
    if dimension.is_whole:
        return trial.suggest_int(key, low, high, step=dimension.step or 1, log=dimension.log)
    if dimension.step is not None:
        return dimension.value(trial.suggest_int(key, 0, (dimension.size or 1) - 1))
    return dimension.tidy(trial.suggest_float(key, low, high, log=dimension.log))


def sampler_version(method: str) -> str:
    """What made the sequence of points, for the ledger: another version may make another one."""
    if not method.startswith("optuna"):
        return f"numpy {np.__version__.partition('.')[0]}"
    from importlib.metadata import version

    return f"optuna {version('optuna')}"
