"""What a run is foreseen to cost, beside what it then does; refusal with the recipe's own keys."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from mmbench.engine.cost import Cost
from mmbench.engine.device import Compute
from mmbench.engine.train import train_run
from mmbench.errors import ConfigError
from mmbench.recipe import RunRecipe, load_recipe

CPU = Compute(torch.device("cpu"))
N_ITEMS = 12


@pytest.fixture(scope="module")
def place(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmbench.data.cleaning import PrepareConfig
    from mmbench.data.prepare import prepare

    root = tmp_path_factory.mktemp("foresight")
    (root / "raw" / "images").mkdir(parents=True)
    rows = [f"u{u},i{(u + 5 * k) % N_ITEMS}" for u in range(20) for k in range(6)]
    (root / "raw" / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    lines = ["item_id,title", *(f"i{i},a b c d" for i in range(N_ITEMS))]
    (root / "raw" / "items.csv").write_text("\n".join(lines) + "\n")
    for i in range(N_ITEMS - 2):  # two have no picture
        picture = Image.new("RGB", (32, 32), (20 * i, 100, 30))
        picture.save(root / "raw" / "images" / f"i{i}.png")
    config = PrepareConfig(text_fields=("title",))
    prepare("mine", source=root / "raw", data_dir=root / "data", config=config)
    for name in ("bert", "vit-b16"):
        models.save(name, root / name)
    return root


def recipe(place: Path, encoder: dict[str, Any] | None, **training: Any) -> RunRecipe:
    pair = f"pair:minilm-l6={place / 'bert'}+vit-b16={place / 'vit-b16'}"
    content = {
        "dataset": "mine",
        "protocol": "mmrec",
        "encoders": {"visual": {"name": pair, "tune": "top"}},
        "model": {"name": "vbpr", "embedding_size": 4},
        "training": {"epochs": 1, "batch_size": 16, **training, "encoder": encoder},
    }
    file = place / "recipe.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    (plan,) = load_recipe(str(file)).expand()
    return plan


def run(place: Path, plan: RunRecipe, folder: str) -> tuple[Any, list[Cost]]:
    told: list[Cost] = []
    done = train_run(
        plan,
        data_dir=place / "data",
        runs_dir=place / folder,
        compute=CPU,
        on_cost=lambda _, cost: told.append(cost),
    )
    return done, told


@pytest.mark.parametrize("mode", ["batch", "full"])
def test_a_run_says_before_and_after_what_it_costs(place: Path, mode: str) -> None:
    plan = recipe(place, {"mode": mode, "at_once": 4})
    done, told = run(place, plan, mode)
    (cost,) = told
    (part,) = cost.parts
    steps = done.manifest["training"]["steps_per_epoch"]
    assert cost.steps == steps
    n_items = N_ITEMS - 2
    if mode == "full":
        assert part.load.learnt == steps * n_items
    else:  # an upper bound of what was encoded
        assert 0 < part.load.learnt <= steps * n_items
    assert part.load.at_once == 4
    assert part.learning > 0
    assert done.manifest["encoder_cost"] == json.loads(json.dumps(cost.facts()))
    assert done.manifest["training"]["peak_memory_mib"] > 0


def test_too_much_is_refused_with_the_recipes_keys(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.engine.cost.free_memory", lambda compute: 100.0)
    plan = recipe(place, {"mode": "batch"})
    with pytest.raises(
        ConfigError,
        match=r"E413 .*training\.encoder\.at_once: 1, or encoders\.visual\.checkpointing: true",
    ):
        run(place, plan, "refused")
    assert not [path for path in (place / "refused").iterdir() if path.is_dir()]


def test_nothing_is_said_where_no_encoder_learns(place: Path) -> None:
    content = {
        "dataset": "mine",
        "protocol": "mmrec",
        "model": {"name": "bpr-mf", "embedding_size": 4},
        "training": {"epochs": 1, "batch_size": 16},
    }
    (place / "plain.yaml").write_text(json.dumps(content), encoding="utf-8")
    (plan,) = load_recipe(str(place / "plain.yaml")).expand()
    done, told = run(place, plan, "plain")
    assert told == []
    assert "encoder_cost" not in done.manifest
