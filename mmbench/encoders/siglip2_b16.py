"""SigLIP 2 ViT-B/16, of fixed resolution.

Tschannen et al., 2025. https://arxiv.org/abs/2502.14786; what is computed is in siglip.py.

375.2 M parameters, most of them the 256,000 entries of Gemma's vocabulary; 768 dimensions on both
sides, in every variant. Texts were trained in lower case, which the published tokenizer does not
do by itself. The NaFlex weights are of another architecture and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.siglip import SIGLIP_PROCESSOR, SigLIP


@register_encoder("siglip2-b16")
class SigLIP2B16(SigLIP):
    """Pictures and texts in one space, scaled to length 1 [768]."""

    hub = Hub("google/siglip2-base-patch16-224", licence="Apache-2.0")
    citation = "Tschannen et al., 2025"
    keeps_punctuation = True
    processor: ClassVar[Mapping[str, Any]] = {
        **SIGLIP_PROCESSOR,
        "resample": 2,  # bilinear, as its published file says
    }
