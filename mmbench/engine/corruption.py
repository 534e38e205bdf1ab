"""Feature sets spoilt on purpose: what a modality is worth shows when it is taken away bit by bit.

The draws belong to the corruption's own seed and the modality, so that every training seed and
every model sees the same spoilt features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmbench import seeding
from mmbench.metrics.lists import BoolArray
from mmbench.recipe_keys import Corruption


def corrupted(
    modality: str, matrix: NDArray[np.float32], present: BoolArray, how: Corruption
) -> tuple[NDArray[np.float32], BoolArray]:
    """A copy of a set's vectors [I, F] and of which items have one [I], spoilt.

    Of the items that have a vector, `how.share` are chosen (at least one). Exchanging vectors
    is a permutation without a fixed point where more than one is chosen, so no item keeps its own.
    """
    random = seeding.stream(how.seed, "corruption", modality, how.kind)
    having = np.flatnonzero(present)
    chosen = random.permutation(having)[: max(1, round(how.share * len(having)))]
    matrix, present = matrix.copy(), present.copy()
    if how.kind == "missing":
        # One item stays, for the others are given the mean of those that have the modality.
        present[chosen[: len(having) - 1]] = False
    elif how.kind == "shuffle":
        # One cycle through all that are chosen, in their random order.
        matrix[chosen] = matrix[np.roll(chosen, 1)]
    else:
        of_set = matrix[having].astype(np.float64)
        drawn = random.standard_normal((len(chosen), matrix.shape[1]))
        matrix[chosen] = of_set.mean(axis=0) + drawn * of_set.std(axis=0)
    return matrix, present
