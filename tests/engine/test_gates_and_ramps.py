"""Gated and curriculum ensembles in the engine: resumed to the same bits, their state kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbench.engine.building import build_model, make_ranker
from mmbench.engine.device import choose
from mmbench.engine.inputs import load_inputs, to_device
from mmbench.engine.train import train_run
from mmbench.engine.training import TrainingLoop
from mmbench.recipe import Recipe, RunRecipe

CPU = choose("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "gated-ensemble": {"gate_from": 2, "gate_until": 4},
    "curriculum-ensemble": {"begin_epoch": 2, "epochs_between": 2, "ramp_epochs": 3},
}


def plan(model: str, **changes: Any) -> RunRecipe:
    raw = {
        "dataset": "tiny",
        "features": {"visual": "imported", "acoustic": "imported"},
        "model": {"name": model, "embedding_size": 4, **SETTINGS[model], **changes},
        "training": {"epochs": 7, "batch_size": 128, "learning_rate": 0.05, "patience": None},
        "seeds": [0],
    }
    return Recipe(raw, "test").expand()[0]


def loop_of(recipe: RunRecipe, data: Path) -> TrainingLoop:
    inputs = load_inputs(recipe, data)
    model = build_model(recipe, inputs, CPU)
    ranker = make_ranker(recipe, inputs, inputs.valid, CPU)
    return TrainingLoop(recipe, model, to_device(inputs.train, CPU.device), ranker, CPU)


def numbers(loop: TrainingLoop) -> list[dict[str, Any]]:
    history = loop.progress.history
    return [{k: v for k, v in record.items() if not k.endswith("_s")} for record in history]


# Before gates learn, while they do, at the epoch before weights start anew, and after it.
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
@pytest.mark.parametrize("model", list(SETTINGS))
def test_a_run_goes_on_to_the_same_bits(
    model: str, stop: int, tiny_data: Path, tmp_path: Path
) -> None:
    whole = loop_of(plan(model), tiny_data)
    epochs = whole.run()
    for _ in range(stop):
        next(epochs)
    torch.save(whole.state(), tmp_path / "state.pt")
    for _ in epochs:
        pass
    expected = whole.model.state_dict()
    second = loop_of(plan(model), tiny_data)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in second.run():
        pass
    assert numbers(second) == numbers(whole)
    assert all(torch.equal(expected[key], v) for key, v in second.model.state_dict().items())
    assert all(torch.equal(whole.best[key], v) for key, v in second.best.items())


def test_what_is_learned_is_kept_with_the_run_and_not_in_its_identity(
    tiny_data: Path, tmp_path: Path
) -> None:
    for model, name in (("gated-ensemble", "gate"), ("curriculum-ensemble", "ramp")):
        recipe = plan(model)
        done = train_run(recipe, data_dir=tiny_data, runs_dir=tmp_path, compute=CPU)
        learned = done.manifest["model"]["learned"]
        assert set(learned) == {f"{name}.visual", f"{name}.acoustic"}
        lines = (done.path / "history.jsonl").read_text().splitlines()
        history = [json.loads(line)["learned"] for line in lines]
        assert len(history) == 7
        # The weights that rank are those of the best epoch, and so is what they say.
        assert history[done.manifest["training"]["best_epoch"] - 1] == pytest.approx(learned)
        assert "learned" not in json.dumps({**recipe.identity(), "model": {}})


def test_a_model_without_a_state_of_its_own_says_nothing(tiny_data: Path, tmp_path: Path) -> None:
    recipe = plan("gated-ensemble", gate="fixed")
    done = train_run(recipe, data_dir=tiny_data, runs_dir=tmp_path, compute=CPU)
    assert "learned" not in done.manifest["model"]
    assert "learned" not in (done.path / "history.jsonl").read_text()
