"""Runs whose settings have another name by now are known by their earlier identity."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mmbench.data.prepare import prepare
from mmbench.engine.device import choose
from mmbench.engine.inputs import load_inputs
from mmbench.models.base import MODELS
from mmbench.recipe import RunRecipe, load_recipe
from mmbench.report.systems import group_runs
from mmbench.runs import Run, open_run
from mmbench.studies.training import Events, Workplace, train_recipes

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = [
    "features={}", "training.epochs=1", "model.embedding_size=2", "model.n_layers=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    root = tmp_path_factory.mktemp("provenance")
    prepare("demo", source=tiny_data.parent / "raw", format="mmrec", data_dir=root / "data")
    return Workplace(root / "data", root / "runs", choose("cpu"))


@pytest.fixture
def provenance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("provenance")


def earlier(
    run: Run, recipe: RunRecipe, place: Workplace, words: dict[str, tuple[str, Any]]
) -> Run:
    """The run as a version that had other words for some settings would have left it."""

    def told(section: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in section.items() if key not in words}
        return kept | dict(words.values())

    identity = recipe.identity()
    known = {
        "recipe": {**identity, "model": told(identity["model"])},
        "data": load_inputs(recipe, place.data_dir).facts(),
    }
    text = json.dumps(known, sort_keys=True)
    file = run.path / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["system"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    raw = yaml.safe_load((run.path / "recipe.yaml").read_text(encoding="utf-8"))
    raw["model"] = told(raw["model"])
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return open_run(run.path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mgcn", {"k": ("n_neighbours", 10)}),
        ("lgmrec", {"dropout": ("keep_rate", 0.5)}),
    ],
)
def test_a_run_of_earlier_words_is_current_and_a_changed_one_is_not(
    model: str, words: dict[str, tuple[str, Any]], place: Workplace, provenance: ModuleType
) -> None:
    settings = [one for one in TINY if model != "lgmrec" or "n_layers" not in one]
    recipe = load_recipe(f"demo/{model}", seeds=[0], settings=settings)
    (trained,) = train_recipes([recipe], place, Events())
    (run,) = trained.trials[0].runs
    old = earlier(run, recipe.expand()[0], place, words)
    (system,) = group_runs([old])
    made = provenance.provenance_of(system, place.data_dir)
    assert made.is_current is True, made.reason
    assert made.recipe == f"demo/{model}"
    assert set(made.settings) == set(settings)
    (key,) = words
    changed = yaml.safe_load((old.path / "recipe.yaml").read_text(encoding="utf-8"))
    changed["model"][words[key][0]] = {"mgcn": 9, "lgmrec": 0.25}[model]
    (old.path / "recipe.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    made = provenance.provenance_of(system, place.data_dir)
    assert made.is_current is False
    assert f"model.{key}={ {'mgcn': 9, 'lgmrec': 0.75}[model] }" in made.settings


def test_every_renamed_setting_is_one_of_its_model(provenance: ModuleType) -> None:
    for model, names in provenance.RENAMED.items():
        known = MODELS.get(model).info["config"].model_fields
        assert set(names.values()) <= set(known)
        assert not set(names) & set(known)
