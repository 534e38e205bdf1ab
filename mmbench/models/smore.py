"""SMORE: modalities joined as spectra, where a learned filter takes their noise out.

Ong and Khong, WSDM 2025. https://arxiv.org/abs/2412.14978

    1. y_m = X_m W_m + b_m,  F_m = rfft(y_m)            (over the D columns, orthonormal)
    2. y~_m = irfft(F_m (.) h_m),  y~_f = irfft(product over m of F_m, (.) h_f)
    3. views b in modalities and f:  I_b = G_b (Q (.) gate_b(y~_b)),  U_b = S_ui I_b,
       E_b = [U_b ; I_b],  gate_b(z) = sigmoid(V_b z + c_b)
    4. behaviour  C = mean of S^0 [P; Q] ... S^L [P; Q],  S = D^-1/2 A D^-1/2
    5. E'_m = A_m (.) E_m,  A_m = softmax over the D columns of query_m(E_f),
       query_m(z) = T_m tanh(R_m z + r_m);  E'_f = E_f
    6. g_b = drop(prefer_b(C)),  prefer_b(z) = sigmoid(...)
    7. side = mean over b of g_b (.) E'_b,  final = C + side,  score x_ui = final_u . final_i
    8. loss  BPR + regularization * (|final_u|^2 + |final_i|^2 + |final_j|^2) / 2B
             + contrast_weight * (NCE(side_i, C_i) + NCE(side_u, C_u)),  i of the positives

G_m joins every item to its nearest by the features that X_m starts from, and stays; G_f has the
edges of all, each with its largest weight, not normalised again. S_ui is the block of S that
users receive from items. h_b are D / 2 + 1 complex numbers.

Shapes: U users, I items, N = U + I, B batch, M modalities, D = config.embedding_size.
Departures: the penalty of a short last batch divides by its own rows; dropout falls on the rows
of the batch and not on whole tables. One modality keeps its own view and the joined one, then
of its spectrum alone, and G_f = G_m. Without features this is LightGCN with that penalty.
The product of spectra grows with the power M of the features' size: nothing normalises it.
"""

from __future__ import annotations

import functools
from typing import Annotated

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
from mmbench.models.graph import SparseOperator, normalised_adjacency, normalised_matrix
from mmbench.models.item_graphs import knn_graph

JOINED = "joined"
"""The view f of all modalities together, among the names of the others."""


