"""BERT-base, uncased: the plain language model, not trained to compare sentences.

Devlin et al., NAACL 2019. https://arxiv.org/abs/1810.04805

12 blocks, 768 dimensions, 108.9 M parameters without the pooler; WordPiece of 30,522 entries,
lower-cased; 512 positions.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.transformer_text import TransformerText


@register_encoder("bert")
class Bert(TransformerText):
    """Mean of the token vectors [768]."""

    hub = Hub("google-bert/bert-base-uncased", licence="Apache-2.0")
    citation = "Devlin et al., NAACL 2019"
    architecture = "BertModel"
    max_tokens = 512
