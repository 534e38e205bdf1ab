"""What a run's manifest says of its encoders beside what identifies the run.

None of it enters the identity: it follows from what does, so a run that was finished before these
facts were written is the same run without them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mmbench.data.aligned import agreement
from mmbench.data.features import FeatureSet
from mmbench.encoders import paradigms
from mmbench.encoders.tuned import tuning_of
from mmbench.engine.inputs import Inputs
from mmbench.engine.live import LiveItemEncoder, LiveSource
from mmbench.recipe import RunRecipe


def encoding_facts(recipe: RunRecipe, inputs: Inputs, model: nn.Module) -> dict[str, Any]:
    """Paradigm and encoder by modality, and how trained encoders' vectors agree; plain values.

    Args:
        model: with the chosen weights.

    Returns:
        `encoding`, a record of each modality, and `alignment`, a record of each two encoders that
        learnt and whose vectors are of equal width; either is left out where it is empty.
    """
    records = [_of_set(recipe, stored) for stored in inputs.stored]
    records += [_of_source(source) for source in inputs.live]
    aligned = _alignments(model)
    return {
        **({"encoding": records} if records else {}),
        **({"alignment": aligned} if aligned else {}),
    }


def _of_set(recipe: RunRecipe, stored: FeatureSet) -> dict[str, Any]:
    said = paradigms.of_stored(stored.manifest)
    how = recipe.training.encoder
    if how is not None and not how.trains_encoder:
        said |= {"paradigm": "table", "began": said["paradigm"]}
    return {"modality": stored.modality, "set": stored.key, **said}


def _of_source(source: LiveSource) -> dict[str, Any]:
    how, tuned = source.how, None
    if how.weights:
        place = Path(how.weights).expanduser()
        tuned = tuning_of(place if place.is_dir() else place.parent)
    said = paradigms.of_live(how.name, how.variant, how.tune, tuned)
    return {"modality": source.modality, **said}


def _alignments(model: nn.Module) -> list[dict[str, Any]]:
    """The alignment of the vectors that trained encoders make of all items.

    A vector without a direction, as an item without the modality can get, is left out.
    """
    learnt = [part for part in model.modules() if isinstance(part, LiveItemEncoder)]
    if len(learnt) < 2:
        return []
    vectors = {part.modality: part.every_vector().numpy() for part in learnt}
    found = []
    for first, second in itertools.combinations(sorted(vectors, reverse=True), 2):
        one, other = vectors[first], vectors[second]
        if one.shape != other.shape:
            continue
        fit = [np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1) for rows in (one, other)]
        measured = agreement(one, other, fit[0] & fit[1])
        if measured is not None:
            found.append({"first": first, "second": second, **measured})
    return found
