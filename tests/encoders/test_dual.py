from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.dual import DualEncoder
from mmbench.encoders.neural import Options
from mmbench.encoders.preprocessing import from_processor
from mmbench.errors import ConfigError, DataError, UnknownNameError

# encoder, folder of the fixture, repository of the published weights, ids of a text
FACTS = [
    ("blip", "blip", "Salesforce/blip-itm-base-coco", 512),
    ("clip-vit-b16", "clip", "openai/clip-vit-base-patch16", 77),
    ("clip-vit-b32", "clip", "openai/clip-vit-base-patch32", 77),
    ("clip-vit-l14", "clip", "openai/clip-vit-large-patch14", 77),
    ("groupvit", "groupvit", "nvidia/groupvit-gcc-yfcc", 77),
    ("siglip-b16", "siglip", "google/siglip-base-patch16-224", 64),
    ("siglip2-b16", "siglip2", "google/siglip2-base-patch16-224", 64),
]
KINDS = [("blip", "blip"), ("clip-vit-b32", "clip"), ("groupvit", "groupvit")]
KINDS += [("siglip-b16", "siglip"), ("siglip2-b16", "siglip2")]
TEXTS = ["A Small tent!", "knives of stainless steel, for cooks"]
ODD = [
    "",
    "x",
    "🙂 tent 🎬",
    "مرحبا بالعالم",
    "שלום",
    "a" * 300,
    "word " * 9_000,
    "e\u0301",
    "\ud83d",
]
PROCESSORS = {
    "clip": "CLIPImageProcessorPil",
    "groupvit": "CLIPImageProcessorPil",
    "siglip": "SiglipImageProcessorPil",
    "siglip2": "SiglipImageProcessorPil",
    "blip": "BlipImageProcessorPil",
}


def loaded(name: str, folder: Path, **options: Any) -> DualEncoder:
    encoder = ENCODERS.get(name).obj(Options(weights=folder, **options))
    assert isinstance(encoder, DualEncoder)
    encoder.load()
    return encoder


def vectors_of_texts(encoder: DualEncoder, texts: list[str]) -> NDArray[np.float32]:
    with torch.inference_mode():
        batch = encoder.text_batch(encoder.tokenize(texts))
        return encoder.encode_text(batch).pooled.numpy()


def vectors_of_pictures(encoder: DualEncoder, pictures: list[Image.Image]) -> NDArray[np.float32]:
    with torch.inference_mode():
        batch = encoder.picture_batch([encoder.read_picture(one, "7") for one in pictures])
        return encoder.encode_picture(batch).pooled.numpy()