class SMOREConfig(ModelConfig):
    """Settings of SMORE; `k` holds for modalities without a number of their own."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 4  # L
    k: PositiveInt = 10  # nearest items of an item
    visual_k: PositiveInt | None = None  # k of this modality
    textual_k: PositiveInt | None = None  # k of this modality
    acoustic_k: PositiveInt | None = None  # k of this modality
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    regularization: NonNegativeFloat = 1e-4
    contrast_weight: NonNegativeFloat = 0.01
    temperature: PositiveFloat = 0.2
    freeze_features: bool = False

    def k_of(self, modality: str) -> int:
        """How many neighbours an item has in the graph of a modality."""
        own: int | None = getattr(self, f"{modality}_k", None)
        return self.k if own is None else own


class Filter(nn.Module):
    """Complex factors h of a spectrum, [D // 2 + 1]."""

    def __init__(self, n_frequencies: int) -> None:
        super().__init__()
        # Real and imaginary part as two columns: fused optimisers and weight files know no
        # complex numbers.
        self.factors = nn.Parameter(torch.randn(n_frequencies, 2))

    def forward(self, spectrum: Tensor) -> Tensor:
        """The filtered spectrum, complex [I, D // 2 + 1]."""
        return spectrum * torch.view_as_complex(self.factors)


@register_model(
    "smore",
    config=SMOREConfig,
    citation=(
        "Ong and Khong. Spectrum-based modality representation fusion graph convolutional network "
        "for multimodal recommendation. WSDM 2025."
    ),
)
class SMORE(Recommender):
    """LightGCN beside views of items, one per modality and one of their joined spectrum."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: SMOREConfig

    def __init__(self, config: SMOREConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.n_users, size = train.n_users, config.embedding_size
        self.nodes = nn.Parameter(torch.empty(train.n_users + train.n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = normalised_adjacency(train)  # S
        self.given = tuple(features.modality for features in given)
        self.views = (*self.given, JOINED) if given else ()
        if not given:
            return
        self.to_users = SparseOperator(normalised_matrix(train))  # S_ui
        self.features = FeatureTables(given, frozen=config.freeze_features)  # X_m
        self.project = nn.ModuleDict(  # W_m, b_m
            {g.modality: nn.Linear(g.matrix.shape[1], size) for g in given}
        )
        self.filter = nn.ModuleDict({b: Filter(size // 2 + 1) for b in self.views})  # h_b
        self.gate = nn.ModuleDict({b: nn.Linear(size, size) for b in self.views})
        self.prefer = nn.ModuleDict({b: nn.Linear(size, size) for b in self.views})
        self.query = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size, bias=False)
                )
                for name in self.given
            }
        )
        graphs = [knn_graph(g, config.k_of(g.modality), "cosine") for g in given]
        named = zip(self.views, [*graphs, largest_weights(graphs)], strict=True)
        self.item_graphs = nn.ModuleDict({b: SparseOperator(graph) for b, graph in named})  # G_b

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' [U, D] and items' [I, D] rows of `final`, from one propagation."""
        behaviour, seen = self._propagated()
        final = behaviour
        if seen is not None:
            views = self._split(torch.cat([self.to_users(seen), seen]))
            final = behaviour + self._side(behaviour, views, dropout=0.0)
        return final[: self.n_users], final[self.n_users :]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 8 for B triples, scalars."""
        behaviour, seen = self._propagated()
        # From here on a row needs no other, so those of the batch suffice.
        items = torch.cat([batch.positives, batch.negatives])
        rows = torch.cat([batch.users, items + self.n_users])  # [3 B]
        behaviour = behaviour.index_select(0, rows)
        final, terms = behaviour, {}
        if seen is not None:
            views = self._split(self.to_users.rows_beside(seen, batch.users, items))
            side = self._side(behaviour, views, dropout=self.config.dropout)
            final = behaviour + side
            if self.config.contrast_weight:
                side_users, side_items, _ = side.chunk(3)
                own_users, own_items, _ = behaviour.chunk(3)
                contrast = losses.info_nce(
                    side_items, own_items, self.config.temperature
                ) + losses.info_nce(side_users, own_users, self.config.temperature)
                terms["contrast"] = self.config.contrast_weight * contrast
        users, positives, negatives = final.chunk(3)
        terms["bpr"] = losses.bpr((users * positives).sum(1), (users * negatives).sum(1))
        if self.config.regularization:
            penalty = losses.squared(users, positives, negatives)
            terms["regularization"] = self.config.regularization * penalty
        return terms

    def _propagated(self) -> tuple[Tensor, Tensor | None]:
        """C [N, D], and the items' E_b of all views side by side, [I, (M + 1) D]."""
        behaviour = self.graph.mean_of_powers(self.nodes, self.config.n_layers)
        if not self.given:
            return behaviour, None
        items = self.nodes[self.n_users :]  # Q
        seen = []
        for name, content in self._filtered().items():
            gate = torch.sigmoid(self.gate[name](content))
            seen.append(self.item_graphs[name](items * gate))  # I_b
        return behaviour, torch.cat(seen, dim=1)  # one product with S_ui for all views

    def _split(self, views: Tensor) -> dict[str, Tensor]:
        """E_b [R, D] of each view, of those side by side [R, (M + 1) D]."""
        return dict(zip(self.views, split_columns(views, len(self.views)), strict=True))

    def _filtered(self) -> dict[str, Tensor]:
        """y~_b [I, D] of each view: equations 1 and 2."""
        size = self.config.embedding_size
        spectra = {}
        for name in self.given:
            content = losses.full_precision(self.features.projected(name, self.project[name]))
            spectra[name] = torch.fft.rfft(content, dim=1, norm="ortho")
        spectra[JOINED] = functools.reduce(torch.mul, spectra.values())
        return {
            b: torch.fft.irfft(self.filter[b](spectrum), n=size, dim=1, norm="ortho")
            for b, spectrum in spectra.items()
        }

    def _side(self, behaviour: Tensor, views: dict[str, Tensor], *, dropout: float) -> Tensor:
        """`side` [R, D] of some rows of C and E_b; the dropout is the caller's, not the mode's."""
        total = torch.zeros_like(behaviour)
        for name, view in views.items():
            if name != JOINED:
                view = self.query[name](views[JOINED]).softmax(dim=1) * view
            mask = torch.sigmoid(self.prefer[name](behaviour))
            total = total + F.dropout(mask, dropout, training=True) * view
        return total / len(views)


def largest_weights(graphs: list[sp.csr_array]) -> sp.csr_array:
    """The edges of all graphs, each with its largest weight; rows and columns ascend.

    Only stored edges count: one of a negative weight that one graph alone has keeps it, where a
    maximum of matrices would let the zeros of the others win.
    """
    n_rows, n_columns = graphs[0].shape
    parts = [graph.tocoo() for graph in graphs]
    keys = np.concatenate([p.row.astype(np.int64) * n_columns + p.col for p in parts])
    weights = np.concatenate([part.data for part in parts])
    edges, place = np.unique(keys, return_inverse=True)
    largest = np.full(len(edges), -np.inf, dtype=weights.dtype)
    np.maximum.at(largest, place, weights)
    return sp.csr_array((largest, (edges // n_columns, edges % n_columns)), (n_rows, n_columns))
