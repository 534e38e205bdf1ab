"""MoRec++: MoRec over texts and pictures together.

Li et al., 2024. https://arxiv.org/abs/2403.17372 (a baseline there, after arXiv 2303.13835)

    v^m    = gelu(W_m c_m + b_m)               of each modality, as in morec.py
    e(i)   = W [v^text ; v^picture] + b
    h      = SASRecEncoder(e(s_1) .. e(s_L))   see sequence_encoders.py
    score  x_ui = h_L . e(i)
    loss   binary cross-entropy with one negative for each position, see base.py

Shapes: N items, M modalities, D = config.embedding_size; W is D x M D, Xavier normal, b = 0.
Departures: the paper says only that the two encoders' representations are fused, so the one linear
map is ours. With one modality there is nothing to join, and the model is MoRec.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import SequentialRecommender, xavier_normal_
from mmbench.models.sequential.item_states import ContentStates
from mmbench.models.sequential.morec import ContentVector, MoRecConfig
from mmbench.models.sequential.sequence_encoders import SASRecEncoder


@register_model(
    "morec-pp",
    config=MoRecConfig,
    citation="Li et al. An empirical study of training ID-agnostic multi-modal sequential "
    "recommenders. arXiv:2403.17372, 2024.",
)
class MoRecPlusPlus(SequentialRecommender):
    """SASRec over a linear map of the vectors of all modalities."""

    integration = "fusion"
    modalities = frozenset({"visual", "textual", "acoustic", "joint"})
    requires_modality = True
    of_dataset = ()
    reads_tokens = True
    content = True
    config: MoRecConfig

    def __init__(self, config: MoRecConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__(config, train, given)
        size = config.embedding_size
        self.states = ContentStates(given, "morec-pp", standardize=config.standardize)
        self.vectors_of = nn.ModuleDict(
            {m: ContentVector(m, width, config) for m, width in self.states.widths.items()}
        )
        self.merge: nn.Linear | None = None  # W, b
        if len(self.states) > 1:
            self.merge = nn.Linear(len(self.states) * size, size)
            xavier_normal_(self.merge)
        self.encoder = SASRecEncoder(
            size, config.max_length, config.n_layers, config.n_heads, config.dropout
        )

    def items(self, items: Tensor) -> Tensor:
        """e(i) of some items, [N, D]."""
        vectors = [vector(*self.states.read(m, items)) for m, vector in self.vectors_of.items()]
        if self.merge is None:
            first: Tensor = vectors[0]
            return first
        merged: Tensor = self.merge(torch.cat(vectors, dim=1))
        return merged

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        hidden: Tensor = self.encoder(inputs, real)
        return hidden

    def encode_last(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The user vector after the last slot, [B, D]."""
        return self.encoder.last(inputs, real)

    def vectors_of_many(self, items: Tensor) -> Tensor:
        """Vectors of many items [N, D], in bounded memory."""
        return self.states.in_chunks(self.items, items)
