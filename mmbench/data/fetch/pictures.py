"""Fetching item pictures by their addresses, in parallel."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import queue
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from mmbench.data.fetch import asking
from mmbench.data.fetch.asking import NoAnswer, ask
from mmbench.data.fetch.disk import writing_to
from mmbench.data.fetch.locking import alone_in
from mmbench.data.fetch.names import name_for, names_for
from mmbench.data.fetch.turns import Turns
from mmbench.data.fetch.web import Ticker, Watch, Web, nobody, shown, size_text
from mmbench.data.pictures import MAX_BYTES

FAILURES = "image_failures.csv"
_HEADER = ["item_id", "url", "status"]
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_TEMPORARY = ".fetching-"
_LONGEST_IN_TIMEOUTS = 10
_Tried = list[tuple[str, str]]
"""Addresses of one item, and what became of each."""


@dataclass(frozen=True)
class FetchedPictures:
    """What became of the pictures that were asked for.

    Attributes:
        files: file name below the folder of each item whose picture is there.
        failures: why there is none, for those that were tried in vain: "404",
            "not a picture (text/html)", ...
    """

    files: Mapping[str, str]
    failures: Mapping[str, str]


def find_pictures(items: Sequence[str], folder: Path) -> FetchedPictures:
    """What an earlier `fetch_pictures` left in `folder` for these items; asks no server.

    An item that was never tried has neither a file nor a failure.
    """
    there = _scan(folder)
    files = _find(items, there)
    failed = _read_failures(folder.parent / FAILURES)
    return FetchedPictures(
        files, {item: _why(failed[item]) for item in items if item in failed and item not in files}
    )


def fetch_pictures(
    addresses: Mapping[str, Sequence[str]], folder: Path, web: Web, watch: Watch = nobody
) -> FetchedPictures:
    """Fetch the picture of each item, at most once; the addresses of an item are tried in order.

    `addresses` maps raw item ids to web addresses. Files are called after the percent-encoded
    item id and the type that their content shows; what is there already is not fetched again,
    and an address that several items share is fetched once. Failures are listed in
    `folder/../image_failures.csv` (item_id, url, status), together with those of earlier calls.

    Raises:
        DataError: the disk is full (E108) or another process is at work in the folder (E104).
    """
    found = find_pictures(list(addresses), folder)
    if len(found.files) == len(addresses):
        return found
    with writing_to(folder), alone_in(folder):
        _remove_temporary(folder)
        there = _scan(folder)  # again: whoever held the lock until now may have fetched some
        files = _find(addresses, there)
        work = _Work(addresses, folder, web, dict(files), there)
        try:
            work.run(Ticker(watch, "pictures", "files", len(addresses)))
        finally:
            _merge_failures(folder.parent / FAILURES, work.failed, work.files, there)
        failures = {item: _why(tried) for item, tried in work.failed.items()}
        return FetchedPictures(work.files, failures)


def picture_suffix(start: bytes) -> str | None:
    """The suffix that fits the first 32 bytes of a picture, None for anything else."""
    if start.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return ".webp"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return ".gif"
    # Two letters alone would make pictures of texts; the size of the header follows.
    if start.startswith(b"BM") and start[14:18] in _BMP_HEADERS:
        return ".bmp"
    return None


_BMP_HEADERS = [size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)]


@dataclass(frozen=True)
class _Outcome:
    """The file that an address gave, or why it gave none; no exception, which keeps much alive."""

    file: str = ""
    failure: str = ""


class _Work:
    """Fetches the pictures that are not there.

    It goes in rounds: the first address of every item, then the second of those whose first one
    failed, and so on, so that an address that items share is known when it comes again.

    Attributes:
        files: name of the file of each item that has one by now.
        failed: what was tried, for the items of which every address failed.
    """

    def __init__(
        self,
        addresses: Mapping[str, Sequence[str]],
        folder: Path,
        web: Web,
        files: dict[str, str],
        there: Mapping[str, str],
    ) -> None:
        self.files = files
        self.failed: dict[str, _Tried] = {}
        self.names = names_for((item for item in addresses if item not in files), there)
        self._addresses, self._folder, self._web = addresses, folder, web
        self._tried: dict[str, _Tried] = defaultdict(list)
        self._turns = Turns(web.connections_per_host)
        self._results: queue.SimpleQueue[tuple[str, _Outcome | Exception]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._groups: dict[str, list[str]] = {}

    def run(self, ticker: Ticker) -> None:
        """Fetch everything; ends early with what a worker or Ctrl-C raises."""
        threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(self._web.connections)
        ]
        for thread in threads:
            thread.start()
        try:
            outcomes: dict[str, _Outcome] = {}
            pending = list(self.names)
            for rank in itertools.count():
                if not pending:
                    break
                pending = self._round(rank, pending, outcomes, ticker)
            ticker(len(self.files) + len(self.failed), last=True)
        finally:
            self._stopped.set()
            self._turns.close()
            patience_ends = time.monotonic() + 2
            for thread in threads:
                # One that waits for a silent server is left alone: it will write nothing.
                thread.join(max(0.0, patience_ends - time.monotonic()))

    def _round(
        self,
        rank: int,
        pending: list[str],
        outcomes: dict[str, _Outcome],
        ticker: Ticker,
    ) -> list[str]:
        """Try the address number `rank` of each item; returns the items that still lack one."""
        groups: dict[str, list[str]] = defaultdict(list)
        for item in pending:
            if rank < len(self._addresses[item]):
                groups[self._addresses[item][rank]].append(item)
            else:
                self._fail(item)
        self._groups = groups
        lacking: list[str] = []  # items with an address left to try
        new = [address for address in groups if address not in outcomes]
        for address in groups.keys() - set(new):  # another item had it in an earlier round
            if outcomes[address].file:
                self._copy(outcomes[address].file, groups[address])
            lacking += self._settle(address, outcomes[address], rank)
        self._turns.add((address, self._web.reach(address)) for address in new)
        n_open = len(new)
        while n_open:
            ticker(len(self.files) + len(self.failed))
            with contextlib.suppress(queue.Empty):
                address, result = self._results.get(timeout=0.1)
                if isinstance(result, Exception):
                    raise result
                n_open -= 1
                outcomes[address] = result
                lacking += self._settle(address, result, rank)
        return lacking

    def _settle(self, address: str, outcome: _Outcome, rank: int) -> list[str]:
        """Note what became of an address; returns its items that have another one to try."""
        lacking = []
        for item in self._groups[address]:
            if outcome.file:
                self.files[item] = self.names[item] + Path(outcome.file).suffix
                continue
            self._tried[item].append((address, outcome.failure))
            if rank + 1 < len(self._addresses[item]):
                lacking.append(item)
            else:
                self._fail(item)
        return lacking

    def _fail(self, item: str) -> None:
        self.failed[item] = self._tried.pop(item, []) or [("", "no address")]

    def _work(self, number: int) -> None:
        """What one worker does: fetch, as long as there are turns."""
        temporary = self._folder / f"{_TEMPORARY}{os.getpid()}-{number}"
        with asking.new_session() as session:
            while (turn := self._turns.take()) is not None:
                host, address, reached = turn
                try:
                    file = self._fetch(session, address, reached, temporary)
                    self._results.put((address, _Outcome(file=file)))
                except NoAnswer as failure:
                    status = str(failure.status or failure.reason)
                    self._results.put((address, _Outcome(failure=status)))
                except Exception as error:  # noqa: BLE001 - raised again where all is waited for
                    self._results.put((address, error))
                finally:
                    temporary.unlink(missing_ok=True)
                    self._turns.give_back(host)

    def _fetch(self, session: requests.Session, address: str, reached: str, temporary: Path) -> str:
        """Fetch one address for all items of this round that have it; returns a file's name."""
        n_failed = 0
        while True:
            try:
                suffix = self._receive(session, reached, temporary)
                break
            except NoAnswer as failure:
                n_failed += 1
                pause = asking.patience(failure, n_failed, self._web)
                if pause is None:
                    raise
            if self._stopped.wait(pause):
                raise NoAnswer("stopped")
        first, *others = self._groups[address]
        name = self.names[first] + suffix
        temporary.replace(self._folder / name)
        self._copy(name, others)
        return name

    def _receive(self, session: requests.Session, address: str, temporary: Path) -> str:
        """Write one picture to `temporary`; returns the suffix that fits it."""
        too_late = time.monotonic() + _LONGEST_IN_TIMEOUTS * self._web.timeout_s
        with ask(session, "GET", address, self._web) as response:
            if response.status_code != 200:
                raise NoAnswer(str(response.status_code), status=response.status_code)
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            length = asking.length_of(response) if encoding == "identity" else None
            if (length or 0) > MAX_BYTES:
                raise NoAnswer(f"more than {size_text(MAX_BYTES)}")
            stream = asking.blocks(response, decoded=encoding != "identity")
            start = b""
            while len(start) < 32 and (block := next(stream, b"")):
                start += block
            suffix = picture_suffix(start)
            if suffix is None:
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
                raise NoAnswer(f"not a picture ({kind or 'of no type'})" if start else "empty")
            n_bytes = 0
            with temporary.open("wb") as file:
                for block in _chain(start, stream):
                    n_bytes += len(block)
                    if n_bytes > MAX_BYTES:
                        raise NoAnswer(f"more than {size_text(MAX_BYTES)}")
                    if time.monotonic() > too_late:
                        raise NoAnswer("too slow")
                    if self._stopped.is_set():
                        raise NoAnswer("stopped")
                    file.write(block)
            if length is not None and n_bytes != length:
                raise NoAnswer("the connection was cut", again=True)
        return suffix

    def _copy(self, name: str, items: Iterable[str]) -> None:
        """Give other items the picture that one item has."""
        for item in items:
            target = self._folder / (self.names[item] + Path(name).suffix)
            temporary = self._folder / f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}-copy"
            shutil.copyfile(self._folder / name, temporary)
            temporary.replace(target)


