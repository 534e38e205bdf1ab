"""Starting from a run whose encoder was tuned: what it learned of one language's texts moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.engine.device import choose
from mmbench.engine.train import train_run
from mmbench.errors import ConfigError
from mmbench.recipe import Recipe
from mmbench.runs import Run

CPU = choose("cpu")
WORDS = {
    "harbours": "sail harbour tide anchor regatta captain",
    "haefen": "segel hafen ebbe anker regatta kapitaen",
}


@pytest.fixture(scope="module")
def folder(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets whose texts are of two languages, and a tiny BERT that spells any word."""
    root = tmp_path_factory.mktemp("live-start")
    for number, (name, words) in enumerate(WORDS.items()):
        n_items, raw = 9 + number, root / "raw" / name
        raw.mkdir(parents=True)
        rows = [
            f"u{user},i{(user + step) % n_items},{1_600_000_000 + step}"
            for user in range(12)
            for step in range(5)
        ]
        (raw / "interactions.csv").write_text(
            "\n".join(["user_id,item_id,timestamp", *rows]) + "\n"
        )
        told = [f"i{i},{words.split()[i % 6]} {words.split()[i % 4]}" for i in range(n_items)]
        (raw / "items.csv").write_text("\n".join(["item_id,title", *told]) + "\n")
        config = PrepareConfig(text_fields=("title",), item_min=0)
        prepare(name, source=raw, data_dir=root / "data", config=config, splits=["leave-one-out"])
    models.save("bert", root / "bert")
    return root


@pytest.fixture(scope="module")
def train(folder: Path) -> Callable[..., Run]:
    def run(dataset: str, start: Any = None, **encoder: Any) -> Run:
        how = {"name": "bert", "weights": str(folder / "bert"), "tune": "top", "blocks": 2}
        raw = {
            "dataset": dataset,
            "protocol": "mmsr",
            "encoders": {"textual": {**how, **encoder}},
            "model": {
                "name": "mmsr", "embedding_size": 8, "max_length": 4, "n_layers": 1, "n_heads": 1,
            },
            "training": {"epochs": 2, "learning_rate": 0.01, "select_by": "ndcg@5"},
            "evaluation": {"metrics": ["ndcg@5"], "depth": 5},
        }  # fmt: skip
        if start is not None:
            raw["training"] |= {"start_from": start}  # type: ignore[operator]
        (plan,) = Recipe(raw, "test").expand()
        return train_run(plan, data_dir=folder / "data", runs_dir=folder / "runs", compute=CPU)

    return run


def test_tuned_weights_move_and_texts_need_not_be_of_one_language(
    train: Callable[..., Run], folder: Path
) -> None:
    source = train("harbours")
    tuned = load_file(source.path / "weights.safetensors")
    learned = [name for name in tuned if ".encoder.learning." in name]
    assert learned
    zero = train("haefen", {"run": str(source.path), "train": False})
    stored = load_file(zero.path / "weights.safetensors")
    assert set(zero.manifest["start"]["taken"]) == set(tuned)
    published = load_file(folder / "bert" / "model.safetensors")
    moved = 0
    for name in learned:
        assert torch.equal(stored[name], tuned[name])
        bare = name.partition(".encoder.learning.")[2]
        (original,) = [v for k, v in published.items() if k.removeprefix("bert.") == bare]
        moved += not torch.equal(stored[name], original)
    assert moved > len(learned) // 2
    fine_tuned = train("haefen", str(source.path))
    assert fine_tuned.manifest["start"]["own"] == []
    # More may learn here than there: the rest begins as published.
    more = train("haefen", str(source.path), blocks=3).manifest["start"]
    assert more["own"]
    assert all(".encoder.learning." in name for name in more["own"])
    # What was tuned there and rests here would be lost without a word.
    for fewer in ({"blocks": 1}, {"tune": "none", "blocks": None}):
        with pytest.raises(ConfigError, match="holds tuned weights of an encoder"):
            train("haefen", str(source.path), **fewer)
    with pytest.raises(ConfigError, match="the encoders differ"):
        train("haefen", str(source.path), max_tokens=5)
