"""The engine on a GPU: the same code, the same lists, and equal bits with `deterministic`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmbench.engine.building import build_model, make_ranker
from mmbench.engine.device import choose
from mmbench.engine.inputs import load_inputs
from mmbench.engine.sampling import TripleSampler
from mmbench.engine.train import train_run
from mmbench.recipe import Recipe, RunRecipe

pytestmark = pytest.mark.gpu


def plan(model: str, precision: str = "float32") -> RunRecipe:
    features = {"visual": "imported", "acoustic": "imported"} if model == "vbpr" else {}
    raw = {
        "dataset": "tiny",
        "features": features,
        "model": {"name": model, "embedding_size": 8},
        "training": {"epochs": 5, "batch_size": 64, "learning_rate": 0.05, "precision": precision},
    }
    return Recipe(raw, "gpu").expand()[0]


@pytest.mark.parametrize("model", ["bpr-mf", "lightgcn", "vbpr"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_deterministic_runs_are_equal_and_rank_as_the_cpu_does(
    tiny_data: Path, tmp_path: Path, model: str, precision: str
) -> None:
    gpu, recipe = choose("cuda", deterministic=True), plan(model, precision)
    first, second = (
        train_run(recipe, data_dir=tiny_data, runs_dir=tmp_path / name, compute=gpu)
        for name in "ab"
    )
    assert first.manifest["metrics"] == second.manifest["metrics"]
    weights = load_file(first.path / "weights.safetensors")
    other = load_file(second.path / "weights.safetensors")
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    cpu, inputs = choose("cpu"), load_inputs(recipe, tiny_data)
    on_cpu = build_model(recipe, inputs, cpu)
    on_cpu.load_state(weights)
    lists = make_ranker(recipe, inputs, inputs.test, cpu).rank(on_cpu, 100)
    agreement = np.mean(lists.items[:, :10] == first.lists("test").items[:, :10])
    assert agreement > 0.95  # rounding may exchange neighbours


def test_sampling_on_the_device_is_exact(tiny_data: Path) -> None:
    train = load_inputs(plan("bpr-mf"), tiny_data).train
    device = torch.device("cuda")
    moved = type(train)(
        train.n_users, train.n_items, train.users.to(device), train.items.to(device)
    )
    batch = TripleSampler(moved).epoch(torch.Generator(device).manual_seed(0))
    known = set(zip(train.users.tolist(), train.items.tolist(), strict=True))
    assert not known & set(zip(batch.users.tolist(), batch.negatives.tolist(), strict=True))
