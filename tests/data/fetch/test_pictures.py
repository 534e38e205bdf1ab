"""Pictures from a real server on this machine: in parallel, each once, and each failure told."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmbench.data.fetch.pictures import fetch_pictures, find_pictures, picture_suffix
from mmbench.data.fetch.web import Web
from mmbench.errors import DataError

Serve = Callable[..., Any]
QUICK = Web(attempts=2, timeout_s=5, pause_s=0.01, connections=4)


def picture(seed: int = 0, kind: str = "JPEG", side: int = 20) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def listed(folder: Path) -> list[list[str]]:
    with (folder / "image_failures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def one_each(server: Any, items: Mapping[str, str]) -> dict[str, list[str]]:
    return {item: [server.url + path] for item, path in items.items()}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("GIF", ".gif"), ("BMP", ".bmp")],
)
def test_the_type_is_what_the_content_shows(kind: str, suffix: str) -> None:
    assert picture_suffix(picture(kind=kind)[:32]) == suffix
    assert picture_suffix(b"\0" + picture(kind=kind)[:31]) is None


@pytest.mark.parametrize(
    "start", [b"", b"BM is no bitmap, but the text of a label", b"RIFF1234WAVE"]
)
def test_what_only_begins_like_a_picture_is_none(start: bytes) -> None:
    assert picture_suffix(start[:32]) is None


def test_pictures_are_fetched_named_and_never_fetched_again(serve: Serve, tmp_path: Path) -> None:
    content = {"a.jpg": picture(1), "wrong.jpg": picture(2, "PNG"), "c": picture(3, "WEBP")}
    server = serve(content, {"c": {"headers": {"Content-Type": "text/plain"}}})
    addresses = one_each(server, {"007": "a.jpg", "b/../x y": "wrong.jpg", ".c": "c"})
    told: list[tuple[Any, ...]] = []
    images = tmp_path / "raw" / "images"
    for _ in range(2):
        found = fetch_pictures(addresses, images, QUICK, lambda *what: told.append(what))
        assert found.failures == {}
        assert found.files == {
            "007": "007.jpg",
            "b/../x y": "b%2F..%2Fx%20y.png",
            ".c": "%2Ec.webp",
        }
    for item, path in (("007", "a.jpg"), ("b/../x y", "wrong.jpg"), (".c", "c")):
        assert (images / found.files[item]).read_bytes() == content[path]
    assert len(server.requests) == 3
    assert told[-1] == ("pictures", 3, 3, "files")
    assert sorted(path.name for path in images.iterdir()) == sorted(found.files.values())
    assert [path.name for path in images.parent.iterdir()] == ["images"]
    assert find_pictures(["x", *addresses], images) == found


def test_every_failure_is_told_and_listed(serve: Serve, tmp_path: Path) -> None:
    faults: dict[str, dict[str, Any]] = {
        "gone": {"status": 404},
        "busy": {"status": 503},
        "login": {"html": True},
        "text": {"body": b"no picture here", "headers": {"Content-Type": None}},
        "empty": {"body": b""},
        "huge": {"headers": {"Content-Length": str(51 * 2**20)}, "times": 1},
        "silent": {"silent_s": 1.5},
        "cut": {"cut_after": 300, "times": 9},
    }
    server = serve(dict.fromkeys([*faults, "fine"], picture()), faults)
    addresses = one_each(server, {path: path for path in [*faults, "fine"]})
    addresses |= {"none": [], "odd": ["data:image/png;base64,AAAA"], "ünï,\n": ["/x.jpg"]}
    web = Web(attempts=2, timeout_s=0.5, pause_s=0.01)
    found = fetch_pictures(addresses, tmp_path / "images", web)
    assert found.files == {"fine": "fine.jpg"}
    assert found.failures == {
        "gone": "404",
        "busy": "503",
        "login": "not a picture (text/html)",
        "text": "not a picture (of no type)",
        "empty": "empty",
        "huge": "more than 50.0 MiB",
        "silent": "no answer within 0.5 s",
        "cut": "the connection was cut",
        "none": "no address",
        "odd": "not an address with http or https",
        "ünï,\n": "not an address with http or https",
    }
    rows = listed(tmp_path)
    assert rows[0] == ["item_id", "url", "status"]
    assert ["gone", server.url + "gone", "404"] in rows
    assert ["none", "", "no address"] in rows
    assert {item: status for item, _, status in rows[1:]} == found.failures
    assert rows[1:] == sorted(rows[1:])
    assert len(server.gets("gone")) == len(server.gets("login")) == 1
    assert len(server.gets("busy")) == len(server.gets("cut")) == 2
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["fine.jpg"]
    assert find_pictures(list(addresses), tmp_path / "images") == found


def test_a_picture_without_a_length_is_cut_off_while_it_comes(serve: Serve, tmp_path: Path) -> None:
    server = serve({"huge": picture() + bytes(51 * 2**20)}, {"huge": {"no_length": True}})
    found = fetch_pictures(one_each(server, {"x": "huge"}), tmp_path / "images", QUICK)
    assert found.failures == {"x": "more than 50.0 MiB"}
    assert list((tmp_path / "images").iterdir()) == []


def test_addresses_are_tried_in_order(serve: Serve, tmp_path: Path) -> None:
    content = {"small": picture(1), "large": picture(2), "other": picture(3)}
    server = serve(content, {"gone": {"status": 404}, "login": {"html": True}})
    addresses = {
        "a": [server.url + path for path in ("gone", "login", "large")],
        "b": [server.url + path for path in ("small", "large")],
        "c": [server.url + path for path in ("gone", "login", "gone")],
    }
    found = fetch_pictures(addresses, tmp_path / "images", QUICK)
    assert found.files == {"a": "a.jpg", "b": "b.jpg"}
    assert found.failures == {"c": "404; not a picture (text/html)"}
    assert (tmp_path / "images" / "a.jpg").read_bytes() == content["large"]
    assert (tmp_path / "images" / "b.jpg").read_bytes() == content["small"]
    asked = sorted(asked.path for asked in server.requests)
    assert asked == ["gone", "large", "login", "small"]


def test_a_shared_address_is_fetched_once(serve: Serve, tmp_path: Path) -> None:
    server = serve({"same": picture(1)}, {"gone": {"status": 404}})
    same, gone = server.url + "same", server.url + "gone"
    addresses = {"a": [same], "b": [same], "c": [gone, same], "d": [gone], "e": [gone, gone]}
    found = fetch_pictures(addresses, tmp_path / "images", QUICK)
    assert found.files == {"a": "a.jpg", "b": "b.jpg", "c": "c.jpg"}
    assert found.failures == {"d": "404", "e": "404"}
    assert len(server.requests) == 2
    for name in found.files.values():
        assert (tmp_path / "images" / name).read_bytes() == picture(1)


def test_failures_of_earlier_calls_stay_until_they_are_mended(serve: Serve, tmp_path: Path) -> None:
    server = serve({"b": picture()}, {"b": {"status": 404}})
    images = tmp_path / "images"
    fetch_pictures(one_each(server, {"a": "a", "b": "b"}), images, QUICK)
    assert [row[0] for row in listed(tmp_path)[1:]] == ["a", "b"]
    server.fault("b")
    fetch_pictures(one_each(server, {"b": "b", "c": "c"}), images, QUICK)
    assert [row[0] for row in listed(tmp_path)[1:]] == ["a", "c"]
    assert find_pictures(["a", "b", "c", "d"], images).failures == {"a": "404", "c": "404"}
    server.files |= {"a": picture(), "c": picture()}
    fetch_pictures(one_each(server, {"a": "a", "c": "c"}), images, QUICK)
    assert not (tmp_path / "image_failures.csv").exists()


def test_a_busy_server_is_asked_again(serve: Serve, tmp_path: Path) -> None:
    server = serve({"a": picture()}, {"a": {"status": 429, "retry_after": "1", "times": 1}})
    began = time.monotonic()
    found = fetch_pictures(one_each(server, {"a": "a"}), tmp_path / "images", QUICK)
    assert found.files == {"a": "a.jpg"}
    assert time.monotonic() - began >= 0.9


def test_connections_are_parallel_and_bounded_by_host(serve: Serve, tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(24)]
    faults = {name: {"silent_s": 0.03} for name in names}
    first, second = (serve(dict.fromkeys(names, picture()), faults) for _ in range(2))
    addresses = {f"a{name}": [first.url + name] for name in names}
    addresses |= {f"b{name}": [second.url + name] for name in names}
    web = Web(connections=6, connections_per_host=2, pause_s=0.01)
    found = fetch_pictures(addresses, tmp_path / "images", web)
    assert len(found.files) == 48
    assert (first.busiest, second.busiest) == (2, 2)
    assert len(first.requests) == len(second.requests) == 24


def test_ids_that_differ_by_case_or_are_long_get_files_of_their_own(
    serve: Serve, tmp_path: Path
) -> None:
    items = ["aB", "Ab", "ab", "AB", "x" * 400, "x" * 399 + "y", "", "..", "con", "%41b"]
    server = serve({f"p{n}": picture(n) for n in range(len(items))})
    addresses = {item: [f"{server.url}p{n}"] for n, item in enumerate(items)}
    images = tmp_path / "images"
    found = fetch_pictures(addresses, images, QUICK)
    assert list(found.failures) == []
    assert len({name.casefold() for name in found.files.values()}) == len(items)
    for n, item in enumerate(items):
        assert (images / found.files[item]).read_bytes() == picture(n)
        assert len(found.files[item]) < 200
    assert found.files["aB"] == "aB.jpg"
    assert found.files["Ab"] == "%41%62.jpg"
    assert found.files["%41b"] == "%2541b.jpg"
    assert found.files[".."] == "%2E..jpg"
    assert find_pictures(items, images) == found
    assert fetch_pictures(addresses, images, QUICK) == found
    assert len(server.requests) == len(items)


def test_mirrors_hold_for_pictures_too(serve: Serve, tmp_path: Path) -> None:
    server = serve({"img/a.jpg": picture()})
    web = Web(mirrors={"http://shop.example/": server.url})
    addresses = {"a": ["http://shop.example/img/a.jpg"], "b": ["http://shop.example/none"]}
    found = fetch_pictures(addresses, tmp_path / "images", web)
    assert found.files == {"a": "a.jpg"}
    assert listed(tmp_path)[1:] == [["b", "http://shop.example/none", "404"]]


CHILD = """
    import sys
    from pathlib import Path
    from mmbench.data.fetch.pictures import fetch_pictures
    from mmbench.data.fetch.web import Web
    addresses = {{str(n): [sys.argv[1] + str(n)] for n in range(40)}}
    try:
        {limit}
        fetch_pictures(addresses, Path(sys.argv[2]), Web(connections=2))
    except KeyboardInterrupt:
        sys.exit(3)
    except Exception as error:
        print(error)
        sys.exit(2)
