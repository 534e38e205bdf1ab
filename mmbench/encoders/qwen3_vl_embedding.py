"""Qwen3-VL-Embedding: a large vision-language model that was trained to give one vector.

Li et al., 2026. https://arxiv.org/abs/2601.04720

    sequence  a conversation: the instruction, then what the user says (picture, text), then the
              beginning of the answer
    pooled    state of its last token, which alone has seen all, scaled to length 1

"separate" gives a set of each modality, "joint" one vector per pair; the 2B model has 2048
dimensions, the 8B model (qwen3-vl-embedding:Qwen/Qwen3-VL-Embedding-8B) 4096. A picture keeps its
form and becomes at most 512 tokens of 32 x 32 pixels, a bound of ours that keeps the time of an
item within limits. Only the user's text is cut when it is too long, never the conversation around
it, and what looks in it like a mark of the conversation ("<|im_end|>") is broken up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmbench.encoders.base import register_encoder
from mmbench.encoders.joint import PairEncoder, read_processor
from mmbench.encoders.neural import Batch, Encoded, Hub, Options, TokenIds
from mmbench.encoders.preprocessing import HALF, MAX_BETWEEN, Preprocessing, from_processor
from mmbench.encoders.tokenizing import MAX_CHARACTERS, padded, plain_text
from mmbench.errors import DataError

INSTRUCTION = "Represent the user's input."
MIN_TILES, MAX_TILES = 4, 512
"""Tokens of a picture, at least and at most; each is a tile of 2 x 2 patches."""
MAX_RATIO = 200
"""A strip longer than this many times its width is squashed to it."""
_BEFORE = f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n"
_PICTURE = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"


@register_encoder("qwen3-vl-embedding")
class Qwen3VLEmbedding(PairEncoder):
    """A vector of a picture and one of a text [2048], or one of both, of length 1."""

    hub = Hub("Qwen/Qwen3-VL-Embedding-2B", licence="Apache-2.0")
    modalities: ClassVar[tuple[str, ...]] = ("visual", "textual", "joint")
    is_joint = False
    learns = False
    variants = ("separate", "joint")
    takes = frozenset({"max_tokens", "model"})
    citation = "Li et al., 2026"
    architecture = "Qwen3VLModel"
    max_tokens: ClassVar[int] = 512
    _pixels: Preprocessing
    _made_by: str
    _around: tuple[list[int], list[int]]

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        # Of this one, not of the class: what the variant gives.
        self.is_joint = self.variant == "joint"  # type: ignore[misc]
        given = ("joint",) if self.is_joint else ("visual", "textual")
        self.modalities = given  # type: ignore[misc]
        if self.options.model:
            self.hub = replace(self.hub, id=self.options.model)  # type: ignore[misc]

    def load(self) -> None:
        """Read the weights, the tokenizer and how pictures are prepared.

        Raises:
            DataError: beside what all encoders raise, E406: the tokenizer is of another model.
        """
        super().load()
        words = self.tokenizer
        before = words(_BEFORE, add_special_tokens=False)["input_ids"]
        after = words(_AFTER)["input_ids"]
        config: Any = self.module.config
        if (
            words.convert_tokens_to_ids(_PICTURE[1]) != config.image_token_id
            or words(_BEFORE + _AFTER)["input_ids"] != before + after
        ):
            raise DataError(
                f"E406 {self.weights.folder}: the tokenizer does not know the conversations of "
                "Qwen3-VL; it is of another model"
            )
        self._around = (before, after)
        given, self._made_by = read_processor(self.weights.folder)
        square = {"size": {"height": 1, "width": 1}, "do_center_crop": False}
        defaults = {
            "resample": Image.Resampling.BICUBIC,
            "image_mean": HALF,
            "image_std": HALF,
        }
        self._pixels = from_processor({**given, **square}, defaults)

    @property
    def _tile(self) -> int:
        """Pixels along a side of what becomes one token."""
        config: Any = self.module.config
        return int(config.vision_config.patch_size * config.vision_config.spatial_merge_size)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        return {
            **super().settings,
            "instruction": INSTRUCTION,
            "pooling": "last token",
            "l2_normalised": True,
            "preprocessing": {
                "min_pixels": MIN_TILES * self._tile**2,
                "max_pixels": MAX_TILES * self._tile**2,
                "multiple_of": self._tile,
                "max_ratio": MAX_RATIO,
                "interpolation": self._pixels.interpolation,
                "mean": list(self._pixels.mean),
                "std": list(self._pixels.std),
                "backend": "pillow",
            },
            "preprocessing_from": self._made_by,
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as ids, without the conversation around them, cut to the limit."""
        if not texts:
            return []
        plain = [plain_text(text).replace("<|", "< |") for text in texts]
        found = self.tokenizer(
            plain, add_special_tokens=False, truncation=True, max_length=self.limit
        ).encodings
        return [
            TokenIds(tuple(one.ids), cut=bool(one.overflowing) or len(text) >= MAX_CHARACTERS)
            for text, one in zip(plain, found, strict=True)
        ]

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """A picture as float32 [3, H, W], H and W multiples of 32."""
        width, height = picture_size(*picture.size, self._tile)
        resample = Image.Resampling[self._pixels.interpolation.upper()]
        if width * picture.height > MAX_BETWEEN:
            # Pillow would first make all rows as wide as this; columns first needs less.
            picture = picture.resize((picture.width, height), resample)
        return self._pixels.normalise(picture.resize((width, height), resample))

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures in patches [B, P, F], zero behind the last, and their grids [B, 3]."""
        config: Any = self.module.config
        own = config.vision_config
        parts = [
            _patches(picture, own.patch_size, own.spatial_merge_size, own.temporal_patch_size)
            for picture in pictures
        ]
        grids = [(1, *(side // own.patch_size for side in one.shape[1:])) for one in pictures]
        return {
            "pixel_values": torch.nn.utils.rnn.pad_sequence(parts, batch_first=True),
            "image_grid_thw": torch.tensor(grids),
        }

    def encode_text(self, texts: Batch) -> Encoded:
        """Vectors of texts [B, D]."""
        return self._last(_rows(texts), None)

    def encode_picture(self, pictures: Batch) -> Encoded:
        """Vectors of pictures [B, D]."""
        return self._last([[] for _ in pictures["image_grid_thw"]], pictures)

    def encode_joint(self, texts: Batch, pictures: Batch) -> Mapping[str, Encoded]:
        """Vectors of pairs [B, D]."""
        return {"joint": self._last(_rows(texts), pictures)}

    def _last(self, texts: Sequence[Sequence[int]], pictures: Batch | None) -> Encoded:
        """Vectors of conversations in which these texts and pictures are said."""
        model: Any = self.module
        before, after = self._around
        said: list[list[int]] = [[] for _ in texts]
        seen: dict[str, Tensor] = {}
        if pictures is not None:
            grids, patches = pictures["image_grid_thw"], pictures["pixel_values"]
            counts = grids.prod(dim=1)
            within = torch.arange(patches.shape[1], device=patches.device) < counts[:, None]
            seen = {"pixel_values": patches[within], "image_grid_thw": grids}
            start, pad, end = self.tokenizer.convert_tokens_to_ids(list(_PICTURE))
            merged = model.config.vision_config.spatial_merge_size**2
            said = [[start, *[pad] * (count // merged), end] for count in counts.tolist()]
        whole = [
            TokenIds((*before, *picture, *text, *after))
            for picture, text in zip(said, texts, strict=True)
        ]
        device = model.get_input_embeddings().weight.device
        batch = {
            name: tensor.to(device)
            for name, tensor in padded(whole, self.tokenizer.pad_token_id or 0).items()
        }
        if seen:
            is_picture = batch["input_ids"] == model.config.image_token_id
            seen["mm_token_type_ids"] = is_picture.int()
        hidden = model(**batch, **seen, use_cache=False).last_hidden_state
        last = batch["attention_mask"].sum(dim=1) - 1
        pooled = hidden[torch.arange(len(whole), device=device), last]
        return Encoded(F.normalize(pooled.float(), dim=1))


def picture_size(width: int, height: int, tile: int) -> tuple[int, int]:
    """Width and height that a picture is resized to: multiples of `tile`, its form about kept."""
    short = min(width, height)
    width, height = min(width, MAX_RATIO * short), min(height, MAX_RATIO * short)
    wide, high = (round(side / tile) * tile for side in (width, height))
    if wide * high > MAX_TILES * tile**2:
        scale = math.sqrt(width * height / (MAX_TILES * tile**2))
        wide, high = (max(1, math.floor(s / scale / tile)) * tile for s in (width, height))
    elif wide * high < MIN_TILES * tile**2:
        scale = math.sqrt(MIN_TILES * tile**2 / (width * height))
        wide, high = (math.ceil(s * scale / tile) * tile for s in (width, height))
    return wide, high


def _patches(picture: Tensor, side: int, merge: int, frames: int) -> Tensor:
    """A picture [3, H, W] as patches [P, 3 * frames * side * side], tile by tile.

    The patches of a tile stand together, and a picture is a film of `frames` equal ones.
    """
    channels, height, width = picture.shape
    rows, columns = height // (side * merge), width // (side * merge)
    parts = picture.reshape(channels, rows, merge, side, columns, merge, side)
    parts = parts.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
    return parts.expand(-1, -1, -1, -1, -1, frames, -1, -1).flatten(4).flatten(0, 3)


def _rows(texts: Batch) -> list[list[int]]:
    """The ids of each text, without the padding."""
    n_tokens = texts["attention_mask"].sum(dim=1).tolist()
    return [row[:n] for row, n in zip(texts["input_ids"].tolist(), n_tokens, strict=True)]
