"""CARCA: context- and attribute-aware recommendation with cross-attention.

Rashed, Elsayed and Schmidt-Thieme, RecSys 2022. https://arxiv.org/abs/2204.06519

    equations  of carca_attention.py, with s = sqrt(D) in a profile and s' = 1 in a candidate
    loss       binary cross-entropy + regularization * |E|^2 / 2

Shapes: D = config.embedding_size.
Departures: no context, the six features of an interaction's time, since nothing else here has
them and candidates of a ranking have no time; attributes are the feature sets given, joined. As
in the authors' code there are no positions, s' lacks the root that s has, and nothing is causal:
in training the target of a position stands in the profile, unless it is the newest. Their
figures are for 100 sampled negatives, so they do not compare with a ranking of all items. A
padded slot is hidden here for being padding, there for being a row of zeros, which the last norm
undoes.
"""

from __future__ import annotations

import math

from pydantic import NonNegativeFloat, PositiveInt

from mmbench.models.base import register_model
from mmbench.models.sequential.carca_attention import CandidateAttention, CandidateConfig
from mmbench.models.sequential.sequence_encoders import Dropout


class CARCAConfig(CandidateConfig):
    """Settings of CARCA: the authors' for Amazon Games."""

    embedding_size: PositiveInt = 90
    n_layers: PositiveInt = 3
    n_heads: PositiveInt = 3
    dropout: Dropout = 0.5
    causal: bool = False
    """Whether slots, and the candidates of a position, see no later slot in training."""
    regularization: NonNegativeFloat = 1e-4
    """Weight of |E|^2 / 2 over the whole table."""


@register_model(
    "carca",
    config=CARCAConfig,
    citation="Rashed, Elsayed and Schmidt-Thieme. Context and attribute-aware sequential "
    "recommendation via cross-attention. RecSys 2022.",
)
class CARCA(CandidateAttention):
    """Candidates that attend to a profile of ids and attributes."""

    name = "carca"
    config: CARCAConfig

    @property
    def scales(self) -> tuple[float, float]:
        """The square root of D in a profile, 1 in a candidate."""
        return math.sqrt(self.config.embedding_size), 1.0
