"""What is found by listing is what there is: each registry beside the files of its room.

The listing parses files for a decorator. Here the rooms are imported whole, and every class that
could be an entry is looked at: none is forgotten, none stands in a file of another name.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import pytest

import mmbench
from mmbench.cli.main import cli
from mmbench.data.source import DATASETS, Source
from mmbench.encoders.base import ENCODERS, Encoder
from mmbench.metrics.base import METRICS
from mmbench.models.base import MODELS, Integration, Recommender
from mmbench.registry import Registry

ROOT = Path(mmbench.__file__).parent
TESTS = Path(__file__).parent
REGISTRIES: dict[str, Registry[Any]] = {
    "model": MODELS, "encoder": ENCODERS, "dataset": DATASETS, "metric": METRICS,
}  # fmt: skip
FACES: dict[str, type] = {"model": Recommender, "encoder": Encoder, "dataset": Source}


def modules(package: str) -> Iterator[ModuleType]:
    """Every module below a package, imported."""
    folder = ROOT / package
    for path in sorted(folder.rglob("*.py")):
        inner = ".".join(path.relative_to(folder).with_suffix("").parts)
        if path.stem != "__init__":
            yield importlib.import_module(f"mmbench.{package}.{inner}")


def test_every_registry_of_the_house_is_looked_at() -> None:
    made = {
        value
        for package in ("models", "encoders", "data", "metrics")
        for module in modules(package)
        for value in vars(module).values()
        if isinstance(value, Registry)
    }
    assert made == set(REGISTRIES.values())


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_decorator_stands_once_in_a_file_and_nowhere_else(kind: str) -> None:
    registry = REGISTRIES[kind]
    mark = re.compile(rf"^@{registry.decorator}\(", re.MULTILINE)
    found: dict[str, int] = {}
    for path in ROOT.rglob("*.py"):
        times = len(mark.findall(path.read_text(encoding="utf-8")))
        if times:
            found[path.stem.replace("_", "-")] = times
            package = ".".join(("mmbench", *path.relative_to(ROOT).parent.parts))
            assert package.startswith(registry.package), path
    assert sorted(found) == registry.names() != []
    assert set(found.values()) == {1}


@pytest.mark.parametrize("kind", FACES)
def test_no_class_that_could_be_an_entry_is_forgotten(kind: str) -> None:
    """A class of the room's face that others do not build upon is registered, or private."""
    registry, face = REGISTRIES[kind], FACES[kind]
    room = registry.package.removeprefix("mmbench.")
    classes = {
        value
        for module in modules(room)
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, face)
        and value.__module__ == module.__name__
    }
    built_upon = {base for one in classes for base in one.__mro__[1:]}
    leaves = {one for one in classes - built_upon if not inspect.isabstract(one)}
    registered = {registry.get(name).obj for name in registry.names()}
    unlisted = {one for one in leaves - registered if not one.__name__.startswith("_")}
    assert {one.__qualname__ for one in unlisted} == set()
    assert registered <= classes


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_entry_says_what_it_is(kind: str) -> None:
    for name in REGISTRIES[kind].names():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), name
        assert len(REGISTRIES[kind].summary(name)) > 10, name
        assert REGISTRIES[kind].get(name).name == name


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_entry_is_tested_by_name(kind: str) -> None:
    """A test file of its own, or one of its family that names it."""
    registry = REGISTRIES[kind]
    room = TESTS / registry.package.removeprefix("mmbench.")
    files = sorted(room.rglob("test_*.py"))
    stems = {path.stem.removeprefix("test_") for path in files}
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    silent = [
        name
        for name in registry.names()
        if name.replace("-", "_") not in stems
        and not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
        and not re.search(rf"\b{re.escape(name.replace('-', '_'))}\b", text)
    ]
    assert silent == []


def test_every_model_states_an_integration_and_each_integration_has_models() -> None:
    stated: dict[str, set[str]] = {}
    for name in MODELS.names():
        entry = MODELS.get(name)
        stated.setdefault(entry.obj.integration, set()).add(name)
        field = entry.info["config"].model_fields.get("integration")
        if field is None:
            continue
        choices = set(get_args(field.annotation))
        assert choices <= set(get_args(Integration)), name
        assert field.default == entry.obj.integration, name
        for choice in choices:
            stated.setdefault(choice, set()).add(name)
    assert set(stated) == set(get_args(Integration))


def test_every_file_with_a_command_is_a_subcommand() -> None:
    context = click.Context(cli)
    listed = set(cli.list_commands(context))
    files = {
        path.stem.replace("_", "-")
        for path in (ROOT / "cli").glob("*.py")
        if re.search(r"^@click\.command\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        and path.stem != "main"
    }
    assert listed == files != set()
    for name in listed:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert len(command.get_short_help_str(200)) > 10, name
