"""UniSRec: universal sequence representation learning.

Hou, Mu, Zhao, Li, Ding and Wen, KDD 2022. https://arxiv.org/abs/2206.05941

    (1) expert   f_k(x) = (drop(x) - b_k) W_k,  k = 1..K        parametric whitening
    (2) gate     g = softmax(x W_g + n * (softplus(x W_n) + 0.01)),  n standard normal in
                 training, 0 else
    (3) item     e(i) = sum over k of g_k f_k(x_i)  [+ E_i  in the transductive mode]
    (4) user     h = BertSASRecEncoder(e(s_1) .. e(s_L))        see sequence_encoders.py
    (5) score    cos(h_L, e(i)) / tau,  loss: softmax over all items
    (6) pre-training: the contrast of cosine.py between h and the targets, plus `sequence_weight`
        times that between h_L and h'_L, the user vector after a sequence with items left out

Shapes: I items, F width of a text's vector, K = config.n_experts, d = config.embedding_size.
Departures: items keep one draw of dropout and gate noise in a step, whichever role they have.
Sequences are varied by leaving items out alone; the authors' other way, to leave words out,
needs texts encoded anew.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.losses import full_precision
from mmbench.models.sequential.base import Loss, SequenceBatch
from mmbench.models.sequential.cosine import (
    CosineConfig,
    CosineRecommender,
    slot_contrast,
    stored_vectors,
)
from mmbench.models.sequential.sequence_encoders import Dropout


class UniSRecConfig(CosineConfig):
    """Settings of UniSRec."""

    loss: Loss = "softmax"
    similarity: Literal["dot", "cosine"] = "cosine"
    mode: Literal["inductive", "transductive"] = "inductive"
    """transductive: a free vector for each item is added to its text's."""
    n_experts: PositiveInt = 8  # K
    adaptor_dropout: Dropout = 0.2
    gate_noise: bool = True
    sequence_weight: NonNegativeFloat = 1e-3
    """Of pre-training: the weight of the contrast between sequences."""
    item_drop: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Of pre-training: the probability that the other sequence lacks an item."""


@register_model(
    "unisrec",
    config=UniSRecConfig,
    citation=(
        "Hou, Mu, Zhao, Li, Ding and Wen. Towards universal sequence representation learning for "
        "recommender systems. KDD 2022."
    ),
)
class UniSRec(CosineRecommender):
    """A sequential recommender over adapted vectors of the items' texts."""

    integration = "fusion"
    modalities = frozenset({"textual", "joint"})
    requires_modality = True
    of_dataset = ("table",)
    factors = False
    config: UniSRecConfig
    features: Tensor

    def __init__(
        self, config: UniSRecConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        vectors, _ = stored_vectors("unisrec", given)
        self.register_buffer("features", vectors, persistent=False)
        self.adaptor = MixtureAdaptor(
            vectors.shape[1],
            config.embedding_size,
            config.n_experts,
            config.adaptor_dropout,
            noisy=config.gate_noise,
        )
        self.table: nn.Parameter | None = None  # E
        if config.mode == "transductive":
            self.table = nn.Parameter(torch.empty(train.n_items, config.embedding_size))
            nn.init.normal_(self.table, std=0.02)

    def items(self, items: Tensor) -> Tensor:
        """Vectors e(i) of some items, [N, d]: eq. 3."""
        adapted: Tensor = self.adaptor(self.features.index_select(0, items))
        return adapted if self.table is None else adapted + self.table.index_select(0, items)

    def new_items(self, vectors: Tensor) -> Tensor:
        """Vectors e of items that training did not know, [N, d], from their texts' [N, F]."""
        adapted: Tensor = self.adaptor(vectors.to(self.features.dtype))
        return adapted

    def contrasts(
        self, batch: SequenceBatch, real: Tensor, vectors: Tensor, hidden: Tensor
    ) -> dict[str, Tensor]:
        """The two contrasts of pre-training, scalars: eq. 6."""
        keep = torch.rand(real.shape, device=real.device) >= self.config.item_drop
        varied = self.encode(*left_out(vectors[:, :-1], real, keep))
        with torch.autocast(hidden.device.type, enabled=False):
            users, targets = self.compared(hidden, vectors[:, 1:])
            of_items = slot_contrast(users, targets, batch.targets, real)
            users, varied = self.compared(hidden[:, -1:], varied[:, -1:])
            of_sequences = slot_contrast(users, varied, batch.targets[:, -1:], real[:, -1:])
        return {
            "item_contrast": of_items,
            "sequence_contrast": self.config.sequence_weight * of_sequences,
        }


class MixtureAdaptor(nn.Module):
    """Whitening experts and their gate: eq. 1 and 2."""

    def __init__(
        self, n_inputs: int, size: int, n_experts: int, dropout: float, *, noisy: bool
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.weights = nn.Parameter(torch.empty(n_experts, n_inputs, size))  # W
        self.shifts = nn.Parameter(torch.zeros(n_experts, n_inputs))  # b
        self.gate = nn.Parameter(torch.zeros(n_inputs, n_experts))  # W_g
        self.noise = nn.Parameter(torch.zeros(n_inputs, n_experts)) if noisy else None  # W_n
        nn.init.normal_(self.weights, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Adapted vectors [N, d] of vectors [N, F]."""
        logits = x @ self.gate
        if self.training and self.noise is not None:
            spread = F.softplus(x @ self.noise) + 0.01
            logits = logits + torch.randn_like(spread) * spread
        shares = full_precision(logits).softmax(dim=1)
        # sum_k g_k (x_k - b_k) W_k as one product: [N, K F] with the experts' stacked weights.
        kept = x[:, None].expand(-1, len(self.weights), -1)
        kept = F.dropout(kept, self.dropout, self.training)  # each expert drops its own
        scaled = (kept - self.shifts) * shares[:, :, None]
        return scaled.flatten(1) @ self.weights.flatten(0, 1)


def left_out(inputs: Tensor, real: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences without some of their items, closed up to the right.

    Args:
        inputs: item vectors [B, L, d].
        real: which slots hold an item, bool [B, L].
        keep: which of them stay, bool [B, L]; where none would, the newest does.

    Returns:
        item vectors [B, L, d], zero at padding, and which slots are real, bool [B, L].
    """
    keep = keep & real
    keep[:, -1] |= real[:, -1] & ~keep.any(dim=1)
    order = keep.to(torch.uint8).argsort(dim=1, stable=True)  # those left out first
    keep = keep.gather(1, order)
    moved = inputs.gather(1, order[:, :, None].expand_as(inputs))
    return moved * keep[:, :, None], keep
