"""DINOv2 ViT-B/14: a vision transformer trained without labels or texts.

Oquab et al., TMLR 2024. https://arxiv.org/abs/2304.07193

12 blocks, 768 dimensions, 85.7 M parameters at 224 x 224. It was published for 518 x 518, which has
5.4 times as many patches; here pictures are 224 x 224, a class token and 16 x 16 patches, and the
positions are resampled as timm does.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("dinov2-b14")
class DINOv2B14(TimmVision):
    """The class token after the last norm [768]; patches [256, 768]."""

    hub = Hub("timm/vit_base_patch14_dinov2.lvd142m", licence="Apache-2.0")
    citation = "Oquab et al., TMLR 2024"
    max_size = 224
