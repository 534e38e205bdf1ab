"""Imports point down: cli, studies, report, engine, recipe, models and data, runs, metrics."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mmbench

ROOT = Path(mmbench.__file__).parent
FLOORS = {
    "__main__": 7,
    "cli": 6,
    "studies": 5,
    "report": 4,
    "engine": 4,
    "recipe": 3,
    "recipe_keys": 2,
    "recipe_files": 2,
    "search_space": 1,
    "models": 2,
    "encoders": 2,
    "data": 2,
    "runs": 1,
    "metrics": 0,
    "stats": 0,
}
CELLAR = {"console", "errors", "modality", "registry", "seeding", "__init__"}
FILES = sorted(ROOT.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "mmbench":
                found |= {f"mmbench.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.partition(".")[0] == "mmbench"}


def test_every_room_is_known() -> None:
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert len(FILES) > 40
    assert rooms <= set(FLOORS) | CELLAR


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        there = room(name)
        if there == here or there in CELLAR:
            continue
        assert here not in CELLAR, f"{here} imports {name}"
        assert FLOORS[there] < FLOORS[here], f"{path.name} in {here} imports {name}"


@pytest.mark.parametrize("floor", ["metrics", "stats"])
def test_metrics_and_stats_can_be_lifted_out(floor: str) -> None:
    for path in (ROOT / floor).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not {n.partition(".")[0] for n in names} & {"torch", "polars", "pandas"}, path
