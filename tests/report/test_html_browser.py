"""The page in a real browser: sorting, both themes, a phone, no request and no console error.

Chromium is driven over its own pipe (the DevTools protocol), so nothing needs to be installed
beside it. Without a Chromium these tests are left out, and pytest's header says so.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmbench.report.cold_start import Scope, compare_cold
from mmbench.report.html.evidence import Request, gather
from mmbench.report.html.page import head_of, make_sections, render
from mmbench.report.tsne import Geometry, Panels

pytestmark = pytest.mark.browser
PATIENCE = 60.0
HOSTILE = '<b>"x"&</b></script><img src="http://127.0.0.1:9/x">'
# Puts the ends of the pipe where Chromium looks for them, then becomes Chromium.
LAUNCH = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); "
LAUNCH += "os.execv(sys.argv[3], sys.argv[3:])"


class Browser:
    """One Chromium with one page."""

    def __init__(self, program: str, profile) -> None:
        theirs_in, self.out = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in self.pipe())
        self.into, theirs_out = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in self.pipe())
        arguments = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), *arguments],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.unread, self.number, self.events = b"", 0, []
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def pipe(self):
        self.raw = [*getattr(self, "raw", []), *os.pipe()]
        return self.raw[-2:]

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda m: m.get("id") == self.number)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def wait(self, wanted):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            message, found, rest = self.unread.partition(b"\0")
            if found:
                self.unread = rest
                decoded = json.loads(message)
                self.events.append(decoded)
                if wanted(decoded):
                    return decoded
            elif select.select([self.into], [], [], 1.0)[0]:
                block = os.read(self.into, 1 << 20)
                assert block, "the browser ended"
                self.unread += block
        raise AssertionError("the browser did not answer")

    def open(self, url) -> None:
        self.call("Page.navigate", url=url)
        self.wait(lambda message: message.get("method") == "Page.loadEventFired")

    def run(self, expression):
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def comes(self, expression, value) -> bool:
        """Whether an expression has a value within five seconds."""
        until = time.monotonic() + 5
        while self.run(expression) != value:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def press(self, key) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            codes = {"windowsVirtualKeyCode": 13, "key": key, "code": key}
            self.call("Input.dispatchKeyEvent", type=kind, **codes, **text)

    def screenshot(self):
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")

    def width(self, pixels, *, mobile=False) -> None:
        sizes = {"width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)

    def prefer(self, theme) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def close(self) -> None:
        self.session = None
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in (*self.raw, self.into, self.out):
            os.close(end)


def scattered(labels):
    """Vectors in two dimensions of each system, at random."""
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(3), 8)
    return Panels(
        labels=labels,
        popularity=np.arange(40) * 3,
        by_item=tuple(rng.normal(size=(40, 2)) for _ in labels),
        users=np.array([4, 7, 9]),
        owner=owner,
        by_user=tuple(rng.normal(size=(len(owner), 2)) for _ in labels),
        numbers=tuple(Geometry(label, 64, 0.5, 0.3, 0.2, 0.1, 80) for label in labels),
    )


@pytest.fixture(scope="module")
def page(laboratory, tmp_path_factory):
    """The address of a page of five systems, one of them with a hostile label."""
    folder = tmp_path_factory.mktemp("browser")
    lab = laboratory(folder / "runs", n_users=80, n_items=50, depth=20)
    labels = ("alpha", "a system with quite a long label (features.textual=minilm-l6)", HOSTILE)
    labels += ("beta", "gamma")
    runs = [
        lab.run(label, quality=2.0 - 0.5 * place, system=str(place), folder=str(place))
        for place, label in enumerate(labels)
    ]
    everyone = np.full(lab.n_users, lab.n_items)
    cold = np.arange(lab.n_items) % 5 == 0
    scopes = [
        Scope("overall", "test", None, everyone),
        Scope("warm", "test", ~cold, everyone),
        Scope("cold", "test", cold, everyone, is_cold=True),
    ]
    table = compare_cold(runs, scopes, ["recall@10"], definition="items")
    evidence = replace(gather(Request(runs)), cold=(table,), panels=scattered(labels))
    file = folder / "report.html"
    file.write_text(render(head_of(evidence), make_sections(evidence)), encoding="utf-8")
    return file.as_uri(), evidence


@pytest.fixture(scope="module")
def chromium(browser_program, tmp_path_factory):
    browser = Browser(browser_program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, page):
    chromium.events.clear()
    chromium.width(1280)
    chromium.prefer("light")
    chromium.open(page[0])
    yield chromium
    asked = [
        e["params"]["request"]["url"]
        for e in chromium.events
        if e.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if url != page[0] and not url.startswith("data:")] == []
    assert page[0] in asked  # requests are seen at all
    bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [e for e in chromium.events if e.get("method") in bad] == []


COLUMN = """[...document.querySelectorAll("#leaderboard tbody tr")].map((row) =>
    row.cells[%d].dataset.value)"""
CLICK = """document.querySelectorAll("#leaderboard thead tr:last-child th")[%d]
    .querySelector("button").%s()"""
STATE = """document.querySelectorAll("#leaderboard thead tr:last-child th")[%d]
    .getAttribute("aria-sort")"""


def test_sorts_by_every_column_and_back(browser, page):
    heads = browser.run('document.querySelectorAll("#leaderboard thead tr:last-child th").length')
    assert heads == 2 + 4 * 3
    for index in range(heads):
        browser.run(CLICK % (index, "click"))
        first = browser.run(COLUMN % index)
        state = browser.run(STATE % index)
        browser.run(CLICK % (index, "click"))
        second = browser.run(COLUMN % index)
        for values, order in ((first, state), (second, browser.run(STATE % index))):
            known = [value for value in values if value != ""]
            assert values[: len(known)] == known  # what has no value stands last, either way
            numbers = known if index == 0 else [float(value) for value in known]
            descending = order == "descending"
            key = str.casefold if index == 0 else None
            if index == 0:  # where signs of punctuation stand is the browser's affair
                numbers = [n for n in numbers if n != HOSTILE]
            assert numbers == sorted(numbers, key=key, reverse=descending)
        assert {state, browser.run(STATE % index)} == {"ascending", "descending"}
    others = [browser.run(STATE % index) for index in range(heads - 1)]
    assert set(others) == {"none"}


# Every head of every table but the leaderboard, twice; the names of what is out of order.
SORTS = """[...document.querySelectorAll("table.sortable:not(#leaderboard)")].flatMap((table) => {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    return heads.flatMap((head, index) => [1, 2].flatMap(() => {
        head.querySelector("button").click();
        const state = head.getAttribute("aria-sort");
        const values = [...table.tBodies[0].rows].map((row) => row.cells[index].dataset.value);
        const known = values.filter((value) => value !== "");
        const numeric = head.classList.contains("number");
        const sign = state === "ascending" ? 1 : -1;
        const good = known.every((value, at) => value === values[at] && (at === 0 || sign *
            (numeric ? value - known[at - 1] : value.localeCompare(known[at - 1])) >= 0));
        return good ? [] : [`${table.id}: ${head.textContent}, ${state}`];
    }));
})"""


def test_every_other_table_sorts_too(browser):
    ids = browser.run('[...document.querySelectorAll("table.sortable")].map((t) => t.id)')
    assert {"leaderboard", "cold-start-items", "vectors", "runs"} <= set(ids)
    assert browser.run(SORTS) == []


def test_no_id_is_there_twice_and_every_entry_of_the_menu_leads_somewhere(browser):
    ids = browser.run('[...document.querySelectorAll("[id]")].map((e) => e.id)')
    assert len(set(ids)) == len(ids)
    asked = '[...document.querySelectorAll("nav a")].map((a) => a.getAttribute("href").slice(1))'
    menu = browser.run(asked)
    assert set(menu) <= set(ids)
    assert {"cold-start-items-section", "vectors-section"} <= set(menu)


def test_sorts_by_keyboard_and_says_so(browser):
    before = browser.run(COLUMN % 2)
    assert [float(v) for v in before] == sorted(map(float, before), reverse=True)
    browser.run(CLICK % (2, "focus"))
    browser.press("Enter")
    browser.press("Enter")
    after = browser.run(COLUMN % 2)
    assert after == before[::-1]
    said = browser.run('document.getElementById("announcement").textContent')
    assert said == "Sorted by Recall@10, mean, ascending."


def test_hostile_label_is_shown_as_it_is(browser):
    shown = 'document.querySelectorAll("#leaderboard tbody th")'
    labels = browser.run(f"[...{shown}].map((head) => head.textContent)")
    assert HOSTILE in labels
    assert browser.run('document.querySelectorAll("img, b").length') == 0


COLORS = """[getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.body).color,
    getComputedStyle(document.querySelector("figure svg text[style*='--ink']")).fill]"""
LIGHT = ["rgb(255, 255, 255)", "rgb(27, 31, 36)", "rgb(27, 31, 36)"]
DARK = ["rgb(20, 23, 28)", "rgb(232, 234, 237)", "rgb(232, 234, 237)"]


def test_follows_the_theme_of_the_system_and_the_button(browser):
    press = 'document.getElementById("theme").click()'
    label = 'document.getElementById("theme").textContent'
    assert browser.run(COLORS) == LIGHT
    browser.prefer("dark")
    assert browser.run(COLORS) == DARK
    assert browser.comes(label, "Light theme")  # its listener may run after the colours changed
    assert browser.screenshot().getpixel((2, 400)) == (20, 23, 28)
    browser.run(press)
    assert browser.run(COLORS) == LIGHT
    browser.run(press)
    assert browser.run(COLORS) == DARK
    browser.prefer("light")
    assert browser.run(COLORS) == DARK  # who has chosen keeps the choice
    browser.run(press)
    assert browser.run(COLORS) == LIGHT
    assert browser.screenshot().getpixel((2, 400)) == (255, 255, 255)


@pytest.mark.parametrize("pixels", [320, 390, 768, 1280])
def test_fits_every_width(browser, page, pixels):
    browser.width(pixels, mobile=pixels < 700)
    browser.run('for (const d of document.querySelectorAll("details")) d.open = true')
    assert browser.run("document.documentElement.scrollWidth") <= pixels
    assert browser.run("window.innerWidth") == pixels
    drawn = browser.run(
        '[...document.querySelectorAll("figure svg")].map((s) => s.getBoundingClientRect().width)'
    )
    assert len(drawn) >= 10
    assert max(drawn) <= pixels
    assert min(drawn) >= min(0.85 * pixels, 400)
    # Text of figures stays readable: 8 px or more even on the smallest phone.
    smallest = browser.run(
        """const scale = (m) => Math.hypot(m.a, m.b);  // also of text that is turned
        Math.min(...[...document.querySelectorAll("figure svg text")].map((t) =>
            parseFloat(getComputedStyle(t).fontSize) * scale(t.getScreenCTM())))"""
    )
    assert smallest > (6 if pixels == 320 else 8), smallest
