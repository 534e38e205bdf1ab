"""The ensemble that the gated and the scheduled one share: a score from ids, one per modality.

    E^0_0 = [P_0; Q],  E^0_m = [P_m; y_m],  y_m = (X_m with rows of length one) W_m + b_m
    E_m   = (E^0_m + S E^0_m + ... + S^L E^0_m) / (L + 1)         (LightGCN, arXiv 2002.02126)
    ensemble  x_ui = e_0,u . e_0,i + sum over m of w_m (e_m,u . e_m,i)
    fusion    x_ui = (e_0,u + sum over m of w_m e_m,u) . (e_0,i + sum over m of w_m e_m,i)

A weight w_m of zero takes modality m out of score and loss. All branches go over the graph side
by side, as one matrix.

Shapes: U users, I items, N = U + I, B batch, M modalities, C = M + 1 branches, D = size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.models import losses
from mmbench.models.base import Batch, Interactions, ItemFeatures
from mmbench.models.fusion import FeatureTables
from mmbench.models.graph import SparseOperator, normalised_adjacency

Form = Literal["fusion", "ensemble"]


class ModalityEnsemble(nn.Module):
    """Branches of ids and of each modality given, each with users of its own."""

    def __init__(
        self, train: Interactions, given: Sequence[ItemFeatures], size: int, n_layers: int
    ) -> None:
        super().__init__()
        self.n_users, self.n_layers = train.n_users, n_layers
        self.modalities = tuple(features.modality for features in given)
        self.n_branches = len(given) + 1
        self.graph = normalised_adjacency(train)  # S
        self.users = nn.Parameter(torch.empty(train.n_users, self.n_branches * size))  # P_0 | P_m
        self.items = nn.Parameter(torch.empty(train.n_items, size))  # Q
        for block in (*self.users.chunk(self.n_branches, dim=1), self.items):
            nn.init.xavier_uniform_(block)
        units = [
            dataclasses.replace(features, matrix=F.normalize(features.matrix.float(), dim=1))
            for features in given
        ]
        self.features = FeatureTables(units, frozen=True)  # X_m
        self.project = nn.ModuleDict()  # W_m, b_m
        for features in given:
            project = nn.Linear(features.matrix.shape[1], size)
            nn.init.xavier_uniform_(project.weight)
            nn.init.zeros_(project.bias)
            self.project[features.modality] = project

    def starts(self) -> Tensor:
        """E^0 of all branches side by side, [N, C D]."""
        views = [self.project[name](self.features[name]) for name in self.modalities]
        return torch.cat([self.users, torch.cat([self.items, *views], dim=1)])

    def propagated(self, starts: Tensor, graph: SparseOperator | None = None) -> Tensor:
        """E of all branches side by side, [N, C D]; over all edges unless given another graph."""
        return (graph or self.graph).mean_of_powers(starts, self.n_layers)

    def nodes(self, batch: Batch) -> Tensor:
        """Rows of users, positives and negatives in `starts`, int64 [3 B]."""
        items = torch.cat([batch.positives, batch.negatives]) + self.n_users
        return torch.cat([batch.users, items])

    def vectors(self, weights: Tensor, form: Form) -> tuple[Tensor, Tensor]:
        """Users and items whose products are the scores: [., C D] of an ensemble, or [., D].

        Args:
            weights: w, [M].
        """
        final = self.split(self.propagated(self.starts()))  # [N, C, D]
        scale = F.pad(weights, (1, 0), value=1.0)[:, None]  # [C, 1]
        users, items = final[: self.n_users], final[self.n_users :]
        if form == "fusion":
            return (scale * users).sum(dim=1), (scale * items).sum(dim=1)
        return users.flatten(1), (scale * items).flatten(1)

    def split(self, rows: Tensor) -> Tensor:
        """Rows [., C D] as branches [., C, D]."""
        return rows.reshape(len(rows), self.n_branches, -1)


def margins(rows: Tensor, weights: Tensor, form: Form) -> Tensor:
    """x_ui - x_uj of B triples, [B].

    Args:
        rows: E of users, positives and negatives, [3 B, C, D].
        weights: w, [M], or one for each triple, [B, M].
    """
    users, positives, negatives = rows.chunk(3)
    gap, scale = positives - negatives, F.pad(weights, (1, 0), value=1.0)  # [B, C, D], [., C]
    if form == "fusion":
        scale = scale.unsqueeze(-1)
        return ((scale * users).sum(dim=-2) * (scale * gap).sum(dim=-2)).sum(dim=-1)
    return (scale * (users * gap).sum(dim=-1)).sum(dim=-1)


def penalty(starts: Tensor) -> Tensor:
    """Half the mean square length of the rows [3 B, C D] of E^0, counted by triples, a scalar."""
    return losses.squared(*starts.chunk(3))
