"""FLAVA: a vision model and a text model, and a third that reads the states of both.

Singh et al., CVPR 2022. https://arxiv.org/abs/2112.04482

    v, t     states of picture and text before the final norm of their models
    hidden   LN(v)_1 of the picture, LN(t)_1 of the text: their [CLS]
    proj     A hidden + a, scaled to length 1: the space in which the two were compared
    joint    first state of the third model on the sequence [CLS_M] | B v + b | C t + c

241.4 M parameters; pictures of 224 x 224 in patches of 16 x 16; WordPiece, 77 ids in pre-training
(512 positions). The variants "hidden" and "proj" give a set of each modality, "joint" the set of
pairs; items that lack one modality have no joint vector. Tokens are states after the final norm,
never projected: of a picture [CLS] and patches, of a pair the whole sequence.
Departures: transformers keeps the states of all blocks for this; here only those needed are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmbench.encoders.base import register_encoder
from mmbench.encoders.dual import picture_preprocessing
from mmbench.encoders.joint import PairEncoder
from mmbench.encoders.neural import Batch, Encoded, Hub, Options
from mmbench.encoders.preprocessing import CHOICES, CLIP_MEAN, CLIP_STD, Preprocessing
from mmbench.errors import UnknownNameError

_PROCESSOR = {
    "size": {"height": 224, "width": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": Image.Resampling.BICUBIC,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}


@register_encoder("flava")
class Flava(PairEncoder):
    """Vectors of a picture and of a text [768], or one of both."""

    hub = Hub("facebook/flava-full", licence="BSD-3-Clause")
    modalities: ClassVar[tuple[str, ...]] = ("visual", "textual", "joint")
    is_joint = False
    variants = ("hidden", "proj", "joint")
    citation = "Singh et al., CVPR 2022"
    architecture = "FlavaModel"
    max_tokens = 77
    unused = (
        "image_model.pooler.",
        "text_model.pooler.",
        "multimodal_model.pooler.",
        "image_model.embeddings.mask_token",
    )
    preprocessing: Preprocessing
    _made_by: str

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        if self.options.preprocess not in CHOICES:
            raise UnknownNameError("preprocessing", self.options.preprocess, CHOICES)
        # Of this one, not of the class: what the variant gives.
        self.is_joint = self.variant == "joint"  # type: ignore[misc]
        given = ("joint",) if self.is_joint else ("visual", "textual")
        self.modalities = given  # type: ignore[misc]

    def load(self) -> None:
        """Read the weights, the tokenizer and how pictures are prepared."""
        super().load()
        config: Any = self.module.config
        own, self._made_by = picture_preprocessing(
            self.weights, _PROCESSOR, config.image_config.image_size, square=True
        )
        self.preprocessing = own.chosen(self.options.preprocess)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        return {
            **super().settings,
            "l2_normalised": self.variant == "proj",
            "preprocess": self.options.preprocess,
            "preprocessing": dict(self.preprocessing.settings),
            "preprocessing_from": self._made_by,
        }

    @property
    def framing(self) -> Preprocessing:
        """How pictures are prepared."""
        return self.preprocessing

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """An upright RGB picture as float32 [3, H, W]."""
        return self.preprocessing.apply(picture)

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures as one batch, on the CPU."""
        return {"pixel_values": torch.stack(list(pictures))}

    def encode_picture(self, pictures: Batch) -> Encoded:
        """Vectors of pictures [B, D] and, where asked for, of [CLS] and patches."""
        model: Any = self.module
        states = model.image_model.layernorm(self._picture_states(pictures))
        pooled = self._pooled(states[:, 0], model.image_projection)
        return Encoded(pooled, states.float() if self.options.tokens else None)

    def encode_text(self, texts: Batch) -> Encoded:
        """Vectors of texts [B, D] and, where asked for, of their tokens."""
        model: Any = self.module
        states = model.text_model.layernorm(self._text_states(texts))
        pooled = self._pooled(states[:, 0], model.text_projection)
        return self._encoded(pooled, states, texts["attention_mask"])

    def encode_joint(self, texts: Batch, pictures: Batch) -> Mapping[str, Encoded]:
        """Vectors of pairs [B, D] and, where asked for, of the sequence that was read."""
        model: Any = self.module
        seen = model.image_to_mm_projection(self._picture_states(pictures))
        read = model.text_to_mm_projection(self._text_states(texts))
        mask = texts["attention_mask"]
        n_first = seen.shape[1] + int(model.multimodal_model.use_cls_token)
        whole = torch.cat([mask.new_ones(len(mask), n_first), mask], dim=1)
        both = torch.cat([seen, read], dim=1)
        hidden = model.multimodal_model(both, attention_mask=whole).last_hidden_state
        return {"joint": self._encoded(hidden[:, 0], hidden, whole)}

    def _pooled(self, first: Tensor, projection: Any) -> Tensor:
        if self.variant != "proj":
            return first.float()
        return F.normalize(projection(first).float(), dim=1)

    def _picture_states(self, pictures: Batch) -> Tensor:
        """States of [CLS] and patches before the final norm [B, 1 + N, D]."""
        model: Any = self.module
        embedded = model.image_model.embeddings(pictures["pixel_values"])
        states: Tensor = model.image_model.encoder(embedded).last_hidden_state
        return states

    def _text_states(self, texts: Batch) -> Tensor:
        """States of the tokens before the final norm [B, N, D]."""
        model: Any = self.module
        embedded = model.text_model.embeddings(texts["input_ids"])
        # Added to what the softmax sees: the lowest number where there is only padding.
        lowest = torch.finfo(torch.float32).min
        hidden = texts["attention_mask"][:, None, None, :] == 0
        added = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, lowest)
        states: Tensor = model.text_model.encoder(embedded, attention_mask=added).last_hidden_state
        return states
