"""A recipe's model and ranker, made of its inputs."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmbench import seeding
from mmbench.engine.device import Compute
from mmbench.engine.end_to_end import refresh
from mmbench.engine.inputs import Inputs, Target, features_to_device, to_device
from mmbench.engine.live import make_features
from mmbench.engine.ranking import Ranker
from mmbench.engine.start import Start
from mmbench.errors import ConfigError
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS, ItemFeatures, Recommender
from mmbench.recipe import RunRecipe


def build_model(
    recipe: RunRecipe, inputs: Inputs, compute: Compute, start: Start | None = None
) -> Recommender:
    """The freshly initialised model on its device, or one with the weights that it starts from.

    Raises:
        ConfigError: it does not train the encoders of the recipe, or cannot start so.
    """
    kind = MODELS.get(recipe.model).obj
    given = features_to_device(inputs.features, torch.device("cpu"))
    is_sequential = kind.family == "sequential"
    # Made before the generators are seeded, as what is kept of an encoder must move no draw.
    given += make_features(
        inputs.live,
        seed=recipe.seed,
        precision=recipe.training.precision,
        compute=compute,
        is_sequential=is_sequential,
    )
    if not is_sequential:
        given = [_for_general(features, recipe) for features in given]
    given.sort(key=lambda features: MODALITIES.index(features.modality))
    seeding.seed_globals(recipe.seed, "init")
    train = to_device(inputs.train, torch.device("cpu"))
    model: Recommender = kind(recipe.settings, train, given)
    parts = set(model.modules())
    for features in given:
        tune = recipe.encoders[features.modality].tune if features.encoder is not None else "none"
        if features.encoder not in parts and tune != "none":
            raise _untrained(recipe, features.modality)
    if start is not None:
        start.begin(model, inputs, given)
        model.to(compute.device)
        refresh(model, compute)
    return model.to(compute.device)


def _for_general(features: ItemFeatures, recipe: RunRecipe) -> ItemFeatures:
    """A feature set as a general model is given it: with its encoder only if that learns.

    Raises:
        ConfigError: the encoder is to learn, and nothing says how.
    """
    how = recipe.training.encoder
    if how is not None and not how.trains_encoder:
        return replace(features, encoder=None, learns=True)
    if features.encoder is None or recipe.encoders[features.modality].tune == "none":
        return replace(features, encoder=None)  # its vectors will never change
    if how is None:
        raise _untrained(recipe, features.modality)
    return features


def _untrained(recipe: RunRecipe, modality: str) -> ConfigError:
    can = MODELS.get(recipe.model).obj.reads_features != "once"
    return ConfigError(
        f"{recipe.model} trains no encoders{' by itself' if can else ''}: "
        f"{'set training.encoder: end_to_end, or ' if can else ''}under encoders.{modality} set "
        "tune: none, or extract vectors and name them under features:"
    )


def make_ranker(recipe: RunRecipe, inputs: Inputs, target: Target, compute: Compute) -> Ranker:
    """The ranker of one part, with the seed's order of items."""
    order = seeding.stream(recipe.seed, "ties").permutation(inputs.dataset.n_items)
    return Ranker(
        target, inputs.popularity, inputs.activity, order, compute.device, ranks=compute.ranks
    )
