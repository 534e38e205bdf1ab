"""ViT-B/16: the base vision transformer on patches of 16 pixels.

Dosovitskiy et al., ICLR 2021. https://arxiv.org/abs/2010.11929; weights of Steiner et al., TMLR
2022. https://arxiv.org/abs/2106.10270 (ImageNet-21k, then 1k)

12 blocks, 768 dimensions, 85.8 M parameters; pictures of 224 x 224 with mean and deviation 0.5
become a class token and 14 x 14 patches.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("vit-b16")
class ViTB16(TimmVision):
    """The class token after the last norm [768]; patches [196, 768]."""

    hub = Hub("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", licence="Apache-2.0")
    citation = "Dosovitskiy et al., ICLR 2021; Steiner et al., TMLR 2022"
