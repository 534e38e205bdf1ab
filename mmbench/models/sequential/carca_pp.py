"""CARCA++: CARCA over several modalities, trained causally.

Li et al., 2024, https://arxiv.org/abs/2403.17372 (a baseline there), after CARCA, arXiv 2204.06519.

    a_i        = [a^text_i ; a^picture_i ; ...]    every feature set given
    equations  of carca_attention.py, with s = s' = sqrt(D)

Shapes: L = config.max_length, D = config.embedding_size.
Departures: the paper has one sentence on this model, so what follows is ours. Profiles and
candidates scale ids alike. Slots and candidates see no later slot, so that in training the target
never stands in the profile; `causal: false` is the way of CARCA's authors. `positions: learned`
adds P_t to slot t, counted from the newest.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.sequential.carca_attention import CandidateAttention, CandidateConfig


class CARCAPlusPlusConfig(CandidateConfig):
    """Settings of CARCA++."""

    positions: Literal["none", "learned"] = "none"


@register_model(
    "carca-pp",
    config=CARCAPlusPlusConfig,
    citation="Li et al. An empirical study of training ID-agnostic multi-modal sequential "
    "recommenders. arXiv:2403.17372, 2024.",
)
class CARCAPlusPlus(CandidateAttention):
    """Candidates that attend to the past of a profile of ids and all modalities."""

    name = "carca-pp"
    config: CARCAPlusPlusConfig

    def __init__(
        self, config: CARCAPlusPlusConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_length, config.embedding_size)
            nn.init.xavier_uniform_(self.positions.weight)

    @property
    def scales(self) -> tuple[float, float]:
        """The square root of D in both."""
        root = math.sqrt(self.config.embedding_size)
        return root, root
