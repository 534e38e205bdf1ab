"""Colour, edges and texture: a compact picture descriptor, without any download.

Four histograms per picture, of 64 x 64 pixels:

    colour        54   12 hues x 2 saturations x 2 brightnesses, and 6 greys; the whole picture
    colour grid   80   8 hues x 2 brightnesses, and 4 greys, in each of 2 x 2 cells
    edges        128   gradient directions (8), weighted by strength, in each of 4 x 4 cells
                       (Dalal and Triggs, CVPR 2005)
    texture       59   uniform local binary patterns of 8 neighbours
                       (Ojala, Pietikainen and Maenpaa, PAMI 2002)

Each histogram is scaled to sum 1 and its square root taken (Hellinger: the dot product of two is
their overlap), so each has length 1; the joined row of 321 is scaled to length 1. No number
depends on the other pictures of the dataset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmbench.encoders.base import CorpusEncoder, register_encoder
from mmbench.encoders.pictures import open_picture
from mmbench.errors import DataError

SIDE = 64  # pixels; the shape is squeezed into a square
BLOCK = 128  # pictures described at a time: 128 x 4096 pixels x a few floats
DIM = 54 + 80 + 128 + 59
GREY_SATURATION, BLACK = 40, 40  # of 255: below, a pixel has no hue worth counting

Pixels = NDArray[np.uint8]
Histogram = NDArray[np.float64]


@register_encoder("colour-edge")
class ColourEdge(CorpusEncoder):
    """Colour, edge and texture histograms of item pictures."""

    modalities = ("visual",)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, for the manifest."""
        return {"version": 1, "side": SIDE, "dim": DIM}

    def encode_images(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """Vectors of readable pictures [len(paths), 321], each of length 1.

        Raises:
            DataError: pictures are corrupt or truncated; the message names the first five.
        """
        vectors = np.zeros((len(paths), DIM), dtype=np.float32)
        failures: list[str] = []
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(paths), BLOCK):
                opened = list(pool.map(_decode, paths[start : start + BLOCK]))
                failures += [str(found) for found in opened if isinstance(found, DataError)]
                if not failures:
                    pixels = np.stack([p for p in opened if not isinstance(p, DataError)])
                    vectors[start : start + len(pixels)] = describe(pixels)
        if failures:
            more = f"\n... and {len(failures) - 5} more" if len(failures) > 5 else ""
            raise DataError("\n".join(failures[:5]) + more)
        return vectors


def _decode(path: Path) -> Pixels | DataError:
    """Hue, saturation, brightness and grey value of each pixel, uint8 [SIDE, SIDE, 4]."""
    try:
        picture = open_picture(path, at_least=2 * SIDE)
    except DataError as problem:
        return problem
    small = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.dstack([np.asarray(small.convert("HSV")), np.asarray(small.convert("L"))])


def describe(pixels: Pixels) -> NDArray[np.float32]:
    """Descriptors [B, 321] of pictures given as uint8 [B, SIDE, SIDE, 4] (H, S, V, grey)."""
    grey = pixels[..., 3].astype(np.float32)
    parts = [
        _root(_count(_colours(pixels, hues=12, saturations=2, greys=6), cells=1, bins=54)),
        _root(_count(_colours(pixels, hues=8, saturations=1, greys=4), cells=2, bins=20)),
        _root(_edges(grey)),
        _root(_count(_patterns(grey), cells=1, bins=59)),
    ]
    joined = np.concatenate(parts, axis=1)
    # Never zero: each picture has colours.
    lengths: Histogram = np.linalg.norm(joined, axis=1, keepdims=True)
    return (joined / lengths).astype(np.float32)


def _root(histogram: Histogram) -> Histogram:
    """Square root of shares; an empty histogram (no edges at all) stays zero."""
    total = histogram.sum(axis=1, keepdims=True)
    return np.sqrt(histogram / np.where(total > 0, total, 1))


def _count(
    bins_of: NDArray[np.intp], cells: int, bins: int, weights: NDArray[np.float32] | None = None
) -> Histogram:
    """Histogram per cell of a `cells` x `cells` grid [B, cells * cells * bins]."""
    pictures, height, width = bins_of.shape
    row = np.arange(height) * cells // height
    column = np.arange(width) * cells // width
    cell = row[:, None] * cells + column
    slots = pictures * cells * cells * bins
    index = (np.arange(pictures)[:, None, None] * cells * cells + cell) * bins + bins_of
    flat = None if weights is None else weights.ravel()
    return np.bincount(index.ravel(), flat, slots).reshape(pictures, -1).astype(np.float64)


def _colours(pixels: Pixels, hues: int, saturations: int, greys: int) -> NDArray[np.intp]:
    """Colour bin of each pixel: hue, saturation and brightness, or one of the greys."""
    hue, saturation, brightness = (pixels[..., k].astype(np.intp) for k in range(3))
    # Half a bin is added, so that pure red falls into the middle of one and not between two.
    hue_bin = (hue * hues + 128) // 256 % hues
    saturated = np.minimum((saturation >= 150).astype(np.intp), saturations - 1)
    bright = (brightness >= 150).astype(np.intp)
    chromatic = (hue_bin * saturations + saturated) * 2 + bright
    colourless = (saturation < GREY_SATURATION) | (brightness < BLACK)
    return np.where(colourless, hues * saturations * 2 + brightness * greys // 256, chromatic)


def _edges(grey: NDArray[np.float32]) -> Histogram:
    """Gradient directions, weighted by strength, on a 4 x 4 grid [B, 128]."""
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    turn = np.arctan2(down, across) / np.pi % 1.0  # an edge and its negative count alike
    direction = (turn * 8 + 0.5).astype(np.intp) % 8
    return _count(direction, cells=4, bins=8, weights=np.hypot(across, down))


def _patterns(grey: NDArray[np.float32]) -> NDArray[np.intp]:
    """Uniform local binary pattern of each inner pixel [B, SIDE - 2, SIDE - 2]."""
    centre = grey[:, 1:-1, 1:-1]
    ring = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    height, width = centre.shape[1:]
    code = np.zeros(centre.shape, dtype=np.intp)
    for bit, (y, x) in enumerate(ring):
        # A margin of two grey levels, so that the noise of compression is no texture.
        code |= (grey[:, y : y + height, x : x + width] > centre + 2).astype(np.intp) << bit
    return _uniform_table()[code]


@cache
def _uniform_table() -> NDArray[np.intp]:
    """Bin of each of 256 patterns: 58 with at most two changes around the ring, then the rest."""
    table = np.full(256, 58, dtype=np.intp)
    uniform = [
        code
        for code in range(256)
        if sum((code >> b & 1) != (code >> (b + 1) % 8 & 1) for b in range(8)) <= 2
    ]
    table[uniform] = np.arange(len(uniform))
    return table
