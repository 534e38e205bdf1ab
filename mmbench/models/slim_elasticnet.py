"""SLIM-ElasticNet: a sparse, non-negative linear model of each item from all others.

Ning and Karypis, ICDM 2011; solved as one elastic net for each item, as in Ferrari Dacrema,
Cremonesi and Jannach, RecSys 2019. https://arxiv.org/abs/1907.06902

    w_j    = argmin over w >= 0, w_j = 0 of |R_j - R w|^2 / 2U
             + alpha l1_ratio |w|_1 + alpha (1 - l1_ratio) |w|^2 / 2
    score  x_uj = R_u w_j,  the top_k largest entries of w_j kept

Shapes: U users, I items, B users scored at once, C candidates of one item.
Departures: the published code stops coordinate descent at a tolerance; the problem is strictly
convex and reads, times U, with G = R^T R,

    w' (G + U alpha (1 - l1_ratio)) w / 2 - (G_j - U alpha l1_ratio)' w,  w >= 0

so block pivoting on a growing working set solves it exactly. Items with G_ij <= U alpha l1_ratio
cannot enter it: G and w are not negative, so their gradient never is. The published defaults
(alpha 1, l1_ratio 0.1) leave no weight at all on sparse data, so ours differ. Time grows with the
cube of the weights that an item ends up with: a small l1_ratio is slow where all items co-occur.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from mmbench.models.base import (
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.neighbours import SparseTable, largest_per_row, product_rows, random_priority

WORKING_SET = 64
"""Candidates that the first working set of an item holds."""


class SLIMElasticNetConfig(ModelConfig):
    """Settings of SLIM-ElasticNet."""

    alpha: PositiveFloat = 0.01
    l1_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01  # rho
    top_k: PositiveInt = 100  # weights kept per item


@register_model(
    "slim-elasticnet",
    config=SLIMElasticNetConfig,
    citation=(
        "Ning and Karypis. SLIM: sparse linear methods for top-n recommender systems. ICDM 2011."
    ),
)
class SLIMElasticNet(Recommender):
    """Each item as a sparse weighted sum of others."""

    fitting = "closed-form"
    factors = False
    config: SLIMElasticNetConfig

    def __init__(
        self, config: SLIMElasticNetConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.choices = train.matrix  # R
        self.weights = SparseTable(train.n_items, train.n_items)  # column j is w_j

    def fit(self, generator: torch.Generator) -> None:
        """Solve the elastic net of every item."""
        n_users, n_items = self.choices.shape
        penalty = n_users * self.config.alpha * self.config.l1_ratio
        # With l1_ratio = 1 the solution may not be unique; the smallest ridge makes it so.
        ridge = max(n_users * self.config.alpha * (1.0 - self.config.l1_ratio), 1e-6)
        gram = sp.csr_array((self.choices.T @ self.choices).astype(np.float64))
        gram.sort_indices()
        columns, values = [], []
        for item in range(n_items):
            entries = slice(gram.indptr[item], gram.indptr[item + 1])
            eligible = (gram.data[entries] > penalty) & (gram.indices[entries] != item)
            candidates = gram.indices[entries][eligible]
            weights = _solve(gram, candidates, gram.data[entries][eligible] - penalty, ridge)
            columns.append(candidates[weights > 0])
            values.append(weights[weights > 0])
        pointers = np.cumsum([0, *map(len, columns)])
        by_target = sp.csr_array(
            (np.concatenate(values), np.concatenate(columns), pointers), shape=(n_items, n_items)
        )
        priority = random_priority(n_items, generator)
        self.weights.store(sp.csr_array(largest_per_row(by_target, self.config.top_k, priority).T))

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items, float32 [B, I]."""
        return product_rows(self.choices, users, self.weights.matrix())


def _solve(
    gram: sp.csr_array, candidates: NDArray[Any], target: NDArray[Any], ridge: float
) -> NDArray[np.float64]:
    """Weights [C] of the candidates of one item.

    Few candidates end up with a weight, so the problem is solved on a working set, which takes
    in the candidates that would still enter until there are none.
    """
    weights = np.zeros(len(target))
    if len(target) == 0:
        return weights
    tolerance = 1e-10 * float(target.max())
    working = np.argsort(-target, kind="stable")[:WORKING_SET]
    while True:
        rows = gram[candidates[working]]
        system = rows[:, candidates[working]].toarray()
        system[np.diag_indices(len(working))] += ridge
        solution = nonnegative_minimum(system, target[working])
        gradient = (rows.T @ solution)[candidates] - target
        gradient[working] = 0.0
        entering = np.flatnonzero(gradient < -tolerance)
        if len(entering) == 0:
            weights[working] = solution
            return weights
        # At most double: the worst offenders usually settle the others.
        worst = np.argsort(gradient[entering], kind="stable")[: len(working)]
        working = np.concatenate([working, entering[worst]])


def nonnegative_minimum(system: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """The w >= 0 with the least w' A w / 2 - b' w, for a positive definite A [C, C] and b [C].

    Block principal pivoting (Portugal, Judice and Vicente, Mathematics of Computation 1994):
    solve for a guessed support, move every index that breaks a condition, repeat. When that
    does not lower the number of broken conditions, single moves guarantee an end.
    """
    weights = np.zeros(len(target))
    support = target > 0
    fewest, attempts = len(target) + 1, 3
    scale = 1e-10 * max(float(np.abs(target).max(initial=0.0)), 1e-300)
    while True:
        weights[:] = 0.0
        if support.any():
            block = cho_factor(system[np.ix_(support, support)], check_finite=False)
            weights[support] = cho_solve(block, target[support], check_finite=False)
        gradient = system @ weights - target
        broken = np.flatnonzero(np.where(support, weights < 0, gradient < -scale))
        if len(broken) == 0:
            return weights
        if len(broken) < fewest:
            fewest, attempts = len(broken), 3
        elif attempts:
            attempts -= 1
        else:
            broken = broken[-1:]
        support[broken] = ~support[broken]
