"""MoRec: SASRec whose item vectors come from one modality's encoder.

Yuan et al., SIGIR 2023. https://arxiv.org/abs/2303.13835

    text     e(i) = gelu(W c_i + b)     c_i the first token's last state                   (MO.1)
    picture  e(i) = gelu(W c_i + b)     c_i the mean of the last states, or the first one  (MO.2)
    h        = SASRecEncoder(e(s_1) .. e(s_L))    see sequence_encoders.py                 (MO.3)
    score    x_ui = h_L . e(i)
    loss     binary cross-entropy with one negative for each position, see base.py

Shapes: N items, D = config.embedding_size, L = config.max_length.
W starts as the framework's default for text and Xavier normal with b = 0 for pictures, as in the
authors' code. Theirs has L 20 for texts and 10 for pictures, D 512, and tunes whole encoders.
Departures: the exact GELU. Sounds and joint states are read like pictures. On stored vectors this
is the authors' two-stage variant, which they find weaker.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import (
    SequentialConfig,
    SequentialRecommender,
    xavier_normal_,
)
from mmbench.models.sequential.item_states import ContentStates, masked_pool
from mmbench.models.sequential.sequence_encoders import Dropout, SASRecEncoder


class MoRecConfig(SequentialConfig):
    """Settings of MoRec, and of MoRec++ too."""

    embedding_size: PositiveInt = 64
    """D; 512 in the authors' code, 768 in arXiv 2403.17372."""
    visual_state: Literal["mean", "first"] = "mean"
    """What stands for a picture: the mean of its states (ResNet, Swin), or the first one (the
    class token of MAE and ViT)."""
    standardize: bool = False
    """Whether stored states are brought to mean 0 and deviation 1, column by column, as those of
    many extracted sets are nearly alike; what an encoder makes is left as it is."""
    n_layers: PositiveInt = 2
    n_heads: PositiveInt = 2
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _heads_divide(self) -> MoRecConfig:
        if self.embedding_size % self.n_heads:
            raise ValueError(
                f"embedding_size {self.embedding_size} does not divide into n_heads {self.n_heads}"
            )
        return self


class ContentVector(nn.Module):
    """gelu(W c + b) of the one state c that stands for an item (MO.1, MO.2)."""

    def __init__(self, modality: str, width: int, config: MoRecConfig) -> None:
        super().__init__()
        self.first = modality == "textual" or (
            modality == "visual" and config.visual_state == "first"
        )
        self.project = nn.Linear(width, config.embedding_size)  # W, b
        if modality != "textual":
            xavier_normal_(self.project)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """[N, D] of states [N, T, E] and which are real, bool [N, T]."""
        state = states[:, 0] if self.first else masked_pool(states, mask)
        return F.gelu(self.project(state))


@register_model(
    "morec",
    config=MoRecConfig,
    citation="Yuan et al. Where to go next for recommender systems? ID- vs. modality-based "
    "recommender models revisited. SIGIR 2023.",
)
class MoRec(SequentialRecommender):
    """SASRec over the items' texts, or over their pictures."""

    integration = "fusion"
    modalities = frozenset({"visual", "textual", "acoustic", "joint"})
    requires_modality = True
    of_dataset = ()
    reads_tokens = True
    content = True
    config: MoRecConfig

    def __init__(self, config: MoRecConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__(config, train, given)
        self.states = ContentStates(given, "morec", standardize=config.standardize)
        if len(self.states) > 1:
            raise ConfigError(
                f"morec reads one modality, but is given {', '.join(self.states)}; name one of "
                "them, or choose morec-pp, which joins several"
            )
        (self.modality,) = self.states.modalities
        self.vector = ContentVector(self.modality, self.states.widths[self.modality], config)
        self.encoder = SASRecEncoder(
            config.embedding_size,
            config.max_length,
            config.n_layers,
            config.n_heads,
            config.dropout,
        )

    def items(self, items: Tensor) -> Tensor:
        """e(i) of some items, [N, D]."""
        vectors: Tensor = self.vector(*self.states.read(self.modality, items))
        return vectors

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
