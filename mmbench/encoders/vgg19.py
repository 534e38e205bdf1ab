"""VGG-19: the usual stand-in for the 4096-dimensional Amazon image features.

Simonyan and Zisserman, ICLR 2015. https://arxiv.org/abs/1409.1556

4096 dimensions (fc7 after its ReLU), 139.6 M parameters without the classifier; pictures of
224 x 224, which become a grid of 7 x 7 cells of 512. Weights of torchvision (ImageNet-1k). The
features that come with the Amazon datasets are of another network (an AlexNet in Caffe).
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("vgg19")
class VGG19(TimmVision):
    """The second fully connected layer after ReLU [4096]; cells [49, 512]."""

    hub = Hub("timm/vgg19.tv_in1k", licence="BSD-3-Clause")
    variants = ("pooled", "grid")
    citation = "Simonyan and Zisserman, ICLR 2015"