"""


def start(server: Any, folder: Path, limit: str = "pass") -> subprocess.Popen[str]:
    code = textwrap.dedent(CHILD).format(limit=limit)
    command: Sequence[str] = [sys.executable, "-c", code, server.url, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_what_is_done_stays_when_it_is_ended(
    end: signal.Signals, serve: Serve, tmp_path: Path
) -> None:
    names = [str(n) for n in range(40)]
    server = serve({name: picture() for name in names[1:]}, {n: {"silent_s": 0.1} for n in names})
    images = tmp_path / "images"
    with start(server, images) as process:
        for _ in range(1000):
            if images.exists() and len(list(images.glob("[0-9]*.jpg"))) >= 4:
                break
            time.sleep(0.01)
        process.send_signal(end)
        process.communicate()
    assert process.returncode == (3 if end is signal.SIGINT else -signal.SIGKILL)
    if end is signal.SIGINT:
        assert listed(tmp_path)[1:] == [["0", server.url + "0", "404"]]
    done = find_pictures(names, images).files
    assert 4 <= len(done) < 39
    before = len(server.requests)
    for name in names:
        server.fault(name)
    found = fetch_pictures({name: [server.url + name] for name in names}, images, QUICK)
    assert len(server.requests) - before == 40 - len(done)
    assert (len(found.files), found.failures) == (39, {"0": "404"})
    assert not list(images.glob(".*"))


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_a_full_disk_ends_it_with_a_message(serve: Serve, tmp_path: Path) -> None:
    server = serve({str(n): picture(n, "BMP") for n in range(40)})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"
    with start(server, tmp_path / "images", limit) as process:
        output, _ = process.communicate()
    assert process.returncode == 2
    assert output.startswith(f"E108 cannot write to {tmp_path / 'images'} (File too large, ")
    assert not list((tmp_path / "images").iterdir())


def test_the_second_of_two_processes_is_told(serve: Serve, tmp_path: Path) -> None:
    names = [str(n) for n in range(40)]
    server = serve(dict.fromkeys(names, picture()), {name: {"silent_s": 0.1} for name in names})
    with start(server, tmp_path / "images") as process:
        for _ in range(1000):
            if server.requests:
                break
            time.sleep(0.01)
        with pytest.raises(DataError, match=rf"^E104 .*another process \(number {process.pid}\)"):
            fetch_pictures({"0": [server.url + "0"]}, tmp_path / "images", QUICK)
        process.communicate()
    assert process.returncode == 0
    assert len(server.requests) == 40


def test_finding_in_a_folder_that_is_not_there_finds_nothing(tmp_path: Path) -> None:
    found = find_pictures(["a"], tmp_path / "none")
    assert (found.files, found.failures) == ({}, {})
    (tmp_path / "image_failures.csv").write_bytes(b"\xff\xfe not a list")
    assert find_pictures(["a"], tmp_path / "none") == found