def _chain(start: bytes, rest: Iterable[bytes]) -> Iterable[bytes]:
    yield start
    yield from rest


def _scan(folder: Path) -> dict[str, str]:
    """Names without suffix, and with it, of the pictures in a folder, which is looked at once."""
    there: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, suffix = entry.name.rpartition(".")
            if dot + suffix in _SUFFIXES and entry.is_file() and entry.stat().st_size:
                there[stem] = min(entry.name, there.get(stem, entry.name))
    return there


def _find(items: Iterable[str], there: Mapping[str, str]) -> dict[str, str]:
    files = {}
    for item in items:
        for name in (name_for(item), name_for(item, caseless=True)):
            if name in there:
                files[item] = there[name]
                break
    return files


def _remove_temporary(folder: Path) -> None:
    """Remove what killed processes left; only while alone in the folder."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)


def _why(tried: _Tried) -> str:
    return "; ".join(dict.fromkeys(status for _, status in tried))


def _read_failures(path: Path) -> dict[str, _Tried]:
    """Failures by item; none where the list cannot be read, for it is only told to people."""
    failed: dict[str, _Tried] = defaultdict(list)
    with (
        contextlib.suppress(OSError, ValueError, csv.Error),
        path.open(encoding="utf-8", errors="surrogatepass", newline="") as file,
    ):
        rows = csv.reader(file)
        if next(rows, None) == _HEADER:
            for item, url, status in rows:
                failed[item].append((url, status))
    return dict(failed)


def _merge_failures(
    path: Path, failed: Mapping[str, _Tried], files: Mapping[str, str], there: Mapping[str, str]
) -> None:
    """List the failures of this call and of earlier ones, without items that have a file now."""
    merged = _read_failures(path) | dict(failed)
    for item in [item for item in merged if item in files or _find([item], there)]:
        del merged[item]
    if not merged:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        for item in sorted(merged):
            writer.writerows((item, shown(url), status) for url, status in merged[item])
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
