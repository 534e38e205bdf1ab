"""Looking at item pictures: which are there, which can be decoded, which are only placeholders.

Pictures are checked, never re-encoded: encoders read the original bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from mmbench.errors import DataError

MAX_BYTES = 50 * 2**20
MAX_PIXELS = 64 * 10**6
MIN_SIDE = 8
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class Picture:
    """What became of one item's picture.

    Attributes:
        status: "ok", "missing", "corrupt" or "placeholder".
        sha256: hash of the file, None where it is missing.
        problem: why it is not "ok", else "".
    """

    status: str
    sha256: str | None = None
    problem: str = ""


def check_paths(paths: Mapping[str, str]) -> None:
    """Refuse picture paths, by item id, that lead out of the picture folder.

    Raises:
        DataError: one does.
    """
    for item, path in paths.items():
        pure = PurePosixPath(path.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or ":" in "".join(pure.parts[:1]):
            raise DataError(
                f"E265 item '{item}': image path '{path}' not allowed; it must lie below the "
                "image folder"
            )


def check_pictures(paths: Sequence[Path | None]) -> list[Picture]:
    """Decode each picture once, in threads; None counts as missing."""
    there = [path for path in paths if path is not None]
    # Pillow warns of odd metadata; entered once here because threads share the filters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Decoding releases the interpreter lock, so threads do run side by side.
        with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
            checked = pool.map(check_picture, there, chunksize=16)
            missing = Picture("missing")
            return [missing if path is None else next(checked) for path in paths]


def check_picture(path: Path) -> Picture:
    """Decode one picture completely and say what it is worth."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            return Picture("missing", problem="not a file")
        if size > MAX_BYTES:
            return Picture("corrupt", problem=f"{size} bytes, more than {MAX_BYTES}")
        content = path.read_bytes()
    except FileNotFoundError:
        return Picture("missing", problem="no such file")
    except OSError as error:
        return Picture("corrupt", problem=error.strerror or str(error))
    digest = hashlib.sha256(content).hexdigest()
    try:
        # `verify` leaves an image unusable, hence the second opening for the full decoding.
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                return Picture("corrupt", digest, f"{width}x{height} pixels are too many")
            picture.verify()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            picture.load()
            ImageOps.exif_transpose(picture)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a broken file provokes
        reason = "empty file" if not content else str(error).split(" <", 1)[0]
        return Picture("corrupt", digest, reason or type(error).__name__)
    if min(width, height) < MIN_SIDE:
        return Picture("placeholder", digest, f"only {width}x{height} pixels")
    return Picture("ok", digest)


def is_address(path: str) -> bool:
    """Whether an image path is a web address, which is stored and never fetched."""
    return path.startswith(("http://", "https://"))


def duplicate_groups(pictures: Sequence[Picture]) -> list[int]:
    """Sizes of the groups of items that share one picture, largest first."""
    counts = Counter(picture.sha256 for picture in pictures if picture.status == "ok")
    return sorted((n for n in counts.values() if n > 1), reverse=True)
