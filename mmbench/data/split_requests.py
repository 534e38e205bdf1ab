"""Which splits are asked for: a rule's name with its parameters, as users write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmbench.errors import ConfigError, UnknownNameError


def _odd_to(value: str) -> str:
    if value not in ("test", "valid"):
        raise ValueError("test or valid")
    return value


def _positions(value: str) -> str:
    if value not in ("heldout", "all"):
        raise ValueError("heldout or all")
    return value


def _warm(value: str) -> str:
    if value not in ("train", "random-per-user", "leave-one-out"):
        raise ValueError("train, random-per-user or leave-one-out")
    return value


def _threshold(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError("a whole number from 1")
    return int(value)


def _seed(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("a whole number from 0")
    return int(value)


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


PARAMETERS: dict[str, dict[str, tuple[Any, Callable[[str], Any]]]] = {
    "imported": {},
    "random-per-user": {"odd_to": ("test", _odd_to), "seed": (None, _seed)},
    "random-global": {"seed": (None, _seed)},
    "leave-one-out": {},
    "user-temporal": {"odd_to": ("test", _odd_to)},
    "global-temporal": {"drop_new_users": (True, _flag)},
    "cold-items": {"seed": (None, _seed), "warm": ("train", _warm)},
    "cold-sequences": {"below": (10, _threshold), "positions": ("heldout", _positions)},
}
"""Parameters of each rule of `mmbench.data.splits`: the default, and how a value is read."""


@dataclass(frozen=True)
class SplitRequest:
    """A split rule with its parameters, as written `rule` or `rule:key=value,key=value`."""

    rule: str
    params: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Folder name: the rule, and each parameter that is not the default."""
        return ".".join(
            [self.rule, *(f"{key}-{value}" for key, value in sorted(self.params.items()))]
        )

    @classmethod
    def parse(cls, text: str) -> SplitRequest:
        """Read `text`; parameters that equal the default are left out.

        Raises:
            UnknownNameError: the rule or a parameter is not known.
            ConfigError: a value is not allowed.
        """
        rule, _, rest = text.strip().replace("_", "-").partition(":")
        if rule not in PARAMETERS:
            raise UnknownNameError("split", rule, PARAMETERS)
        known = PARAMETERS[rule]
        params: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, sign, value = (piece.strip() for piece in part.partition("="))
            key = key.replace("-", "_")
            if key not in known:
                raise UnknownNameError(f"parameter of split {rule}", key, known)
            default, read = known[key]
            try:
                params[key] = read(value)
            except ValueError as error:
                raise ConfigError(
                    f"E274 --split {rule}: {key}{sign}{value} must be {error.args[0]}"
                ) from error
            if params[key] == default:
                del params[key]
        return cls(rule, params)


def with_seeds(requests: Sequence[SplitRequest], seeds: Sequence[int]) -> list[SplitRequest]:
    """Each request once per seed where its rule draws at random and it names no seed itself.

    Requests that come out twice are kept once.

    Raises:
        ConfigError: there is nothing to seed, or a seed is negative or no whole number.
    """
    seeded = [rule for rule, known in PARAMETERS.items() if "seed" in known]
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"E274 split seed {seed!r} must be a whole number from 0")
    if not seeds:
        return list(requests)
    if not any(request.rule in seeded for request in requests):
        raise ConfigError(
            "E274 split seeds were given, but no requested split draws at random; add one of "
            + ", ".join(f"--split {rule}" for rule in seeded)
        )
    expanded: dict[str, SplitRequest] = {}
    for request in requests:
        takes_seed = request.rule in seeded and "seed" not in request.params
        for params in [{"seed": seed} for seed in seeds] if takes_seed else [{}]:
            one = SplitRequest(request.rule, {**request.params, **params})
            expanded[one.name] = one
    return list(expanded.values())
