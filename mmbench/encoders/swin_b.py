"""Swin-B: a transformer whose attention stays within shifted windows.

Liu et al., ICCV 2021. https://arxiv.org/abs/2103.14030

1024 dimensions, 86.7 M parameters; patches of 4 and windows of 7 pixels and cells; pictures of
224 x 224 become a grid of 7 x 7 cells. Trained on ImageNet-22k, then 1k.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("swin-b")
class SwinB(TimmVision):
    """Mean of the last grid after its norm [1024]; cells [49, 1024]; 3136 patches of 128."""

    hub = Hub("timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k", licence="MIT")
    variants = ("pooled", "grid", "patch-emb")
    citation = "Liu et al., ICCV 2021"
