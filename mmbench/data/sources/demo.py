"""A small shop with planted tastes, generated: no download, and the right answer is known.

Each item has a theme, which its text tells, a style, which its picture shows, and a hidden vector
that nothing shows; the three are drawn independently. What user u thinks of item i:

    preference  x_ui = sqrt(w_text) a_u[theme_i] + sqrt(w_picture) b_u[style_i]
                       + sqrt(w_id) c_u . z_i
    choice      the n_u items with the largest  s x_ui + r popularity_i + Gumbel noise

The three terms are scaled to variance 1 over all pairs, so w are shares of the variance of
preference: `DemoConfig` states them. A fourth modality, acoustic, is noise: it carries nothing.
Items are chosen about 13 times each, and choices are noisy: enough to learn from, too little for
IDs to tell on their own what texts and pictures tell at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmbench.data.source import RawDataset, RawFeatures, Source, register_dataset
from mmbench.data.sources.demo_content import STYLES, THEMES, compose_text, draw_picture
from mmbench.seeding import stream

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class DemoConfig:
    """The demo shop's parameters; `text`, `picture` and `id` are shares of preference, sum 1."""

    seed: int = 20240517
    users: int = 480
    items: int = 640
    text: float = 0.40
    picture: float = 0.35
    id: float = 0.25
    acoustic: float = 0.0
    choice_sharpness: float = 1.9
    """s: standard deviation of preference, in units of the noise of choice."""
    popularity: float = 0.6
    """r: standard deviation of log popularity."""
    id_dim: int = 8
    least_per_user: int = 15
    more_per_user: float = 3.0
    """Mean of the exponential number of interactions beyond the least."""
    most_per_user: int = 40
    least_per_item: int = 5
    acoustic_dim: int = 8
    acoustic_norm: float = 0.3
    """Length of a noise row; texts and pictures have 1."""
    picture_side: int = 48
    without_text: int = 12
    without_picture: int = 16


@dataclass(frozen=True)
class Shop:
    """What the generator planted.

    Attributes:
        theme: what the text of each item tells, [items].
        style: what the picture of each item shows, [items].
        preference: x, [users, items].
        chosen: user and item of each interaction, in the order of time, [interactions].
        time_s: Unix seconds of each interaction.
    """

    theme: Integers
    style: Integers
    preference: Floats
    users: Integers
    chosen: Integers
    time_s: Integers


def plant(config: DemoConfig) -> Shop:
    """Draw themes, styles, tastes and choices; the same config gives the same shop.

    Only uniform numbers are drawn, the part of NumPy's streams that stays the same between
    versions; everything else is computed from them.
    """
    theme = _balanced(config, "theme", len(THEMES))
    style = _balanced(config, "style", len(STYLES))
    of_theme = _taste(config, "text taste", len(THEMES))
    of_style = _taste(config, "picture taste", len(STYLES))
    hidden = _normal(config, "user vector", (config.users, config.id_dim)) @ (
        _normal(config, "item vector", (config.items, config.id_dim)).T
    )
    preference = (
        np.sqrt(config.text) * _standardised(of_theme[:, theme])
        + np.sqrt(config.picture) * _standardised(of_style[:, style])
        + np.sqrt(config.id) * _standardised(hidden)
    )
    popularity = _normal(config, "popularity", (config.items,))
    noise = -np.log(-np.log(_uniform(config, "choice", preference.shape)))
    appeal = config.choice_sharpness * preference + config.popularity * popularity + noise

    extra = -config.more_per_user * np.log(_uniform(config, "activity", (config.users,)))
    wanted = np.minimum(config.least_per_user + extra.astype(np.int64), config.most_per_user)
    rank = np.empty(appeal.shape, dtype=np.int64)
    np.put_along_axis(rank, np.argsort(-appeal, axis=1), np.arange(config.items)[None], axis=1)
    taken = rank < wanted[:, None]
    # The few items below the least go to the users that come nearest to choosing them, so that
    # a 5-core filter removes nothing.
    for item in np.flatnonzero(taken.sum(axis=0) < config.least_per_item):
        missing = config.least_per_item - int(taken[:, item].sum())
        nearest = np.argsort(np.where(taken[:, item], config.items, rank[:, item]), kind="stable")
        taken[nearest[:missing], item] = True

    users, items = np.nonzero(taken)
    time_s = 1_700_000_000 + (_uniform(config, "time", users.shape) * 200 * 86_400).astype(np.int64)
    order = np.lexsort((items, time_s, users))
    return Shop(theme, style, preference, users[order], items[order], time_s[order])


