"""What UniSRec and VQ-Rec share: sequence encoder, similarity, contrast, how they read items.

    dot     score(h, e) = h . e
    cosine  score(h, e) = cos(h, e) / tau
    softmax mean of -log( exp(score(h_t, e(y_t))) / sum_i exp(score(h_t, e(i))) )  over all items i

The contrast that both are pre-trained with compares the users of a batch, slot by slot. For user
u with target y at slot t, and V the users with a real slot t:

    -log( exp(score(h_u, e(y_u))) / (sum over v in V of exp(s_uv) + exp(score(h_u, e_fake))) )
    s_uv = score(h_u, e(y_v)),  but 0 where v is not u and has the same target

mean over real slots. Zero and not minus infinity is what the public code has.

Shapes: B sequences, L slots, D width, I items.
Departure: the public code makes an example of every prefix and contrasts the examples of a batch,
so that prefixes of one user can meet as negatives. Here all prefixes of B users are in the batch,
and a user's own other targets are no negatives.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from mmbench.errors import ConfigError
from mmbench.models.base import Interactions, ItemFeatures
from mmbench.models.losses import full_precision, summed_logsumexp
from mmbench.models.sequential.base import (
    SequenceBatch,
    SequentialConfig,
    SequentialRecommender,
    masked_mean,
)
from mmbench.models.sequential.sequence_encoders import BertSASRecEncoder, Dropout
from mmbench.models.sequential.transformer import HIDDEN

_BLOCK = 16_384
"""Items that are encoded at once where no gradient is wanted."""


class CosineConfig(SequentialConfig):
    """Settings of a model that may compare by cosine."""

    embedding_size: PositiveInt = 300  # d
    n_layers: PositiveInt = 2
    n_heads: PositiveInt = 2
    inner_size: PositiveInt = 256
    """Width inside a block of the sequence encoder."""
    dropout: Dropout = 0.5
    similarity: Literal["dot", "cosine"] = "dot"
    temperature: PositiveFloat = 0.07
    """tau, of the cosine."""
    objective: Literal["next-item", "contrast"] = "next-item"
    """next-item: `loss`. contrast: pre-training by the targets of other users, in the batch."""
    freeze_encoder: bool = False
    """Hold the positions and blocks of the sequence encoder still, to fine-tune other weights."""

    @model_validator(mode="after")
    def _fits(self) -> CosineConfig:
        if self.embedding_size % self.n_heads:
            raise ValueError(
                f"embedding_size {self.embedding_size} does not divide into n_heads {self.n_heads}"
            )
        if self.similarity == "cosine" and self.loss not in ("bce", "softmax"):
            raise ValueError(
                f"loss {self.loss} compares by dot product; set similarity: dot, or loss: softmax"
            )
        if self.objective == "contrast" and self.similarity != "cosine":
            raise ValueError("objective contrast compares by cosine; set similarity: cosine")
        return self


class CosineRecommender(SequentialRecommender):
    """A sequential recommender with RecBole's SASRec over its items, scored by dot or cosine."""

    content = True
    config: CosineConfig

    def __init__(
        self, config: CosineConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        # A cosine is no product of what the encoder reads: inputs keep their lengths.
        self.factors = config.similarity == "dot"  # type: ignore[misc]
        self.encoder = BertSASRecEncoder(
            config.embedding_size,
            config.max_length,
            config.n_layers,
            config.n_heads,
            config.dropout,
            config.inner_size,
        )
        if config.freeze_encoder:
            self.encoder.freeze()

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        hidden: Tensor = self.encoder(inputs, real)
        return hidden

    def encode_last(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The user vector after the last slot, [B, D]."""
        return self.encoder.last(inputs, real)

    def compared(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [..., D] whose dot products are the scores, in float32 at least."""
        users, items = full_precision(users), full_precision(items)
        if self.config.similarity == "cosine":
            users = F.normalize(users, dim=-1, eps=1e-12) / self.config.temperature
            items = F.normalize(items, dim=-1, eps=1e-12)
        return users, items

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        """The loss terms of a `SequenceBatch`."""
        real = batch.inputs != self.padding
        if self.config.objective == "contrast":
            vectors = self._at_slots(batch.sequences)
            hidden = self.encode(vectors[:, :-1], real)
            return self.contrasts(batch, real, vectors, hidden)
        if self.config.loss != "softmax":
            return super().training_step(batch)
        # Inputs and candidates from one table: what is drawn inside `items` is drawn once.
        table = self.items(torch.arange(self.n_items, device=real.device))
        hidden = self.encode(F.embedding(batch.inputs, F.pad(table, (0, 0, 0, 1))), real)
        with torch.autocast(hidden.device.type, enabled=False):
            users, items = self.compared(hidden, table)
            return {"softmax": softmax_over_all(users, items, batch.targets, real)}

    def contrasts(
        self, batch: SequenceBatch, real: Tensor, vectors: Tensor, hidden: Tensor
    ) -> dict[str, Tensor]:
        """The terms of pre-training, scalars.

        Args:
            vectors: of the batch's items, zero at padding, [B, L + 1, D].
            hidden: user vectors after each input slot [B, L, D].
        """
        raise NotImplementedError

    def next_item_loss(
        self,
        hidden: Tensor,
        batch: SequenceBatch,
        targets: Tensor,
        negatives: Tensor | None,
        real: Tensor | None = None,
    ) -> Tensor:
        """The chosen loss of user vectors h [B, L, D], a scalar in float32."""
        if self.config.similarity == "cosine":
            assert negatives is not None  # softmax does not come here, the others are refused
            with torch.autocast(hidden.device.type, enabled=False):
                _, negatives = self.compared(hidden, negatives)
                hidden, targets = self.compared(hidden, targets)
        return super().next_item_loss(hidden, batch, targets, negatives, real)

    def catalogue(self) -> Tensor:
        """Vectors of all items, [I, D]."""
        every = torch.arange(self.n_items, device=self.popularity.device)
        if torch.is_grad_enabled():
            return self.items(every)
        return torch.cat([self.items(some) for some in torch.split(every, _BLOCK)])

    def score(self, catalogue: Any, sequences: Tensor) -> Tensor:
        """Scores of all items after a sequence, float32 [B, I]."""
        users, items = self.compared(self.represent(catalogue, sequences), catalogue)
        return users @ items.T


def softmax_over_all(users: Tensor, items: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Cross-entropy of the targets among all items, the mean over real slots, a scalar.

    Args:
        users: [B, L, D].
        items: [I, D].
        targets: int64 [B, L]; anything where `real` is false.
        real: bool [B, L].
    """
    # At other slots the vector 0: they add log I and no gradient, and there is no [B, L, I].
    users = users * real[:, :, None]
    own = (users * F.embedding(targets.clamp(max=len(items) - 1), items)).sum()
    n_real = real.sum()
    total = summed_logsumexp(users.flatten(0, 1), items)
    total = total - (real.numel() - n_real) * math.log(len(items))
    return (total - own) / n_real.clamp_min(1)


def slot_contrast(
    users: Tensor, keys: Tensor, targets: Tensor, real: Tensor, fakes: Tensor | None = None
) -> Tensor:
    """The contrast of this file between the users of a batch, slot by slot, a scalar.

    Args:
        users: [B, S, D], divided by the temperature.
        keys: what belongs to each of them, [B, S, D].
        targets: items by which users are the same, int64 [B, S].
        real: bool [B, S].
        fakes: one more negative for each, [B, S, D].
    """
    logits = torch.einsum("usd,vsd->suv", users, keys)
    items = targets.T
    others = ~torch.eye(len(users), dtype=torch.bool, device=users.device)
    same = (items[:, :, None] == items[:, None, :]) & others
    logits = logits.masked_fill(same, 0.0)
    logits = logits.masked_fill(~real.T[:, None, :], HIDDEN)
    positive = logits.diagonal(dim1=1, dim2=2).T  # [B, S]
    if fakes is not None:
        logits = torch.cat([logits, (users * fakes).sum(dim=2).T[:, :, None]], dim=2)
    return masked_mean(logits.logsumexp(dim=2).T - positive, real)


def stored_vectors(name: str, given: list[ItemFeatures]) -> tuple[Tensor, Tensor]:
    """The vectors [I, F] that a model reads, and the items that truly have some, bool [I].

    Raises:
        ConfigError: there are none, or an encoder is to learn with the model.
    """
    for features in given:
        if features.encoder is not None:
            raise ConfigError(
                f"{name} reads stored vectors, not an encoder that learns; give "
                f"features.{features.modality} in place of encoders.{features.modality}"
            )
    if not given:
        raise ConfigError(f"{name} needs the texts of the items; give features.textual")
    present = torch.stack([features.present for features in given]).any(dim=0)
    return torch.cat([features.matrix.float() for features in given], dim=1), present
