"""The learning rate of an encoder after the epochs in which it rests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmbench.engine.device import choose
from mmbench.engine.optimisation import encoder_rate_factor, learning_rate_factor
from mmbench.engine.step import Step
from mmbench.engine.train import train_run
from mmbench.recipe import Recipe, RunRecipe
from mmbench.recipe_keys import EncoderTraining


def recipe_of(encoder: Any, weights: str = "nowhere") -> RunRecipe:
    values: dict[str, Any] = {
        "dataset": "mine",
        "encoders": {"textual": {"name": "bert", "weights": weights, "blocks": 1}},
        "model": {"name": "vbpr", "embedding_size": 4},
        "training": {
            "epochs": 4,
            "batch_size": 16,
            "learning_rate": 0.01,
            "encoder_learning_rate": 0.1,
            "schedule": {"name": "exponential", "gamma": 0.5},
            "select_by": "ndcg@5",
            "encoder": encoder,
        },
        "evaluation": {"metrics": ["ndcg@5"], "depth": 10},
    }
    (recipe,) = Recipe(values, "test").expand()
    return recipe


def test_it_rises_over_a_share_of_the_steps_that_are_left() -> None:
    how = EncoderTraining(warmup_epochs=2, warmup_share=0.25)
    # 10 epochs of 2 steps, 4 steps at rest; of the other 16 it rises in 4.
    found = [encoder_rate_factor(how, step, 2, 10) for step in range(20)]
    assert found[4:8] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert set(found[8:]) == {1.0}
    none = EncoderTraining(warmup_epochs=2)
    assert {encoder_rate_factor(none, step, 2, 10) for step in range(20)} == {1.0}


def test_every_step_has_its_rate(
    content: Callable[..., Path],
    weights: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[tuple[float, float]] = []
    call = Step.__call__

    def listen(self: Step, batch: Any) -> Any:
        own, encoder = (group["lr"] for group in self.optimizer.param_groups)
        rates.append((own, encoder))
        return call(self, batch)

    monkeypatch.setattr(Step, "__call__", listen)
    recipe = recipe_of({"warmup_epochs": 1, "warmup_share": 0.5}, weights("bert"))
    train_run(recipe, data_dir=content(), runs_dir=tmp_path / "runs", compute=choose("cpu"))
    n_steps, left = divmod(len(rates), 4)
    assert left == 0
    for at, (own, encoder) in enumerate(rates):
        factor = learning_rate_factor(recipe.training.schedule, at // n_steps, 4)
        rising = 0.5 * 3 * n_steps
        assert own == pytest.approx(0.01 * factor)
        expected = min(1.0, (max(0, at - n_steps) + 1) / (rising + 1))
        assert encoder == pytest.approx(0.1 * factor * expected)
    assert rates[-1][1] == pytest.approx(10 * rates[-1][0])


def test_recipes_without_the_key_are_what_they_were() -> None:
    plain = recipe_of("end_to_end").identity()
    assert plain["training"]["encoder"] == {
        "name": "end_to_end",
        "mode": "auto",
        "refresh": "epoch",
        "at_once": None,
        "warmup_epochs": 0,
    }
    assert recipe_of({"warmup_share": 0.0}).identity() == plain
    assert recipe_of({"warmup_share": 0.05}).identity() != plain
