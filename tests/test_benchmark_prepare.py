"""The benchmark of `prepare` runs, on tiny files; nothing here depends on how fast."""

from __future__ import annotations

import ast
import gzip
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, imported as Python would: with its own folder first on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("prepare")


@pytest.fixture
def run(script: ModuleType, tmp_path: Path) -> Callable[..., Result]:
    """Calls the script with its files below an empty folder."""
    place = tmp_path / "place"
    place.mkdir()
    return lambda *arguments: CliRunner().invoke(
        script.main, ["--folder", str(place), *map(str, arguments)]
    )


TINY = (
    "--ratings", 6000, "--metadata", 400, "--interactions", 3000, "--users", 200, "--items", 90,
    "--threads", 1,
)  # fmt: skip


@pytest.mark.slow
def test_both_raw_forms_are_prepared_and_measured(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    done = run(*TINY, "--json", file)
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [(one["work"], one["rows"]) for one in results] == [("clothing", 6000), ("plain", 3000)]
    for one in results:
        assert one["time_s"] > 0
        assert one["cpu_s"] > 0
        assert one["memory_mib"] > 20  # Python and Polars alone need more
        assert 0 < one["kept"]["interactions"] <= one["rows"]
        # Bounds are for the full sizes.
        assert one["time_bound_s"] is None
        assert one["memory_bound_mib"] is None
        assert one["work"] in done.stdout
    assert list((tmp_path / "place").iterdir()) == []


def test_the_raw_category_has_the_real_form(script: ModuleType, tmp_path: Path) -> None:
    assert script.clothing(tmp_path, 50, 30) == ["amazon14-clothing-ratings"]
    ratings = (tmp_path / "ratings_Clothing_Shoes_and_Jewelry.csv").read_text().splitlines()
    assert len(ratings) == 50
    user, item, rating, time = ratings[0].split(",")
    assert (len(user), len(item)) == (14, 10)
    assert rating in {"1.0", "2.0", "3.0", "4.0", "5.0"}
    assert int(time) % 86_400 == 0
    with gzip.open(tmp_path / "meta_Clothing_Shoes_and_Jewelry.json.gz", "rt") as file:
        lines = file.read().splitlines()
    assert len(lines) == 30
    for line in lines:
        record = ast.literal_eval(line)
        assert {"asin", "title", "imUrl", "categories", "related"} <= set(record)
        assert 300 < len(line) < 1600
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(line)


def test_a_failed_preparation_is_one_message_and_leaves_nothing(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    # Two interactions can be no 5-core.
    done = run("--only", "plain", *TINY[4:], "--interactions", 2)
    assert done.exit_code == 1
    assert "E241 no interactions left after 5/5-core" in done.stderr
    assert list((tmp_path / "place").iterdir()) == []
