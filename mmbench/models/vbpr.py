"""VBPR: visual Bayesian personalised ranking.

He and McAuley, AAAI 2016. https://arxiv.org/abs/1510.01784

    F      = [X_1 ; X_2 ; ...] W + b          the raw features given, side by side
    score  x_ui = t_u . [q_i ; F_i]
    loss   mean over (u, i, j) of -log sigmoid(x_ui - x_uj)
           + regularization * (|T_B| + |E_i| + |E_j|) / B,  E rows [q ; F]   (norms not squared)

Shapes: U users, I items, B batch, D = config.embedding_size, C = columns of all features.
Departures: every feature set joins, not the image alone; no biases, one width for both halves
and the penalty of the public toolbox, whose numbers are the published ones for this data.
`visual_bias` adds the paper's beta'. X_i and item bias to the score. Without features this is
BPR-MF, initialised uniformly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from mmbench.modality import MODALITIES
from mmbench.models import losses
from mmbench.models.base import (
    Batch,
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.fusion import FeatureTables


class VBPRConfig(ModelConfig):
    """Settings of VBPR."""

    embedding_size: PositiveInt = 64  # D
    regularization: NonNegativeFloat = 0.1
    visual_bias: bool = False


@register_model(
    "vbpr",
    config=VBPRConfig,
    citation=(
        "He and McAuley. VBPR: visual Bayesian personalized ranking from implicit feedback. "
        "AAAI 2016."
    ),
)
class VBPR(Recommender):
    """Matrix factorisation whose items also show a learned view of their features."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "batch"
    config: VBPRConfig
    features: Tensor | None  # X, [I, C]; None if it changes, or without any, which drops F

    def __init__(self, config: VBPRConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        changes = any(g.changes for g in given)
        self.tables = FeatureTables(given if changes else [], frozen=True)  # X, where it changes
        joined = torch.cat([g.matrix for g in given], dim=1).float() if given else None
        self.register_buffer("features", None if changes else joined, persistent=False)
        self._gathered = torch.empty(0)
        halves = 1 if joined is None else 2
        self.users = nn.Parameter(torch.empty(train.n_users, halves * config.embedding_size))  # T
        self.items = nn.Parameter(torch.empty(train.n_items, config.embedding_size))  # Q
        nn.init.xavier_uniform_(self.users)
        nn.init.xavier_uniform_(self.items)
        if joined is not None:
            self.project = nn.Linear(joined.shape[1], config.embedding_size)  # W, b
            nn.init.xavier_normal_(self.project.weight)
            nn.init.zeros_(self.project.bias)
            if config.visual_bias:
                self.item_bias = nn.Parameter(torch.zeros(train.n_items))
                self.feature_bias = nn.Parameter(torch.zeros(joined.shape[1]))  # beta'

    def user_vectors(self) -> Tensor:
        """T, [U, 2 D]; with `visual_bias` a last column of ones meets the items' offset."""
        return F.pad(self.users, (0, 1), value=1.0) if self._has_offset else self.users

    def item_vectors(self) -> Tensor:
        """[q_i ; F_i] of all items, [I, 2 D]; with `visual_bias` their offset comes last."""
        vectors, offset = self._items(None)
        return vectors if offset is None else torch.cat([vectors, offset[:, None]], dim=1)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The BPR loss of B triples and the penalty of their vectors, scalars."""
        pairs = torch.cat([batch.positives, batch.negatives])
        if pairs.is_cuda:  # counting distinct items would make the host wait for the device
            vectors, offset = self._items(pairs)
        else:  # project each item once, however often it is in the batch
            distinct, place = torch.unique(pairs, return_inverse=True)
            vectors, offset = self._items(distinct)
            vectors = vectors.index_select(0, place)
            offset = None if offset is None else offset.index_select(0, place)
        users = self.users.index_select(0, batch.users)  # [B, 2 D]
        positives, negatives = vectors.chunk(2)  # [B, 2 D] each
        score, other = (users * positives).sum(1), (users * negatives).sum(1)
        if offset is not None:
            score, other = score + offset[: len(score)], other + offset[len(score) :]
        terms = {"bpr": losses.bpr(score, other)}
        if self.config.regularization:
            penalty = losses.frobenius(users, positives, negatives)
            terms["regularization"] = self.config.regularization * penalty
        return terms

    @property
    def _has_offset(self) -> bool:
        return self.config.visual_bias and hasattr(self, "project")

    def _items(self, items: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[q_i ; F_i] and, with `visual_bias`, the offset b_i + beta'. X_i of some items or all."""
        vectors, features = _rows(self.items, items), self._features(items)
        if features is None:
            return vectors, None
        offset = None
        if self.config.visual_bias:
            offset = _rows(self.item_bias, items) + features @ self.feature_bias
        return torch.cat([vectors, self.project(features)], dim=1), offset

    def _features(self, items: Tensor | None) -> Tensor | None:
        """X of some items or all, [N, C]; None without any."""
        if self.features is not None:
            return self.features if items is None else self._gather(self.features, items)
        tables = self.tables
        if not tables.modalities:
            return None
        parts = [
            tables[name] if items is None else tables.rows(name, items)
            for name in tables.modalities
        ]
        return torch.cat(parts, dim=1)

    def _gather(self, features: Tensor, items: Tensor) -> Tensor:
        """X_i of some items, [N, C], valid until the next call."""
        if features.is_cuda:
            return features.index_select(0, items)
        # The same memory in every step: asking the system for new pages costs more than the copy.
        if len(self._gathered) < len(items):
            self._gathered = features.new_empty(len(items), features.shape[1])
        return torch.index_select(features, 0, items, out=self._gathered[: len(items)])


def _rows(table: Tensor, rows: Tensor | None) -> Tensor:
    return table if rows is None else table.index_select(0, rows)
