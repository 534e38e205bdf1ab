"""VQ-Rec: vector-quantised item representations for transferable sequential recommenders.

Hou, He, McAuley and Zhao, WWW 2023. https://arxiv.org/abs/2210.12316

    codes    c_i = quantise(x_i)  in {0..M-1}^D          once, see product_quantisation.py
    (1) item     e(i) = mean over k of V_{k, c_{i,k}}
    (2) user     h = BertSASRecEncoder(e(s_1) .. e(s_L))        see sequence_encoders.py
    (3) score    h_L . e(i)                              the setting of published comparisons
    (4) score    cos(h_L, e(i)) / tau                    the authors', with loss: softmax
    (5) pre-training: the contrast of cosine.py, where e_fake has the target's codes, each
        replaced with probability 3/4 by a random one

Shapes: I items, D = config.n_parts, M = config.n_centroids, d = config.embedding_size.
Departures: V is [D M, d]; the row of padding and the D - 1 rows that no code points to are left
out. The permutation of codes that the authors learn before fine-tuning has no gradient in the
public code, so it stays as it was drawn, and is left out. The quantiser sees the items of training
interactions that have a text; it codes all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from mmbench.errors import DataError
from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import SequenceBatch
from mmbench.models.sequential.cosine import (
    CosineConfig,
    CosineRecommender,
    slot_contrast,
    stored_vectors,
)
from mmbench.models.sequential.product_quantisation import fit_product_quantiser


class VQRecConfig(CosineConfig):
    """Settings of VQ-Rec."""

    n_parts: PositiveInt = 32  # D
    n_centroids: Annotated[int, Field(ge=1, le=65_536)] = 256  # M
    rotation_rounds: NonNegativeInt = 50
    """Rotations that the quantiser learns at most; 0 keeps the principal axes."""
    fake_share: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Of pre-training: the probability that a fake negative's code is a random one."""


@register_model(
    "vqrec",
    config=VQRecConfig,
    citation=(
        "Hou, He, McAuley and Zhao. Learning vector-quantized item representation for "
        "transferable sequential recommenders. WWW 2023."
    ),
)
class VQRec(CosineRecommender):
    """A sequential recommender that looks items up by the codes of their texts."""

    integration = "fusion"
    modalities = frozenset({"textual", "joint"})
    requires_modality = True
    of_dataset = ("codes",)
    fitted_tensors = ("quantiser.",)
    config: VQRecConfig
    codes: Tensor

    def __init__(self, config: VQRecConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__(config, train, given)
        vectors, present = stored_vectors("vqrec", given)
        fitted = (train.item_degrees > 0) & present
        if not fitted.any():
            raise DataError(
                "vqrec: no item of the training interactions has a text, so there is nothing to "
                "learn codes from; choose another feature set"
            )
        self.quantiser = fit_product_quantiser(
            vectors[fitted],
            n_parts=config.n_parts,
            n_centroids=config.n_centroids,
            n_rounds=config.rotation_rounds,
            seed=int(torch.randint(2**31, ())),
        )
        # Stored with the weights, which mean nothing with other codes.
        self.register_buffer("codes", self.quantiser.quantise(vectors).int())
        self.table = nn.Parameter(
            torch.empty(config.n_parts * config.n_centroids, config.embedding_size)
        )  # V
        nn.init.normal_(self.table, std=0.02)

    def start_from(self, tensors: Mapping[str, Tensor], given: Sequence[ItemFeatures]) -> None:
        """Take a quantiser and its table over, and code this dataset's items by them."""
        super().start_from(tensors, given)
        vectors, _ = stored_vectors("vqrec", list(given))
        self.codes.copy_(self.quantiser.quantise(vectors))

    def items(self, items: Tensor) -> Tensor:
        """Vectors e(i) of some items, [N, d]: eq. 1."""
        return self.of_codes(self.codes.index_select(0, items))

    def of_codes(self, codes: Tensor) -> Tensor:
        """The mean of the codes' rows of V, [N, d] of int [N, D]."""
        parts = torch.arange(codes.shape[1], device=codes.device, dtype=codes.dtype)
        rows = codes + parts * self.config.n_centroids
        return F.embedding_bag(rows, self.table, mode="mean")

    def new_items(self, vectors: Tensor) -> Tensor:
        """Vectors e of items that training did not know, [N, d], from their texts' [N, F]."""
        return self.of_codes(self.quantiser.quantise(vectors).to(self.codes.dtype))

    def contrasts(
        self, batch: SequenceBatch, real: Tensor, vectors: Tensor, hidden: Tensor
    ) -> dict[str, Tensor]:
        """The contrast of pre-training, a scalar: eq. 5."""
        fakes = self.of_codes(self.fake_codes(batch.targets.flatten()))
        with torch.autocast(hidden.device.type, enabled=False):
            _, fakes = self.compared(hidden, fakes.view_as(hidden))
            users, keys = self.compared(hidden, vectors[:, 1:])
            return {"contrast": slot_contrast(users, keys, batch.targets, real, fakes)}

    def fake_codes(self, items: Tensor) -> Tensor:
        """Codes of items [N] with most of them replaced by random ones, int [N, D]."""
        codes = self.codes.index_select(0, items.clamp(max=self.n_items - 1))
        drawn = torch.randint_like(codes, self.quantiser.n_centroids)
        replaced = torch.rand(codes.shape, device=codes.device) < self.config.fake_share
        return torch.where(replaced, drawn, codes)
