"""CLIP ViT-L/14.

Radford et al., ICML 2021. https://arxiv.org/abs/2103.00020; what is computed is in clip.py.

427.6 M parameters. Shared space of 768 dimensions; "hidden" has 1024 for pictures and 768 for
texts. 256 patches of 14 x 14 pixels and the class token.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.clip import CLIP
from mmbench.encoders.neural import Hub


@register_encoder("clip-vit-l14")
class CLIPViTL14(CLIP):
    """Pictures and texts in one space, scaled to length 1 [768]."""

    hub = Hub("openai/clip-vit-large-patch14", licence="MIT")
