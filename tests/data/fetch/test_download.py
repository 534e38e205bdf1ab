"""Downloads from a real server on this machine, and what servers, disks and people do to them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmbench.data.cards import RemoteFile
from mmbench.data.fetch.download import Web, download, missing_files, nobody, plan
from mmbench.errors import DataError

Serve = Callable[..., Any]
QUICK = Web(attempts=3, timeout_s=5, pause_s=0.01)
CONTENT = b"".join(b"%d\t%d\t5\t881250949\n" % (n, n * n) for n in range(20_000))
HASH = hashlib.sha256(CONTENT).hexdigest()


def file_of(server: Any, path: str = "u.data", **fields: Any) -> RemoteFile:
    return RemoteFile(path, (server.url + path,), **fields)


def fetch(files: Sequence[RemoteFile], folder: Path, web: Web = QUICK, watch: Any = nobody) -> None:
    download(plan(files, folder, web), web, watch)


def ledger(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "downloads.json").read_text())["files"]
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def zipped(**content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name.replace("__", "/"), data)
    return file.getvalue()


# Planning


def test_a_plan_says_what_is_missing_and_how_large_it_is(serve: Serve, tmp_path: Path) -> None:
    content = {"a": b"12345", "deaf": b"1234567", "chunks": b"123", "login": b"1"}
    faults = {"deaf": {"no_head": True}, "chunks": {"no_length": True, "no_ranges": True}}
    server = serve(content, faults | {"login": {"html": True}})
    files = [file_of(server, path) for path in content]
    files += [file_of(server, "known", bytes=99), file_of(server, "there")]
    (tmp_path / "there").write_bytes(b"by hand")
    planned = plan(files, tmp_path, QUICK)
    assert planned.missing == tuple(files[:-1])
    assert planned.sizes == {"a": 5, "deaf": 7, "chunks": None, "login": None, "known": 99}
    assert planned.begun == dict.fromkeys(planned.sizes, 0)
    assert not [asked for asked in server.requests if asked.path in ("known", "there")]
    assert {asked.range for asked in server.requests if asked.method == "GET"} == {"bytes=0-0"}
    assert names(tmp_path) == ["there"]


def test_a_plan_asks_mirrors_and_lives_without_answers(serve: Serve, tmp_path: Path) -> None:
    server = serve({"b/x": b"12345"}, {"busy": {"status": 503}})
    moved = RemoteFile("x", (server.url + "a/x", server.url + "b/x"))
    nowhere = RemoteFile("y", ("http://127.0.0.1:9/y",))
    planned = plan([moved, nowhere, file_of(server, "busy")], tmp_path, QUICK)
    assert planned.sizes == {"x": 5, "y": None, "busy": None}


def test_asking_what_is_missing_asks_no_server(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    assert missing_files([file_of(server)], tmp_path / "none") == (file_of(server),)
    assert server.requests == []


# Fetching


def test_a_file_is_fetched_once_verified_and_noted(serve: Serve, tmp_path: Path) -> None:
    server = serve({"deep/u.data": CONTENT})
    file = file_of(server, "deep/u.data", sha256=HASH, bytes=len(CONTENT))
    told: list[tuple[Any, ...]] = []
    for _ in range(2):
        fetch([file], tmp_path, watch=lambda *what: told.append(what))
    assert (tmp_path / "deep" / "u.data").read_bytes() == CONTENT
    assert names(tmp_path) == ["deep", "deep/u.data", "downloads.json"]
    assert len(server.requests) == 1
    assert told[-1] == ("deep/u.data", len(CONTENT), len(CONTENT), "bytes")
    noted = ledger(tmp_path)["deep/u.data"]
    assert noted["address"] == server.url + "deep/u.data"
    assert (noted["bytes"], noted["sha256"]) == (len(CONTENT), HASH)


def test_a_cut_connection_is_resumed_not_restarted(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"cut_after": 200_001}})
    fetch([file_of(server)], tmp_path)
    first, second = server.gets("u.data")
    assert (first.range, second.range) == ("", "bytes=200001-")
    assert second.headers["If-Range"].startswith('"')
    assert (tmp_path / "u.data").read_bytes() == CONTENT
    assert names(tmp_path) == ["downloads.json", "u.data"]


def test_a_tiny_file_is_resumed_too(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": b"1\t2\t3\n4\t5\t6\n"}, {"u.data": {"cut_after": 3}})
    fetch([file_of(server)], tmp_path)
    assert [asked.range for asked in server.gets("u.data")] == ["", "bytes=3-"]
    assert (tmp_path / "u.data").read_bytes() == b"1\t2\t3\n4\t5\t6\n"


def test_tries_that_bring_the_file_further_do_not_count(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"cut_after": 100_000, "times": 4}})
    assert len(CONTENT) > 4 * 100_000
    fetch([file_of(server)], tmp_path, Web(attempts=2, pause_s=0.01))
    ranges = [asked.range for asked in server.gets("u.data")]
    assert ranges == ["", *(f"bytes={n}00000-" for n in range(1, 5))]
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_a_failed_download_goes_on_in_the_next_call(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"cut_after": 200_000}})
    with pytest.raises(DataError, match=r"cut.*The first 200000 bytes are kept"):
        fetch([file_of(server)], tmp_path, Web(attempts=1))
    assert missing_files([file_of(server)], tmp_path) == (file_of(server),)
    planned = plan([file_of(server)], tmp_path, QUICK)
    assert planned.begun == {"u.data": 200_000}
    assert planned.sizes == {"u.data": len(CONTENT)}
    download(planned, QUICK)
    assert [asked.range for asked in server.gets("u.data")] == ["", "bytes=200000-"]
    assert ledger(tmp_path)["u.data"]["sha256"] == HASH


CHILD = """
    import sys
    from pathlib import Path
    from mmbench.data.cards import RemoteFile
    from mmbench.data.fetch.download import Web, download, plan
    {before}
    file = RemoteFile("u.data", (sys.argv[1],))
    web = Web(attempts=1)
    try:
        download(plan([file], Path(sys.argv[2]), web), web)
    except Exception as error:
        print(error)
        sys.exit(2)
