"""How servers are reached, and who is told about it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from mmbench.errors import ConfigError

MIRRORS = "MMBENCH_MIRRORS"
_CALLS_PER_S = 10


class Watch(Protocol):
    """Told how a long work goes on; the command line draws it."""

    def __call__(self, what: str, done: int, total: int | None, unit: str) -> None:
        """`done` of `total` (None if unknown) units ("bytes" or "files") of `what` are done."""


def nobody(what: str, done: int, total: int | None, unit: str) -> None:
    """The `Watch` of those who do not look."""


class Ticker:
    """Tells a `Watch` at most ten times a second; the first and the last count always pass."""

    def __init__(self, watch: Watch, what: str, unit: str, total: int | None = None) -> None:
        self._watch, self._what, self._unit, self.total = watch, what, unit, total
        self._told_at = float("-inf")

    def __call__(self, done: int, *, last: bool = False) -> None:
        """Tell that `done` units are done."""
        now = time.monotonic()
        if last or now - self._told_at >= 1 / _CALLS_PER_S:
            self._told_at = now
            self._watch(self._what, done, self.total, self._unit)


@dataclass(frozen=True)
class Web:
    """How to reach servers.

    Attributes:
        mirrors: beginnings of addresses to replace, for example {"https://snap.stanford.edu/":
            "http://localhost:8000/snap/"}; from MMBENCH_MIRRORS and --mirror OLD=NEW.
        attempts: tries per address; a try that brought the file further counts as the first.
        timeout_s: silence after which a server is given up.
        pause_s: first pause of the back-off, doubled each time.
        longest_pause_s: longest pause; a server that asks for a longer one is given up.
        connections: parallel connections, for pictures.
        connections_per_host: how many of those may go to one host.
        accept_changed: take a file whose hash is not the recorded one.
    """

    mirrors: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 5
    timeout_s: float = 30.0
    pause_s: float = 0.5
    longest_pause_s: float = 120.0
    connections: int = 4
    connections_per_host: int = 6
    accept_changed: bool = False

    def __post_init__(self) -> None:
        for name in ("attempts", "connections", "connections_per_host"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be 1 or more")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s} must be above 0")
        if not self.pause_s >= 0:
            raise ConfigError(f"pause_s={self.pause_s} must be 0 or more")

    @classmethod
    def from_environment(cls, mirrors: Sequence[str] = (), **settings: Any) -> Web:
        """The web as MMBENCH_MIRRORS and then the options `--mirror OLD=NEW` would have it.

        Raises:
            ConfigError: a mirror is not OLD=NEW.
        """
        given = [part for part in os.environ.get(MIRRORS, "").split(";") if part.strip()]
        found = read_mirrors(given, MIRRORS) | read_mirrors(mirrors, "--mirror")
        return cls(mirrors=found, **settings)

    def reach(self, address: str) -> str:
        """The address that is really asked: the longest fitting beginning is replaced."""
        for old in sorted(self.mirrors, key=len, reverse=True):
            if address.startswith(old):
                return self.mirrors[old] + address[len(old) :]
        return address

    def pause(self, n_failed: int) -> float:
        """Seconds to wait after the n-th failure in a row."""
        return float(min(self.pause_s * 2.0 ** min(n_failed - 1, 30), self.longest_pause_s))


def read_mirrors(texts: Sequence[str], origin: str) -> dict[str, str]:
    """Read OLD=NEW, both beginnings of web addresses, from each text; the last of equal OLDs wins.

    Raises:
        ConfigError: a text is not of this form; `origin` says where it stands.
    """
    mirrors = {}
    for text in texts:
        # Addresses may hold "=" themselves; the one that parts them is followed by an address.
        match = re.fullmatch(r"(https?://\S+?)=(https?://[^\s/]\S*)", text.strip())
        if match is None:
            raise ConfigError(
                f"{origin}: {text!r} is not OLD=NEW, two beginnings of web addresses, for example "
                "https://snap.stanford.edu/=http://localhost:8000/snap/"
            )
        mirrors[match[1]] = match[2]
    return mirrors


def shown(address: str) -> str:
    """An address as messages and files may hold it: without a password."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def size_text(n_bytes: int) -> str:
    """A size as people read it, in powers of 1024."""
    size, units = float(n_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{n_bytes} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
