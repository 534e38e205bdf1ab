"""ViLT: one transformer over words and patches, without a vision model of its own.

Kim et al., ICML 2021. https://arxiv.org/abs/2102.03334

    sequence  [CLS] words [SEP] | [CLS'] patches, in rows from the top left
    pooled    tanh(W h_1 + b), h_1 the state of the first [CLS]; "hidden" is h_1 itself

12 blocks, 768 dimensions, 111.6 M parameters; WordPiece, at most 40 ids; patches of 32 x 32 of
pictures of which the short side has 384 pixels and the long one at most 639, both cut down to
multiples of 32, so that their form is kept.
Departures: transformers shuffles the patches by a random draw on every call. Attention does not
see their order, but the sequence that comes back is shuffled too, and rounding moves. Here the
patches keep their order, so every call gives the same, and tokens can be stored: those of the
text, [CLS'], then the patches. As the number of patches in a row differs between pictures, they are
no grid. All patches are seen, also where a configuration limits their number (max_image_length)
to a random choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmbench.encoders.base import register_encoder
from mmbench.encoders.joint import PairEncoder, read_processor
from mmbench.encoders.neural import Batch, Encoded, Hub, Options
from mmbench.encoders.preprocessing import (
    CHOICES,
    HALF,
    MAX_BETWEEN,
    Preprocessing,
    from_processor,
)
from mmbench.errors import ConfigError, DataError, UnknownNameError

SHORT, DIVISOR = 384, 32
LONG_TO_SHORT = 1333 / 800
"""The longest side over the short one, as detectors on COCO have it."""


@register_encoder("vilt")
class Vilt(PairEncoder):
    """A vector of a text and a picture read together [768]."""

    hub = Hub("dandelin/vilt-b32-mlm", licence="Apache-2.0")
    variants = ("pooled", "hidden")
    citation = "Kim et al., ICML 2021"
    architecture = "ViltModel"
    max_tokens = 40
    _short: int
    _divisor: int
    _pixels: Preprocessing
    _made_by: str

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        if self.options.preprocess not in CHOICES:
            raise UnknownNameError("preprocessing", self.options.preprocess, CHOICES)
        if self.options.preprocess == "pad":
            raise ConfigError("Vilt crops no picture, so there is nothing to pad; leave it out")

    def load(self) -> None:
        """Read the weights, the tokenizer and how pictures are made."""
        super().load()
        given, self._made_by = read_processor(self.weights.folder)
        self._short, self._divisor, self._pixels = _preprocessing(given)
        self._pixels = self._pixels.chosen(self.options.preprocess)
        multiple = self._pixels.size if self._is_squashed else self._divisor
        if multiple % self._patch:
            raise DataError(
                f"E406 {self.weights.name}: sides that are multiples of {multiple} pixels do not "
                f"divide into patches of {self._patch}; its preprocessor_config.json is of "
                "another model"
            )

    @property
    def _patch(self) -> int:
        embeddings: Any = self.module.embeddings
        return int(embeddings.patch_embeddings.projection.weight.shape[-1])

    @property
    def _is_squashed(self) -> bool:
        return self.options.preprocess == "mmsr"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        if self._is_squashed:
            made = dict(self._pixels.settings)
        else:
            made = {
                "resize": "short",
                "short": self._short,
                "long": int(LONG_TO_SHORT * self._short),
                "multiple_of": self._divisor,
                "interpolation": self._pixels.interpolation,
                "mean": list(self._pixels.mean),
                "std": list(self._pixels.std),
                "backend": "pillow",
            }
        return {
            **super().settings,
            "patches": "all, in order",
            "preprocess": self.options.preprocess,
            "preprocessing": made,
            "preprocessing_from": self._made_by,
        }

    @property
    def framing(self) -> Preprocessing | None:
        """How pictures are prepared where they are squashed; else each has a form of its own."""
        return self._pixels if self._is_squashed else None

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """A picture as float32 [3, H, W], H and W multiples of 32."""
        if self._is_squashed:
            return self._pixels.apply(picture)
        width, height = picture_size(*picture.size, self._short, self._divisor)
        resample = Image.Resampling[self._pixels.interpolation.upper()]
        if width * picture.height > MAX_BETWEEN:
            # Pillow would first make all rows as wide as this; columns first needs less.
            picture = picture.resize((picture.width, height), resample)
        return self._pixels.normalise(picture.resize((width, height), resample))

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures in the top left of as many canvases, and their sizes [B, 2] in pixels."""
        sizes = torch.tensor([picture.shape[1:] for picture in pictures])
        height, width = sizes.amax(dim=0).tolist()
        canvas = torch.zeros(len(pictures), 3, height, width)
        for row, picture in enumerate(pictures):
            canvas[row, :, : picture.shape[1], : picture.shape[2]] = picture
        return {"pixel_values": canvas, "sizes": sizes}

    def encode_joint(self, texts: Batch, pictures: Batch) -> Mapping[str, Encoded]:
        """Vectors of pairs [B, D] and, where asked for, of their words and patches."""
        patches, is_patch = self._patches(pictures["pixel_values"], pictures["sizes"])
        found = self.module(**texts, image_embeds=patches, pixel_mask=is_patch)
        hidden = found.last_hidden_state
        pooled = found.pooler_output if self.variant == "pooled" else hidden[:, 0]
        mask = torch.cat([texts["attention_mask"], is_patch], dim=1)
        return {"joint": self._encoded(pooled, hidden, mask)}

    def _patches(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """[CLS'] and patches in order with their positions [B, 1 + N, D], and their mask.

        The canvas may have more patches than any picture, one being wide and another high: the
        patches of each come first, and N is the most that a picture has.
        """
        embeddings: Any = self.module.embeddings
        seen = embeddings.patch_embeddings(pixels)  # [B, D, rows, columns]
        grids = [(high // self._patch, wide // self._patch) for high, wide in sizes.tolist()]
        longest = max(rows * columns for rows, columns in grids)
        table = embeddings.position_embeddings  # [1, 1 + known * known, D]
        positions = {grid: _positions(table[:, 1:], grid) for grid in set(grids)}
        patches = table.new_zeros(len(grids), 1 + longest, table.shape[2])
        mask = torch.zeros(patches.shape[:2], dtype=torch.int64, device=seen.device)
        patches[:, 0] = (embeddings.cls_token + table[:, :1])[:, 0]
        for row, (rows, columns) in enumerate(grids):
            n = rows * columns
            own = seen[row, :, :rows, :columns].flatten(1).T
            patches[row, 1 : 1 + n] = own + positions[rows, columns]
            mask[row, : 1 + n] = 1
        return patches, mask


def picture_size(width: int, height: int, short: int, divisor: int) -> tuple[int, int]:
    """Width and height that a picture is resized to, each at least one patch.

    The published code makes nothing of a picture more than 20 times as long as it is wide.
    """
    scale = short / min(width, height)
    wide, high = (short, scale * height) if width <= height else (scale * width, short)
    longest = int(LONG_TO_SHORT * short)
    if max(wide, high) > longest:
        scale = longest / max(wide, high)
        wide, high = scale * wide, scale * high
    wide, high = (int(side + 0.5) // divisor * divisor for side in (wide, high))
    return max(divisor, wide), max(divisor, high)


def _positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position vectors of a square of patches [1, known * known, D], stretched to a grid."""
    known = round(table.shape[1] ** 0.5)
    square = table.transpose(1, 2).reshape(1, -1, known, known)
    stretched = F.interpolate(square.float(), size=grid, mode="bilinear", align_corners=True)
    return stretched[0].flatten(1).T


def _preprocessing(given: Mapping[str, Any]) -> tuple[int, int, Preprocessing]:
    """Short side, divisor and pixels that a preprocessor_config.json describes."""
    try:
        size = given.get("size") or SHORT
        short = int(size["shortest_edge"] if isinstance(size, Mapping) else size)
        divisor = int(given.get("size_divisor") or DIVISOR)
        if short < divisor or divisor < 1:
            raise ValueError(f"size {short}, size_divisor {divisor}")
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"E406 the preprocessor_config.json describes pictures that cannot be made ({problem})"
        ) from None
    square = {**given, "size": {"height": short, "width": short}}
    defaults = {"resample": Image.Resampling.BICUBIC, "image_mean": HALF, "image_std": HALF}
    pixels = from_processor(square, defaults)
    return short, divisor, replace(pixels, size=224)
