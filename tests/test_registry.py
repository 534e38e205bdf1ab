from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmbench.errors import UnknownNameError, did_you_mean, nearest
from mmbench.registry import Registry

ENTRY = """
from {package}.base import register_thing

@register_thing("{name}")
class Thing:
    value = {value}
"""
BASE = """
from mmbench.registry import Registry

THINGS = Registry("thing", "{package}", "register_thing")

def register_thing(name):
    return THINGS.register(name)
"""


@pytest.fixture
def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    name = f"things_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text(BASE.format(package=name))
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def add(folder: Path, stem: str, name: str, value: int = 1) -> None:
    (folder / f"{stem}.py").write_text(ENTRY.format(package=folder.name, name=name, value=value))


def registry(folder: Path) -> Registry[type]:
    module = __import__(f"{folder.name}.base", fromlist=["THINGS"])
    found: Registry[type] = module.THINGS
    return found


def test_names_are_found_without_importing_and_one_lookup_imports_one_file(package: Path) -> None:
    add(package, "first_thing", "first-thing", 7)
    add(package, "second", "second")
    (package / "helper.py").write_text("raise SystemExit('imported')")
    things = registry(package)
    assert things.names() == ["first-thing", "second"]
    assert f"{package.name}.first_thing" not in sys.modules
    assert things.get("first_thing").obj.value == 7
    assert f"{package.name}.second" not in sys.modules


def test_a_miss_offers_the_nearest_name(package: Path) -> None:
    add(package, "lightgcn", "lightgcn")
    with pytest.raises(
        UnknownNameError, match=r'unknown thing .ligthgcn.\. Did you mean "lightgcn"\?'
    ):
        registry(package).get("ligthgcn")


def test_a_name_that_is_not_its_file_is_refused(package: Path) -> None:
    add(package, "one", "two")
    with pytest.raises(ValueError, match=r"registered in one.py, not in its own file"):
        registry(package).get("one")


def test_registering_twice_raises(package: Path) -> None:
    things = registry(package)
    things.register("base")(type("Thing", (), {"__module__": f"{package.name}.base"}))
    with pytest.raises(ValueError, match="registered twice"):
        things.register("base")(type("Thing", (), {"__module__": f"{package.name}.base"}))


def test_one_name_in_two_files_raises(package: Path) -> None:
    add(package, "same", "same")
    (package / "inner").mkdir()
    add(package / "inner", "same", "same")
    (package / "inner" / "same.py").write_text((package / "same.py").read_text())
    with pytest.raises(ValueError, match="is in two files"):
        registry(package).names()


def test_a_family_comes_before_a_name_that_is_spelt_alike() -> None:
    known = ["blip", "clip-vit-b16", "clip-vit-l14", "siglip-b16", "siglip2-b16", "vit-b16"]
    assert nearest("clip", known) == ["clip-vit-b16", "clip-vit-l14"]
    assert nearest("SigLIP", known) == ["siglip-b16"]
    assert nearest("sigl", known) == ["siglip-b16", "siglip2-b16"]
    assert nearest("b16", known) == ["clip-vit-b16", "siglip-b16", "siglip2-b16", "vit-b16"]
    assert nearest("blib", known) == ["blip"]
    assert nearest("", known) == nearest("quite another", known) == []
    assert did_you_mean("clip", known) == ' Did you mean "clip-vit-b16" or "clip-vit-l14"?'
    assert len(nearest("thing", [f"thing-{i}" for i in range(50)])) == 4


def test_many_names_are_counted_where_a_command_lists_them() -> None:
    many = [f"thing-{i}" for i in range(50)]
    told = str(UnknownNameError("thing", "thnig-7", many, hint="Make one.", listing="x --list"))
    assert told == (
        "unknown thing 'thnig-7'. Did you mean \"thing-7\"? 50 are known; `x --list` lists them. "
        "Make one."
    )
    assert "thing-49" in str(UnknownNameError("thing", "x", many))
    assert "Known: a, b." in str(UnknownNameError("thing", "x", ["b", "a"], listing="x --list"))
    twice = str(UnknownNameError("thing", "x", many, hint="`x --list` tells.", listing="x --list"))
    assert twice.endswith("50 are known. `x --list` tells.")
