"""The ensemble that the gated and the scheduled one share: a score from ids, one per modality.

    ids       E_0 = (E^0 + S E^0 + ... + S^L E^0) / (L + 1),  E^0 = [P_0; Q]
              (LightGCN, arXiv 2002.02126)
    modality  e_m,u = P_m,u,  e_m,i = y_m,i = (X_m,i at length one) W_m + b_m
              (VBPR's term, arXiv 1510.01784)
    ensemble  x_ui = e_0,u . e_0,i + sum over m of w_m (e_m,u . e_m,i)
    fusion    x_ui = (e_0,u + sum over m of w_m e_m,u) . (e_0,i + sum over m of w_m e_m,i)

A weight w_m of zero takes modality m out of score and loss. Modalities do not go over the graph:
smoothed over it, even noise tells items apart by who chose them, and a score from such noise
would be one from ids.

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
        self.graph = normalised_adjacency(train)  # S
        self.nodes = nn.Parameter(torch.empty(train.n_users + train.n_items, size))  # P_0 above Q
        units = [
            dataclasses.replace(features, matrix=F.normalize(features.matrix.float(), dim=1))
            for features in given
        ]
        self.features = FeatureTables(units, frozen=True)  # X_m
        self.users = nn.ParameterDict()  # P_m
        self.project = nn.ModuleDict()  # W_m, b_m
        for features in given:
            self.users[features.modality] = nn.Parameter(torch.empty(train.n_users, size))
            self.project[features.modality] = nn.Linear(features.matrix.shape[1], size)
        self.reset()

    def reset(self) -> None:
        """Draw all weights anew."""
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        for name in self.modalities:
            nn.init.xavier_uniform_(self.users[name])
            project = self.project[name]
            assert isinstance(project, nn.Linear)
            nn.init.xavier_uniform_(project.weight)
            nn.init.zeros_(project.bias)

    def rows(self, batch: Batch, graph: SparseOperator | None = None) -> tuple[Tensor, Tensor]:
        """What B triples read: their rows of the branches, and those that a penalty keeps small.

        Args:
            graph: that of some of the edges; S unless given.

        Returns:
            Users, positives and negatives, one below the other: e [3 B, C, D], and the same with
            E^0 in place of E_0.
        """
        pairs = torch.cat([batch.positives, batch.negatives])
        nodes = torch.cat([batch.users, pairs + self.n_users])
        ids = (graph or self.graph).mean_of_powers(self.nodes, self.n_layers)
        content = [
            torch.cat(
                [
                    self.users[name].index_select(0, batch.users),
                    self.project[name](self.features.rows(name, pairs)),
                ]
            )
            for name in self.modalities
        ]
        start, final = self.nodes.index_select(0, nodes), ids.index_select(0, nodes)
        return torch.stack([final, *content], dim=1), torch.stack([start, *content], dim=1)

    def vectors(self, weights: Tensor, form: Form) -> tuple[Tensor, Tensor]:
        """Users and items whose products are the scores: [., C D] of an ensemble, or [., D].

        Args:
            weights: w, [M].
        """
        ids = self.graph.mean_of_powers(self.nodes, self.n_layers)
        names = self.modalities
        users = torch.stack([ids[: self.n_users], *(self.users[name] for name in names)], dim=1)
        views = [self.project[name](self.features[name]) for name in names]
        items = torch.stack([ids[self.n_users :], *views], dim=1)  # [I, C, D]
        scale = F.pad(weights, (1, 0), value=1.0)[:, None]  # [C, 1]
        if form == "fusion":
            return (scale * users).sum(dim=1), (scale * items).sum(dim=1)
        return users.flatten(1), (scale * items).flatten(1)


def margins(rows: Tensor, weights: Tensor, form: Form) -> Tensor:
    """x_ui - x_uj of B triples, [B].

    Args:
        rows: e of users, positives and negatives, [3 B, C, D].
        weights: w, [M], or one for each triple, [B, M].
    """
    users, positives, negatives = rows.chunk(3)
    gap, scale = positives - negatives, F.pad(weights, (1, 0), value=1.0)  # [B, C, D], [., C]
    if form == "fusion":
        scale = scale.unsqueeze(-1)
        return ((scale * users).sum(dim=-2) * (scale * gap).sum(dim=-2)).sum(dim=-1)
    return (scale * (users * gap).sum(dim=-1)).sum(dim=-1)


def penalty(starts: Tensor) -> Tensor:
    """Half the squares of the rows [3 B, C, D] that a penalty keeps small, over B, a scalar."""
    return losses.squared(*starts.chunk(3))
