"""What a run of a pair is known by: what its weights are, not where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmbench.encoders.pair import bare_name
from mmbench.engine.inputs import load_inputs
from mmbench.recipe import Recipe, RunRecipe


def recipe_of(name: str) -> RunRecipe:
    values: dict[str, Any] = {
        "dataset": "mine",
        "encoders": {"visual": {"name": name}},
        "model": {"name": "vbpr"},
        "training": {"encoder": "end_to_end"},
    }
    (recipe,) = Recipe(values, "test").expand()
    return recipe


def test_the_same_weights_elsewhere_are_the_same_run(
    content: Callable[..., Path], weights: Callable[[str], str], tmp_path: Path
) -> None:
    data, text, vision = content(), weights("bert"), weights("vit-b16")
    elsewhere = tmp_path / "a+b" / "other"
    shutil.copytree(text, elsewhere / "text")
    shutil.copytree(vision, elsewhere / "vision")
    one = recipe_of(f"pair:minilm-l6={text}+timm={vision}")
    other = recipe_of(f"pair:minilm-l6={elsewhere}/text+timm={elsewhere}/vision")
    assert one.identity() == other.identity()
    assert one.identity()["encoders"]["visual"]["name"] == "pair:minilm-l6+timm"
    facts = [load_inputs(recipe, data).facts() for recipe in (one, other)]
    assert facts[0] == facts[1]
    assert str(tmp_path) not in str(facts)
    # Other weights are another run.
    changed = elsewhere / "vision" / "model.safetensors"
    content_of = bytearray(changed.read_bytes())
    content_of[-1] ^= 1
    changed.write_bytes(bytes(content_of))
    assert load_inputs(other, data).facts() != facts[0]


@pytest.mark.parametrize(
    "name",
    ["clip-vit-b32", "pair:minilm-l6+resnet50", "pair:minilm_l6+timm:resnet18", "hf:org/name"],
)
def test_a_name_without_a_folder_stays_as_it_is(name: str) -> None:
    assert bare_name(name) == name
    assert recipe_of(name).identity()["encoders"]["visual"]["name"] == name


def test_a_folder_in_place_of_a_model_is_left_out(tmp_path: Path) -> None:
    assert bare_name(f"hf:{tmp_path}") == "hf"
    assert bare_name(f"pair:hf:{tmp_path}+timm:resnet18") == "pair:hf+timm:resnet18"
