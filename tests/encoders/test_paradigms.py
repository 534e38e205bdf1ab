"""Encoder and paradigm told from the manifests of feature sets and from recipes."""

from __future__ import annotations

import pytest

from mmbench.encoders.paradigms import of_live, of_stored

TUNED = {
    "base": {"kind": "CLIPViTB16", "model": "openai/clip-vit-base-patch16"},
    "dataset": {"name": "mine"},
    "objective": {"itc": 1.0},
    "chosen_epoch": 3,
    "history": ["long"],
}


def stored(name, kind="CLIPViTB16", variant="proj", tuned=None):
    return {
        "encoder": name,
        "settings": {"kind": kind, "encoder": {"variant": variant}},
        "origin": {"finetuned": tuned},
    }


def test_published_weights_are_pretrained_under_the_name_of_the_set():
    assert of_stored(stored("clip-vit-b16")) == {"encoder": "clip-vit-b16", "paradigm": "pt"}
    assert of_stored(stored("my-own-name"))["encoder"] == "my-own-name"


@pytest.mark.parametrize("name", ["clip-vit-b16-ft", "tuned-at-night"])
def test_a_fine_tuned_set_is_of_the_encoder_that_it_was_tuned_from(name):
    said = of_stored(stored(name, tuned=TUNED))
    assert (said["encoder"], said["paradigm"]) == ("clip-vit-b16", "ft")
    assert said["finetuned"] == {
        "base": TUNED["base"],
        "dataset": TUNED["dataset"],
        "objective": {"itc": 1.0},
        "chosen_epoch": 3,
    }


def test_another_variant_is_another_encoder():
    said = of_stored(stored("clip-vit-b16-ft", variant="hidden", tuned=TUNED))
    assert said["encoder"] == "clip-vit-b16-hidden"
    assert of_live("clip-vit-b16", "hidden", "full", None)["encoder"] == "clip-vit-b16-hidden"


def test_an_encoder_of_another_version_keeps_its_name_without_the_suffix():
    assert of_stored(stored("gone-ft", kind="Gone", tuned=TUNED))["encoder"] == "gone"


@pytest.mark.parametrize("origin", [{}, {"origin": None}])
def test_what_no_weights_made_is_fixed(origin):
    said = of_stored({"encoder": "tfidf-svd", **origin})
    assert said == {"encoder": "tfidf-svd", "paradigm": "fixed"}


@pytest.mark.parametrize(
    ("tune", "tuned", "paradigm"),
    [
        ("full", None, "ete"),
        ("top", TUNED, "ete"),
        ("none", None, "pt"),
        ("none", TUNED, "ft"),
    ],
)
def test_an_encoder_in_a_recipe_is_end_to_end_where_it_learns(tune, tuned, paradigm):
    said = of_live("vlmo-base-plus", None, tune, tuned)
    assert (said["encoder"], said["paradigm"]) == ("vlmo-base-plus", paradigm)
    assert ("finetuned" in said) == (tuned is not None)


def test_the_model_of_a_general_encoder_is_part_of_its_name():
    said = of_live("hf:org/some model", "mean", "top", None)
    assert said["encoder"] == "hf-org-some-model-mean"


def test_a_pair_goes_by_its_two_encoders_however_it_was_named():
    tuned = {**TUNED, "base": {"kind": "Pair", "model": "minilm-l6+timm:resnet18.a1"}}
    one = stored("pair-minilm-l6-timm-resnet18.a1-ft", kind="Pair", tuned=tuned)
    name = "timm-resnet18.a1+minilm-l6"  # as of visual: timm-resnet18.a1, textual: minilm-l6
    assert of_stored(one)["encoder"] == name
    for address in ("minilm-l6+timm:resnet18.a1", "minilm-l6=some/dir+timm:resnet18.a1=other"):
        assert of_live(f"pair:{address}", None, "full", None)["encoder"] == name
    assert of_live("pair", None, "full", tuned)["encoder"] == name
