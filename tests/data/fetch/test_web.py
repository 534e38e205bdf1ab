"""Mirrors and settings, as people give them."""

from __future__ import annotations

import pytest

from mmbench.data.fetch.asking import host_of
from mmbench.data.fetch.web import Ticker, Web, read_mirrors, shown, size_text
from mmbench.errors import ConfigError


def test_mirrors_come_from_the_environment_and_from_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variable = "https://a.example/=http://localhost:1/a/; http://b.example/x?id=http://c.example/ ;"
    monkeypatch.setenv("MMBENCH_MIRRORS", variable)
    web = Web.from_environment(["https://a.example/=https://new.example/"], attempts=2)
    assert web.attempts == 2
    assert web.mirrors == {
        "https://a.example/": "https://new.example/",
        "http://b.example/x?id": "http://c.example/",
    }
    monkeypatch.delenv("MMBENCH_MIRRORS")
    assert Web.from_environment() == Web()


def test_the_longest_fitting_beginning_is_replaced() -> None:
    texts = ["http://a/=http://x/", "http://a/deep/=http://y/?q=1&path="]
    web = Web(mirrors=read_mirrors(texts, "--mirror"))
    assert web.reach("http://a/b.zip") == "http://x/b.zip"
    assert web.reach("http://a/deep/b.zip") == "http://y/?q=1&path=b.zip"
    assert web.reach("http://b/a/") == "http://b/a/"


@pytest.mark.parametrize(
    "text", ["", "x", "http://a/", "a=b", "http://a/=", "http://a/=ftp://b/", "=http://b/", "http://a/=http://"]
)  # fmt: skip
def test_a_bad_mirror_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--mirror: '.*' is not OLD=NEW, .* for example https"):
        read_mirrors([text], "--mirror")


def test_a_bad_mirror_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBENCH_MIRRORS", "https://a/=https://b/;nonsense")
    with pytest.raises(ConfigError, match=r"^MMBENCH_MIRRORS: 'nonsense' is not OLD=NEW"):
        Web.from_environment()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 0}, "attempts=0 must be 1 or more"),
        ({"connections": 0}, "connections=0 must be 1 or more"),
        ({"connections_per_host": -1}, "connections_per_host=-1 must be 1 or more"),
        ({"timeout_s": 0.0}, "timeout_s=0.0 must be above 0"),
        ({"pause_s": -1.0}, "pause_s=-1.0 must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Web(**settings)  # type: ignore[arg-type]


def test_pauses_double_up_to_a_longest_one() -> None:
    web = Web(pause_s=0.5, longest_pause_s=3)
    assert [web.pause(n) for n in (1, 2, 3, 4, 10_000)] == [0.5, 1, 2, 3, 3]


def test_passwords_are_not_shown() -> None:
    assert shown("https://me:secret@a.example:8/x?y=1") == "https://a.example:8/x?y=1"
    assert shown("http://[half") == "http://[half"


def test_only_web_addresses_have_a_host() -> None:
    assert host_of("HTTP://Me:x@A.example:80/x") == "a.example:80"
    assert host_of("https://a.example") == "a.example:"
    for address in ("ftp://a/", "file:///a", "/a", "a", "", "http://", "http://a:b/", "http://[a"):
        assert not host_of(address)


def test_sizes_are_written_as_people_read_them() -> None:
    assert [size_text(n) for n in (0, 1023, 1536, 5 * 2**30, 3 * 2**50)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 GiB",
        "3072.0 TiB",
    ]


def test_a_ticker_is_quiet_between_but_not_at_the_end() -> None:
    told: list[tuple[str, int, int | None, str]] = []
    ticker = Ticker(lambda *what: told.append(what), "x", "bytes", 100)
    for done in range(100):
        ticker(done)
    ticker(100, last=True)
    assert told[0] == ("x", 0, 100, "bytes")
    assert told[-1] == ("x", 100, 100, "bytes")
    assert len(told) < 50
