"""ItemKNN-CBF: a user is shown items that look, read or sound like those chosen before.

Content kNN as in Ferrari Dacrema, Cremonesi and Jannach, RecSys 2019.
https://arxiv.org/abs/1907.06902

    s_ij   = f_i . f_j / (|f_i| |f_j| + shrinkage)
    score  x_uj = sum over i in N_u of s_ij [i is among the k nearest items of j]

`combine: sum` does so for each feature set and adds the scores, each divided by its standard
deviation over all users and items (an ensemble); `combine: concat` does so once, with the rows
of all sets side by side (fusion).

Shapes: U users, I items, B users scored at once.
Departures: rows are scaled to length one first, so that no set dominates by its units;
`normalize: false` compares raw rows. An all-zero row is similar to nothing.
`neighbourhood: history` keeps the k nearest of the item in the history.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from mmbench.errors import ConfigError
from mmbench.modality import MODALITIES
from mmbench.models.base import (
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.item_graphs import item_neighbours
from mmbench.models.neighbours import SparseTable, product_rows

BLOCK_USERS = 1024
"""Users whose scores exist at once while their deviation is measured."""


class ItemKNNCBFConfig(ModelConfig):
    """Settings of content ItemKNN."""

    k: PositiveInt = 50  # nearest items of an item
    shrinkage: NonNegativeFloat = 0.0
    combine: Literal["sum", "concat"] = "sum"
    normalize: bool = True
    neighbourhood: Literal["target", "history"] = "target"


@register_model(
    "itemknn-cbf",
    config=ItemKNNCBFConfig,
    citation=(
        "Ferrari Dacrema, Cremonesi and Jannach. Are we really making much progress? A worrying "
        "analysis of recent neural recommendation approaches. RecSys 2019."
    ),
)
class ItemKNNCBF(Recommender):
    """The nearest items of a user's history, by their features alone."""

    integration = "ensemble"
    modalities = frozenset(MODALITIES)
    requires_modality = True
    fitting = "closed-form"
    factors = False
    config: ItemKNNCBFConfig

    def __init__(
        self, config: ItemKNNCBFConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        if not given:
            raise ConfigError(
                "itemknn-cbf compares the features of items and was given none; name at least "
                "one modality under `features`"
            )
        self.config = config
        self.choices = train.matrix  # R
        self.given = [g.matrix.float() for g in given]
        self.similarities = SparseTable(train.n_items, train.n_items)  # history by target

    def fit(self, generator: torch.Generator) -> None:
        """Find the nearest items of every item, in each feature set or in all at once."""
        sets = [F.normalize(f, dim=1) for f in self.given] if self.config.normalize else self.given
        if self.config.combine == "concat":
            self.similarities.store(self._similarities(torch.cat(sets, dim=1)))
            return
        total = sp.csr_array(self.similarities.shape)
        for features in sets:
            similarities = self._similarities(features)
            total = sp.csr_array(total + similarities * (1.0 / self._deviation(similarities)))
        self.similarities.store(total)

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items, float32 [B, I]."""
        return product_rows(self.choices, users, self.similarities.matrix())

    def _similarities(self, features: Tensor) -> sp.csr_array:
        """Similarities of each item in a history (row) to each target (column)."""
        indices, values = item_neighbours(
            features, self.config.k, shrinkage=self.config.shrinkage, include_self=False
        )
        n_items, k = indices.shape
        matrix = sp.csr_array(
            (
                values.double().cpu().numpy().ravel(),
                indices.cpu().numpy().ravel(),
                np.arange(n_items + 1) * k,
            ),
            shape=(n_items, n_items),
        )
        matrix.eliminate_zeros()
        return sp.csr_array(matrix.T) if self.config.neighbourhood == "target" else matrix

    def _deviation(self, similarities: sp.csr_array) -> float:
        """Standard deviation of the scores over all users and items; 1 where they are all equal."""
        total = squares = 0.0
        for start in range(0, self.choices.shape[0], BLOCK_USERS):
            scores = (self.choices[start : start + BLOCK_USERS] @ similarities).data
            total, squares = total + float(scores.sum()), squares + float(scores @ scores)
        n_scores = self.choices.shape[0] * self.choices.shape[1]
        variance = squares / n_scores - (total / n_scores) ** 2
        return float(np.sqrt(variance)) if variance > 0 else 1.0
