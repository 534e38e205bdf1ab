"""What ships: every folder of the package, and the recipes beside it."""

from __future__ import annotations

import configparser
from pathlib import Path

from mmbench.recipe_files import SHIPPED

ROOT = Path(__file__).parents[1]


def test_setup_cfg_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split())
    folders = {path.parent for path in (ROOT / "mmbench").rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == found | {"mmbench.recipes"}


def test_setup_cfg_ships_recipes_at_every_depth() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = setup["options.package_data"]["mmbench.recipes"].replace(",", " ").split()
    shipped = {path for pattern in patterns for path in (ROOT / "recipes").glob(pattern)}
    assert shipped == set((ROOT / "recipes").rglob("*.yaml")) != set()
    assert (ROOT / "recipes").samefile(SHIPPED)


def test_setup_cfg_ships_the_published_tables() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    pattern = setup["options.package_data"]["mmbench.report"]
    shipped = {path.name for path in (ROOT / "mmbench" / "report").glob(pattern)}
    assert shipped == {"README.md", "general.csv", "sequential.csv", "sources.yaml"}


def test_setup_cfg_ships_the_page() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    shipped = setup["options.package_data"]["mmbench.report.html"].replace(",", " ").split()
    folder = ROOT / "mmbench" / "report" / "html"
    assert set(shipped) == {
        path.name for path in folder.iterdir() if path.suffix != ".py" and path.is_file()
    }


def test_the_source_distribution_holds_what_the_tests_read() -> None:
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    grafted = {line.split()[1] for line in lines if line.startswith("graft")}
    assert grafted == {".ci", "benchmarks", "docs", "recipes", "tests"}
    assert all((ROOT / folder).is_dir() for folder in grafted)


def test_every_dependency_has_a_lower_bound_of_its_own_line() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = setup["options"]["install_requires"].split()  # .ci/lowest installs these exactly
    names = [line.partition(">=")[0] for line in needed]
    assert all(line.count(">=") == 1 and not set(line) & set("<,;!~") for line in needed)
    assert names == sorted(set(names))
