"""What would have to be fetched, and how large it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from mmbench.data.cards import RemoteFile
from mmbench.data.fetch import asking
from mmbench.data.fetch.asking import NoAnswer, ask
from mmbench.data.fetch.kinds import is_page_name
from mmbench.data.fetch.ledger import Entry, is_unpacked, read_ledger
from mmbench.data.fetch.part import Part
from mmbench.data.fetch.web import Web

COMPRESSED = (".gz", ".tgz")
"""Files that servers call "encoded" although that is what they are."""
_ATTEMPTS, _TIMEOUT_S = 2, 10.0  # somebody waits for the answer
_GONE = (404, 410)


@dataclass(frozen=True)
class Plan:
    """What would have to be fetched.

    Attributes:
        folder: where the files go.
        missing: files that are not there yet, or only in part, or not unpacked.
        sizes: bytes of each file of `missing` by path, None where no server tells.
        begun: bytes of each that are there already.
    """

    folder: Path
    missing: tuple[RemoteFile, ...]
    sizes: Mapping[str, int | None]
    begun: Mapping[str, int]


def plan(files: Sequence[RemoteFile], folder: Path, web: Web) -> Plan:
    """Find out which files are missing below `folder` and ask their servers for the sizes.

    A size that the card knows is not asked for.
    """
    missing = missing_files(files, folder)
    entries = read_ledger(folder)
    quick = replace(
        web, attempts=min(web.attempts, _ATTEMPTS), timeout_s=min(web.timeout_s, _TIMEOUT_S)
    )
    sizes: dict[str, int | None] = {}
    begun: dict[str, int] = {}
    unknown: list[RemoteFile] = []
    for file in missing:
        if is_whole(file, folder, entries.get(file.path)):  # an archive to be unpacked
            sizes[file.path] = begun[file.path] = (folder / file.path).stat().st_size
            continue
        part = Part(folder / file.path)
        begun[file.path] = part.size() if part.origin() is not None else 0
        sizes[file.path] = file.bytes
        if file.bytes is None:
            unknown.append(file)
    if unknown:
        with ThreadPoolExecutor(min(web.connections, len(unknown))) as pool:
            asked = pool.map(lambda file: _ask_size(file, quick), unknown)
            sizes.update(zip([file.path for file in unknown], asked, strict=True))
    return Plan(folder, missing, sizes, begun)


def missing_files(files: Sequence[RemoteFile], folder: Path) -> tuple[RemoteFile, ...]:
    """The files that are not below `folder`, complete and unpacked; asks no server."""
    entries = read_ledger(folder)

    def is_there(file: RemoteFile) -> bool:
        entry = entries.get(file.path)
        if file.unpacks_to is not None:
            return is_unpacked(entry, folder / file.unpacks_to)
        return is_whole(file, folder, entry)

    return tuple(file for file in files if not is_there(file))


def is_whole(file: RemoteFile, folder: Path, entry: Entry | None) -> bool:
    """Whether a file is here and not shorter than it was, or should be."""
    path = folder / file.path
    least = entry.bytes if entry is not None else file.bytes or 1
    return path.is_file() and path.stat().st_size >= least


def _ask_size(file: RemoteFile, web: Web) -> int | None:
    """The size that the first server tells, None if none does."""
    with asking.new_session() as session:
        for address in map(web.reach, file.addresses):
            for method in ("HEAD", "GET"):  # some servers refuse HEAD, or tell no length then
                try:
                    size = _told_size(session, method, address, web, file.path)
                except NoAnswer as failure:
                    if failure.status in (None, *_GONE):
                        break
                else:
                    if size is not None:
                        return size
    return None


def _told_size(
    session: requests.Session, method: str, address: str, web: Web, path: str
) -> int | None:
    headers = {"Range": "bytes=0-0"} if method == "GET" else {}
    n_failed = 0
    while True:
        try:
            with ask(session, method, address, web, headers) as response:
                if asking.says_page(response) and not is_page_name(path):
                    return None
                if "Content-Encoding" in response.headers and not path.endswith(COMPRESSED):
                    return None
                return asking.total_of(response)
        except NoAnswer as failure:
            n_failed += 1
            pause = asking.patience(failure, n_failed, web)
            if pause is None:
                raise
        time.sleep(pause)
