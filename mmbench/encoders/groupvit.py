"""GroupViT: a vision transformer that groups patches into segments, trained with texts.

Xu et al., CVPR 2022. https://arxiv.org/abs/2202.11094

    picture  hidden = mean of the 8 group vectors of the last stage, after the final norm
    text     hidden = LayerNorm(last state of the end token), as CLIP's
    proj     Linear, BatchNorm, ReLU, Linear of hidden; scaled to length 1

55.7 M parameters; 384 (pictures) and 256 (texts) dimensions, 256 in the shared space. With
`tokens` a picture keeps its 8 groups; patches exist only before the first block ("patch-emb").
BatchNorm uses its stored statistics and groups are assigned without the noise of training, so a
vector does not depend on its batch. Assignment is an argmax, though: a patch on the edge between
two groups may fall either way on another device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mmbench.encoders.base import register_encoder
from mmbench.encoders.clip import CLIP
from mmbench.encoders.neural import Hub


@register_encoder("groupvit")
class GroupViT(CLIP):
    """Pictures and texts in one space, scaled to length 1 [256]."""

    hub = Hub("nvidia/groupvit-gcc-yfcc", licence="NVIDIA Source Code License")
    citation = "Xu et al., CVPR 2022"
    variants = ("proj", "hidden", "patch-emb")
    architecture = "GroupViTModel"
    has_class_token = False
    patches = "groups"
    pooling: ClassVar[Mapping[str, str]] = {"visual": "mean of the groups", "textual": "end token"}

    def picture_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the groups after the final norm, and their mean."""
        model: Any = self.module
        output = model.vision_model(pixel_values=pixels)
        return output.last_hidden_state, output.pooler_output

    def patch_embeddings(self, pixels: Tensor) -> Tensor:
        """Patches, normed and with their positions, as the first stage has them."""
        model: Any = self.module
        embedded: Tensor = model.vision_model.embeddings(pixels)
        return embedded
