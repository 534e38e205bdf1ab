"""Every shipped recipe of a model, sub-folders included."""

from __future__ import annotations

import pytest

from mmbench.models.base import MODELS
from mmbench.recipe import load_recipe
from mmbench.recipe_files import SHIPPED, read_recipe, shipped_recipes

# A paper's tables: see tests/test_paper_recipes.py and tests/test_encoder_paper_recipes.py.
# And what gated and scheduled ensembles are measured against: tests/studies/test_between.py.
PAPERS = ("mmsr-paper", "arxiv-2310.20343", "adaptive-modalities")
# Of several models: see tests/test_encoder_paper_recipes.py.
GRIDS = ("movielens-100k/paradigms",)
RECIPES = [
    name for name in shipped_recipes() if name.partition("/")[0] not in PAPERS and name not in GRIDS
]


def test_every_model_has_a_recipe_for_the_demo_and_for_movielens():
    assert len(shipped_recipes()) == len(list(SHIPPED.rglob("*.yaml")))
    for dataset in ("demo", "movielens-100k"):
        assert {f"{dataset}/{name}" for name in MODELS.names()} <= set(RECIPES)


@pytest.mark.parametrize("dataset", ["amazon-baby", "tiktok"])
def test_every_model_that_can_has_a_recipe(dataset):
    have = {name.partition("/")[2] for name in RECIPES if name.startswith(f"{dataset}/")}
    # These two come split already, so they have no order for a sequential model.
    general = {name for name in MODELS.names() if MODELS.get(name).obj.family == "general"}
    without_features = {name for name in general if not MODELS.get(name).obj.modalities}
    assert have >= (without_features if dataset == "amazon-baby" else general)


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_valid_stands_in_its_place_and_explains_itself(name):
    recipe = load_recipe(name)
    dataset, model = name.split("/")
    for run in recipe.expand():
        assert (run.dataset, run.model) == (dataset, model)
        entry = MODELS.get(model).obj
        assert set(run.features) <= entry.modalities
        assert bool(run.features) == bool(entry.modalities)
        if entry.family == "sequential":
            assert (run.protocol.name, run.training.select_by) == ("mmsr", "ndcg@10")
        else:
            assert run.protocol.name == (
                "mmrec" if dataset in ("amazon-baby", "tiktok") else "standard"
            )
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    head = text.splitlines()
    assert head[0].startswith("# ")
    assert any(line.startswith("# Settings:") for line in head)
    assert f"# Run:      mmbench train {name}" in head
    closed_form = MODELS.get(model).obj.fitting == "closed-form"
    assert ("training" in read_recipe(SHIPPED / f"{name}.yaml")) == (not closed_form)
