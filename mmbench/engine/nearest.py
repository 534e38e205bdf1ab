"""Which items resemble an item in a feature set: a look that tells whether features make sense."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmbench.data.prepared import PreparedDataset
from mmbench.errors import DataError, UnknownNameError


@dataclass(frozen=True)
class Nearest:
    """The items nearest to one item, the nearest first.

    Attributes:
        item: raw id of the item; `title` may be empty.
        near: id, title and cosine of each.
    """

    item: str
    title: str
    near: tuple[tuple[str, str, float], ...]


def find_item(dataset: PreparedDataset, text: str) -> int:
    """Index of the item whose id is `text`, or whose title is or begins with or holds it.

    Raises:
        UnknownNameError: there is none; the message offers the nearest titles.
    """
    ids = dataset.item_ids
    if text in ids:
        return ids.index(text)
    titles = [str(line["title"]).lower() for line in dataset.items]
    wanted = text.lower()
    for fits in (str.__eq__, str.startswith, str.__contains__):
        found = [row for row, title in enumerate(titles) if fits(title, wanted)]
        if found:
            return found[0]
    all_titles = [str(line["title"]) for line in dataset.items if line["title"]]
    near = difflib.get_close_matches(text, all_titles, n=5, cutoff=0.4)
    raise UnknownNameError(f"item of {dataset.name}", text, near)


def nearest(dataset: PreparedDataset, key: str, texts: Sequence[str], k: int) -> list[Nearest]:
    """The k items of largest cosine to each of some items, itself left out.

    Args:
        key: the stored feature set, for example "textual__minilm-l6".
        texts: ids or titles, see `find_item`.

    Raises:
        DataError: there is no such feature set, or an item is not in it.
        UnknownNameError: there is no such item.
    """
    modality, _, encoder = key.partition("__")
    features = dataset.features(modality, encoder or None)
    rows = [find_item(dataset, text) for text in texts]
    matrix = np.asarray(features.matrix, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1)
    lines, found = dataset.items, []
    for row in rows:
        if not features.mask[row]:
            raise DataError(
                f"item {lines[row]['id']} ({lines[row]['title']}) has no vector in {key}; it lacks "
                "the content"
            )
        cosines = matrix @ matrix[row] / np.maximum(lengths * lengths[row], 1e-12)
        cosines[~features.mask] = -np.inf
        cosines[row] = -np.inf
        # Among equals the first: the order must not depend on the sorting.
        best = np.argsort(-cosines, kind="stable")[:k]
        near = tuple(
            (str(lines[other]["id"]), str(lines[other]["title"]), float(cosines[other]))
            for other in best.tolist()
            if np.isfinite(cosines[other])
        )
        found.append(Nearest(str(lines[row]["id"]), str(lines[row]["title"]), near))
    return found
