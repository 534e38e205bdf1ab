"""MiniLM-L6: the sentence encoder that most multimodal recommenders use for item texts.

Wang et al., NeurIPS 2020. https://arxiv.org/abs/2002.10957 (distillation); trained on a billion
pairs of sentences as Reimers and Gurevych, EMNLP 2019. https://arxiv.org/abs/1908.10084

6 blocks, 384 dimensions, 22.7 M parameters; WordPiece of 30,522 entries, lower-cased. Texts are
cut to 256 ids, as published: its tokenizer says 512, which gives a long text another vector.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.transformer_text import TransformerText


@register_encoder("minilm-l6")
class MiniLML6(TransformerText):
    """Mean of the token vectors, scaled to length 1 [384]."""

    hub = Hub("sentence-transformers/all-MiniLM-L6-v2", licence="Apache-2.0")
    citation = "Wang et al., NeurIPS 2020; Reimers and Gurevych, EMNLP 2019"
    architecture = "BertModel"
    normalise = True
    max_tokens = 256
