"""The demo shop: the same at every call, and what its config states is really in the data."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmbench.data.features import import_matrix
from mmbench.data.source import DATASETS
from mmbench.data.sources.demo import Demo, DemoConfig, plant
from mmbench.data.sources.demo_content import STYLES, THEMES
from mmbench.encoders.base import ENCODERS


@pytest.fixture(scope="module")
def shop():
    return plant(DemoConfig())


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return Demo().read(None, tmp_path_factory.mktemp("demo"))


def chosen(shop):
    """Which user chose which item, bool [users, items]."""
    taken = np.zeros(shop.preference.shape, dtype=bool)
    taken[shop.users, shop.chosen] = True
    return taken


def test_it_is_registered_and_needs_no_files():
    source = DATASETS.get("demo").obj
    assert not source.needs_source
    assert not source.layout


def test_every_call_gives_the_same_bytes(raw, tmp_path):
    again = Demo().read(None, tmp_path)
    assert again.interactions.equals(raw.interactions)
    assert again.items.equals(raw.items)
    first, second = raw.image_root.parent, tmp_path
    names = sorted(str(p.relative_to(first)) for p in first.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(second)) for p in second.rglob("*") if p.is_file())
    assert len(names) == DemoConfig().items - DemoConfig().without_picture + 1
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_another_seed_is_another_shop(shop):
    other = plant(dataclasses.replace(DemoConfig(), seed=1))
    assert not np.array_equal(other.theme, shop.theme)
    assert not np.allclose(other.preference, shop.preference)


def test_it_is_a_five_core_with_a_long_tail(shop):
    per_item, per_user = np.bincount(shop.chosen), np.bincount(shop.users)
    assert per_item.min() == 5
    assert len(per_item) == DemoConfig().items
    assert per_user.min() >= DemoConfig().least_per_user
    assert chosen(shop).sum() == len(shop.users)  # no pair twice
    assert np.sort(per_item)[-64:].sum() > 4 * np.sort(per_item)[:64].sum()


def test_times_are_ordered_inside_a_user(shop):
    step = np.diff(shop.time_s)
    assert (step[np.diff(shop.users) == 0] >= 0).all()
    assert (np.diff(shop.users) >= 0).all()


def test_themes_and_styles_are_balanced_and_independent(shop):
    table = np.zeros((len(THEMES), len(STYLES)))
    np.add.at(table, (shop.theme, shop.style), 1)
    assert np.ptp(table.sum(axis=0)) <= 1
    assert np.ptp(table.sum(axis=1)) <= 1
    expected = len(shop.theme) / table.size
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert chi_square < 160.1  # 99 % point at 11 x 11 = 121 degrees of freedom (a table)


def within(preference, kind):
    """Share of the variance of preference between items that the user's mean per kind explains."""
    centred = preference - preference.mean(axis=1, keepdims=True)
    means = np.stack([centred[:, kind == k].mean(axis=1) for k in range(kind.max() + 1)], axis=1)
    return (means[:, kind] ** 2).mean() / (centred**2).mean()


def test_shares_of_preference_are_the_stated_ones(shop):
    config = DemoConfig()
    assert config.text + config.picture + config.id == pytest.approx(1)
    # A twelfth of the rest falls into the means of 12 groups by chance: about 0.02 of 0.6.
    assert within(shop.preference, shop.theme) == pytest.approx(config.text, abs=0.05)
    assert within(shop.preference, shop.style) == pytest.approx(config.picture, abs=0.05)


def test_a_share_of_zero_plants_nothing():
    config = dataclasses.replace(DemoConfig(), text=0.0, picture=0.7, id=0.3)
    shop = plant(config)
    assert within(shop.preference, shop.theme) < 0.05
    assert within(shop.preference, shop.style) > 0.6


def test_facts_state_what_is_planted(raw):
    config = DemoConfig()
    assert raw.facts["planted"] == {
        "textual": config.text,
        "visual": config.picture,
        "id": config.id,
        "acoustic": 0.0,
    }
    assert raw.facts["generator"]["seed"] == config.seed


def test_some_items_lack_a_text_and_others_a_picture(raw):
    assert raw.items["description"].null_count() == DemoConfig().without_text
    assert raw.items["title"].null_count() == DemoConfig().without_text
    assert raw.items["image"].null_count() == DemoConfig().without_picture


