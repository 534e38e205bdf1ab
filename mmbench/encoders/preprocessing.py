"""From an RGB picture to the numbers that a vision model takes, described by data.

    resize   "short"   the short side becomes `scaled`, the long one in proportion
             "squash"  both sides become `scaled`
             "pad"     the whole picture fits into `size`, centred on white
    crop     the centre of `size` x `size` pixels; black where the picture is smaller
    scale    value / 255, less `mean`, over `std`, per channel

One pipeline, on Pillow alone, gives to the last bit what timm's transforms and the Pillow image
processors of transformers give; the tests compare them. The two differ in one thing, where an odd
number of pixels is cropped: torchvision rounds half to even, transformers rounds down. Pictures
that would need much memory on the way (strips of one pixel by millions) go by another way that
has the same result up to rounding, because Pillow would fill the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmbench.errors import DataError, UnknownNameError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
CHOICES = ("own", "pad", "mmsr")

MAX_BETWEEN = 2**24
"""Pixels between two steps; what needs more goes the way that needs less memory."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_FILTER_NAMES = {int(number): name for name, number in _FILTERS.items()}

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a tensor.

    Attributes:
        size: side of the result, in pixels.
        resize: "short", "squash" or "pad".
        scaled: side to resize to before the crop; None for `size`.
        interpolation: "bicubic", "bilinear", "lanczos", "box", "hamming" or "nearest".
        mean: to be taken off each channel, of values from 0 to 1.
        std: to divide each channel by.
        rounding: of the corner of the crop: "even" (torchvision, timm) or "down" (transformers).
    """

    size: int = 224
    resize: str = "short"
    scaled: int | None = None
    interpolation: str = "bicubic"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    rounding: str = "even"

    def __post_init__(self) -> None:
        for field, known in (
            ("resize", ("short", "squash", "pad")),
            ("interpolation", tuple(_FILTERS)),
            ("rounding", ("even", "down")),
        ):
            if getattr(self, field) not in known:
                raise UnknownNameError(f"{field} of pictures", getattr(self, field), known)
        if self.size < 1 or (self.scaled or self.size) < 1:
            raise DataError(f"pictures cannot be resized to {self.size} ({self.scaled}) pixels")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise DataError(f"mean {self.mean} and deviation {self.std} are not those of RGB")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, as JSON values."""
        return {
            **asdict(self),
            "scaled": self.size if self.resize == "pad" else self.scaled or self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "fill": "white" if self.resize == "pad" else "black",
            "backend": "pillow",
        }

    def chosen(self, preprocess: str) -> Preprocessing:
        """What `Options.preprocess` asks for, from a model's own preprocessing.

        "own" is this one; "pad" shows the whole picture, centred on white, in place of a crop;
        "mmsr" squashes it (bilinear) and has mean and deviation 0.5 for every model, as the public
        code of MMSR (https://arxiv.org/abs/2403.17372) does.
        """
        if preprocess not in CHOICES:
            raise UnknownNameError("preprocessing", preprocess, CHOICES)
        if preprocess == "pad":
            return replace(self, resize="pad", scaled=None)
        if preprocess == "mmsr":
            return Preprocessing(self.size, "squash", interpolation="bilinear", mean=HALF, std=HALF)
        return self

    def apply(self, picture: Image.Image) -> Tensor:
        """An upright RGB picture as float32 [3, size, size]; safe to call from several threads."""
        if picture.mode != "RGB":
            raise ValueError(f"a picture of mode {picture.mode}; open_picture makes it RGB")
        return self.normalise(self._framed(picture))

    def framed(self, picture: Image.Image) -> NDArray[np.uint8]:
        """An upright RGB picture, resized and cropped but not scaled, uint8 [size, size, 3]."""
        return np.asarray(self._framed(picture))

    def scaled_batch(self, frames: Tensor) -> Tensor:
        """What `apply` makes of pictures, of their frames: float32 [B, 3, H, W] of [B, H, W, 3]."""
        mean = torch.tensor(self.mean, device=frames.device)[:, None, None]
        std = torch.tensor(self.std, device=frames.device)[:, None, None]
        unit = frames.permute(0, 3, 1, 2).to(torch.float32) / 255
        return ((unit - mean) / std).contiguous()

    def normalise(self, picture: Image.Image) -> Tensor:
        """The values of an RGB picture as float32 [3, H, W], scaled and centred."""
        values = np.asarray(picture)
        result = np.empty((3, *values.shape[:2]), dtype=np.float32)
        for channel, table in enumerate(self._values):
            np.take(table, values[:, :, channel], out=result[channel], mode="clip")
        return torch.from_numpy(result)

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        """What each of the 256 values of each channel becomes, [3, 256]."""
        unit = np.arange(256, dtype=np.float32) / np.float32(255)
        mean = np.asarray(self.mean, dtype=np.float32)[:, None]
        std = np.asarray(self.std, dtype=np.float32)[:, None]
        return np.asarray((unit - mean) / std, dtype=np.float32)

    def _framed(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        if self.resize == "pad":
            share = self.size / max(width, height)
            return _centred(
                self._resized(picture, max(1, round(width * share)), max(1, round(height * share))),
                self.size,
                (255, 255, 255),
            )
        side = self.scaled or self.size
        if self.resize == "squash":
            return self._cropped(self._resized(picture, side, side))
        if width <= height:
            wide, high = side, int(side * height / width)
        else:
            wide, high = int(side * width / height), side
        if wide * high > MAX_BETWEEN and side >= self.size:
            return self._crop_resized(picture, wide, high)
        return self._cropped(self._resized(picture, wide, high))

    def _resized(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        resample = _FILTERS[self.interpolation]
        if width * picture.height > MAX_BETWEEN:
            # Pillow would first make all rows as wide as this; columns first needs less.
            picture = picture.resize((picture.width, height), resample)
        return picture.resize((width, height), resample)

    def _corner(self, whole: int) -> int:
        if self.rounding == "down":
            return (whole - self.size) // 2
        return round((whole - self.size) / 2)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        if picture.width < self.size or picture.height < self.size:
            before = math.floor if self.rounding == "even" else math.ceil
            picture = _padded(picture, self.size, before)
        left, top = self._corner(picture.width), self._corner(picture.height)
        if (left, top) == (0, 0) and picture.size == (self.size, self.size):
            return picture
        return picture.crop((left, top, left + self.size, top + self.size))

    def _crop_resized(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        """The crop of a resized picture, without making the rest of it."""
        left, right, near, far = self._window(picture.width, width)
        top, bottom, above, below = self._window(picture.height, height)
        # Cut with a margin as wide as any filter, so that Pillow's box is near the origin: with
        # one far inside a large picture, Pillow 13 leaves the neighbours outside the box out.
        part = picture.crop((left, top, right, bottom))
        side = (self.size, self.size)
        return part.resize(side, _FILTERS[self.interpolation], box=(near, above, far, below))

    def _window(self, whole: int, resized: int) -> tuple[int, int, float, float]:
        """Of one axis: the source pixels that the crop needs, and where in them it lies."""
        scale = whole / resized
        first = self._corner(resized) * scale
        margin = math.ceil(3 * max(1.0, scale)) + 1
        start = max(0, math.floor(first) - margin)
        end = min(whole, math.ceil(first + self.size * scale) + margin)
        return start, end, first - start, min(first + self.size * scale - start, end - start)


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that timm's `resolve_model_data_config` describes.

    Raises:
        DataError: it is one that is not known here.
    """
    channels, *sides = config["input_size"]
    mode = config["crop_mode"]
    if channels != 3 or sides[0] != sides[1] or mode not in ("center", "squash"):
        raise DataError(
            f"E406 a model that takes pictures of {channels} x {sides[0]} x {sides[1]}, cropped by "
            f"{mode!r}, cannot be fed; square RGB pictures, cropped by 'center' or 'squash', can"
        )
    return Preprocessing(
        size=sides[0],
        resize="short" if mode == "center" else "squash",
        scaled=math.floor(sides[0] / (config["crop_pct"] or 0.875)),
        interpolation=config["interpolation"],
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def from_processor(
    config: Mapping[str, Any], defaults: Mapping[str, Any], *, square: bool = True
) -> Preprocessing:
    """The preprocessing that a preprocessor_config.json of transformers describes.

    Args:
        config: the content of the file.
        defaults: of the processor's class, with the same keys, where the file is silent.
        square: whether a `size` that is one number means both sides, not the short one.

    Raises:
        DataError: it is one that is not known here.
    """
    given = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    try:
        size = given["size"] if isinstance(given["size"], Mapping) else {}
        if not size:
            side = int(given["size"])
            size = {"height": side, "width": side} if square else {"shortest_edge": side}
        crop = _side(given["crop_size"]) if given.get("do_center_crop", False) else None
        if not given.get("do_resize", True) or (crop is None and "shortest_edge" in size):
            raise ValueError("pictures of different sizes")
        if abs(float(given.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-9:
            raise ValueError(f"rescale_factor {given['rescale_factor']}")
        if not given.get("do_rescale", True):
            raise ValueError("values from 0 to 255")
        scaled = _side(size)
        normal = given.get("do_normalize", True)
        return Preprocessing(
            size=crop or scaled,
            resize="short" if "shortest_edge" in size else "squash",
            scaled=scaled,
            interpolation=_FILTER_NAMES[int(given.get("resample", 2))],
            mean=_triple(given["image_mean"]) if normal else (0.0, 0.0, 0.0),
            std=_triple(given["image_std"]) if normal else (1.0, 1.0, 1.0),
            rounding="down",
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"E406 the preprocessor_config.json describes pictures that cannot be made ({problem})"
        ) from None


def _triple(values: Any) -> Triple:
    if isinstance(values, (int, float)):
        values = [values] * 3
    first, second, third = (float(value) for value in values)
    return first, second, third


def _side(size: Any) -> int:
    if not isinstance(size, Mapping):
        return int(size)
    if "shortest_edge" in size:
        if size.get("longest_edge"):
            raise ValueError("a longest_edge")
        return int(size["shortest_edge"])
    if size["height"] != size["width"]:
        raise ValueError(f"{size['height']} x {size['width']} pixels, not a square")
    return int(size["height"])


def _padded(picture: Image.Image, size: int, before: Any) -> Image.Image:
    """At least `size` pixels on each side, black around the picture."""
    width, height = max(size, picture.width), max(size, picture.height)
    larger = Image.new("RGB", (width, height))
    corner = (before((width - picture.width) / 2), before((height - picture.height) / 2))
    larger.paste(picture, corner)
    return larger


def _centred(picture: Image.Image, size: int, colour: tuple[int, int, int]) -> Image.Image:
    """A picture in the middle of a square of one colour."""
    if picture.size == (size, size):
        return picture
    square = Image.new("RGB", (size, size), colour)
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return square
