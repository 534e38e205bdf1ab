"""MMSR: sequential recommendation from the items' texts and pictures, put together from parts.

Li, Du, Ni, He, Fu, Liu and Guo, 2024. https://arxiv.org/abs/2403.17372

    X_m    = S_m(i) W_m + b_m                  token states of modality m, each projected  (TE.2)
    e(i)   = fusion(X_text, X_picture)         see item_fusion.py                          (MM.1)
    h      = sequence encoder(e(s_1) .. e(s_L))  see sequence_encoders.py                  (MM.2)
    score  x_ui = h_L . e(i)
    loss   binary cross-entropy with one negative for each position, see base.py

S_m are the last states of an encoder that learns with the model (`encoders:`), or stored ones
(`features:`, where a vector is one token). With one modality there is no fusion: MMSR-T and MMSR-V
are e(i) = mean of the real tokens of X_m. So is an encoder that reads text and picture together
(modality joint: ViLT, VisualBERT, FLAVA); one of two streams (CLIP, GroupViT) is given as text
and as picture with `fusion: concat`.

Shapes: N items, T_m tokens, E_m width of a state, D = config.embedding_size, L = config.max_length.
Departures: coarse fusion pools before it projects, which is the same and T times cheaper. An item
without content has what its encoder makes of nothing (the special tokens of a text, a grey
picture); among stored features the mean of those that are there. Padding is the zero vector.
"""

from __future__ import annotations

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.base import (
    SequentialConfig,
    SequentialRecommender,
    xavier_normal_,
)
from mmbench.models.sequential.item_fusion import AttentionFusion, Fusion, make_fusion
from mmbench.models.sequential.item_states import ContentStates, masked_pool
from mmbench.models.sequential.sequence_encoders import (
    Dropout,
    SequenceEncoderConfig,
    make_sequence_encoder,
)


class MMSRConfig(SequentialConfig, SequenceEncoderConfig):
    """Settings of MMSR."""

    embedding_size: PositiveInt = 64
    """D; the paper has 768."""
    fusion: Fusion = "merge-attention"
    """How the modalities are joined; no part of a model that is given one."""
    n_fusion_blocks: PositiveInt = 1
    """Of merge-attention."""
    fusion_heads: PositiveInt | None = None
    """Of attention fusion; if not given one for each 64 columns, as in BERT."""
    fusion_dropout: Dropout | None = None
    """Of the fusion; if not given `dropout` for `+dnn` and 0.1 for attention, as published."""
    type_embeddings: bool = False
    """Whether merge-attention adds a vector of its modality to each token."""
    standardize: bool = False
    """Whether stored states are brought to mean 0 and deviation 1, column by column, as those of
    many extracted sets are nearly alike; what an encoder makes is left as it is."""

    @model_validator(mode="after")
    def _heads_divide(self) -> MMSRConfig:
        size = self.embedding_size
        if self.sequence_encoder == "sasrec" and size % self.n_heads:
            raise ValueError(f"embedding_size {size} does not divide into n_heads {self.n_heads}")
        if size % self.n_fusion_heads:
            raise ValueError(
                f"embedding_size {size} does not divide into {self.n_fusion_heads} heads of "
                "attention fusion; set fusion_heads"
            )
        return self

    @property
    def n_fusion_heads(self) -> int:
        """Heads of attention fusion."""
        return self.fusion_heads or max(1, self.embedding_size // 64)


@register_model(
    "mmsr",
    config=MMSRConfig,
    citation="Li et al. An empirical study of training ID-agnostic multi-modal sequential "
    "recommenders. arXiv:2403.17372, 2024.",
)
class MMSR(SequentialRecommender):
    """Encoders, a fusion and a sequence encoder, each chosen in the recipe."""

    integration = "fusion"
    modalities = frozenset({"visual", "textual", "acoustic", "joint"})
    requires_modality = True
    of_dataset = ()
    reads_tokens = True
    content = True
    config: MMSRConfig

    def __init__(self, config: MMSRConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__(config, train, given)
        size = config.embedding_size
        self.states = ContentStates(given, "mmsr", standardize=config.standardize)  # S_m
        self.project = nn.ModuleDict(
            {modality: nn.Linear(width, size) for modality, width in self.states.widths.items()}
        )  # W_m, b_m
        xavier_normal_(self.project)
        self.fusion: nn.Module | None = None
        if len(self.states) > 1:
            dropout = config.fusion_dropout
            self.fusion = make_fusion(
                config.fusion,
                size,
                self.states.modalities,
                n_blocks=config.n_fusion_blocks,
                n_heads=config.n_fusion_heads,
                coarse_dropout=config.dropout if dropout is None else dropout,
                attention_dropout=0.1 if dropout is None else dropout,
                type_embeddings=config.type_embeddings,
            )
        self.encoder = make_sequence_encoder(
            config.sequence_encoder,
            size,
            config.max_length,
            config.n_layers,
            config.n_heads,
            config.dropout,
        )

    def items(self, items: Tensor) -> Tensor:
        """e(i) of some items, [N, D]."""
        read = {modality: self.states.read(modality, items) for modality in self.states}
        if isinstance(self.fusion, AttentionFusion):
            tokens = [self.project[modality](states) for modality, (states, _) in read.items()]
            fused: Tensor = self.fusion(tokens, [mask for _, mask in read.values()])
            return fused
        pooled = [
            self.project[modality](masked_pool(states, mask))
            for modality, (states, mask) in read.items()
        ]
        joined: Tensor = pooled[0] if self.fusion is None else self.fusion(pooled)
        return joined

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
