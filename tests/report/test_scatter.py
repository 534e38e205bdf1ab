"""Pictures: both files, labelled, the same for the same vectors, and colours one can tell apart."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from mmbench.errors import DataError
from mmbench.report.scatter import USER_COLOURS, USER_MARKERS, draw_pictures
from mmbench.report.tsne import Vectors, draw, owned_matrix


@pytest.fixture
def systems():
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 40, 60)
    names = ("lightgcn", "a-model (features.textual=minilm-l6, features.visual=clip-vit-b16)")
    return [Vectors(name, rng.normal(size=(60, 8)), counts) for name in names]


@pytest.fixture
def sample():
    rng = np.random.default_rng(4)
    items = np.concatenate([rng.choice(60, 5, replace=False) for _ in range(20)])
    return draw(owned_matrix(np.arange(0, 101, 5), items, 60))


def test_both_pictures_are_drawn_for_every_system(systems, sample, tmp_path):
    files = draw_pictures(systems, sample, tmp_path / "new")
    assert [file.name for file in files] == ["items.png", "items.svg", "users.png", "users.svg"]
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                assert picture.width > picture.height > 300
                colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6)}
                assert len(colours) > 20
    items, users = ((tmp_path / "new" / name).read_text() for name in ("items.svg", "users.svg"))
    cold = int((systems[0].popularity < 10).sum())
    for text in ("lightgcn", "training interactions of the item", "t-SNE 1", "t-SNE 2"):
        assert text in items
    assert f"fewer than 10 ({cold} items)" in items
    assert "user 10" in users
    assert "user 11" not in users
    assert not re.search(r"(src|href)=.http", items + users)


def test_equal_vectors_give_equal_files(systems, sample, tmp_path):
    for name in ("one", "two"):
        draw_pictures(systems[:1], sample, tmp_path / name)
    for file in ("items.svg", "users.svg", "items.png", "users.png"):
        first, second = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert first == second, file


def test_only_cold_and_only_warm_items_are_drawn(systems, sample, tmp_path):
    both = [Vectors(str(n), systems[0].items, np.full(60, n)) for n in (3, 300)]
    assert len(draw_pictures(both, sample, tmp_path)) == 4
    drawn = (tmp_path / "items.svg").read_text()
    assert "fewer than 10 (60 items)" in drawn
    assert "fewer than 10 (0 items)" in drawn


def test_a_folder_that_cannot_be_written_is_one_message(systems, sample, tmp_path):
    (tmp_path / "items.png").mkdir()
    with pytest.raises(DataError, match=r"items.png cannot be written"):
        draw_pictures(systems[:1], sample, tmp_path)


def test_users_differ_in_colour_and_in_shape():
    assert len(set(USER_COLOURS)) == len(set(USER_MARKERS)) == 10
