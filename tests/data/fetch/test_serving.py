"""The web server of the tests itself: faults that it shows must be the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

CONTENT = bytes(range(256)) * 1000


def test_it_serves_files_ranges_and_validators(serve: Callable[..., Any]) -> None:
    server = serve({"a/b.bin": CONTENT})
    whole = requests.get(server.url + "a/b.bin", timeout=5)
    part = requests.get(server.url + "a/b.bin", headers={"Range": "bytes=1000-"}, timeout=5)
    beyond = requests.get(server.url + "a/b.bin", headers={"Range": "bytes=256000-"}, timeout=5)
    stale = {"Range": "bytes=1000-", "If-Range": '"other"'}
    assert whole.content == CONTENT
    assert whole.headers["Content-Length"] == "256000"
    assert (part.status_code, part.content) == (206, CONTENT[1000:])
    assert part.headers["Content-Range"] == "bytes 1000-255999/256000"
    assert part.headers["ETag"] == whole.headers["ETag"]
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */256000")
    assert requests.get(server.url + "a/b.bin", headers=stale, timeout=5).status_code == 200
    assert requests.head(server.url + "a/b.bin", timeout=5).headers["Content-Length"] == "256000"
    assert requests.get(server.url + "none", timeout=5).status_code == 404
    assert [asked.range for asked in server.gets("a/b.bin")][:2] == ["", "bytes=1000-"]


def test_it_serves_a_folder_and_nothing_outside(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x y.txt").write_bytes(b"inside")
    (tmp_path / "out.txt").write_bytes(b"outside")
    server = serve(tmp_path / "in")
    assert requests.get(server.url + "x%20y.txt", timeout=5).content == b"inside"
    assert requests.get(server.url + "%2e%2e/out.txt", timeout=5).status_code == 404


def test_a_connection_is_cut_once_in_the_middle(serve: Callable[..., Any]) -> None:
    server = serve({"x": CONTENT}, {"x": {"cut_after": 100_000}})
    requests.head(server.url + "x", timeout=5)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="100000 bytes read"):
        requests.get(server.url + "x", timeout=5)
    assert requests.get(server.url + "x", timeout=5).content == CONTENT


def test_it_shows_every_other_fault(serve: Callable[..., Any]) -> None:
    faults = {
        "busy": {"status": 429, "retry_after": "1", "times": 1},
        "login": {"html": True},
        "whole": {"no_ranges": True},
        "chunks": {"no_length": True},
        "deaf": {"no_head": True},
        "moved": {"redirect": "/busy"},
        "wrong": {"body": b"wrong"},
        "bare": {"no_validator": True, "headers": {"Content-Type": None}},
    }
    server = serve(dict.fromkeys(faults, CONTENT), faults)

    def get(path: str) -> requests.Response:
        return requests.get(server.url + path, headers={"Range": "bytes=5-"}, timeout=5)

    busy = get("busy")
    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
    assert get("busy").status_code == 206
    assert get("login").headers["Content-Type"].startswith("text/html")
    assert (get("whole").status_code, get("whole").content) == (200, CONTENT)
    assert "Content-Length" not in get("chunks").headers
    assert get("chunks").content == CONTENT[5:]
    assert requests.head(server.url + "deaf", timeout=5).status_code == 405
    assert get("moved").content == CONTENT[5:]
    assert requests.get(server.url + "wrong", timeout=5).content == b"wrong"
    assert not {"ETag", "Last-Modified", "Content-Type"} & set(get("bare").headers)
