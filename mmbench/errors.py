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
    """A name is not registered; the message offers the nearest known ones.

    Args:
        kind: what the name should have been, for example "model".
        name: what was asked for.
        known: the names there are. They are told, or, where they are many and `listing` is
            given, counted.
        hint: a sentence that ends the message: what else to do.
        listing: the command that lists the names with what each is.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, hint: str = "", listing: str = ""
    ) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        message = f"unknown {kind} {name!r}.{did_you_mean(name, self.known)}"
        if listing and len(self.known) > _MANY:
            told = "" if listing in hint else f"; `{listing}` lists them"
            message += f" {len(self.known)} are known{told}."
        elif self.known:
            message += f" Known: {', '.join(self.known)}."
        if hint:
            message += f" {hint}"
        super().__init__(message)


_MANY = 20
"""More names than this bury the advice that follows them."""
_OFFERED = 4


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest known names, with a leading blank, or nothing."""
    quoted = [f'"{near}"' for near in nearest(name, known)]
    if not quoted:
        return ""
    return f" Did you mean {' or '.join(filter(None, [', '.join(quoted[:-1]), quoted[-1]]))}?"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that may have been meant, best first.

    A name that lacks its ending or its beginning comes before one that is spelt alike: "clip"
    is "clip-vit-b16" or "clip-vit-l14" rather than "blip".
    """
    asked, names = name.lower(), list(known)
    family = [n for n in names if n.lower().startswith(f"{asked}-")]
    if not family and len(asked) > 2:
        family = [n for n in names if n.lower().startswith(asked)]
        family += [n for n in names if f"-{asked}" in n.lower() and n not in family]
    if asked and family:
        return family[:_OFFERED]
    return difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
