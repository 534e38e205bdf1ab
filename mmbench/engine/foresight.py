"""The cost of a particular run or fine-tuning, foreseen from its encoders, data and settings."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmbench.engine.cost import Cost, Load, Part, distinct, load_of, measure, weights_of
from mmbench.engine.device import Compute
from mmbench.engine.end_to_end import places_of, resolved
from mmbench.engine.inputs import Inputs
from mmbench.engine.live import LiveItemEncoder, autocast_in
from mmbench.engine.tuning_loop import Tuner
from mmbench.models.base import Recommender
from mmbench.models.sequential.base import SequentialConfig
from mmbench.recipe import RunRecipe

SAMPLES = 4
"""Items that are run to measure one."""


def foresee_run(
    recipe: RunRecipe, inputs: Inputs, model: Recommender, compute: Compute
) -> Cost | None:
    """What the encoders of a run will cost; None where none learns.

    Args:
        model: freshly made; its encoders are run on a few items, and nothing random is drawn.

    Raises:
        ConfigError: E413 they do not fit into the memory that is free.
    """
    encoders = [
        part for part in model.modules() if isinstance(part, LiveItemEncoder) and part.weights
    ]
    if not encoders:
        return None
    steps, drawn = _steps(recipe, inputs, model)
    drawn_state = compute.drawn()
    parts = [
        _part(recipe, inputs, model, encoder, steps=steps, drawn=drawn, compute=compute)
        for encoder in encoders
    ]
    compute.draw_from(drawn_state)
    cost = Cost(steps, tuple(parts))
    cost.refuse_excess(compute, _cheaper(recipe, cost, encoders))
    return cost


def _steps(recipe: RunRecipe, inputs: Inputs, model: Recommender) -> tuple[int, float]:
    """Steps of an epoch, and items that one reads, repetitions included."""
    train, size = inputs.train, recipe.training.batch_size
    if not isinstance(recipe.settings, SequentialConfig):
        n_rows = len(train.users)
        return -(-n_rows // size), 2.0 * min(size, n_rows)
    degrees = train.user_degrees
    kept = degrees[degrees >= 2].clamp(max=recipe.settings.max_length + 1).float()
    n_users = max(1, len(kept))
    mean = float(kept.mean()) if len(kept) else 0.0
    return -(-n_users // size), 2.0 * min(size, n_users) * mean


def _part(
    recipe: RunRecipe,
    inputs: Inputs,
    model: Recommender,
    encoder: LiveItemEncoder,
    *,
    steps: int,
    drawn: float,
    compute: Compute,
) -> Part:
    training, how = recipe.training, recipe.training.encoder
    source = next(one for one in inputs.live if one.modality == encoder.modality)
    present = torch.from_numpy(source.contents.has).nonzero()[:, 0]
    n_items = len(present)
    chosen = present[torch.linspace(0, n_items - 1, min(SAMPLES, n_items)).long()]
    items = chosen.to(compute.device)
    learning = encoder.weights

    def run() -> Tensor:
        with autocast_in(compute.device, training.precision):
            return encoder(items)[0] if model.family == "sequential" else encoder.vectors(items)

    item = measure(run, learning, len(items))
    evaluations = 1 / training.evaluate_every
    pieces = training.accumulate
    if how is None:
        unique = distinct(n_items, drawn / pieces)
        load = Load(steps * pieces * unique, evaluations * n_items, unique)
        table = 0
    else:
        mode, at_once = resolved(how, model, compute)
        is_cut = mode in ("batch", "stale")
        load = load_of(
            mode,
            steps=steps * (pieces if is_cut else 1),
            drawn=drawn / (pieces if is_cut else 1),
            n_items=n_items,
            refresh=None if how.refresh == "epoch" else how.refresh,
            at_once=at_once,
            evaluations=evaluations,
        )
        places = [place for place in places_of(model) if place.encoder is encoder]
        table = sum(p.tables.encoded(p.modality).numel() * 4 for p in places)
    # Of one network for several modalities, what rests counts once, with the first of them.
    model_of_own = source.encoder.module.parameters() if source.network is None else ()
    total = sum(weight.numel() for weight in model_of_own)
    return Part(
        f"{encoder.modality}: {encoder.how.name}",
        item,
        load,
        encoder.n_learning,
        max(0, total - encoder.n_learning),
        table,
    )


def _cheaper(recipe: RunRecipe, cost: Cost, encoders: list[LiveItemEncoder]) -> list[str]:
    """Settings of a recipe that need less memory, those that move no result first."""
    found = []
    if recipe.training.encoder is not None:
        largest = max(part.load.at_once for part in cost.parts)
        found.append(f"training.encoder.at_once: {max(1, int(largest // 8))}")
    else:
        found.append(f"training.accumulate: {recipe.training.accumulate * 8}")
    name = encoders[0].modality
    if not encoders[0].how.checkpointing:
        found.append(f"encoders.{name}.checkpointing: true")
    if recipe.training.precision == "float32":
        found.append("training.precision: bfloat16")
    if encoders[0].how.tune == "full":
        found.append(f"encoders.{name}.tune: top")
    return found


def foresee_tuning(tuner: Tuner, *, recomputes: bool) -> Cost:
    """What a fine-tuning will cost; its losses are run on a few pairs.

    Raises:
        ConfigError: E413 it does not fit into the memory that is free.
    """
    (batch,) = tuner.settings.batch_size
    n_train, n_held = len(tuner.pairs.train), len(tuner.pairs.held)
    learning = list(tuner.learning.values())
    sample = tuner.pairs.train[: min(SAMPLES, n_train)]
    texts, pictures, _ = tuner.pairs.batch(sample)

    def vectors() -> Tensor:
        found = tuner.objective.vectors(texts, pictures)
        return torch.stack([side.float().sum() for pair in found.values() for side in pair])

    def losses() -> Tensor:
        with tuner.autocast():
            return tuner.trial()

    item = measure(losses, learning, len(sample))
    alone = measure(vectors, [], len(sample))
    steps = n_train // batch
    at_once = min(batch, tuner.chunk)
    # In parts the vectors are computed twice; what does not couple the batch is not.
    again = steps * batch if batch > tuner.chunk else 0
    load = Load(steps * batch, again + 2 * n_held, at_once)
    module = tuner.objective.encoder.module
    n_learning, resting = weights_of(module.parameters(), learning)
    item = replace(item, forward=alone.forward)
    cost = Cost(steps, (Part("pairs", item, load, n_learning, resting),))
    cheaper = [f"--chunk-size {max(1, at_once // 8)}"]
    if not recomputes:
        cheaper.append("--recompute")
    if tuner.precision is None:
        cheaper.append("--precision bfloat16")
    if tuner.settings.tune == "full":
        cheaper.append("--tune top")
    cost.refuse_excess(tuner.compute, cheaper)
    return cost
