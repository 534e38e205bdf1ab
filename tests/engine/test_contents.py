"""What items offer: texts as asked, pictures, and what is lacking."""

import numpy as np
import pytest

from mmbench.data.prepared import load_dataset
from mmbench.engine.contents import (
    MAX_CHARACTERS,
    TextTemplate,
    compose_texts,
    preset,
    read_contents,
)
from mmbench.errors import ConfigError, UnknownNameError


@pytest.fixture
def dataset(content):
    return load_dataset("mine", content(texts={1: "a &amp; <b>b</b>", 2: ""}))


def test_texts_as_they_were_prepared(dataset):
    found = read_contents(dataset, ("textual",))
    assert found.texts[1] == "a & b"
    assert found.pictures is None
    assert found.lacking == {2: "no text", 3: "no text"}
    np.testing.assert_array_equal(np.flatnonzero(~found.has), [2, 3])


def test_a_pair_lacks_what_either_lacks(dataset):
    found = read_contents(dataset, ("textual", "visual"))
    assert found.lacking == {2: "no text", 3: "no text", 5: "no picture (missing)"}
    assert found.pictures[5] is None
    assert found.picture_hashes[5] is None
    assert found.picture_hashes[0] == dataset.items[0]["image_sha256"]


def test_the_hash_tells_contents_apart(dataset):
    hashes = {
        read_contents(dataset, needs, template).sha256
        for needs, template in (
            (("textual",), None),
            (("visual",), None),
            (("textual", "visual"), None),
            (("textual",), TextTemplate(("brand",))),
        )
    }
    assert len(hashes) == 4


def test_fields_in_the_order_asked_for(dataset):
    texts, facts = compose_texts(dataset, TextTemplate(("brand", "title")))
    assert texts[1:3] == ["brand1. a & b", "brand2"]
    assert facts["fields"] == ["brand", "title"]
    assert facts["separator"] == ". "


def test_presets(dataset):
    texts, facts = compose_texts(dataset, preset("mmrec"))
    assert texts[1] == "a & b brand1"
    assert facts["fields"] == ["title", "brand"]  # those of its four that there are
    with pytest.raises(UnknownNameError, match='Did you mean "mmrec"'):
        preset("mmrc")


def test_unknown_fields(dataset):
    with pytest.raises(UnknownNameError, match=r"unknown text field of mine 'titel'.*\"title\""):
        read_contents(dataset, ("textual",), TextTemplate(("titel", "brand")))
    with pytest.raises(ConfigError, match="mine has none of the fields a, b; it has: brand, title"):
        read_contents(dataset, ("textual",), TextTemplate(("a", "b"), may_lack=True))
    with pytest.raises(ConfigError, match="datasets hold no raw acoustic content"):
        read_contents(dataset, ("acoustic",))


def test_long_texts_and_half_characters(content):
    dataset = load_dataset("mine", content(texts={0: "x" * 30_000, 1: "\U0001f642 NA"}))
    dataset.items[2]["text"] = "half \ud83d of an emoji"
    texts, _ = compose_texts(dataset, TextTemplate())
    assert len(texts[0]) == MAX_CHARACTERS
    assert texts[1] == "\U0001f642 NA"
    assert texts[2] == "half ? of an emoji"
