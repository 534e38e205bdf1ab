"""CLIP: contrastive pre-training of a picture and a text encoder; what its sizes share.

Radford et al., ICML 2021. https://arxiv.org/abs/2103.00020

    picture  hidden = LayerNorm(last state of [CLS]); proj = W_v hidden
    text     hidden = LayerNorm(last state of the end token); proj = W_t hidden

Both are scaled to length 1 in the shared space. The states of the patches that transformers gives
are those before the final LayerNorm, unlike those of other models; here they are after it.

Texts are lower-cased and cut to 77 ids, the end token kept; attention is causal, so that padding
behind the end token cannot reach it. The short side of a picture becomes 224 pixels (bicubic) and
the centre is cropped, which takes a third of a picture of 2:3 away; `preprocess: pad` does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mmbench.encoders.dual import DualEncoder
from mmbench.encoders.neural import Batch
from mmbench.encoders.preprocessing import CLIP_MEAN, CLIP_STD
from mmbench.encoders.tokenizing import token_ids
from mmbench.errors import DataError

CLIP_PROCESSOR: Mapping[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,  # bicubic
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
# Configurations older than transformers 4.31 state this in place of the end token; then the token
# with the largest id is pooled.
_LEGACY_END = 2


class CLIP(DualEncoder):
    """A model of the CLIP architecture."""

    citation = "Radford et al., ICML 2021"
    architecture = "CLIPModel"
    max_tokens = 77
    processor: ClassVar[Mapping[str, Any]] = CLIP_PROCESSOR
    pooling: ClassVar[Mapping[str, str]] = {"visual": "class token", "textual": "end token"}

    def picture_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of class token and patches after the final norm, and the first of them."""
        model: Any = self.module
        output = model.vision_model(pixel_values=pixels)
        return model.vision_model.post_layernorm(output.last_hidden_state), output.pooler_output

    def patch_embeddings(self, pixels: Tensor) -> Tensor:
        """Class token and patches with their positions, normed, as the first block has them."""
        model: Any = self.module
        embedded: Tensor = model.vision_model.pre_layrnorm(model.vision_model.embeddings(pixels))
        return embedded

    def text_states(self, texts: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of the tokens after the final norm, and that of the first end token."""
        model: Any = self.module
        # No mask: padding stands behind the end token, and attention is causal.
        output = model.text_model(input_ids=texts["input_ids"])
        return output.last_hidden_state, output.pooler_output

    def projected(self, pooled: Tensor, modality: str) -> Tensor:
        """Pooled vectors in the shared space, not normalised."""
        model: Any = self.module
        project = model.visual_projection if modality == "visual" else model.text_projection
        vectors: Tensor = project(pooled)
        return vectors

    def _check_tokenizer(self) -> None:
        super()._check_tokenizer()
        # Without its end token a text would silently be pooled at its first position.
        config: Any = self.module.config
        end = config.text_config.eos_token_id
        if end == _LEGACY_END:
            end = len(self.tokenizer) - 1
        ids = token_ids(self.tokenizer, ["a"], self.max_tokens)[0].ids
        if ids[-1] != end:
            raise DataError(
                f"E406 {self.weights.folder}: the tokenizer ends texts with id {ids[-1]} and the "
                f"model pools at id {end}; they are of two models"
            )
