"""Tiny encoders, and datasets with texts and pictures for them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

WORDS = [
    *("sail", "harbour", "tide", "anchor", "oven", "dough"),
    *("flour", "whisk", "guitar", "piano", "drum", "chorus"),
]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The file tiny_encoders.py, which is a program too."""
    path = Path(__file__).with_name("tiny_encoders.py")
    spec = importlib.util.spec_from_file_location("tiny_encoders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_encoders"] = module
    spec.loader.exec_module(module)
    return module


def text_of(item: int) -> str:
    """Between one and six words; item 3 has none."""
    if item == 3:
        return ""
    return " ".join(WORDS[(item * k + k) % 12] for k in range(1, 2 + item % 6))


@pytest.fixture
def content(tmp_path: Path) -> Callable[..., Path]:
    """Prepares the dataset "mine": item 3 has no text, item 5 no picture, the rest has both."""
    from mmbench.data.cleaning import PrepareConfig
    from mmbench.data.prepare import prepare

    def write(n_items: int = 12, texts: Mapping[int, str] | None = None) -> Path:
        source = tmp_path / "raw"
        (source / "images").mkdir(parents=True)
        rows = [f"u{u},i{i:03d}" for u in range(8) for i in range(n_items) if i != u]
        (source / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
        titles = {i: text_of(i) for i in range(n_items)} | dict(texts or {})
        lines = [f"i{i:03d},{titles[i]},brand{i % 3}" for i in range(n_items)]
        header = "item_id,title,brand"
        (source / "items.csv").write_text("\n".join([header, *lines]) + "\n")
        for i in range(n_items):
            if i != 5:
                colour = ((37 * i) % 256, (250 - 20 * i) % 256, (60 + 5 * i) % 256)
                picture = Image.new("RGB", (20, 20), colour)
                picture.putpixel((i % 20, 3), (255, 255, 255))
                picture.save(source / "images" / f"i{i:03d}.png")
        config = PrepareConfig(text_fields=("title",))
        prepare("mine", source=source, data_dir=tmp_path / "data", config=config)
        return tmp_path / "data"

    return write