def test_pictures_are_small_and_readable(raw):
    for name in raw.items["image"].drop_nulls()[:5]:
        with Image.open(raw.image_root / name) as picture:
            assert (picture.size, picture.mode) == ((48, 48), "RGB")


def accuracy(vectors, kind):
    """Share of the odd rows whose kind has the nearest mean of the even rows."""
    means = np.stack([vectors[::2][kind[::2] == k].mean(axis=0) for k in range(kind.max() + 1)])
    distance = ((vectors[1::2, None] - means[None]) ** 2).sum(axis=2)
    return (distance.argmin(axis=1) == kind[1::2]).mean()


@pytest.fixture(scope="module")
def encoded(raw):
    """Rows and vectors of the built-in encoders, and the noise."""
    images = raw.items["image"].to_list()
    seen = np.flatnonzero([image is not None for image in images])
    pictures = (
        ENCODERS.get("colour-edge")
        .obj()
        .encode_images([raw.image_root / images[item] for item in seen])
    )
    titles, descriptions = raw.items["title"].to_list(), raw.items["description"].to_list()
    told = np.flatnonzero([title is not None for title in titles])
    texts = (
        ENCODERS.get("tfidf-svd")
        .obj()
        .encode_texts([f"{titles[item]}. {descriptions[item]}" for item in told], seed=1)
    )
    noise = np.asarray(import_matrix(raw.features[0].path))
    return {"visual": (seen, pictures), "textual": (told, texts), "noise": (None, noise)}


def test_pictures_show_the_style_and_nothing_else(shop, encoded):
    rows, vectors = encoded["visual"]
    assert accuracy(vectors, shop.style[rows]) > 0.95
    assert accuracy(vectors, shop.theme[rows]) < 0.2


def test_texts_tell_the_theme_and_nothing_else(shop, encoded):
    rows, vectors = encoded["textual"]
    assert accuracy(vectors, shop.theme[rows]) > 0.95
    assert accuracy(vectors, shop.style[rows]) < 0.2


def test_noise_tells_nothing(shop, encoded, raw):
    _, vectors = encoded["noise"]
    assert (raw.features[0].modality, raw.features[0].encoder) == ("acoustic", "noise")
    assert raw.features[0].item_ids == tuple(raw.items["item"])
    assert np.isfinite(vectors).all()
    assert accuracy(vectors, shop.theme) < 0.2
    assert accuracy(vectors, shop.style) < 0.2


def neighbour_recall(shop, encoded, *names):
    """Recall@20 per user of items alike to the others the user chose, two held out per user."""
    taken = chosen(shop)
    rng = np.random.default_rng(3)
    order = np.argsort(np.where(taken, rng.random(taken.shape), 2), axis=1)[:, :2]
    held = np.zeros_like(taken)
    np.put_along_axis(held, order, True, axis=1)
    known = taken & ~held
    score = np.zeros(taken.shape)
    for name in names:
        rows, vectors = encoded[name]
        rows = np.arange(taken.shape[1]) if rows is None else rows
        full = np.zeros((taken.shape[1], vectors.shape[1]))
        full[rows] = vectors - vectors.mean(axis=0)
        part = known.astype(float) @ (full @ full.T)
        score += part / part.std()
    score[known] = -np.inf
    top = np.argsort(-score, axis=1)[:, :20]
    return np.take_along_axis(held, top, axis=1).sum(axis=1) / 2


def t_value(a, b):
    """Paired t: mean difference over its standard error."""
    gap = a - b
    return gap.mean() / (gap.std(ddof=1) / np.sqrt(len(gap)))


def test_each_planted_modality_pays_and_the_noise_does_not(shop, encoded):
    """The property that the first ablation of every user rests on, seen without any training."""
    both = neighbour_recall(shop, encoded, "textual", "visual")
    assert t_value(both, neighbour_recall(shop, encoded, "textual")) > 5
    assert t_value(both, neighbour_recall(shop, encoded, "visual")) > 5
    chance = 20 / DemoConfig().items
    assert neighbour_recall(shop, encoded, "noise").mean() < 2 * chance
    assert neighbour_recall(shop, encoded, "textual").mean() > 3 * chance
    assert neighbour_recall(shop, encoded, "visual").mean() > 3 * chance
