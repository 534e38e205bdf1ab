"""The exceptions that mmbench raises on purpose.

`cli/main.py` alone catches `MMBenchError`: it prints the message and ends with exit
status 2; `--debug` adds the traceback. A message says what is wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MMBenchError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(MMBenchError, ValueError):
    """A recipe, an option or a setting is wrong.

    It is a ValueError too, so that a recipe's validators collect it with the other problems.
    """


class DataError(MMBenchError):
    """A file or a dataset is missing, broken, or does not fit."""


class TrainingError(MMBenchError):
    """Training cannot go on, for example because a loss is not finite."""


class UnknownNameError(ConfigError):
    """A name is not registered; the message offers the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        message = f"unknown {kind} {name!r}.{did_you_mean(name, self.known)}"
        if self.known:
            message += f" Known: {', '.join(self.known)}."
        if hint:
            message += f" {hint}"
        super().__init__(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest known name, with a leading blank, or nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f' Did you mean "{near[0]}"?' if near else ""