@register_dataset("demo")
class Demo(Source):
    """The generated demo shop."""

    title = "Demo shop, generated, with planted tastes"
    citation = "none: generated by mmbench"
    terms = "free of any rights"
    needs_source = False
    config: ClassVar[DemoConfig] = DemoConfig()
    """The shop that is generated; benchmarks/planted.py generates others."""

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Generate the shop; pictures and the noise matrix are written below `scratch`."""
        config = self.config
        shop = plant(config)
        ids = [f"item-{item:03d}" for item in range(config.items)]
        folder = scratch / "images"
        folder.mkdir(parents=True, exist_ok=True)
        without_text = _chosen_few(config, "without text", config.without_text)
        without_picture = _chosen_few(config, "without picture", config.without_picture)
        texts: list[tuple[str, str] | tuple[None, None]] = []
        images: list[str | None] = []
        for item, name in enumerate(ids):
            rng = stream(config.seed, "demo", "text", name)
            text = compose_text(int(shop.theme[item]), rng)
            texts.append((None, None) if item in without_text else text)
            images.append(None if item in without_picture else f"{name}.png")
            if item not in without_picture:
                rng = stream(config.seed, "demo", "picture", name)
                picture = draw_picture(int(shop.style[item]), config.picture_side, rng)
                picture.save(folder / f"{name}.png")
        noise = _normal(config, "acoustic", (config.items, config.acoustic_dim))
        noise *= config.acoustic_norm / np.linalg.norm(noise, axis=1, keepdims=True)
        np.save(scratch / "acoustic.npy", noise.astype(np.float32))
        return RawDataset(
            interactions=pl.DataFrame(
                {
                    "user": [f"user-{user:03d}" for user in shop.users],
                    "item": [ids[item] for item in shop.chosen],
                    "rating": pl.Series([None] * len(shop.users), dtype=pl.Float64),
                    "timestamp": shop.time_s,
                    "split": pl.Series([None] * len(shop.users), dtype=pl.Int8),
                }
            ),
            items=pl.DataFrame(
                {
                    "item": ids,
                    "title": [title for title, _ in texts],
                    "description": [description for _, description in texts],
                    "image": images,
                },
                schema_overrides={"title": pl.String, "description": pl.String},
            ),
            text_fields=("title", "description"),
            image_root=folder,
            features=(RawFeatures(scratch / "acoustic.npy", "acoustic", "noise", tuple(ids)),),
            facts={
                "planted": {
                    "textual": config.text,
                    "visual": config.picture,
                    "id": config.id,
                    "acoustic": config.acoustic,
                },
                "meaning": "shares of the variance of preference",
                "generator": asdict(config),
            },
        )


def _uniform(config: DemoConfig, purpose: str, shape: tuple[int, ...]) -> Floats:
    """Numbers inside (0, 1)."""
    return np.clip(stream(config.seed, "demo", purpose).random(shape), 1e-12, 1 - 1e-12)


def _normal(config: DemoConfig, purpose: str, shape: tuple[int, ...]) -> Floats:
    """Normal numbers by Box and Muller, whose inputs are uniform ones."""
    radius = np.sqrt(-2 * np.log(_uniform(config, f"{purpose}, radius", shape)))
    normal: Floats = radius * np.cos(2 * np.pi * _uniform(config, f"{purpose}, angle", shape))
    return normal


def _balanced(config: DemoConfig, purpose: str, kinds: int) -> Integers:
    """A kind for each item, each about equally often, in random order."""
    order = np.argsort(_uniform(config, purpose, (config.items,)), kind="stable")
    return np.argsort(order, kind="stable") % kinds


def _chosen_few(config: DemoConfig, purpose: str, count: int) -> frozenset[int]:
    order = np.argsort(_uniform(config, purpose, (config.items,)), kind="stable")
    return frozenset(order[:count].tolist())


def _standardised(values: Floats) -> Floats:
    scaled: Floats = (values - values.mean()) / values.std()
    return scaled


def _taste(config: DemoConfig, purpose: str, kinds: int) -> Floats:
    """How much each user likes each kind, [users, kinds]: a few favourites and many indifferent."""
    return -np.log(_uniform(config, purpose, (config.users, kinds)))
