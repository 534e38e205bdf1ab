"""Shared, tiny and offline: one prepared dataset with planted structure, and a web server."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib.util
import mimetypes
import os
import re
import shutil
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

N_USERS, N_ITEMS = 60, 40

for _threads in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(_threads, "1")  # also of the processes that tests start


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and test runs may share the machine."""
    torch.set_num_threads(1)


def write_mmrec(folder: Path, seed: int = 0) -> Path:
    """A dataset in the MMRec layout: even users like even items, odd users odd ones.

    The visual feature tells the parity of an item; the acoustic one is noise.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        liked = rng.permutation(np.arange(user % 2, N_ITEMS, 2))[:10]
        labels = [0] * 7 + [1] + [2] * 2
        rows += [f"{user}\t{item}\t{label}" for item, label in zip(liked, labels, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["userID\titemID\tx_label", *rows])
    (folder / "tiny.inter").write_text(text + "\n", encoding="utf-8")
    parity = np.arange(N_ITEMS) % 2
    visual = np.stack([parity, 1 - parity], axis=1) + 0.1 * rng.standard_normal((N_ITEMS, 2))
    np.save(folder / "image_feat.npy", visual.astype(np.float32))
    np.save(folder / "audio_feat.npy", rng.standard_normal((N_ITEMS, 3)).astype(np.float32))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds the prepared dataset "tiny"; tests only read it."""
    from mmbench.data.prepare import prepare

    root = tmp_path_factory.mktemp("tiny")
    prepare("tiny", source=write_mmrec(root / "raw"), format="mmrec", data_dir=root / "data")
    return root / "data"


def _beside(name: str) -> ModuleType:
    """A file beside this one, as a module; the folder of the tests is on no path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models() -> ModuleType:
    """The file tiny_models.py: `save`, `kind_of`."""
    return _beside("tiny_models")


@pytest.fixture(scope="session")
def weights(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny encoder of a name; tests only read it."""
    root = tmp_path_factory.mktemp("weights")

    def get(name: str) -> str:
        if not (root / name).exists():
            models.save(name, root / name)
        return str(root / name)

    return get


@pytest.fixture(scope="session")
def shops() -> ModuleType:
    """The file two_shops.py: `write_shops`, `add`, `recipe`."""
    return _beside("two_shops")


@pytest.fixture(scope="session")
def two_shops(shops: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with shop-a and shop-b; tests only read it."""
    data: Path = shops.write_shops(tmp_path_factory.mktemp("shops"))
    return data


def find_browser() -> str | None:
    """A Chromium of this machine; MMBENCH_BROWSER names another."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = (shutil.which(name) for name in (os.environ.get("MMBENCH_BROWSER", ""), *names) if name)
    return next((path for path in found if path), None)


@pytest.fixture(scope="session")
def browser_program() -> str:
    """The path of a Chromium; tests that ask for it are marked `browser`."""
    program = find_browser()
    assert program is not None
    return program


def has_ray() -> bool:
    """Whether the optional Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def pytest_report_header() -> list[str]:
    gpu = "run" if torch.cuda.is_available() else "left out, no CUDA device here"
    browser = (
        f"run in {find_browser()}"
        if find_browser()
        else (
            "LEFT OUT, no Chromium here (install Debian's chromium, or name one in MMBENCH_BROWSER)"
        )
    )
    ray = "run" if has_ray() else "LEFT OUT, no Ray here (pip install 'mmbench[ray]')"
    return [f"gpu tests: {gpu}", f"browser tests: {browser}", f"ray tests: {ray}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of a GPU, a browser or Ray where there is none; the header says so."""
    missing = {
        "gpu": not torch.cuda.is_available(),
        "browser": find_browser() is None,
        "ray": not has_ray(),
    }
    left_out = [
        item
        for item in items
        if any(missing[name] and item.get_closest_marker(name) for name in missing)
    ]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)


# --------------------------------------------------------------------------------------------
# A web server on this machine, with the faults of real ones.


class Asked(NamedTuple):
    """One request: `path` without the leading slash, `range` as sent ("bytes=100-") or ""."""

    method: str
    path: str
    range: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """How the answers for one path go wrong; `times` first requests, or all if it is None.

    Attributes:
        cut_after: the connection is closed after so many bytes of the answer's body.
        status: this status, and `body`, instead of the file; `retry_after` is its header of
            that name.
        html: 200 with a login page, as text/html.
        body: other bytes instead of the file's.
        redirect: 302 to this address.
        no_ranges: Range is ignored.
        no_length: sent in chunks, without Content-Length.
        no_head: HEAD is answered with 405.
        no_validator: neither ETag nor Last-Modified.
        headers: headers to add or to replace, None takes one away.
        slow_s: pause after each 64 KiB; silent_s: pause before the answer.
    """

    cut_after: int | None = None
    status: int | None = None
    retry_after: str | None = None
    html: bool = False
    body: bytes | None = None
    redirect: str | None = None
    no_ranges: bool = False
    no_length: bool = False
    no_head: bool = False
    no_validator: bool = False
    headers: Mapping[str, str | None] = field(default_factory=dict)
    slow_s: float = 0.0
    silent_s: float = 0.0
    times: int | None = None


