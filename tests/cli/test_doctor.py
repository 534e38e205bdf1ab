"""The doctor on this machine, and on one whose packages are old, missing or broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from mmbench.cli.examining import Check, _number, memory
from mmbench.cli.main import cli
from mmbench.encoders.base import ENCODERS


def told(out: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["section"], row["name"]): row for row in json.loads(out)["checks"]}


def declare(folder: Path, *needs: str) -> None:
    """Metadata of an installed mmbench that needs other packages, for the front of sys.path."""
    info = folder / "mmbench-0.1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: mmbench", "Version: 0.1.0"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of sys.path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_machine_that_works(mmbench: Callable, tiny_data: Path) -> None:
    done = mmbench("doctor", "--format", "json", "--data-dir", tiny_data)
    assert done.status == 0
    assert json.loads(done.out)["works"] is True
    checks = told(done.out)
    assert checks["packages", "torch"]["state"] == "ok"
    assert checks["machine", "CPU"]["found"].split()[0].isdecimal()
    assert "60 users, 40 items" in checks["datasets", "tiny"]["found"]
    assert "visual__imported" in checks["datasets", "tiny"]["found"]
    assert {name for section, name in checks if section == "encoders"} == set(ENCODERS.names())
    commands = set(cli.list_commands(click.Context(cli)))
    assert {name for section, name in checks if section == "commands"} == commands


def test_the_table_fits_a_terminal(mmbench: Callable) -> None:
    done = mmbench("doctor")
    assert done.status == 0
    assert done.out.endswith("The core works.\n")
    assert max(map(len, done.out.splitlines())) <= 80
    assert "mmbench prepare demo" in done.out  # nothing is prepared in an empty folder
    assert not Path("data").exists()  # it writes nothing
    assert not Path("runs").exists()


def test_what_is_missing_or_old_is_told_with_its_cure(mmbench: Callable, site: Path) -> None:
    declare(site, "nosuchpackage>=1.5", "numpy>=999", 'optuna-like>=4; extra == "tune"')
    done = mmbench("doctor", "--format", "json")
    assert done.status == 1
    checks = told(done.out)
    assert checks["packages", "nosuchpackage"]["found"] == "not installed"
    assert checks["packages", "nosuchpackage"]["cure"] == "pip install 'nosuchpackage>=1.5'"
    assert "older than 999" in checks["packages", "numpy"]["found"]
    assert checks["extras", "optuna-like (tune)"]["state"] == "missing"
    assert checks["extras", "optuna-like (tune)"]["cure"] == "pip install 'mmbench[tune]'"
    assert "does not work here: nosuchpackage, numpy." in mmbench("doctor").out


def test_a_package_that_cannot_be_imported_is_found(mmbench: Callable, site: Path) -> None:
    declare(site, "brokenpackage>=1")
    info = site / "brokenpackage-1.2.dist-info"
    info.mkdir()
    facts = "Metadata-Version: 2.1\nName: brokenpackage\nVersion: 1.2\n"
    (info / "METADATA").write_text(facts, encoding="utf-8")
    (info / "top_level.txt").write_text("brokenpackage\n", encoding="utf-8")
    (site / "brokenpackage.py").write_text(
        "raise OSError('libnothing.so: cannot open')\n", encoding="utf-8"
    )
    assert mmbench("doctor", "--format", "json").status == 0
    done = mmbench("doctor", "--imports", "--format", "json")
    assert done.status == 1
    assert "libnothing.so" in told(done.out)["packages", "brokenpackage"]["found"]


def test_broken_data_and_folders_are_told_and_not_fatal(mmbench: Callable, tmp_path: Path) -> None:
    (tmp_path / "data" / "bad").mkdir(parents=True)
    (tmp_path / "data" / "bad" / "manifest.json").write_bytes(b"\xff\x00{")
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = mmbench("doctor", "--format", "json", "--runs-dir", tmp_path / "file" / "runs")
    assert done.status == 0
    checks = told(done.out)
    assert checks["datasets", "bad"]["state"] == "broken"
    assert checks["datasets", "bad"]["cure"] == "mmbench prepare bad --force"
    assert checks["folders", "runs"]["state"] == "broken"
    long = mmbench("doctor", "--runs-dir", "x" * 300)
    assert long.status == 0
    assert "Traceback" not in long.err + long.out


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.6.0+cu124", (2, 6)), ("5.0.0rc1", (5,)), ("1.26", (1, 26)), ("", ()), ("0", ())],
)
def test_versions_compare_as_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert _number(version) == numbers


def test_memory_is_told_in_bytes() -> None:
    total, free = memory()
    assert total is None or total > 2**27
    assert free is None or total is None or 0 <= free <= total


def test_a_check_is_essential_only_where_it_says_so() -> None:
    assert not Check("data", "x", "broken", "y").essential
