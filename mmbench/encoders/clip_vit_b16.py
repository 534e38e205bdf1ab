"""CLIP ViT-B/16.

Radford et al., ICML 2021. https://arxiv.org/abs/2103.00020; what is computed is in clip.py.

149.6 M parameters (pictures 86.2 M, texts 63.4 M with their projections). Shared space of 512
dimensions; "hidden" has 768 for pictures and 512 for texts. 196 patches of 16 x 16 pixels and the
class token. A text vector of 768 dimensions, as some papers report for this size, does not exist;
ViT-L/14 has 768 for both.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.clip import CLIP
from mmbench.encoders.neural import Hub


@register_encoder("clip-vit-b16")
class CLIPViTB16(CLIP):
    """Pictures and texts in one space, scaled to length 1 [512]."""

    hub = Hub("openai/clip-vit-base-patch16", licence="MIT")
