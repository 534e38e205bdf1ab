"""DINOv2 ViT-B/14 with four registers, which keep the patches free of outliers.

Darcet et al., ICLR 2024. https://arxiv.org/abs/2309.16588; Oquab et al., TMLR 2024

12 blocks, 768 dimensions, 85.7 M parameters at 224 x 224. It was published for 518 x 518; here
pictures are 224 x 224: a class token, four registers, and 16 x 16 patches. The patches that are
kept are those behind the registers.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("dinov2-b14-reg4")
class DINOv2B14Reg4(TimmVision):
    """The class token after the last norm [768]; patches [256, 768]."""

    hub = Hub("timm/vit_base_patch14_reg4_dinov2.lvd142m", licence="Apache-2.0")
    citation = "Darcet et al., ICLR 2024; Oquab et al., TMLR 2024"
    max_size = 224