class Library:
    """A model of the fixtures, called as the documentation of transformers does."""

    def __init__(self, kind: str, folder: Path) -> None:
        import transformers
        from tokenizers import Tokenizer

        name = "BlipForImageTextRetrieval" if kind == "blip" else "AutoModel"
        self.kind = kind
        self.model = getattr(transformers, name).from_pretrained(folder).eval()
        self.processor = getattr(transformers, PROCESSORS[kind]).from_pretrained(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, text: str) -> torch.Tensor:
        if self.kind.startswith("siglip"):
            text = text.lower()
            if self.kind == "siglip":  # the tokenizer of transformers takes punctuation away
                text = text.replace("!", "").replace(",", "")
            self.tokenizer.enable_truncation(64)
            self.tokenizer.enable_padding(length=64, pad_id=1 if self.kind == "siglip" else 0)
        return torch.tensor([self.tokenizer.encode(text).ids])

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = self.processor(picture, return_tensors="pt")["pixel_values"]
        return pixels

    @torch.no_grad()
    def text(self, text: str, variant: str) -> torch.Tensor:
        """One vector [D]."""
        ids = self.ids(text)
        if variant == "proj":
            if self.kind == "blip":
                state = self.model.text_encoder(ids).last_hidden_state[:, 0]
                found = self.model.text_proj(state)
            else:
                found = self.model.get_text_features(input_ids=ids).pooler_output
            return found[0] / found[0].norm()
        return self.text_tokens(text)[{"clip": -1, "groupvit": -1, "blip": 0}.get(self.kind, 63)]

    @torch.no_grad()
    def text_tokens(self, text: str) -> torch.Tensor:
        """Last hidden states [N, E]."""
        tower = self.model.text_encoder if self.kind == "blip" else self.model.text_model
        states: torch.Tensor = tower(self.ids(text)).last_hidden_state[0]
        return states

    @torch.no_grad()
    def picture(self, picture: Image.Image, variant: str) -> torch.Tensor:
        """One vector [D]."""
        pixels = self.pixels(picture)
        has_class_token = self.kind in ("clip", "blip")
        if variant.startswith("patch-"):
            return self.picture_tokens(picture, variant)[int(has_class_token) :].mean(dim=0)
        if variant == "proj":
            if self.kind == "blip":
                found = self.model.vision_proj(self.picture_tokens(picture, variant)[:1])
            else:
                found = self.model.get_image_features(pixel_values=pixels).pooler_output
            return found[0] / found[0].norm()
        if self.kind == "blip":
            return self.picture_tokens(picture, variant)[0]
        pooled: torch.Tensor = self.model.vision_model(pixels).pooler_output[0]
        return pooled

    @torch.no_grad()
    def picture_tokens(self, picture: Image.Image, variant: str) -> torch.Tensor:
        """States of the patches [N, E]."""
        output = self.model.vision_model(self.pixels(picture), output_hidden_states=True)
        states: torch.Tensor = output.last_hidden_state[0]
        if variant == "patch-emb":
            if self.kind == "groupvit":  # its hidden states are those after a stage
                states = self.model.vision_model.embeddings(self.pixels(picture))[0]
            else:
                states = output.hidden_states[0][0]
        elif self.kind == "clip":
            weights = self.model.state_dict()
            states = torch.nn.functional.layer_norm(
                states,
                states.shape[-1:],
                weights["vision_model.post_layernorm.weight"],
                weights["vision_model.post_layernorm.bias"],
                self.model.config.vision_config.layer_norm_eps,
            )
        return states


@pytest.fixture(scope="module")
def library(dual_folders: dict[str, Path]) -> dict[str, Library]:
    return {kind: Library(kind, folder) for kind, folder in dual_folders.items()}


def test_the_encoders_are_the_published_ones() -> None:
    for name, _, repository, limit in FACTS:
        found = ENCODERS.get(name).obj
        assert issubclass(found, DualEncoder)
        assert found.modalities == ("visual", "textual")
        assert (found.hub.id, found.max_tokens) == (repository, limit)
        assert found.hub.licence
        assert found.citation
        assert found.variants[0] == "proj"