"""


def start(server: Any, folder: Path, before: str = "") -> subprocess.Popen[str]:
    """Another process that fetches u.data."""
    code = textwrap.dedent(CHILD).format(before=before)
    command = [sys.executable, "-c", code, server.url + "u.data", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, size: int) -> None:
    for _ in range(1000):
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_gone_on_with(
    end: signal.Signals, serve: Serve, tmp_path: Path
) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"slow_s": 0.5, "times": 2}})  # HEAD and GET
    with start(server, tmp_path) as process:
        wait_for(tmp_path / "u.data.part", 2**16)
        process.send_signal(end)
        process.communicate()
    kept = (tmp_path / "u.data.part").stat().st_size
    assert 2**16 <= kept < len(CONTENT)
    fetch([file_of(server)], tmp_path)
    assert server.gets("u.data")[-1].range == f"bytes={kept}-"
    assert (tmp_path / "u.data").read_bytes() == CONTENT
    assert names(tmp_path) == ["downloads.json", "u.data"]


def test_the_second_of_two_processes_is_told(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"slow_s": 0.4, "times": 2}})
    with start(server, tmp_path) as first:
        wait_for(tmp_path / "u.data.part", 2**16)
        with pytest.raises(DataError, match=rf"^E104 .* another process \(number {first.pid}\)"):
            fetch([file_of(server)], tmp_path)
        first.communicate()
    assert first.returncode == 0
    assert (tmp_path / "u.data").read_bytes() == CONTENT
    assert len(server.gets("u.data")) == 1


def test_a_part_that_came_whole_is_not_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    (tmp_path / "u.data.part").write_bytes(CONTENT)
    notes = {"address": server.url + "u.data", "etag": '"x"', "modified": "", "total": len(CONTENT)}
    (tmp_path / "u.data.part.json").write_text(json.dumps(notes))
    fetch([file_of(server)], tmp_path)
    assert server.gets("u.data") == []
    assert names(tmp_path) == ["downloads.json", "u.data"]


def test_a_part_without_notes_is_not_trusted(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    for notes in (None, "{", "[]", '{"address": 1}'):
        (tmp_path / "u.data").unlink(missing_ok=True)
        (tmp_path / "u.data.part").write_bytes(b"something else")
        if notes is not None:
            (tmp_path / "u.data.part.json").write_text(notes)
        fetch([file_of(server)], tmp_path)
        assert (tmp_path / "u.data").read_bytes() == CONTENT
    assert {asked.range for asked in server.gets("u.data")} == {""}


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(
    honest: bool, serve: Serve, tmp_path: Path
) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"cut_after": 200_000}})
    with pytest.raises(DataError):
        fetch([file_of(server)], tmp_path, Web(attempts=1))
    server.files["u.data"] = changed = CONTENT[::-1]
    if not honest:  # a server that answers 206 whatever If-Range says
        range_of = f"bytes 200000-{len(CONTENT) - 1}/{len(CONTENT)}"
        server.fault(
            "u.data",
            times=2,  # HEAD and GET
            status=206,
            body=changed[200_000:],
            headers={"Content-Range": range_of, "ETag": '"new"'},
        )
    fetch([file_of(server)], tmp_path)
    ranges = [asked.range for asked in server.gets("u.data")]
    assert ranges == ["", "bytes=200000-"] + ([] if honest else [""])
    assert (tmp_path / "u.data").read_bytes() == changed


def test_a_file_that_became_shorter_is_fetched_anew(serve: Serve, tmp_path: Path) -> None:
    faults = {"u.data": {"cut_after": 200_000, "headers": {"ETag": None}}}
    server = serve({"u.data": CONTENT}, faults)
    with pytest.raises(DataError):
        fetch([file_of(server)], tmp_path, Web(attempts=1))
    server.files["u.data"] = b"short\n"  # Last-Modified is the same: 416
    fetch([file_of(server)], tmp_path)
    assert (tmp_path / "u.data").read_bytes() == b"short\n"


def test_a_server_without_ranges_is_started_over(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"cut_after": 200_000, "no_ranges": True}})
    with pytest.raises(DataError):
        fetch([file_of(server)], tmp_path, Web(attempts=1))
    server.fault("u.data", no_ranges=True)
    fetch([file_of(server)], tmp_path)
    assert [asked.range for asked in server.gets("u.data")] == ["", "bytes=200000-"]
    assert (tmp_path / "u.data").read_bytes() == CONTENT
    assert ledger(tmp_path)["u.data"]["sha256"] == HASH


def test_a_server_that_marks_no_version_is_started_over(serve: Serve, tmp_path: Path) -> None:
    faults = {"u.data": {"cut_after": 200_000, "no_validator": True}}
    server = serve({"u.data": CONTENT}, faults)
    fetch([file_of(server)], tmp_path)
    assert [asked.range for asked in server.gets("u.data")] == ["", ""]
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_with_a_known_hash_another_server_goes_on(serve: Serve, tmp_path: Path) -> None:
    first = serve({"u.data": CONTENT}, {"u.data": {"cut_after": 200_000}})
    second = serve({"u.data": CONTENT})
    first.fault("u.data", cut_after=200_000, no_validator=True)
    addresses = (first.url + "u.data", second.url + "u.data")
    fetch([RemoteFile("u.data", addresses, sha256=HASH)], tmp_path, Web(attempts=1))
    assert [asked.range for asked in second.gets("u.data")] == ["bytes=200000-"]
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_pieces_that_do_not_fit_are_fetched_whole(serve: Serve, tmp_path: Path) -> None:
    first = serve({"u.data": CONTENT[::-1]}, {"u.data": {"cut_after": 200_000}})
    second = serve({"u.data": CONTENT})
    addresses = (first.url + "u.data", second.url + "u.data")
    with pytest.raises(DataError):
        fetch([RemoteFile("u.data", addresses[:1], sha256=HASH)], tmp_path, Web(attempts=1))
    fetch([RemoteFile("u.data", addresses[1:], sha256=HASH)], tmp_path)
    assert [asked.range for asked in second.gets("u.data")] == ["bytes=200000-", ""]
    assert (tmp_path / "u.data").read_bytes() == CONTENT


@pytest.mark.parametrize("wait", ["1", "date"])
def test_a_busy_server_is_given_the_time_it_asks_for(
    wait: str, serve: Serve, tmp_path: Path
) -> None:
    began = time.monotonic()
    if wait == "date":
        wait = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
    server = serve(
        {"u.data": CONTENT}, {"u.data": {"status": 429, "retry_after": wait, "times": 1}}
    )
    fetch([file_of(server, bytes=len(CONTENT))], tmp_path)
    assert time.monotonic() - began >= 0.9
    assert len(server.gets("u.data")) == 2
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_a_server_that_asks_for_too_long_is_given_up(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"status": 429, "retry_after": "86400"}})
    with pytest.raises(DataError, match="429 Too Many Requests, asks to wait 86400 s"):
        fetch([file_of(server, bytes=1)], tmp_path)
    assert len(server.gets("u.data")) == 1


def test_server_errors_are_tried_again_and_pauses_grow(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"status": 503, "times": 3}})
    began = time.monotonic()
    fetch([file_of(server, bytes=len(CONTENT))], tmp_path, Web(attempts=4, pause_s=0.1))
    assert 0.7 <= time.monotonic() - began < 5  # 0.1 + 0.2 + 0.4
    assert len(server.gets("u.data")) == 4


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_gone_comes_from_a_living_mirror(status: int, serve: Serve, tmp_path: Path) -> None:
    server = serve({"new/u.data": CONTENT}, {"old/u.data": {"status": status}})
    addresses = (server.url + "old/u.data", server.url + "new/u.data")
    fetch([RemoteFile("u.data", addresses)], tmp_path)
    assert len(server.gets("old/u.data")) == 1 + (status == 403)  # planning asks by GET as well
    assert ledger(tmp_path)["u.data"]["address"] == addresses[1]
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_dead_and_silent_servers_are_left_for_a_mirror(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"silent": {"silent_s": 3}})
    addresses = ("http://127.0.0.1:9/u.data", server.url + "silent", server.url + "u.data")
    fetch(
        [RemoteFile("u.data", addresses, bytes=len(CONTENT))],
        tmp_path,
        Web(attempts=2, timeout_s=0.3, pause_s=0.01),
    )
    assert len(server.gets("silent")) == 2
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_the_final_message_names_every_address_and_the_cure(serve: Serve, tmp_path: Path) -> None:
    server = serve({}, {"b": {"status": 503}})
    secret = server.url.replace("//", "//me:hidden@")
    addresses = (server.url + "a", secret + "b", "http://127.0.0.1:9/c", "ftp://x.example/d")
    with pytest.raises(DataError) as caught:
        fetch([RemoteFile("x/u.data", addresses)], tmp_path)
    message = str(caught.value)
    assert message.startswith("E104 x/u.data cannot be fetched. Tried ")
    assert f"{server.url}a: 404 Not Found; " in message
    assert f"{server.url}b: 503 Service Unavailable (3 attempts); " in message
    assert "http://127.0.0.1:9/c: no connection (Connection refused) (3 attempts); " in message
    assert "ftp://x.example/d: not an address with http or https. " in message
    assert f"put it to {tmp_path / 'x' / 'u.data'}, or" in message
    assert "--source" in message
    assert "--mirror OLD=NEW" in message
    assert "hidden" not in message
    assert names(tmp_path) == []


def test_mirrors_replace_the_beginnings_of_addresses(serve: Serve, tmp_path: Path) -> None:
    server = serve({"snap/u.data": CONTENT})
    file = RemoteFile("u.data", ("https://snap.example/data/u.data",))
    fetch([file], tmp_path, Web(mirrors={"https://snap.example/data/": server.url + "snap/"}))
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_redirects_are_followed_but_not_out_of_the_web(serve: Serve, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    faults = {
        "moved": {"redirect": "/u.data"},
        "local": {"redirect": secret.as_uri()},
        "ftp": {"redirect": "ftp://127.0.0.1/u.data"},
        "circle": {"redirect": "/circle"},
    }
    server = serve({"u.data": CONTENT}, faults)
    fetch([RemoteFile("u.data", (server.url + "moved",))], tmp_path / "out")
    assert (tmp_path / "out" / "u.data").read_bytes() == CONTENT
    for path, reason in (("local", "scheme"), ("ftp", "scheme"), ("circle", "circle")):
        with pytest.raises(DataError, match=f"^E104 .*{reason}"):
            fetch([RemoteFile("x", (server.url + path,))], tmp_path / "out")
    for address in (secret.as_uri(), "FILE:///etc/passwd", "//x/y", "u.data", "http://"):
        with pytest.raises(DataError, match=r"^E104 .*not an address"):
            fetch([RemoteFile("x", (address,))], tmp_path / "out")
    assert names(tmp_path / "out") == ["downloads.json", "u.data"]


# Verifying


def test_a_wrong_checksum_is_refused_and_not_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    file = file_of(server, sha256="0" * 64)
    with pytest.raises(DataError) as caught:
        fetch([file], tmp_path)
    assert str(caught.value).startswith("E105 u.data cannot be fetched. Tried ")
    assert f"sha256 {HASH}, recorded {'0' * 64}. It was not kept; pass --accept-changed" in str(
        caught.value
    )
    assert len(server.gets("u.data")) == 1
    assert names(tmp_path) == []
    fetch([file], tmp_path, Web(accept_changed=True))
    assert ledger(tmp_path)["u.data"]["sha256"] == HASH


def test_a_mirror_may_have_the_right_checksum(serve: Serve, tmp_path: Path) -> None:
    server = serve({"a": CONTENT[::-1], "b": CONTENT})
    fetch([RemoteFile("u.data", (server.url + "a", server.url + "b"), sha256=HASH)], tmp_path)
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_the_hash_of_the_first_time_is_remembered(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    fetch([file_of(server)], tmp_path)
    (tmp_path / "u.data").unlink()
    server.files["u.data"] = CONTENT + b"new\n"
    with pytest.raises(DataError, match=f"^E105 u.data .*recorded {HASH}"):
        fetch([file_of(server)], tmp_path)
    assert not (tmp_path / "u.data").exists()
    accepting = Web(accept_changed=True)
    fetch([file_of(server)], tmp_path, accepting)
    (tmp_path / "u.data").unlink()
    fetch([file_of(server)], tmp_path)
    assert (tmp_path / "u.data").read_bytes() == CONTENT + b"new\n"


def test_another_length_is_refused_before_it_is_fetched(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"chunks": {"no_length": True}})
    with pytest.raises(DataError, match=f"^E105 .*{len(CONTENT)} bytes, recorded 17"):
        fetch([file_of(server, bytes=17)], tmp_path)
    server.fault("u.data", no_length=True)
    with pytest.raises(DataError, match=f"^E105 .*{len(CONTENT)} bytes, recorded 17"):
        fetch([file_of(server, bytes=17)], tmp_path)
    assert names(tmp_path) == []


def test_a_file_cut_by_hand_is_missing(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    file = file_of(server)
    (tmp_path / "u.data").write_bytes(b"")
    assert missing_files([file], tmp_path) == (file,)
    fetch([file], tmp_path)
    (tmp_path / "u.data").write_bytes(CONTENT[:-1])
    assert missing_files([file], tmp_path) == (file,)
    fetch([file], tmp_path)
    assert (tmp_path / "u.data").read_bytes() == CONTENT
    assert missing_files([file], tmp_path) == ()


@pytest.mark.parametrize("name", ["x.json.gz", "x.csv", "x.zip", "x.b"])
def test_a_login_page_is_named_and_not_kept(name: str, serve: Serve, tmp_path: Path) -> None:
    server = serve({}, {name: {"html": True}})
    message = (
        f"^E106 {name} cannot be fetched. Tried {server.url}{name}: the server sent a web page"
    )
    with pytest.raises(DataError, match=message + ", perhaps a login"):
        fetch([file_of(server, name)], tmp_path)
    page = b"\n<!DOCTYPE html><html>login</html>"
    server.fault(name, body=page, headers={"Content-Type": "text/csv"})
    with pytest.raises(DataError, match=message):
        fetch([file_of(server, name)], tmp_path)
    assert len(server.gets(name)) == 2 + 1  # the first plan asked by GET too
    assert names(tmp_path) == []


def test_a_login_page_does_not_cost_what_was_there(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"cut_after": 200_000}})
    with pytest.raises(DataError):
        fetch([file_of(server)], tmp_path, Web(attempts=1))
    server.fault("u.data", html=True, times=3)
    with pytest.raises(DataError, match=r"^E106 .*The first 200000 bytes are kept"):
        fetch([file_of(server)], tmp_path)
    fetch([file_of(server)], tmp_path)
    assert server.gets("u.data")[-1].range == "bytes=200000-"


def test_a_true_file_may_be_called_a_page(serve: Serve, tmp_path: Path) -> None:
    content = gzip.compress(CONTENT)
    server = serve({"x.gz": content}, {"x.gz": {"headers": {"Content-Type": "text/html"}}})
    fetch([file_of(server, "x.gz")], tmp_path)
    assert (tmp_path / "x.gz").read_bytes() == content


def test_an_encoding_is_undone_but_not_that_of_a_gzip_file(serve: Serve, tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    encoded = {"headers": {"Content-Encoding": "gzip"}}
    server = serve({"x.csv": packed, "x.json.gz": packed}, {"x.csv": encoded, "x.json.gz": encoded})
    fetch([file_of(server, "x.csv"), file_of(server, "x.json.gz")], tmp_path)
    assert (tmp_path / "x.csv").read_bytes() == CONTENT
    assert (tmp_path / "x.json.gz").read_bytes() == packed


def test_what_is_decoded_on_the_way_is_started_over(serve: Serve, tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT, compresslevel=1)
    fault = {"cut_after": len(packed) // 2, "headers": {"Content-Encoding": "gzip"}}
    server = serve({"u.data": packed}, {"u.data": fault})
    file = file_of(server, bytes=len(CONTENT), sha256=HASH)
    with pytest.raises(DataError):
        fetch([file], tmp_path, Web(attempts=1))
    assert (tmp_path / "u.data.part").stat().st_size > 0
    server.fault("u.data", headers={"Content-Encoding": "gzip"})
    fetch([file], tmp_path, Web(attempts=1))
    assert [asked.range for asked in server.gets("u.data")] == ["", ""]
    assert (tmp_path / "u.data").read_bytes() == CONTENT


class EndsEarly(http.server.BaseHTTPRequestHandler):
    """HTTP/1.0 without a length: the end of the connection is the end of the file."""

    body = b""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)


def test_an_early_end_without_a_length_is_found_in_gzip(tmp_path: Path) -> None:
    EndsEarly.body = gzip.compress(CONTENT)[:-100]
    with http.server.HTTPServer(("127.0.0.1", 0), EndsEarly) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/x.gz"
        try:
            with pytest.raises(DataError, match=r"^E106 .*not a complete gzip.*3 attempts"):
                fetch([RemoteFile("x.gz", (address,))], tmp_path)
        finally:
            server.shutdown()
            thread.join()
    assert names(tmp_path) == []


def test_an_empty_answer_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": b""})
    with pytest.raises(DataError, match=r"^E106 .*the server sent an empty file"):
        fetch([file_of(server)], tmp_path)
    assert names(tmp_path) == []


# Archives

ARCHIVE = zipped(ml__u_data=CONTENT, ml__README=b"read me")


def test_an_archive_is_unpacked_once_and_may_be_deleted(serve: Serve, tmp_path: Path) -> None:
    server = serve({"ml.zip": ARCHIVE})
    file = file_of(server, "ml.zip", unpacks_to="")
    fetch([file], tmp_path)
    assert (tmp_path / "ml" / "u_data").read_bytes() == CONTENT
    assert missing_files([file], tmp_path) == ()
    (tmp_path / "ml.zip").unlink()
    fetch([file], tmp_path)
    assert len(server.gets("ml.zip")) == 1
    (tmp_path / "ml").rename(tmp_path / "gone")
    assert missing_files([file], tmp_path) == (file,)


def test_an_archive_that_is_there_is_unpacked_not_fetched(serve: Serve, tmp_path: Path) -> None:
    server = serve({})
    (tmp_path / "ml.zip").write_bytes(ARCHIVE)
    file = file_of(server, "ml.zip", unpacks_to="in/side")
    planned = plan([file], tmp_path, QUICK)
    assert planned.sizes == planned.begun == {"ml.zip": len(ARCHIVE)}
    download(planned, QUICK)
    assert (tmp_path / "in" / "side" / "ml" / "README").read_bytes() == b"read me"
    assert server.requests == []
    other = RemoteFile("ml.zip", file.addresses, sha256="0" * 64, unpacks_to="other")
    (tmp_path / "downloads.json").unlink()
    with pytest.raises(DataError, match=r"^E105 .*ml.zip: sha256 .*delete it or pass --accept"):
        fetch([other], tmp_path)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_half_written_archive_is_removed_and_fetched_again(
    name: str, serve: Serve, tmp_path: Path
) -> None:
    whole = ARCHIVE
    if name == "x.tar.gz":
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            member = tarfile.TarInfo("ml/u_data")
            member.size = len(CONTENT)
            archive.addfile(member, io.BytesIO(CONTENT))
        whole = file.getvalue()
    server = serve({name: whole[: len(whole) // 2]})
    remote = file_of(server, name, unpacks_to="")
    with pytest.raises(DataError, match=rf"^E106 {name} .*not a complete (zip|gzip) file \("):
        fetch([remote], tmp_path)
    assert not (tmp_path / name).exists()
    assert not (tmp_path / "ml").exists()
    server.files[name] = whole
    fetch([remote], tmp_path)
    assert (tmp_path / "ml" / "u_data").read_bytes() == CONTENT


def test_the_hash_of_a_broken_archive_is_not_asked_of_the_next(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve({"ml.zip": ARCHIVE})
    broken = ARCHIVE[:100]
    (tmp_path / "ml.zip").write_bytes(broken)
    entry = {
        "address": server.url + "ml.zip",
        "bytes": 100,
        "sha256": hashlib.sha256(broken).hexdigest(),
        "date": "2024-01-01T00:00:00+00:00",
        "unpacked": None,
    }  # as a process leaves it that ended between fetching and unpacking
    (tmp_path / "downloads.json").write_text(json.dumps({"files": {"ml.zip": entry}}))
    fetch([file_of(server, "ml.zip", unpacks_to="")], tmp_path)
    assert (tmp_path / "ml" / "u_data").read_bytes() == CONTENT
    assert names(tmp_path) == ["downloads.json", "ml", "ml.zip", "ml/README", "ml/u_data"]


def test_a_broken_archive_brought_by_hand_is_put_aside(serve: Serve, tmp_path: Path) -> None:
    server = serve({"ml.zip": ARCHIVE})
    (tmp_path / "ml.zip").write_bytes(ARCHIVE[:100])
    fetch([file_of(server, "ml.zip", unpacks_to="")], tmp_path)
    assert (tmp_path / "ml.zip.broken").read_bytes() == ARCHIVE[:100]
    assert (tmp_path / "ml" / "u_data").read_bytes() == CONTENT


def test_a_short_file_brought_by_hand_is_not_overwritten(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT, "ml.zip": ARCHIVE})
    archive = file_of(server, "ml.zip", bytes=len(ARCHIVE) + 1, unpacks_to="")
    files = [file_of(server, bytes=len(CONTENT)), archive]
    (tmp_path / "u.data").write_bytes(CONTENT[:100])
    (tmp_path / "ml.zip").write_bytes(ARCHIVE)
    message = rf"^E105 .*u.data: 100 bytes, recorded {len(CONTENT)}; delete it to fetch it anew"
    with pytest.raises(DataError, match=message):
        fetch(files, tmp_path)
    fetch(files, tmp_path, Web(accept_changed=True))
    assert missing_files(files, tmp_path) == ()
    assert (tmp_path / "u.data").read_bytes() == CONTENT[:100]
    assert (tmp_path / "ml" / "u_data").read_bytes() == CONTENT
    assert server.requests == []


def test_a_server_may_give_less_than_was_asked_for(serve: Serve, tmp_path: Path) -> None:
    faults = {"u.data": {"cut_after": 200_000, "no_length": True}}
    server = serve({"u.data": CONTENT}, faults)
    file = file_of(server, bytes=len(CONTENT))
    with pytest.raises(DataError, match="the connection was cut"):
        fetch([file], tmp_path, Web(attempts=1))
    etag = json.loads((tmp_path / "u.data.part.json").read_text())["etag"]
    kept = (tmp_path / "u.data.part").stat().st_size
    server.fault(
        "u.data",
        times=1,
        status=206,
        body=CONTENT[kept : kept + 1000],
        headers={"ETag": etag, "Content-Range": f"bytes {kept}-{kept + 999}/{len(CONTENT)}"},
    )
    fetch([file], tmp_path)
    ranges = [asked.range for asked in server.gets("u.data")]
    assert ranges == ["", f"bytes={kept}-", f"bytes={kept + 1000}-"]
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_an_archive_that_leads_outside_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve({"evil.zip": zipped(fine=b"fine", **{"..__evil": b"evil"})})
    file = file_of(server, "evil.zip", unpacks_to="")
    for _ in range(2):
        with pytest.raises(DataError, match=r"^E107 .*unsafe member '../evil'"):
            fetch([file], tmp_path / "raw")
    assert len(server.gets("evil.zip")) == 1
    assert names(tmp_path) == ["raw", "raw/downloads.json", "raw/evil.zip"]
    assert missing_files([file], tmp_path / "raw") == (file,)


# Disks


def test_a_file_that_does_not_fit_is_not_begun(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"headers": {"Content-Length": str(10**18)}}})
    with pytest.raises(DataError, match=r"^E108 909494.7 TiB needed, \S+ \S+ free in "):
        fetch([file_of(server, bytes=10**18)], tmp_path / "raw")
    assert server.gets("u.data") == []
    assert not (tmp_path / "raw").exists()
    with pytest.raises(DataError, match=r"^E108 888.2 PiB needed|^E108 909494.7 TiB needed"):
        fetch([file_of(server)], tmp_path / "raw")


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_a_full_disk_leaves_a_part_to_go_on_with(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150000, 150000))"
    with start(server, tmp_path, limit) as process:
        output, _ = process.communicate()
    assert process.returncode == 2
    assert output.startswith(f"E108 cannot write to {tmp_path} (File too large, ")
    assert "what came is kept" in output
    assert (tmp_path / "u.data.part").read_bytes() == CONTENT[:150_000]
    fetch([file_of(server)], tmp_path)
    assert server.gets("u.data")[-1].range == "bytes=150000-"
    assert (tmp_path / "u.data").read_bytes() == CONTENT


def test_a_file_in_the_place_of_the_folder_is_named(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT})
    (tmp_path / "raw").write_bytes(b"a file")
    with pytest.raises(DataError, match=rf"^E108 cannot write to {tmp_path}/raw \("):
        fetch([file_of(server)], tmp_path / "raw")


def test_the_watch_is_called_at_most_ten_times_a_second(serve: Serve, tmp_path: Path) -> None:
    server = serve({"u.data": CONTENT}, {"u.data": {"slow_s": 0.03}})
    told: list[float] = []
    fetch([file_of(server)], tmp_path, watch=lambda *_: told.append(time.monotonic()))
    between = [later - earlier for earlier, later in itertools.pairwise(told[:-1])]
    assert len(told) >= 2
    assert all(pause >= 0.09 for pause in between)
