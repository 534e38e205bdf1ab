"""How well the feature sets of a dataset agree: the alignment of those of equal width.

Whether two sets of equal width are in one space is for the reader to know: of one contrastive
encoder they are, of two encoders that happen to have as many columns they are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.features import FeatureSet, load_features, read_feature_manifest
from mmbench.data.prepared import PreparedDataset
from mmbench.metrics.alignment import measure

MOST = 5_000
"""Items that are measured; the work grows with the square of their number."""


def alignments(dataset: PreparedDataset, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The alignment of stored feature sets of equal width and different modality.

    Args:
        keys: among these sets; None for all that the dataset has.

    Returns:
        A record for each pair that has two items with both at least: keys and measures, plain
        values; pairs of one encoder first.
    """
    chosen = list(dataset.feature_keys if keys is None else keys)
    widths: dict[str, tuple[int, str, str]] = {}
    for key in chosen:
        stored = read_feature_manifest(dataset.root, key) or {}
        shape = stored.get("shape") or [0, 0]
        modality, _, encoder = key.partition("__")
        widths[key] = (int(shape[1]), modality, encoder)
    found = []
    for first, second in itertools.combinations(sorted(widths, reverse=True), 2):
        (wide, one, encoder), (other_wide, another, other) = widths[first], widths[second]
        if wide and wide == other_wide and one != another:
            record = _alignment(dataset, first, second)
            if record is not None:
                found.append({**record, "one_encoder": encoder == other})
    return sorted(found, key=lambda record: not record["one_encoder"])


def _alignment(dataset: PreparedDataset, first: str, second: str) -> dict[str, Any] | None:
    sets: list[FeatureSet] = [
        load_features(dataset.root, key, dataset.fingerprint, dataset.n_items)
        for key in (first, second)
    ]
    found = agreement(sets[0].matrix, sets[1].matrix, sets[0].mask & sets[1].mask)
    return None if found is None else {"first": first, "second": second, **found}


def agreement(
    first: NDArray[Any], second: NDArray[Any], both: NDArray[np.bool_]
) -> dict[str, Any] | None:
    """The measures of two sets [I, D] over the items that have both [I], as plain values.

    None where fewer than two items have both. Of many items `MOST` are measured.
    """
    rows = np.flatnonzero(both)
    if len(rows) < 2:
        return None
    if len(rows) > MOST:
        rows = rows[np.linspace(0, len(rows) - 1, MOST).round().astype(np.int64)]
    measured = asdict(measure(np.asarray(first[rows]), np.asarray(second[rows])))
    for key in ("recall_first", "recall_second"):
        measured[key] = {str(k): value for k, value in measured[key].items()}
    return measured
