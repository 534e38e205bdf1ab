"""What a run's manifest says of its encoders beside what identifies the run.

None of it enters the identity: it follows from what does, so a run that was finished before these
facts were written is the same run without them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mmbench.data.aligned import agreement
from mmbench.data.features import FeatureSet
from mmbench.encoders import paradigms
from mmbench.encoders.tuned import tuning_of
from mmbench.engine.inputs import Inputs
from mmbench.engine.live_sources import LiveSource
from mmbench.models.fusion import FeatureTables
from mmbench.recipe import RunRecipe


def encoding_facts(recipe: RunRecipe, inputs: Inputs, model: nn.Module) -> dict[str, Any]:
    """Paradigm and encoder by modality, and how trained encoders' vectors agree; plain values.

    Args:
        model: with the chosen weights.

    Returns:
        `encoding`, a record of each modality, and `alignment`, a record of each two modalities
        whose vectors are of equal width and learnt, one at least; either is left out where it is
        empty. Of sequential models nothing is measured, as they read tokens.
    """
    records = [_of_set(recipe, stored) for stored in inputs.stored]
    records += [_of_source(source) for source in inputs.live]
    aligned = _alignments(recipe, inputs, model)
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


def _alignments(recipe: RunRecipe, inputs: Inputs, model: nn.Module) -> list[dict[str, Any]]:
    """The alignment of vectors that learnt, of all items, with one another and with stored ones.

    What the model read last is measured: the rows that were computed with the chosen weights.
    """
    how = recipe.training.encoder
    rows_learn = how is not None and not how.trains_encoder
    present = {given.modality: given.present.cpu().numpy() for given in inputs.features}
    found: dict[str, tuple[NDArray[Any], NDArray[np.bool_], bool]] = {}
    for tables in model.modules():
        if not isinstance(tables, FeatureTables):
            continue
        for name in tables.modalities:
            if name in tables.encoders:
                has = tables.present(name).cpu().numpy()
                found[name] = _array(tables.encoded(name)), has, True
            elif name in present:
                found[name] = _array(tables.table(name)), present[name], rows_learn
    records = []
    for first, second in itertools.combinations(sorted(found, reverse=True), 2):
        (one, has_one, learnt), (other, has_other, too) = found[first], found[second]
        if one.shape != other.shape or not (learnt or too):
            continue
        both = has_one & has_other & _has_direction(one) & _has_direction(other)
        measured = agreement(one, other, both)
        if measured is not None:
            records.append({"first": first, "second": second, **measured})
    return records


def _array(rows: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = rows.detach().float().cpu().numpy()
    return array


def _has_direction(rows: NDArray[Any]) -> NDArray[np.bool_]:
    has: NDArray[np.bool_] = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
    return has
