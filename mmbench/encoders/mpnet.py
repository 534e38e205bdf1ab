"""MPNet: the sentence encoder of base size.

Song et al., NeurIPS 2020. https://arxiv.org/abs/2004.09297; trained on a billion pairs of
sentences as Reimers and Gurevych, EMNLP 2019. https://arxiv.org/abs/1908.10084

12 blocks, 768 dimensions, 109.5 M parameters; WordPiece of 30,527 entries, lower-cased. Texts are
cut to 384 ids, as published. It has no fused attention in transformers.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.transformer_text import TransformerText


@register_encoder("mpnet")
class MPNet(TransformerText):
    """Mean of the token vectors, scaled to length 1 [768]."""

    hub = Hub("sentence-transformers/all-mpnet-base-v2", licence="Apache-2.0")
    citation = "Song et al., NeurIPS 2020; Reimers and Gurevych, EMNLP 2019"
    architecture = "MPNetModel"
    normalise = True
    max_tokens = 384
