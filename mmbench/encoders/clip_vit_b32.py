"""CLIP ViT-B/32.

Radford et al., ICML 2021. https://arxiv.org/abs/2103.00020; what is computed is in clip.py.

151.3 M parameters, the number that some papers give for ViT-B/16. Shared space of 512 dimensions;
"hidden" has 768 for pictures and 512 for texts. 49 patches of 32 x 32 pixels and the class token,
which MMSR (https://arxiv.org/abs/2403.17372) fuses one by one.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.clip import CLIP
from mmbench.encoders.neural import Hub


@register_encoder("clip-vit-b32")
class CLIPViTB32(CLIP):
    """Pictures and texts in one space, scaled to length 1 [512]."""

    hub = Hub("openai/clip-vit-base-patch32", licence="MIT")
