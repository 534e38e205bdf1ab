"""ResNet-50: the convolutional network that most visual recommenders start from.

He et al., CVPR 2016. https://arxiv.org/abs/1512.03385; weights of Wightman, Touvron and Jegou,
2021. https://arxiv.org/abs/2110.00476 (recipe A1, ImageNet-1k)

2048 dimensions, 23.5 M parameters without the classifier; pictures of 224 x 224, which become a
grid of 7 x 7 cells. BatchNorm uses its stored statistics, so a batch does not matter.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("resnet50")
class ResNet50(TimmVision):
    """Mean of the last grid [2048]; cells [49, 2048]."""

    hub = Hub("timm/resnet50.a1_in1k", licence="Apache-2.0")
    variants = ("pooled", "grid")
    citation = "He et al., CVPR 2016; Wightman et al., 2021"
