"""RoBERTa-base: BERT trained longer on more text, without the next-sentence loss.

Liu et al., 2019. https://arxiv.org/abs/1907.11692

12 blocks, 768 dimensions, 124.6 M parameters; byte-level BPE of 50,265 entries, cased. Positions
are numbered from the id of the padding on, so that of 514 rows 512 hold tokens.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.transformer_text import TransformerText


@register_encoder("roberta")
class Roberta(TransformerText):
    """Mean of the token vectors [768]."""

    hub = Hub("FacebookAI/roberta-base", licence="MIT")
    citation = "Liu et al., arXiv 2019"
    architecture = "RobertaModel"
    max_tokens = 512
