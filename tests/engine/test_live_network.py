"""VLMo for pictures and texts of one recipe: one network, against two copies of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmbench.engine.building import build_model
from mmbench.engine.device import choose
from mmbench.engine.end_to_end import EndToEnd
from mmbench.engine.foresight import foresee_run
from mmbench.engine.inputs import Inputs, load_inputs
from mmbench.engine.live import LiveItemEncoder, make_features
from mmbench.engine.step import Step
from mmbench.engine.train import train_run
from mmbench.engine.trained import load_trained
from mmbench.models.base import Batch
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run, open_run

CPU = choose("cpu")
ITEMS = torch.tensor([0, 1, 4, 7, 9])


@pytest.fixture
def recipe_of(weights: Callable[[str], str]) -> Callable[..., RunRecipe]:
    def make(name: str = "vlmo-base-plus", textual: Any = None, **how: Any) -> RunRecipe:
        encoder = {"name": name, "weights": weights(name), **how}
        values = {
            "dataset": "mine",
            "encoders": {"visual": encoder, "textual": {**encoder, **(textual or {})}},
            "model": {"name": "vbpr", "embedding_size": 4},
            "training": {
                "epochs": 3,
                "batch_size": 16,
                "encoder_learning_rate": 0.01,
                "learning_rate": 0.01,
                "select_by": "ndcg@5",
                "encoder": "end_to_end",
            },
            "evaluation": {"metrics": ["ndcg@5"], "depth": 10},
        }
        (recipe,) = Recipe(values, "test").expand()
        return recipe

    return make


def encoders_of(inputs: Inputs, *, apart: bool = False) -> dict[str, LiveItemEncoder]:
    sources = [replace(source, network=None) if apart else source for source in inputs.live]
    given = make_features(sources, seed=0, precision="float32", compute=CPU, is_sequential=False)
    found = {}
    for features in given:
        assert isinstance(features.encoder, LiveItemEncoder)
        found[features.modality] = features.encoder
    return found


def names(encoder: LiveItemEncoder) -> set[str]:
    return {name for name, _ in encoder.learning.named_parameters()}


def gradients(encoders: dict[str, LiveItemEncoder]) -> dict[str, list[Tensor]]:
    """Of a loss over both modalities: by name, of each encoder that has the parameter."""
    loss = sum(
        (encoder.vectors(ITEMS) * torch.randn(5, 16, generator=torch.Generator().manual_seed(at)))
        .square()
        .sum()
        for at, encoder in enumerate(encoders.values())
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    found: dict[str, list[Tensor]] = {}
    for encoder in encoders.values():
        for name, weight in encoder.learning.named_parameters():
            assert weight.grad is not None, name
            found.setdefault(name, []).append(weight.grad)
    return found


@pytest.mark.parametrize(
    ("how", "is_kept"),
    [
        ({"tune": "top", "blocks": 2}, True),
        ({"tune": "top", "blocks": 2, "cache": False, "checkpointing": True}, False),
        ({"tune": "full"}, False),
    ],
)
def test_the_gradient_is_the_sum_over_two_copies(
    content: Callable[..., Path],
    recipe_of: Callable[..., RunRecipe],
    how: dict[str, Any],
    is_kept: bool,
) -> None:
    inputs = load_inputs(recipe_of(**how), content())
    assert [source.network for source in inputs.live] == [None, "visual"]
    one, two = encoders_of(inputs), encoders_of(inputs, apart=True)
    assert {encoder.is_kept for encoder in one.values()} == {is_kept}
    for modality in one:
        assert torch.equal(one[modality].vectors(ITEMS), two[modality].vectors(ITEMS))
    seen, read = names(two["visual"]), names(two["textual"])
    assert seen & read  # attention at least
    assert names(one["visual"]) == seen
    assert names(one["textual"]) == read - seen
    assert sum(one[m].n_learning for m in one) < sum(two[m].n_learning for m in two)
    found, wanted = gradients(one), gradients(two)
    assert set(found) == set(wanted) == seen | read
    for name, (gradient,) in found.items():
        total = torch.stack(wanted[name]).sum(dim=0)
        assert len(wanted[name]) == 1 + (name in seen & read)
        assert torch.allclose(gradient, total, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("mode", ["batch", "full", "accumulate"])
def test_a_step_moves_it_once(
    content: Callable[..., Path], recipe_of: Callable[..., RunRecipe], mode: str
) -> None:
    recipe = recipe_of(tune="top", blocks=1)
    inputs = load_inputs(recipe, content())
    how = recipe.training.encoder
    assert how is not None
    model = build_model(recipe, inputs, CPU)
    encoding = EndToEnd(model, how.model_copy(update={"mode": mode}), "float32", CPU)
    step = Step(model, recipe.training, CPU, encoding)
    stepped = [id(weight) for weight in step.learning]
    assert len(set(stepped)) == len(stepped)
    encoders = {place.modality: place.encoder for place in encoding.places}
    both = {id(w) for w in encoders["visual"].weights} & {
        id(w) for w in encoders["textual"].weights
    }
    assert both
    assert both <= set(stepped)
    stored = [name for name in model.state_dict() if ".learning." in name]
    inside = [name.partition(".learning.")[2] for name in stored]
    assert (
        len(set(inside))
        == len(inside)
        == len(names(encoders["visual"])) + len(names(encoders["textual"]))
    )
    before = {m: encoder.every_vector() for m, encoder in encoders.items()}
    model.train()
    encoding.start_epoch(1, 1)
    step(Batch(torch.tensor([0, 1, 2]), torch.tensor([2, 4, 6]), torch.tensor([7, 8, 9])))
    encoding.bring_up_to_date()
    for modality, encoder in encoders.items():
        after = encoder.every_vector()
        assert not torch.equal(after, before[modality])
        place = next(place for place in encoding.places if place.modality == modality)
        table = place.tables.encoded(modality)
        assert torch.equal(table[place.everything], after[place.everything])
    cost = foresee_run(recipe, inputs, model, CPU)
    assert cost is not None
    assert sum(part.learning for part in cost.parts) == sum(e.n_learning for e in encoders.values())


def test_an_interrupted_run_goes_on_to_the_same_bits(
    content: Callable[..., Path],
    recipe_of: Callable[..., RunRecipe],
    tmp_path: Path,
) -> None:
    data, recipe = content(), recipe_of(tune="top", blocks=1)

    def train(name: str, stop: int | None = None) -> Run:
        def listen(_: Any, record: dict[str, Any], __: Any) -> None:
            if record["epoch"] == stop:
                raise KeyboardInterrupt

        return train_run(
            recipe,
            data_dir=data,
            runs_dir=tmp_path / name,
            compute=CPU,
            on_epoch=listen,
            checkpoint_every_s=0,
        )

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("broken", stop=3)
    resumed = train("broken")
    first, second = (load_file(run.path / "weights.safetensors") for run in (whole, resumed))
    assert set(first) == set(second)
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    assert load_trained(open_run(resumed.path), data, CPU).agreement == 1.0
    # Where the data were copied to says nothing.
    other = Path(shutil.copytree(data, tmp_path / "other"))
    assert load_inputs(recipe, other).facts() == load_inputs(recipe, data).facts()


def test_who_has_a_network_of_its_own(
    content: Callable[..., Path], recipe_of: Callable[..., RunRecipe]
) -> None:
    data = content()
    for recipe in (
        recipe_of("clip-vit-b32"),  # a tower for each
        recipe_of(textual={"tune": "full"}),  # not as much of both learns
    ):
        inputs = load_inputs(recipe, data)
        assert [source.network for source in inputs.live] == [None, None]
        assert all("network" not in told for told in inputs.facts()["encoders"])
    one, other = load_inputs(recipe_of(), data).facts()["encoders"]
    assert other.pop("network") == "visual"
    assert set(one) == set(other)
