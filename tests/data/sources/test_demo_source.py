"""The shop to start from: nobody and nothing of the demo shop, tastes of the same kinds."""

import numpy as np

from mmbench.data.source import DATASETS
from mmbench.data.sources.demo import Demo, plant
from mmbench.data.sources.demo_content import STYLES
from mmbench.data.sources.demo_source import DemoSource


def test_it_is_another_shop_of_the_same_kind():
    assert DATASETS.get("demo-source").obj is DemoSource
    here, there = plant(Demo.config), plant(DemoSource.config)
    assert len(set(there.users.tolist())) == 1200
    assert len(set(there.chosen.tolist())) == 800
    assert len(set(here.users.tolist())) == 480  # which the other one leaves alone
    assert not np.array_equal(here.style, there.style[: len(here.style)])
    # A user's items show few styles, in either: more alike than items drawn from all choices.
    for shop in (here, there):
        n = len(STYLES)
        counts = np.zeros((shop.users.max() + 1, n))
        np.add.at(counts, (shop.users, shop.style[shop.chosen]), 1)
        total = counts.sum(axis=1, keepdims=True)
        alike = ((counts * (counts - 1)).sum(axis=1) / (total * (total - 1))[:, 0]).mean()
        share = counts.sum(axis=0) / counts.sum()
        assert alike > 1.5 * (share**2).sum()


def test_its_contents_are_drawn_like_those_of_the_demo(tmp_path, monkeypatch):
    small = type(DemoSource.config)(seed=3, users=40, items=60, without_text=1, without_picture=2)
    monkeypatch.setattr(DemoSource, "config", small)
    raw = DemoSource().read(None, tmp_path)
    assert raw.items.height == 60
    assert len(list((tmp_path / "images").glob("*.png"))) == 58
    assert raw.facts["generator"]["seed"] == 3
