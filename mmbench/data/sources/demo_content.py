"""The words and pictures of the demo shop: a theme becomes a text, a style becomes a picture."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

THEMES = tuple(
    tuple(line.split())
    for line in (
        "trail summit tent backpack alpine compass hiking glacier",
        "oven dough whisk pastry flour baking recipe kitchen",
        "garden soil seeds trowel blossom greenhouse compost herbs",
        "guitar melody amplifier strings drum piano rhythm concert",
        "sail harbour anchor tide regatta lighthouse diving captain",
        "novel chapter library poetry bookmark author reading fable",
        "telescope orbit nebula comet planet rocket galaxy eclipse",
        "bicycle pedal saddle gears sprint commuter velodrome handlebar",
        "puppy kitten leash collar aquarium hamster parrot kennel",
        "canvas easel brush watercolour sketch palette charcoal mural",
        "chess dice puzzle token strategy checkers tournament riddle",
        "perfume lotion mirror shampoo mascara powder fragrance soap",
    )
)
PLAIN = tuple(
    word
    for line in (
        "classic practical sturdy light handy compact elegant reliable simple modern",
        "everyday quality small large favourite careful lasting clever tidy honest",
    )
    for word in line.split()
)
PATTERNS = (
    "Made for {t}, {t} and {t}.",
    "Ideal with {t}, for {t} or for {t}.",
    "From {t} to {t}: {p} and {p}.",
    "Whoever likes {t} and {t} will like this {p} {t}.",
    "This {p} gift is for friends of {t} and {t}.",
)
STRAY = 0.1
"""Share of theme words that come from another theme."""

# Hue of the figure, hue of the ground, figure, ground pattern.
STYLES: tuple[tuple[float, float, str, str], ...] = (
    (0.00, 0.55, "disc", "plain"),
    (0.08, 0.66, "square", "rows"),
    (0.17, 0.92, "triangle", "columns"),
    (0.25, 0.08, "ring", "checks"),
    (0.33, 0.00, "cross", "dots"),
    (0.42, 0.15, "diamond", "slants"),
    (0.50, 0.25, "bars", "plain"),
    (0.58, 0.33, "star", "rows"),
    (0.67, 0.42, "disc", "columns"),
    (0.75, 0.50, "square", "checks"),
    (0.83, 0.75, "triangle", "dots"),
    (0.92, 0.83, "ring", "slants"),
)


def compose_text(theme: int, rng: np.random.Generator) -> tuple[str, str]:
    """Title and description of an item of a theme."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(rng.random() * len(words))]

    def word() -> str:
        stray = rng.random() < STRAY
        return pick(THEMES[int(rng.random() * len(THEMES))] if stray else THEMES[theme])

    title = f"{pick(PLAIN).capitalize()} {word()} {pick(PLAIN)}"
    sentences = []
    for _ in range(5):
        parts = pick(PATTERNS).split("{t}")
        sentence = parts[0] + "".join(word() + part for part in parts[1:])
        while "{p}" in sentence:
            sentence = sentence.replace("{p}", pick(PLAIN), 1)
        sentences.append(sentence)
    return title, " ".join(sentences)


def draw_picture(style: int, side: int, rng: np.random.Generator) -> Image.Image:
    """A picture of a style; place, size and shade of the figure vary from item to item."""
    figure_hue, ground_hue, figure, ground = STYLES[style]

    def shade(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
        turned = (hue + 0.10 * (rng.random() - 0.5)) % 1.0
        red, green, blue = colorsys.hsv_to_rgb(
            turned, saturation + 0.2 * rng.random(), value + 0.2 * rng.random()
        )
        return round(255 * red), round(255 * green), round(255 * blue)

    picture = Image.new("RGB", (side, side), shade(ground_hue, 0.3, 0.7))
    draw = ImageDraw.Draw(picture)
    _draw_ground(draw, ground, side, shade(ground_hue, 0.5, 0.5))
    radius = side * (0.22 + 0.12 * rng.random())
    x, y = (side * (0.38 + 0.24 * rng.random()) for _ in range(2))
    _draw_figure(draw, figure, x, y, radius, shade(figure_hue, 0.7, 0.7))
    return picture


def _draw_ground(
    draw: ImageDraw.ImageDraw, kind: str, side: int, colour: tuple[int, int, int]
) -> None:
    step = max(2, side // 8)
    for k in range(0, 2 * side, 2 * step):
        if kind == "rows":
            draw.rectangle((0, k, side, k + step - 1), fill=colour)
        elif kind == "columns":
            draw.rectangle((k, 0, k + step - 1, side), fill=colour)
        elif kind == "slants":
            draw.line((k, 0, k - side, side), fill=colour, width=step)
        elif kind in ("checks", "dots"):
            for n, j in enumerate(range(0, side, step)):
                left = k + (n % 2) * step
                box = (left, j, left + step - 1, j + step - 1)
                if kind == "checks":
                    draw.rectangle(box, fill=colour)
                else:
                    draw.ellipse(box, fill=colour)


def _draw_figure(
    draw: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float, colour: tuple[int, int, int]
) -> None:
    box = (x - r, y - r, x + r, y + r)
    if kind == "disc":
        draw.ellipse(box, fill=colour)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    elif kind == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
    elif kind == "ring":
        draw.ellipse(box, outline=colour, width=max(2, round(r / 3)))
    elif kind == "cross":
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
    elif kind == "diamond":
        draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=colour)
    elif kind == "bars":
        for k in (-1.0, -0.2, 0.6):
            draw.rectangle((x + k * r, y - r, x + (k + 0.4) * r, y + r), fill=colour)
    else:  # a star of five points
        turns = np.pi * (np.arange(10) / 5 - 0.5)
        reach = np.where(np.arange(10) % 2 == 0, r, 0.45 * r)
        draw.polygon(
            list(zip(x + reach * np.cos(turns), y + reach * np.sin(turns), strict=True)),
            fill=colour,
        )
