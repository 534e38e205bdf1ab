"""LGMRec: what neighbours share, and what whole groups of users and items share.

Guo, Li, Li, Wang, Shi and Ruan, AAAI 2024. https://arxiv.org/abs/2312.16400

    1. C = mean of S^0 [P; Q] ... S^L [P; Q],  S = D^-1/2 A D^-1/2
    2. local   y_m = X_m W_m,  loc_m = S^K [D_u^-1 R y_m ; y_m]        (the last layer alone)
    3. groups  logits of items X_m V_m, of users R X_m V_m             (a sum, not a mean)
    4. H = softmax((logits + g) / assignment_temperature) over the A groups, g standard Gumbel
    5. H = drop(H) with probability `dropout`
    6. global  z = C of the items; T times: lat = H_items' z, z = H_items lat, u = H_users lat;
       glob_m = [u ; z] of the last time
    7. final = C + sum over m of nrm(loc_m) + global_weight * nrm(sum over m of glob_m),
       score x_ui = final_u . final_i,  nrm(x) = x / |x| by rows
    8. loss  BPR + regularization * (|final_u| + |final_i| + |final_j|) / B  (norms not squared)
             + contrast_weight * sum over pairs of modalities m < n of HCL(glob_m, glob_n)
       HCL   sum over users u of the batch of
             -log( exp(cos(u_m, u_n) / t) / sum over all users w of exp(cos(u_m, w_n) / t) )
             + the same for its positives against all items

Noise and dropout belong to training: ranking assigns by softmax(logits / temperature). The
public toolbox leaves the noise on; `noise: always` does so too, with the same draw in every
evaluation, and `noise: never` trains without it.

Shapes: U users, I items, N = U + I, B batch, M modalities, A = config.n_groups,
D = config.embedding_size.
Departures: X_m stays as given, as in the paper. HCL is a sum, so its weight depends on the batch
size; with one modality there is none. Pairs are in the order visual, acoustic, textual, joint.
Without features this is LightGCN with a penalty on `final`. `integration: ensemble` lets every
modality score by itself, with C shared: x_ui = mean over m of v_u . v_i,
v = C + nrm(loc_m) + global_weight * nrm(glob_m).
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
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
from mmbench.models.fusion import FeatureTables, split_columns
from mmbench.models.graph import SparseOperator, normalised_adjacency

ORDER = ("visual", "acoustic", "textual", "joint")
"""The contrast has a direction; this is the one that is published."""
EVALUATION_SEED = 0
"""Of the noise of `noise: always` in every evaluation."""


class LGMRecConfig(ModelConfig):
    """Settings of LGMRec."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    n_modality_layers: PositiveInt = 2  # K
    n_group_layers: PositiveInt = 1  # T
    n_groups: PositiveInt = 4  # A
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5  # 1 - the paper's keep rate
    global_weight: NonNegativeFloat = 0.3
    assignment_temperature: PositiveFloat = 0.2
    noise: Literal["training", "always", "never"] = "training"
    contrast_weight: NonNegativeFloat = 1e-4
    temperature: PositiveFloat = 0.2  # t
    regularization: NonNegativeFloat = 1e-6
    integration: Literal["fusion", "ensemble"] = "fusion"


class Groups(NamedTuple):
    """The global view of one modality, kept as the product that it is: glob_m = H lat."""

    of_users: Tensor  # H_users, [U, A]
    of_items: Tensor  # H_items, [I, A]
    vectors: Tensor  # lat of the last time, [A, D]


