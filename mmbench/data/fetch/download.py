"""Fetching the files of a dataset: resumed, verified, from mirrors, whole or not at all.

CONTRACT ONLY: being built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mmbench.data.cards import RemoteFile


class Watch(Protocol):
    """Told how a long work goes on; the command line draws it."""

    def __call__(self, what: str, done: int, total: int | None, unit: str) -> None:
        """`done` of `total` (None if unknown) units ("bytes" or "files") of `what` are done."""


def nobody(what: str, done: int, total: int | None, unit: str) -> None:
    """The `Watch` of those who do not look."""


@dataclass(frozen=True)
class Web:
    """How to reach servers.

    Attributes:
        mirrors: beginnings of addresses to replace, for example {"https://snap.stanford.edu/":
            "http://localhost:8000/snap/"}; from MMBENCH_MIRRORS and --mirror OLD=NEW.
        attempts: tries per address; timeout_s: silence after which one is given up;
        pause_s: first pause of the back-off, doubled each time.
        connections: parallel connections, for pictures.
        accept_changed: take a file whose hash is not the recorded one.
    """

    mirrors: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 5
    timeout_s: float = 30.0
    pause_s: float = 0.5
    connections: int = 4
    accept_changed: bool = False


@dataclass(frozen=True)
class Plan:
    """What would have to be fetched.

    Attributes:
        folder: where the files go.
        missing: files that are not there yet, or only in part.
        sizes: bytes of each file of `missing` by path, None where no server tells.
        begun: bytes of each that are there already.
    """

    folder: Path
    missing: tuple[RemoteFile, ...]
    sizes: Mapping[str, int | None]
    begun: Mapping[str, int]


def plan(files: Sequence[RemoteFile], folder: Path, web: Web) -> Plan:
    """Find out which files are missing below `folder` and ask their servers for the sizes."""
    raise NotImplementedError


def missing_files(files: Sequence[RemoteFile], folder: Path) -> tuple[RemoteFile, ...]:
    """The files that are not below `folder`, complete and unpacked; asks no server."""
    raise NotImplementedError


def download(plan: Plan, web: Web, watch: Watch = nobody) -> None:
    """Fetch, verify and unpack the files of a plan.

    Raises:
        DataError: no address gives the file (E104/E106), its hash is not the recorded one (E105),
            an archive is unsafe or broken (E106, E107), or the disk is too small (E108).
    """
    raise NotImplementedError