@pytest.mark.parametrize(("name", "kind"), [fact[:2] for fact in FACTS])
def test_every_encoder_reads_its_kind_of_folder(
    name: str, kind: str, dual_folders: dict[str, Path], library: dict[str, Library]
) -> None:
    found = vectors_of_texts(loaded(name, dual_folders[kind]), TEXTS[:1])
    np.testing.assert_allclose(found[0], library[kind].text(TEXTS[0], "proj"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["proj", "hidden", "patch-vit", "patch-emb"])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_vectors_are_those_of_the_library_alone_and_in_a_batch(
    name: str,
    kind: str,
    variant: str,
    dual_folders: dict[str, Path],
    library: dict[str, Library],
    two_pictures: list[Image.Image],
) -> None:
    if (kind, variant) == ("groupvit", "patch-vit"):
        with pytest.raises(UnknownNameError, match="patch-vit"):
            loaded(name, dual_folders[kind], variant=variant)
        return
    encoder = loaded(name, dual_folders[kind], variant=variant)
    for given, expected, found in (
        (TEXTS, library[kind].text, vectors_of_texts),
        (two_pictures, library[kind].picture, vectors_of_pictures),
    ):
        rows = np.stack([expected(one, variant).numpy() for one in given])
        together = found(encoder, given)
        assert together.dtype == np.float32
        np.testing.assert_allclose(together, rows, atol=1e-5, rtol=0)
        for one, row in zip(given, rows, strict=True):
            np.testing.assert_allclose(found(encoder, [one])[0], row, atol=1e-5, rtol=0)
        if variant == "proj":
            np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        # The two differ, so that rows cannot be swapped unseen.
        assert np.abs(rows[0] - rows[1]).max() > 1e-2


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_both_sides_are_in_the_space_where_the_model_compares_them(
    name: str,
    kind: str,
    dual_folders: dict[str, Path],
    library: dict[str, Library],
    two_pictures: list[Image.Image],
) -> None:
    encoder = loaded(name, dual_folders[kind])
    model = library[kind].model
    inputs = {
        "input_ids": library[kind].ids(TEXTS[0]),
        "pixel_values": library[kind].pixels(two_pictures[0]),
    }
    with torch.no_grad():
        if kind == "blip":
            cosine = model(**inputs, use_itm_head=False).itm_score
        else:
            output = model(**inputs)
            cosine = output.image_embeds @ output.text_embeds.T
    found = vectors_of_pictures(encoder, two_pictures[:1]) @ vectors_of_texts(encoder, TEXTS[:1]).T
    np.testing.assert_allclose(found, cosine.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("variant", ["proj", "patch-emb"])
def test_tokens_are_the_states_of_the_library(
    name: str,
    kind: str,
    variant: str,
    dual_folders: dict[str, Path],
    library: dict[str, Library],
    two_pictures: list[Image.Image],
) -> None:
    encoder = loaded(name, dual_folders[kind], variant=variant, tokens=True)
    ids = encoder.tokenize(TEXTS)
    pixels = [encoder.read_picture(picture, "7") for picture in two_pictures]
    with torch.inference_mode():
        texts = encoder.encode_text(encoder.text_batch(ids))
        pictures = encoder.encode_picture(encoder.picture_batch(pixels))
    assert texts.tokens is not None
    assert texts.mask is not None
    assert pictures.tokens is not None
    assert pictures.mask is None  # every patch is there
    for row, text in enumerate(TEXTS):
        n_tokens = len(ids[row].ids)
        assert texts.mask[row].nonzero().flatten().tolist() == list(range(n_tokens))
        expected = library[kind].text_tokens(text)[:n_tokens]
        np.testing.assert_allclose(texts.tokens[row, :n_tokens], expected, atol=1e-5, rtol=0)
        assert not texts.tokens[row, n_tokens:].any()
    for row, picture in enumerate(two_pictures):
        expected = library[kind].picture_tokens(picture, variant)
        np.testing.assert_allclose(pictures.tokens[row], expected, atol=1e-5, rtol=0)
    n_patches = 16 + (kind in ("clip", "blip"))
    assert pictures.tokens.shape[1] == (4 if (kind, variant) == ("groupvit", "proj") else n_patches)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_odd_texts_have_vectors_that_padding_does_not_change(
    name: str, kind: str, dual_folders: dict[str, Path]
) -> None:
    encoder = loaded(name, dual_folders[kind])
    together = vectors_of_texts(encoder, ODD)
    assert together.shape == (len(ODD), 24 if kind in ("clip", "groupvit", "blip") else 32)
    assert np.isfinite(together).all()
    alone = np.concatenate([vectors_of_texts(encoder, [text]) for text in ODD])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(together, vectors_of_texts(encoder, ODD))
    assert [ids.cut for ids in encoder.tokenize(["x", "a b " * 300])] == [False, True]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_pictures_are_prepared_as_the_processor_of_the_library_does(
    name: str,
    kind: str,
    dual_folders: dict[str, Path],
    library: dict[str, Library],
    two_pictures: list[Image.Image],
) -> None:
    encoder = loaded(name, dual_folders[kind])
    small = [Image.new("RGB", (1, 1), (200, 10, 30)), Image.new("RGB", (5, 90), (0, 90, 200))]
    for picture in [*two_pictures, *small]:
        expected = library[kind].pixels(picture)[0].numpy()
        found = encoder.read_picture(picture, "7").numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    settings = encoder.settings
    assert settings["preprocessing_from"] == "preprocessor_config.json"
    assert settings["preprocessing"]["resize"] == (
        "short" if kind in ("clip", "groupvit") else "squash"
    )
    assert json.loads(json.dumps(settings)) == settings


def test_other_ways_to_prepare_pictures_are_recorded(
    dual_folders: dict[str, Path], two_pictures: list[Image.Image]
) -> None:
    folder = dual_folders["clip"]
    for chosen, resize, fill in (("pad", "pad", "white"), ("mmsr", "squash", "black")):
        encoder = loaded("clip-vit-b32", folder, preprocess=chosen)
        found = encoder.settings["preprocessing"]
        assert (found["resize"], found["fill"], found["size"]) == (resize, fill, 32)
        assert encoder.settings["preprocess"] == chosen
        assert encoder.read_picture(two_pictures[0], "7").shape == (3, 32, 32)
    # A 2:3 picture on white: the corner columns are white, (1 - mean) / std per channel.
    padded = loaded("clip-vit-b32", folder, preprocess="pad").read_picture(two_pictures[0], "7")
    white = (1 - 0.48145466) / 0.26862954
    np.testing.assert_allclose(padded[0, :, 0], np.full(32, white), atol=1e-5, rtol=0)
    with pytest.raises(UnknownNameError, match="squash"):
        ENCODERS.get("clip-vit-b32").obj(Options(preprocess="squash"))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_without_a_processor_file_pictures_are_prepared_as_published(
    name: str, kind: str, dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(dual_folders[kind], tmp_path / kind)
    (folder / "preprocessor_config.json").unlink()
    encoder = loaded(name, folder)
    assert encoder.settings["preprocessing_from"] == "documented"
    assert encoder.preprocessing == loaded(name, dual_folders[kind]).preprocessing
    # Newer releases of transformers write another file.
    nested = {
        "image_processor": {"image_mean": [0.1, 0.2, 0.3]},
        "processor_class": "CLIPProcessor",
    }
    size = {"height": 32, "width": 32}
    nested["image_processor"] |= {"size": size, "crop_size": size, "image_std": [1, 1, 1]}
    (folder / "processor_config.json").write_text(json.dumps(nested), encoding="utf-8")
    encoder = loaded(name, folder)
    assert encoder.settings["preprocessing_from"] == "processor_config.json"
    assert encoder.preprocessing.mean == (0.1, 0.2, 0.3)


def test_settings_tell_variants_options_and_weights_apart(dual_folders: dict[str, Path]) -> None:
    folder = dual_folders["clip"]
    seen = [
        json.dumps(loaded("clip-vit-b32", folder, **options).settings, sort_keys=True)
        for options in (
            {},
            {"variant": "hidden"},
            {"variant": "patch-vit"},
            {"variant": "patch-emb"},
            {"max_tokens": 50},
            {"preprocess": "pad"},
        )
    ]
    assert len(set(seen)) == len(seen)
    settings = loaded("clip-vit-b32", folder, variant="patch-emb").settings
    assert settings["pooling"]["visual"] == "mean of patch-emb, without the class token"
    assert settings["picture_tokens"] == "patch-emb"
    assert not settings["l2_normalised"]
    assert len(settings["weights_sha256"]) == 64
    assert str(folder) not in json.dumps(settings)


@pytest.mark.parametrize(("name", "kind"), KINDS[:3])
def test_texts_are_cut_where_the_user_says(
    name: str, kind: str, dual_folders: dict[str, Path]
) -> None:
    encoder = loaded(name, dual_folders[kind], max_tokens=5)
    (short, long) = encoder.tokenize(["x", "x y z x y z"])
    assert (len(short.ids), short.cut) == (3, False)
    assert (len(long.ids), long.cut) == (5, True)
    assert long.ids[-1] == short.ids[-1]  # the end token is kept
    assert encoder.settings["max_tokens"] == 5


def test_a_limit_out_of_range_is_refused(dual_folders: dict[str, Path]) -> None:
    for asked in (0, 2, 78):
        with pytest.raises(ConfigError, match="it takes 3 to 77 tokens"):
            ENCODERS.get("clip-vit-l14").obj(Options(max_tokens=asked))
    with pytest.raises(ConfigError, match="max-tokens 61 is more than the 60 positions"):
        loaded("blip", dual_folders["blip"], max_tokens=61)
    assert loaded("blip", dual_folders["blip"]).limit == 60


def test_options_without_a_meaning_are_refused() -> None:
    for name, option in (("siglip-b16", {"max_tokens": 50}), ("clip-vit-b16", {"mask_ratio": 0.5})):
        with pytest.raises(ConfigError, match=f"takes no {next(iter(option)).replace('_', '-')}"):
            ENCODERS.get(name).obj(Options(**option))
    with pytest.raises(UnknownNameError, match="variant of CLIPViTB16"):
        ENCODERS.get("clip-vit-b16").obj(Options(variant="projected"))


def test_folders_of_other_models_are_refused(dual_folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"E406 .*'clip'; SiglipModel needs 'siglip'"):
        loaded("siglip2-b16", dual_folders["clip"])
    with pytest.raises(DataError, match=r"E406 .*'blip'; CLIPModel needs 'clip'"):
        loaded("clip-vit-b16", dual_folders["blip"])


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_incomplete_folders_are_refused(
    name: str, kind: str, dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    whole = dual_folders[kind]
    folder = shutil.copytree(whole, tmp_path / "tokenizer")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"E403 .* holds no tokenizer"):
        loaded(name, folder)
    folder = shutil.copytree(whole, tmp_path / "weights")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"E403 .* holds no weights"):
        loaded(name, folder)
    folder = shutil.copytree(whole, tmp_path / "norm")
    tensors = load_file(whole / "model.safetensors")
    lost = next(key for key in tensors if key.startswith("text") and "layer" in key.lower())
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"E406 .* lacks weights"):
        loaded(name, folder)


def test_weights_in_half_precision_are_read_in_float32(
    dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(dual_folders["clip"], tmp_path / "half")
    tensors = load_file(folder / "model.safetensors")
    halved = {name: values.to(torch.bfloat16) for name, values in tensors.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    encoder = loaded("clip-vit-b16", folder)
    assert {values.dtype for values in encoder.module.parameters()} == {torch.float32}
    assert not encoder.module.training
    assert vectors_of_texts(encoder, TEXTS).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": {"shortest_edge": 64}, "crop_size": 64}, "64 x 64 pixels and the model takes 32"),
        ({"do_center_crop": False}, "pictures of different sizes"),
        ({"resample": 99}, "cannot be made"),
        (None, "E404 .*preprocessor_config.json is broken"),
    ],
)
def test_processor_files_that_do_not_fit_are_refused(
    change: dict[str, Any] | None, match: str, dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(dual_folders["clip"], tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    content = "{" if change is None else json.dumps(json.loads(file.read_text()) | change)
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=match):
        loaded("clip-vit-b32", folder)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(dual_folders["blip"], tmp_path / "blip")
    shutil.copy(dual_folders["clip"] / "tokenizer.json", folder)
    shutil.copy(dual_folders["clip"] / "tokenizer_config.json", folder)
    with pytest.raises(DataError, match="they are of two models"):
        loaded("blip", folder)


def test_constructing_reads_nothing(tmp_path: Path) -> None:
    for name, *_ in FACTS:
        encoder = ENCODERS.get(name).obj(Options(weights=tmp_path / "absent"))
        with pytest.raises(DataError, match="E403"):
            encoder.load()


def test_preprocessing_as_published_is_the_documented_one() -> None:
    for name, expected in (
        ("clip-vit-b16", ("short", "bicubic", 224)),
        ("groupvit", ("short", "bicubic", 224)),
        ("siglip-b16", ("squash", "bicubic", 224)),
        ("siglip2-b16", ("squash", "bilinear", 224)),
        ("blip", ("squash", "bicubic", 384)),
    ):
        kind = ENCODERS.get(name).obj
        assert issubclass(kind, DualEncoder)
        found = from_processor({}, kind.processor, square=kind.square)
        assert (found.resize, found.interpolation, found.size) == expected
