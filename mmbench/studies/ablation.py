"""Ablation: a recipe with all its feature sets, and without some of them.

Dropping a modality gives the model without that branch, trained anew by the same engine with
the same settings and seeds; it is never fed with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS
from mmbench.recipe import Recipe


def ablations(recipe: Recipe, drops: Sequence[str]) -> list[Recipe]:
    """The full recipe first, then one per drop.

    Args:
        drops: each a modality, or several joined by commas that are dropped together; with
            none given, every modality of the recipe in turn.

    Raises:
        UnknownNameError: a name is no modality.
        ConfigError: the recipe does not use a modality that is to be dropped, has none at all,
            or has a grid.
    """
    label = recipe.shape.label or str(recipe.shape.model["name"])
    used = list(recipe.shape.features)
    if recipe.shape.grid:
        raise ConfigError(f"{recipe.source}: an ablation compares fixed settings; remove grid:")
    if not used:
        usable = sorted(MODELS.get(str(recipe.shape.model["name"])).obj.modalities)
        hint = (
            f"give it feature sets ({', '.join(usable)}), for example with "
            f"--set features.{usable[-1]}=NAME"
            if usable
            else "it uses IDs alone"
        )
        raise ConfigError(f"{recipe.source}: {label} has no modality to drop; {hint}")
    sets = [tuple(part.strip() for part in drop.split(",")) for drop in drops] or [
        (m,) for m in used
    ]
    for name in (name for group in sets for name in group):
        if name not in MODALITIES:
            raise UnknownNameError("modality", name, MODALITIES)
        if name not in used:
            raise ConfigError(
                f"{recipe.source}: {label} does not use {name!r}, so it cannot be dropped; "
                f"it uses {', '.join(used)}"
            )
    reduced = []
    for group in dict.fromkeys(tuple(sorted(set(group), key=used.index)) for group in sets):
        kept = {m: encoder for m, encoder in recipe.shape.features.items() if m not in group}
        reduced.append(recipe.replace(features=kept, label=f"{label} -{' -'.join(group)}"))
    return [recipe.replace(label=label), *reduced]
