"""What ships: every folder of the package, and the recipes."""

from __future__ import annotations

import configparser
from pathlib import Path

import yaml

from mmbench.recipe import SHIPPED, load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]


def test_setup_cfg_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split())
    folders = {path.parent for path in (ROOT / "mmbench").rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == found | {"mmbench.recipes"}


def test_every_shipped_recipe_is_valid_and_named_like_its_file() -> None:
    names = shipped_recipes()
    files = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert len(names) == len(files) > 20
    for name in names:
        recipe = load_recipe(name)
        dataset, _, model = name.partition("/")
        assert recipe.shape.dataset == dataset, name
        assert str(recipe.shape.model["name"]) == model, name
        assert recipe.expand()


def test_recipes_say_how_they_are_run() -> None:
    for name in shipped_recipes():
        path = SHIPPED / f"{name}.yaml"
        assert f"mmbench train {name}" in path.read_text(encoding="utf-8"), name
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["dataset"] == name.partition("/")[0]
