"""SigLIP ViT-B/16.

Zhai et al., ICCV 2023. https://arxiv.org/abs/2303.15343; what is computed is in siglip.py.

203.2 M parameters; 768 dimensions on both sides, in every variant. SentencePiece of 32,000
entries; texts were trained in lower case and without punctuation, so both are taken away here.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.siglip import SigLIP


@register_encoder("siglip-b16")
class SigLIPB16(SigLIP):
    """Pictures and texts in one space, scaled to length 1 [768]."""

    hub = Hub("google/siglip-base-patch16-224", licence="Apache-2.0")
    citation = "Zhai et al., ICCV 2023"
    keeps_punctuation = False
