"""Fetching the files of a dataset: resumed, verified, from mirrors, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from mmbench.data.cards import RemoteFile
from mmbench.data.fetch import asking
from mmbench.data.fetch.archives import unpack
from mmbench.data.fetch.asking import NoAnswer, ask
from mmbench.data.fetch.disk import free_in, no_room, writing_to
from mmbench.data.fetch.kinds import BrokenFile, check_kind, is_page_name, starts_as
from mmbench.data.fetch.ledger import Entry, now, read_ledger, record
from mmbench.data.fetch.locking import alone_in
from mmbench.data.fetch.part import Origin, Part
from mmbench.data.fetch.planning import COMPRESSED, Plan, is_whole, missing_files, plan
from mmbench.data.fetch.web import Ticker, Watch, Web, nobody, shown
from mmbench.data.hashing import sha256_file
from mmbench.errors import DataError

__all__ = ["Plan", "Watch", "Web", "download", "missing_files", "nobody", "plan"]


def download(plan: Plan, web: Web, watch: Watch = nobody) -> None:
    """Fetch, verify and unpack the files of a plan, one after the other.

    Whatever ends it, a later call goes on where it ended.

    Raises:
        DataError: no address gives the file (E104/E106), its hash is not the recorded one (E105),
            an archive is unsafe or broken (E106, E107), the disk is too small (E108), or another
            process is at work in the folder (E104).
    """
    _check_room(plan, missing_files(plan.missing, plan.folder))
    with writing_to(plan.folder), alone_in(plan.folder), asking.new_session() as session:
        # Looked at again: whoever held the lock until now may have fetched some.
        for file in missing_files(plan.missing, plan.folder):
            _Fetch(file, plan.folder, session, web, watch).run()


@dataclass
class _Fetch:
    """The fetching of one file."""

    file: RemoteFile
    folder: Path
    session: requests.Session
    web: Web
    watch: Watch

    def __post_init__(self) -> None:
        self.path = self.folder / self.file.path
        self.entry = read_ledger(self.folder).get(self.file.path)

    @property
    def expected(self) -> str | None:
        """The hash that somebody measured, or that the file had when it was fetched first."""
        recorded = self.entry.sha256 if self.entry is not None else None
        return self.file.sha256 or recorded

    @property
    def is_guarded(self) -> bool:
        """Whether only one content can come out in the end."""
        return self.expected is not None and not self.web.accept_changed

    def run(self) -> None:
        """Fetch it from the first address that gives it, and unpack it.

        Raises:
            DataError: see `download`.
        """
        self._refuse_short()
        if self._use_what_is_here():
            return
        part = Part(self.path)
        failures: list[tuple[str, NoAnswer]] = []
        for address in map(self.web.reach, self.file.addresses):
            try:
                self._fetch(address, part)
                self._keep(address, part)
                return
            except NoAnswer as failure:
                failures.append((address, failure))
        raise self._given_up(failures, part)

    def _refuse_short(self) -> None:
        """Do not overwrite what was brought by hand; with `accept_changed` it is the file."""
        is_ours = self.entry is not None or not self.path.is_file()
        if is_ours or not self.path.stat().st_size or is_whole(self.file, self.folder, None):
            return
        if not self.web.accept_changed:
            raise DataError(
                f"E105 {self.path}: {self.path.stat().st_size} bytes, recorded {self.file.bytes}; "
                "delete it to fetch it anew, or pass --accept-changed to take it as it is"
            )
        self.entry = self._entry_by_hand()
        record(self.folder, self.file.path, self.entry)

    def _entry_by_hand(self) -> Entry:
        return Entry("", self.path.stat().st_size, sha256_file(self.path), now())

    def _use_what_is_here(self) -> bool:
        """Take the file that is here, unpacked if need be; False if it is none, or broken."""
        if not is_whole(self.file, self.folder, self.entry):
            return False
        if self.file.unpacks_to is None:
            return True
        digest = sha256_file(self.path)
        if self.is_guarded and digest != self.expected:
            raise DataError(
                f"E105 {self.path}: sha256 {digest}, recorded {self.expected}; delete it or pass "
                "--accept-changed"
            )
        try:
            self._unpack(self._entry_by_hand() if self.entry is None else self.entry)
        except NoAnswer:
            if self.path.exists():  # brought by hand, so not ours to delete
                self.path.replace(self.path.with_name(self.path.name + ".broken"))
            # The hash of what is broken must not be asked of what comes instead.
            self.entry = None
            record(self.folder, self.file.path, None)
            return False
        return True

    def _fetch(self, address: str, part: Part) -> None:
        """Get the whole file into the part, with as many attempts as it takes."""
        n_failed, most = 0, part.size()
        while True:
            try:
                self._receive(address, part)
                self._verify(part)
                return
            except NoAnswer as failure:
                n_failed = 1 if part.size() > most else n_failed + 1
                most = max(most, part.size())
                pause = asking.patience(failure, n_failed, self.web)
                if pause is None:
                    reason = asking.told(failure, n_failed)
                    raise NoAnswer(reason, code=failure.code) from failure
            time.sleep(pause)

    def _receive(self, address: str, part: Part) -> None:
        """One request for what the part lacks.

        Raises:
            NoAnswer: the part is not complete after it.
        """
        offset, headers = self._lacking(address, part)
        origin = part.origin()
        if offset and origin is not None and offset == origin.total:
            part.resumed = True  # all of it came, and then that process was ended
            return
        with ask(self.session, "GET", address, self.web, headers) as response:
            status = response.status_code
            if offset and status != 200:
                told = _origin(address, response)
                starts = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
                if status == 206 and starts and origin is not None and origin.fits(told):
                    self._write(response, part, told, offset)
                    return
            elif status == 200:
                self._write(response, part, _origin(address, response), 0)
                return
            else:
                raise NoAnswer(f"{status}, although the whole file was asked for")
        # The server has another version by now: its piece must not be joined to this one.
        part.discard()
        self._receive(address, part)

    def _lacking(self, address: str, part: Part) -> tuple[int, dict[str, str]]:
        """From which byte on to ask, and the headers that do it."""
        size, origin = part.size(), part.origin()
        if not size or origin is None or size > (origin.total or size):
            return 0, {}
        if not (origin.validator or origin.total):
            return 0, {}  # it may have been unpacked on the way
        if origin.address == shown(address) and origin.validator:
            return size, {"Range": f"bytes={size}-", "If-Range": origin.validator}
        # With a hash that must come out in the end, any piece may be tried.
        return (size, {"Range": f"bytes={size}-"}) if self.is_guarded else (0, {})

    def _write(self, response: requests.Response, part: Part, origin: Origin, offset: int) -> None:
        suffix = self.path.suffix.lower()
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        # Many servers call a .gz file itself "encoded": then it is wanted as it is. Anything
        # else is unpacked on the way; its length is not known, and it cannot be resumed.
        decoded = encoding not in ("identity", "") and suffix not in COMPRESSED
        if decoded:
            origin = Origin(origin.address)
        stream = asking.blocks(response, decoded=decoded)
        block = next(stream, b"")
        # Looked at before what is here already is given up for it.
        looks = not offset and asking.looks_like_page(block)
        says = not offset and asking.says_page(response) and not starts_as(suffix, block)
        if (looks or says) and not is_page_name(self.path.name):
            raise NoAnswer("the server sent a web page, perhaps a login", code="E106")
        self._check_length(origin.total)
        if (origin.total or 0) - offset > free_in(self.folder):
            raise no_room(self.folder, (origin.total or 0) - offset)
        if not offset:
            part.begin(origin)
        ticker = Ticker(self.watch, self.file.path, "bytes", origin.total)
        done = offset
        with part.opened() as file:
            while block:
                part.add(file, block)
                done += len(block)
                ticker(done)
                block = next(stream, b"")
        ticker(done, last=True)
        if origin.total is not None and done != origin.total:
            raise NoAnswer(f"the connection was cut at {done} of {origin.total} bytes", again=True)

    def _check_length(self, n_bytes: int | None) -> None:
        recorded = self.file.bytes
        if n_bytes is None or recorded is None or self.web.accept_changed:
            return
        if n_bytes != recorded:
            raise NoAnswer(f"{n_bytes} bytes, recorded {recorded}", code="E105")

    def _verify(self, part: Part) -> None:
        """Check a part that seems to be complete; a wrong one is removed.

        Raises:
            NoAnswer: it is not the file.
        """
        if not part.size():
            part.discard()
            raise NoAnswer("the server sent an empty file", code="E106")
        origin = part.origin()
        digest, total = part.sha256(), origin.total if origin is not None else None
        try:
            self._check_length(part.size())
            if self.is_guarded and digest != self.expected:
                # Pieces may not have fitted; the whole file in one piece is another chance.
                raise NoAnswer(
                    f"sha256 {digest}, recorded {self.expected}", again=part.resumed, code="E105"
                )
            # Without a length and a hash, an early end would pass for the end.
            unsure = total is None and self.file.bytes is None and not self.is_guarded
            check_kind(part.path, name=self.path.name, whole=unsure)
        except BrokenFile as error:
            part.discard()
            raise NoAnswer(f"it {error.problem}", again=total is None, code="E106") from error
        except NoAnswer:
            part.discard()
            raise

    def _keep(self, address: str, part: Part) -> None:
        entry = Entry(shown(address), part.size(), part.sha256(), now())
        record(self.folder, self.file.path, entry)
        part.install()
        if self.file.unpacks_to is not None:
            self._unpack(entry)

    def _unpack(self, entry: Entry) -> None:
        """Unpack the archive and note it.

        Raises:
            NoAnswer: it is broken; it was removed if it had been fetched.
        """
        assert self.file.unpacks_to is not None
        try:
            names = unpack(self.path, self.folder / self.file.unpacks_to, watch=self.watch)
        except BrokenFile as error:
            if entry.address:
                self.path.unlink(missing_ok=True)
                record(self.folder, self.file.path, self.entry)
            raise NoAnswer(f"it {error.problem}", code="E106") from error
        record(self.folder, self.file.path, replace(entry, unpacked=names[:100]))

    def _given_up(self, failures: Sequence[tuple[str, NoAnswer]], part: Part) -> DataError:
        codes = {failure.code for _, failure in failures}
        code = next((code for code in ("E105", "E106") if code in codes), "E104")
        tried = "; ".join(f"{shown(address)}: {failure.reason}" for address, failure in failures)
        cure = (
            f"Get it by hand and put it to {self.path}, or name a folder that has it with "
            "--source, or another server with --mirror OLD=NEW"
        )
        if code == "E105":
            cure = f"It was not kept; pass --accept-changed to take it as it is now. {cure}"
        if part.size():
            cure = (
                f"The first {part.size()} bytes are kept, and running this again goes on from "
                f"there. {cure}"
            )
        tried = tried or "no address of it is known"
        return DataError(f"{code} {self.file.path} cannot be fetched. Tried {tried}. {cure}")


def _origin(address: str, response: requests.Response) -> Origin:
    return Origin(
        shown(address),
        response.headers.get("ETag", ""),
        response.headers.get("Last-Modified", ""),
        asking.total_of(response),
    )


def _check_room(plan: Plan, missing: Sequence[RemoteFile]) -> None:
    """Refuse before the first byte what the disk cannot take.

    What an archive holds is counted as being as large as it is itself: seldom enough, but never
    a reason to refuse what would have fitted; unpacking looks again.
    """
    needed = 0
    for file in missing:
        size = plan.sizes.get(file.path) or 0
        needed += max(0, size - plan.begun.get(file.path, 0))
        needed += size if file.unpacks_to is not None else 0
    if needed > free_in(plan.folder):
        raise no_room(plan.folder, needed)
