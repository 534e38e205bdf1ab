"""MAE ViT-B/16: a vision transformer trained to paint in the patches that it did not see.

He et al., CVPR 2022. https://arxiv.org/abs/2111.06377

12 blocks, 768 dimensions, 85.8 M parameters; pictures of 224 x 224 become a class token and 14 x 14
patches. No pooled objective trained the class token, so the default is the mean of all tokens, the
class token included, as in MMSR (https://arxiv.org/abs/2403.17372). There a mask ratio of 0.75
leaves 49 patches, drawn anew at every call; here they are drawn once, from the item's id.
"""

from __future__ import annotations

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub
from mmbench.encoders.timm_vision import TimmVision


@register_encoder("mae-b16")
class MAEB16(TimmVision):
    """Mean of all tokens [768]; patches [196, 768], or those that the mask leaves."""

    hub = Hub("timm/vit_base_patch16_224.mae", licence="CC-BY-NC-4.0")
    variants = ("mean", "cls", "patches", "patch-emb")
    takes = frozenset({"tokens", "preprocess", "mask_ratio"})
    constants = frozenset({"pos_embed"})  # sines and cosines
    citation = "He et al., CVPR 2022"
