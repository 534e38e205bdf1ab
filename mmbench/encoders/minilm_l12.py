"""MiniLM-L12: the sentence encoder with twice the blocks of MiniLM-L6.

Wang et al., NeurIPS 2020. https://arxiv.org/abs/2002.10957 (distillation); trained on a billion
pairs of sentences as Reimers and Gurevych, EMNLP 2019. https://arxiv.org/abs/1908.10084

12 blocks, 384 dimensions, 33.4 M parameters; WordPiece of 30,522 entries, lower-cased. Texts are
cut to 128 ids, as published.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.transformer_text import TransformerText


@register_encoder("minilm-l12")
class MiniLML12(TransformerText):
    """Mean of the token vectors, scaled to length 1 [384]."""

    hub = Hub("sentence-transformers/all-MiniLM-L12-v2", licence="Apache-2.0")
    citation = "Wang et al., NeurIPS 2020; Reimers and Gurevych, EMNLP 2019"
    architecture = "BertModel"
    normalise = True
    max_tokens = 128