@register_model(
    "lgmrec",
    config=LGMRecConfig,
    citation=(
        "Guo, Li, Li, Wang, Shi and Ruan. LGMRec: local and global graph learning for multimodal "
        "recommendation. AAAI 2024."
    ),
)
class LGMRec(Recommender):
    """LightGCN beside propagated features and soft groups of users and items."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: LGMRecConfig

    def __init__(
        self, config: LGMRecConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.n_users, size = train.n_users, config.embedding_size
        self.nodes = nn.Parameter(torch.empty(train.n_users + train.n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = normalised_adjacency(train)  # S
        given = sorted(given, key=lambda features: ORDER.index(features.modality))
        self.given = tuple(features.modality for features in given)
        if not given:
            return
        self.features = FeatureTables(given, frozen=True)  # X_m
        self.project, self.group = nn.ParameterDict(), nn.ParameterDict()
        for features in given:
            width = features.matrix.shape[1]
            project = nn.Parameter(torch.empty(width, size))  # W_m
            group = nn.Parameter(torch.empty(width, config.n_groups))  # V_m
            self.project[features.modality] = nn.init.xavier_uniform_(project)
            self.group[features.modality] = nn.init.xavier_uniform_(group)
        self.sums = SparseOperator(train.matrix)  # R
        degrees = train.user_degrees.cpu().numpy()
        scale = 1.0 / np.maximum(degrees, 1)
        self.means = SparseOperator(sp.csr_array(sp.diags_array(scale) @ train.matrix))  # D_u^-1 R

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' [U, D] and items' [I, D] rows of `final`; of an ensemble [., M D]."""
        generator = None
        if self.config.noise == "always":
            generator = torch.Generator(self.nodes.device).manual_seed(EVALUATION_SEED)
        behaviour, local, groups = self._propagated(
            noisy=self.config.noise == "always", dropout=0.0, generator=generator
        )
        glob = [torch.cat([g.of_users, g.of_items]) @ g.vectors for g in groups]
        final = self._joined(behaviour, local, glob)
        return final[: self.n_users], final[self.n_users :]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 8 for B triples, scalars."""
        config = self.config
        behaviour, local, groups = self._propagated(
            noisy=config.noise != "never", dropout=config.dropout, generator=None
        )
        chosen = torch.cat([batch.positives, batch.negatives])
        rows = torch.cat([batch.users, chosen + self.n_users])  # [3 B]
        glob = [
            torch.cat([g.of_users.index_select(0, batch.users), g.of_items.index_select(0, chosen)])
            @ g.vectors
            for g in groups
        ]
        local = [view.index_select(0, rows) for view in local]
        final = self._joined(behaviour.index_select(0, rows), local, glob)
        chosen_users, positives, negatives = final.chunk(3)
        score, other = (chosen_users * positives).sum(1), (chosen_users * negatives).sum(1)
        terms = {"bpr": losses.bpr(score, other)}
        if config.regularization:
            penalty = losses.frobenius(chosen_users, positives, negatives)
            terms["regularization"] = config.regularization * penalty
        if config.contrast_weight and len(groups) > 1:
            total = torch.zeros((), device=final.device)
            for one, two in itertools.combinations(groups, 2):
                for rows, of_one, of_two in (
                    (batch.users, one.of_users, two.of_users),
                    (batch.positives, one.of_items, two.of_items),
                ):
                    anchors = of_one.index_select(0, rows) @ one.vectors
                    total = total + _contrast(
                        anchors, of_two, two.vectors, rows, config.temperature
                    )
            terms["contrast"] = config.contrast_weight * total
        return terms

    def _propagated(
        self, *, noisy: bool, dropout: float, generator: torch.Generator | None
    ) -> tuple[Tensor, list[Tensor], list[Groups]]:
        """C [N, D], and of each modality loc_m [N, D] and its groups."""
        behaviour = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        if not self.given:
            return behaviour, [], []
        size, n_views = self.config.embedding_size, len(self.given)
        contents, logits = [], []
        for name in self.given:
            both = torch.cat([self.project[name], self.group[name]], dim=1)
            seen = losses.full_precision(self.features[name] @ both)  # X_m is read once
            contents.append(seen[:, :size])  # y_m
            logits.append(seen[:, size:])
        content = torch.cat(contents, dim=1)  # [I, M D]: one product for all modalities
        start = torch.cat([self.means(content), content])
        local = split_columns(self.graph.last_power(start, self.config.n_modality_layers), n_views)
        item_logits = torch.cat(logits, dim=1)  # [I, M A]
        user_logits = self.sums(item_logits)
        groups = []
        for of_users, of_items in zip(
            split_columns(user_logits, n_views), split_columns(item_logits, n_views), strict=True
        ):
            to_users = self._assigned(of_users, noisy, dropout, generator)  # [U, A]
            to_items = self._assigned(of_items, noisy, dropout, generator)  # [I, A]
            # Sums over all items, which nothing divides: not in half precision.
            with torch.autocast(behaviour.device.type, enabled=False):
                vectors = to_items.T @ behaviour[self.n_users :]  # lat, [A, D]
                for _ in range(self.config.n_group_layers - 1):
                    # H_items' (H_items lat) without z, which has a row for every item.
                    vectors = (to_items.T @ to_items) @ vectors
            groups.append(Groups(to_users, to_items, vectors))
        return behaviour, list(local), groups

    def _assigned(
        self, logits: Tensor, noisy: bool, dropout: float, generator: torch.Generator | None
    ) -> Tensor:
        """H of some rows, [R, A]: equations 4 and 5."""
        if noisy:
            exponential = torch.empty_like(logits).exponential_(generator=generator)
            logits = logits - exponential.log()  # minus the log of Exp(1) is standard Gumbel
        shares = (logits / self.config.assignment_temperature).softmax(dim=1)
        return F.dropout(shares, dropout, training=True)

    def _joined(self, behaviour: Tensor, local: list[Tensor], glob: list[Tensor]) -> Tensor:
        """`final` [R, D]; of an ensemble the vectors side by side, whose product is the mean."""
        if not local:
            return behaviour
        weight = self.config.global_weight
        if self.config.integration == "ensemble":
            views = [
                behaviour + _unit(near) + weight * _unit(far)
                for near, far in zip(local, glob, strict=True)
            ]
            return torch.cat(views, dim=1) / math.sqrt(len(views))
        near = torch.stack([_unit(view) for view in local]).sum(dim=0)
        return behaviour + near + weight * _unit(torch.stack(glob).sum(dim=0))


def _unit(rows: Tensor) -> Tensor:
    # Not `unit_rows`: it sets rows shorter than 1e-12 to zero, and dropout leaves such rows where
    # the group that a node has almost all of its share in is dropped.
    return F.normalize(rows, dim=1, eps=1e-12)


def _contrast(
    anchors: Tensor, assigned: Tensor, vectors: Tensor, rows: Tensor, temperature: float
) -> Tensor:
    """HCL of the batch's rows against all rows of another view, a scalar.

    Args:
        anchors: rows of the one view, [B, D].
        assigned, vectors: the other view as a product, [R, A] and [A, D].
        rows: which of the R rows belong to the anchors, int64 [B].
    """
    anchors = _unit(anchors) / temperature
    others = assigned @ vectors  # [R, D]
    norms = torch.linalg.vector_norm(others, dim=1, keepdim=True).clamp_min(1e-12)
    keys = others / norms
    matching: Tensor = (anchors * keys.index_select(0, rows)).sum()
    if vectors.shape[0] < vectors.shape[1]:
        # a . (h lat) = (lat a) . h: products of A columns instead of D, and the same numbers.
        anchors, keys = anchors @ vectors.T, assigned / norms
    return losses.summed_logsumexp(anchors, keys) - matching
