"""ELECTRA-base: the discriminator, trained to find replaced words.

Clark et al., ICLR 2020. https://arxiv.org/abs/2003.10555

12 blocks, 768 dimensions, 108.9 M parameters; BERT's WordPiece of 30,522 entries, lower-cased; 512
positions. It has no pooler.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.transformer_text import TransformerText


@register_encoder("electra")
class Electra(TransformerText):
    """Mean of the token vectors [768]."""

    hub = Hub("google/electra-base-discriminator", licence="Apache-2.0")
    citation = "Clark et al., ICLR 2020"
    architecture = "ElectraModel"
    max_tokens = 512
