"""VGG-16: 4096 values before the classifier, as early visual recommenders use them.

Simonyan and Zisserman, ICLR 2015. https://arxiv.org/abs/1409.1556

4096 dimensions (fc7 after its ReLU), 134.3 M parameters without the classifier; pictures of
224 x 224, which become a grid of 7 x 7 cells of 512. Weights of torchvision (ImageNet-1k).
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("vgg16")
class VGG16(TimmVision):
    """The second fully connected layer after ReLU [4096]; cells [49, 512]."""

    hub = Hub("timm/vgg16.tv_in1k", licence="BSD-3-Clause")
    variants = ("pooled", "grid")
    citation = "Simonyan and Zisserman, ICLR 2015"
