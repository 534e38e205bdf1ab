"""BLIP: the picture encoder and the text encoder of its retrieval model, used apart.

Li et al., ICML 2022. https://arxiv.org/abs/2201.12086

    hidden   first state after the final norm: [CLS] of a picture, [CLS] of a text
    proj     W hidden + b, scaled to length 1, as its contrastive loss compares them

223.7 M parameters; 768 dimensions on both sides, 256 in the shared space. Pictures are squashed
to 384 x 384 (576 patches of 16 x 16 pixels and the class token). The pooled output of the picture
encoder in transformers passes the final norm twice, and is not used. Texts are those of BERT,
lower-cased; the weights have 512 positions, and were trained on captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mmbench.encoders.base import register_encoder
from mmbench.encoders.dual import DualEncoder
from mmbench.encoders.neural import Batch, Hub
from mmbench.encoders.preprocessing import CLIP_MEAN, CLIP_STD


@register_encoder("blip")
class BLIP(DualEncoder):
    """Pictures and texts in one space, scaled to length 1 [256]."""

    hub = Hub("Salesforce/blip-itm-base-coco", licence="BSD-3-Clause")
    citation = "Li et al., ICML 2022"
    architecture = "BlipForImageTextRetrieval"
    max_tokens = 512
    processor: ClassVar[Mapping[str, Any]] = {
        "size": {"height": 384, "width": 384},
        "resample": 3,  # bicubic
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    square = True
    pooling: ClassVar[Mapping[str, str]] = {"visual": "class token", "textual": "class token"}

    def picture_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of class token and patches after the final norm, and the first of them."""
        model: Any = self.module
        states = model.vision_model(pixel_values=pixels).last_hidden_state
        return states, states[:, 0]

    def patch_embeddings(self, pixels: Tensor) -> Tensor:
        """Class token and patches with their positions, as the first block has them."""
        model: Any = self.module
        embedded: Tensor = model.vision_model.embeddings(pixels)
        return embedded

    def text_states(self, texts: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of the tokens, and that of [CLS]."""
        model: Any = self.module
        states = model.text_encoder(
            input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]
        ).last_hidden_state
        return states, states[:, 0]

    def projected(self, pooled: Tensor, modality: str) -> Tensor:
        """Pooled vectors in the shared space, not normalised."""
        model: Any = self.module
        project = model.vision_proj if modality == "visual" else model.text_proj
        vectors: Tensor = project(pooled)
        return vectors
