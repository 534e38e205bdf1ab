"""Opening pictures: whatever the file holds, one upright 8-bit RGB picture comes out.

Pictures come from strangers, so size is checked before anything is decoded, and a picture that
stops half-way is an error rather than a picture with a grey half.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmbench.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 50 * 2**20


def open_picture(path: Path, *, at_least: int | None = None) -> Image.Image:
    """Decode a picture completely, upright, transparency laid on white, the first frame only.

    With `at_least`, a JPEG may be decoded at a smaller scale that still has that many pixels on
    each side, which is several times faster.

    Raises:
        DataError: the file is missing, corrupt, truncated or too large; the message names it.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size / 2**20:.0f} MiB is more than {MAX_BYTES // 2**20}")
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            if at_least is not None:
                picture.draft("RGB", (at_least, at_least))
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise DataError(f"picture {path} not found; prepare the dataset again") from None
    except (
        OSError,  # truncated data, and UnidentifiedImageError
        ValueError,
        SyntaxError,  # what Pillow raises for some broken PNG files
        EOFError,
        struct.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,  # where warnings are errors
    ) as problem:
        raise DataError(
            f"picture {path} cannot be used ({problem}); replace or delete it, "
            "then prepare the dataset again"
        ) from problem


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        # convert() clips these to 0..255, which turns a 16-bit picture white.
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        top = 255.0 if values.max() <= 255 else max(65535.0, float(values.max()))
        grey = np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        # convert("RGB") alone would show the colours hidden under transparent pixels.
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