class FileServer(http.server.ThreadingHTTPServer):
    """Serves files at `url` (it ends with a slash) and logs every request.

    `files` maps paths to bytes, or is a folder; it may be changed between requests.
    """

    daemon_threads = False  # joined when it closes, so that no thread outlives its test
    request_queue_size = 64

    def __init__(self, files: Mapping[str, bytes] | Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        if not isinstance(files, Path):
            files = {path.lstrip("/"): content for path, content in files.items()}
        self.files: dict[str, bytes] | Path = files
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.requests: list[Asked] = []
        self.errors: list[BaseException] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.busiest = 0  # most requests answered at the same time
        self._active = 0
        self._faults: dict[str, tuple[Fault, int]] = {}
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def fault(self, path: str, *, times: int | None = None, **settings: Any) -> None:
        """From now on requests for `path` go wrong as `Fault` says; a cut happens once."""
        if "cut_after" in settings and times is None:
            times = 1
        with self.lock:
            self._faults[path.lstrip("/")] = Fault(times=times, **settings), 0

    def gets(self, path: str) -> list[Asked]:
        """The GET requests for a path, in order."""
        path = path.lstrip("/")
        return [asked for asked in self.requests if (asked.method, asked.path) == ("GET", path)]

    def content(self, path: str) -> bytes | None:
        if isinstance(self.files, dict):
            return self.files.get(path)
        file = (self.files / path).resolve()
        inside = file.is_relative_to(self.files.resolve())
        return file.read_bytes() if inside and file.is_file() else None

    def next_fault(self, path: str, method: str) -> Fault:
        with self.lock:
            fault, n_times = self._faults.get(path, (Fault(), 0))
            if fault.times is not None and n_times >= fault.times:
                return Fault()
            # A cut body takes a body: HEAD does not use it up.
            if method == "GET" or fault.cut_after is None:
                self._faults[path] = fault, n_times + 1
            return fault

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self._active += 1
            self.busiest = max(self.busiest, self._active)
        try:
            yield
        finally:
            with self.lock:
                self._active -= 1

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # A client that was killed, or that had seen enough, is no fault of the server.
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        with self.lock:  # kept-alive connections would hold their threads for ever
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each small answer waits 40 ms for its second packet
    server: FileServer

    def log_message(self, format: str, *args: Any) -> None:
        """Not to the terminal; `requests` of the server has it all."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        fault = self.server.next_fault(path, self.command)
        asked = Asked(self.command, path, self.headers.get("Range", ""), dict(self.headers))
        with self.server.lock:
            self.server.requests.append(asked)
        with self.server.counted():
            self.server.closing.wait(fault.silent_s)
            status, headers, body = self.content(path, fault)
            self.send(status, headers, body, fault)

    def content(self, path: str, fault: Fault) -> tuple[int, dict[str, str | None], bytes]:
        content = self.server.content(path) if fault.body is None else fault.body
        if fault.redirect is not None:
            return 302, {"Location": fault.redirect}, b""
        if fault.status is not None:
            return fault.status, {"Retry-After": fault.retry_after}, fault.body or b"no"
        if fault.no_head and self.command == "HEAD":
            return 405, {}, b""
        if fault.html:
            page = b"<!DOCTYPE html><html><body>Please log in.</body></html>"
            return 200, {"Content-Type": "text/html; charset=utf-8"}, page
        if content is None:
            return 404, {"Content-Type": "text/html"}, b"<html>not found</html>"
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        headers: dict[str, str | None] = {"Content-Type": kind}
        if not fault.no_validator:
            headers["ETag"] = '"' + hashlib.sha256(content).hexdigest()[:20] + '"'
            headers["Last-Modified"] = "Wed, 01 Jan 2020 00:00:00 GMT"
        if fault.no_ranges:
            return 200, headers, content
        headers["Accept-Ranges"] = "bytes"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        known = {headers.get("ETag"), headers.get("Last-Modified")}
        if wanted is None or (condition is not None and condition not in known):
            return 200, headers, content
        start = int(wanted[1])
        stop = min(int(wanted[2] or len(content)) + bool(wanted[2]), len(content))
        if start >= len(content):
            return 416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b""
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return 206, headers, content[start:stop]

    def send(self, status: int, headers: dict[str, str | None], body: bytes, fault: Fault) -> None:
        length = {"Transfer-Encoding": "chunked"}
        if not fault.no_length:
            length = {"Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in {**headers, **length, **fault.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body) if fault.cut_after is None else fault.cut_after
        for start in range(0, min(end, len(body)), 2**16):
            block = body[start : min(end, start + 2**16)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if fault.no_length else block)
            if self.server.closing.wait(fault.slow_s):
                break
        if fault.cut_after is not None:
            self.close_connection = True
        elif fault.no_length:
            self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FileServer]]:
    """Starts a web server for a dict {path: bytes} or a folder; `faults` are as in `Fault`.

    server = serve({"a/x.csv": b"..."}, {"a/x.csv": {"cut_after": 100}})
    server.url, server.requests, server.gets(path), server.fault(path, ...), server.files
    """
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    servers: list[FileServer] = []

    def start(
        files: Mapping[str, bytes] | Path, faults: Mapping[str, Mapping[str, Any]] | None = None
    ) -> FileServer:
        server = FileServer(files)
        servers.append(server)
        for path, settings in (faults or {}).items():
            server.fault(path, **settings)
        return server

    yield start
    for server in servers:
        server.close()
    assert [error for server in servers for error in server.errors] == []
