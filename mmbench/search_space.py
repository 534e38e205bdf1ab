"""The search space of a recipe: for each key the values that may be tried.

    search:
      model.embedding_size: [16, 32, 64]                                  # choices
      training.learning_rate: {low: 1.0e-4, high: 1.0e-1, log: true}      # a range
      model.n_layers: {low: 1, high: 4}                                   # whole numbers
      model.dropout: {low: 0.0, high: 0.5, step: 0.1}

A range holds whole numbers where `low` and `high` are written as such. Drawn numbers have four
significant digits, so that a chosen setting can be written down as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from mmbench.errors import ConfigError

DIGITS = 4


class Dimension(BaseModel):
    """The values of one key: choices, or a range."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choices: tuple[Any, ...] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    """Whether each factor is as likely as any other, instead of each difference."""
    step: int | float | None = None
    """Distance of the values, counted from `low`; whole numbers are 1 apart if not given."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"choices": list(value)}
        if not isinstance(value, Mapping):
            raise ValueError("write a list of values, or {low: .., high: ..}")
        return value

    @model_validator(mode="after")
    def _sound(self) -> Dimension:
        if self.choices is not None:
            if (self.low, self.high, self.log, self.step) != (None, None, False, None):
                raise ValueError("choices stand alone, without low, high, log or step")
            if not self.choices:
                raise ValueError("it lists no value")
            if any(value in self.choices[:place] for place, value in enumerate(self.choices)):
                raise ValueError("it lists a value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("write a list of values, or both low and high")
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0 (found {self.low})")
        if self.step is not None:
            if self.log:
                raise ValueError("step and log exclude one another; list the values as choices")
            if not 0 < self.step <= self.high - self.low:
                raise ValueError(f"step {self.step} does not fit between low and high")
            if self.is_whole and not isinstance(self.step, int):
                raise ValueError(f"step {self.step} of whole numbers is not whole")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> int | None:
        """How many values there are; None for a range without steps."""
        if self.choices is not None:
            return len(self.choices)
        low, high = self._bounds()
        if self.is_whole:
            return int((high - low) // (self.step or 1)) + 1
        if self.step is None:
            return None
        return int((high - low) / self.step + 1e-9) + 1

    def value(self, place: int) -> Any:
        """The value at a place from 0, where `size` is known."""
        if self.choices is not None:
            return self.choices[place]
        number = self._bounds()[0] + place * (self.step or 1)
        # 0.1 + 2 * 0.1 is not 0.3; nobody would write the number that it is.
        return number if self.is_whole else float(f"{number:.12g}")

    def draw(self, rng: np.random.Generator) -> Any:
        """One value at random, by exactly one draw of the generator."""
        if self.size is not None and not self.log:
            return self.value(int(rng.integers(self.size)))
        low, high = self._bounds()
        if self.is_whole:  # each whole number stands for what is rounded to it
            low, high = low - 0.5, high + 0.5
        if not self.log:
            return self.tidy(rng.uniform(low, high))
        return self.tidy(math.exp(rng.uniform(math.log(low), math.log(high))))

    def tidy(self, number: float) -> int | float:
        """A drawn number as it is used: whole, or of four significant digits; within bounds."""
        low, high = self._bounds()
        if self.is_whole:
            return int(min(max(round(number), low), high))
        return min(max(float(f"{number:.{DIGITS}g}"), float(low)), float(high))

    def edges(self) -> list[Any]:
        """The values by which a wrong dimension shows: all choices, or both ends."""
        if self.choices is not None:
            return list(self.choices)
        return [*self._bounds()]

    def describe(self) -> str:
        """One line for tables."""
        if self.choices is not None:
            return ", ".join(str(value) for value in self.choices)
        step = f" by {self.step}" if self.step is not None else ""
        return f"{self.low} to {self.high}{step}{', log' if self.log else ''}"

    def _bounds(self) -> tuple[int | float, int | float]:
        if self.low is None or self.high is None:
            raise ConfigError("choices have no bounds")
        return self.low, self.high


Space = Mapping[str, Dimension]


def n_points(space: Space) -> int | None:
    """How many points a space has; None where a range without steps is among them."""
    sizes = [dimension.size for dimension in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)
