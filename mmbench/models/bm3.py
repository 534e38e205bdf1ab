"""BM3: vectors learned by predicting one's own dropped-out copies, without negatives.

Zhou, Zhou, Liu, Zeng, Miao, Wang, You and Jiang, WWW 2023. https://arxiv.org/abs/2207.05969

    1. [U' ; I'] = mean of S^0 [P; Q] ... S^L [P; Q],  S = D^-1/2 A D^-1/2
    2. I  = I' + Q,  U = U'
    3. score  x_ui = f(u_u) . f(i_i),  f(z) = W_f z + b_f, shared by users, items and modalities
    4. targets  u* = sg(drop(u)), i* = sg(drop(i)), F_m = X_m W_m + b_m, F*_m = sg(drop(F_m))
    5. interaction  2 - mean cos(f(u_u), i*_i) - mean cos(f(i_i), u*_u)
    6. alignment_m  1 - mean cos(f(F_m,i), i*_i)
       self_m       1 - mean cos(f(F_m,i), F*_m,i)
    7. loss  interaction + content_weight * sum over m of (alignment_m + self_m)
             + regularization * (|U| + |I|) / n_items      (all rows; norms not squared)

sg() passes no gradient. Therefore content reaches f, W_m and X_m alone: it moves the ranking
only through the predictor f that all share.

Shapes: U users, I items, N = U + I, B batch, D = config.embedding_size, L = config.n_layers.
Departures: dropout falls on the rows of the batch and not on whole tables; it acts on single
elements, so every row has the same distribution, but an item that is twice in a batch is drawn
twice. X_m is trained, as in the public toolbox, unless `freeze_features`. Without features the
terms of 6 vanish.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
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
from mmbench.models.graph import normalised_adjacency


class BM3Config(ModelConfig):
    """Settings of BM3."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 1  # L
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    content_weight: NonNegativeFloat = 2.0
    regularization: NonNegativeFloat = 0.1
    freeze_features: bool = False


@register_model(
    "bm3",
    config=BM3Config,
    citation=(
        "Zhou, Zhou, Liu, Zeng, Miao, Wang, You and Jiang. Bootstrap latent representations for "
        "multi-modal recommendation. WWW 2023."
    ),
)
class BM3(Recommender):
    """LightGCN under a shared predictor, trained to foresee dropped-out targets."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "batch"
    config: BM3Config

    def __init__(self, config: BM3Config, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.n_users, size = train.n_users, config.embedding_size
        self.nodes = nn.Parameter(torch.empty(train.n_users + train.n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.predictor = nn.Linear(size, size)  # f
        nn.init.xavier_normal_(self.predictor.weight)
        self.features = FeatureTables(given, frozen=config.freeze_features)  # X_m
        self.project = nn.ModuleDict()  # W_m, b_m
        for features in given:
            layer = nn.Linear(features.matrix.shape[1], size)
            nn.init.xavier_normal_(layer.weight)
            self.project[features.modality] = layer
        self.graph = normalised_adjacency(train)  # S

    def vectors(self) -> tuple[Tensor, Tensor]:
        """f(u) of all users [U, D] and f(i) of all items [I, D]."""
        users, items = self._propagated()
        return self.predictor(users), self.predictor(items)

    def batch_items(self, batch: Batch) -> Tensor:
        """The positives: negatives are not used."""
        return batch.positives

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 7 for B pairs of user and item, scalars; negatives are not used."""
        all_users, all_items = self._propagated()
        users = all_users.index_select(0, batch.users)  # [B, D]
        items = all_items.index_select(0, batch.positives)
        user_targets, item_targets = self._target(users), self._target(items)
        predicted_users, predicted_items = self.predictor(torch.cat([users, items])).chunk(2)
        terms = {
            "interaction": _distance(predicted_users, item_targets)
            + _distance(predicted_items, user_targets)
        }
        weight = self.config.content_weight
        distinct, place = _distinct(batch.positives)
        for modality in self.features.modalities if weight else ():
            rows = self.features.rows(modality, distinct)
            content = self.project[modality](rows)  # F_m of the batch's items
            predicted = self.predictor(content)
            if place is not None:
                content = content.index_select(0, place)
                predicted = predicted.index_select(0, place)
            terms[f"alignment_{modality}"] = weight * _distance(predicted, item_targets)
            terms[f"self_{modality}"] = weight * _distance(predicted, self._target(content))
        if self.config.regularization:
            penalty = losses.frobenius(all_users, all_items)
            terms["regularization"] = self.config.regularization * penalty
        return terms

    def _propagated(self) -> tuple[Tensor, Tensor]:
        """U [U, D] and I [I, D] of equation 2."""
        mean = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        return mean[: self.n_users], mean[self.n_users :] + self.nodes[self.n_users :]

    def _target(self, rows: Tensor) -> Tensor:
        # Not nn.Dropout: a step is a training step, whatever mode the module was left in.
        return F.dropout(rows.detach(), self.config.dropout, training=True)


def _distance(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - the mean cosine of rows, a scalar; a row of zeros has the cosine 0."""
    predicted, target = losses.full_precision(predicted), losses.full_precision(target)
    return 1.0 - F.cosine_similarity(predicted, target, dim=1, eps=1e-12).mean()


def _distinct(items: Tensor) -> tuple[Tensor, Tensor | None]:
    """Items to project, and where each row of the batch finds its own among them."""
    if items.is_cuda:  # counting distinct items would make the host wait for the device
        return items, None
    distinct, place = torch.unique(items, return_inverse=True)
    return distinct, place
