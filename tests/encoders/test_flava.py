from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.flava import Flava
from mmbench.encoders.neural import Encoded, Options
from mmbench.errors import ConfigError, DataError, UnknownNameError

TEXTS = ["A small tent.", "a knife of stainless steel for cooks"]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
POSITIONS = 60


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for wide, high in [(70, 45), (20, 33)]
    ]


def tokenizer() -> Any:
    import transformers

    letters = string.ascii_lowercase + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [*(f"##{letter}" for letter in letters), "tent", "knife", "steel"]
    return transformers.BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with the heads of the published file, a tokenizer and a picture processor."""
    import transformers

    place = tmp_path_factory.mktemp("flava")
    torch.manual_seed(5)
    words = tokenizer()
    text = {**SHAPE, "vocab_size": len(words), "max_position_embeddings": POSITIONS}
    config = transformers.FlavaConfig(
        text_config=text,
        image_config={**SHAPE, "image_size": 32, "patch_size": 16, "vocab_size": 11},
        multimodal_config={**SHAPE},
        image_codebook_config={"hidden_size": 8, "vocab_size": 11},
        init_codebook=False,
        hidden_size=32,
        projection_dim=24,
    )
    model = transformers.FlavaForPreTraining(config)
    with torch.no_grad():  # a fresh model has zeros there
        for embeddings in (model.flava.image_model.embeddings,):
            embeddings.position_embeddings.normal_()
            embeddings.cls_token.normal_()
        model.flava.multimodal_model.cls_token.normal_()
    model.save_pretrained(place)
    words.save_pretrained(place)
    square = {"height": 32, "width": 32}
    processor = transformers.FlavaImageProcessorPil(size=square, crop_size=square)
    processor.save_pretrained(place)
    return place


def loaded(folder: Path, **options: Any) -> Flava:
    encoder = ENCODERS.get("flava").obj(Options(weights=folder, **options))
    assert isinstance(encoder, Flava)
    encoder.load()
    return encoder


def encoded(encoder: Flava, texts: list[str], images: list[Image.Image]) -> dict[str, Encoded]:
    """By modality: what it gives for these texts and pictures."""
    read = encoder.picture_batch([encoder.read_picture(image, "7") for image in images])
    words = encoder.text_batch(encoder.tokenize(texts))
    with torch.inference_mode():
        if encoder.is_joint:
            return dict(encoder.encode_joint(words, read))
        return {"visual": encoder.encode_picture(read), "textual": encoder.encode_text(words)}


def of_the_library(folder: Path, text: str, image: Image.Image) -> dict[str, torch.Tensor]:
    """What transformers makes of one pair, with its own picture processor and tokenizer."""
    import transformers

    model = transformers.FlavaModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    seen = transformers.FlavaImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")
    with torch.no_grad():
        out = model(**words, pixel_values=seen["pixel_values"])
        picture = model.get_image_features(seen["pixel_values"]).pooler_output[:, 0]
        read = model.get_text_features(**words).pooler_output[:, 0]
    return {
        "hidden visual": out.image_embeddings[0],
        "hidden textual": out.text_embeddings[0],
        "proj visual": picture / picture.norm(dim=1, keepdim=True),
        "proj textual": read / read.norm(dim=1, keepdim=True),
        "joint joint": out.multimodal_embeddings[0],
    }


def test_what_it_is() -> None:
    assert Flava.modalities == ("visual", "textual", "joint")
    assert (Flava.hub.id, Flava.max_tokens) == ("facebook/flava-full", 77)
    apart, together = Flava(), Flava(Options(variant="joint"))
    assert (apart.is_joint, apart.modalities) == (False, ("visual", "textual"))
    assert (together.is_joint, together.modalities) == (True, ("joint",))


@pytest.mark.parametrize("variant", ["hidden", "proj", "joint"])
def test_vectors_are_those_of_the_library_alone_and_in_a_batch(folder: Path, variant: str) -> None:
    images = pictures()
    theirs = [of_the_library(folder, t, image) for t, image in zip(TEXTS, images, strict=True)]
    encoder = loaded(folder, variant=variant)
    together = encoded(encoder, TEXTS, images)
    assert set(together) == set(encoder.modalities)
    for modality, found in together.items():
        expected = torch.stack([out[f"{variant} {modality}"][0] for out in theirs]).numpy()
        assert np.abs(expected[0] - expected[1]).max() > 1e-2
        np.testing.assert_allclose(found.pooled.numpy(), expected, atol=1e-5, rtol=0)
        for row in range(2):
            alone = encoded(encoder, [TEXTS[row]], [images[row]])[modality].pooled.numpy()
            np.testing.assert_allclose(alone[0], expected[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["hidden", "joint"])
def test_tokens_are_the_states_of_the_library(folder: Path, variant: str) -> None:
    images = pictures()
    theirs = [of_the_library(folder, t, image) for t, image in zip(TEXTS, images, strict=True)]
    for modality, found in encoded(
        loaded(folder, variant=variant, tokens=True), TEXTS, images
    ).items():
        assert found.tokens is not None
        for row in range(2):
            expected = theirs[row][f"{variant} {modality}"].numpy()
            n = len(expected)
            np.testing.assert_allclose(found.tokens[row, :n].numpy(), expected, atol=1e-5)
            assert not found.tokens[row, n:].any()
            if found.mask is not None:
                kept = [True] * n + [False] * (found.mask.shape[1] - n)
                assert found.mask[row].tolist() == kept
        assert (found.mask is None) == (modality == "visual")


def test_every_call_gives_the_same_bits(folder: Path) -> None:
    encoder = loaded(folder, variant="joint")
    first, second = (encoded(encoder, TEXTS, pictures())["joint"] for _ in range(2))
    assert torch.equal(first.pooled, second.pooled)


def test_pictures_are_those_of_the_library(folder: Path) -> None:
    import transformers

    processor = transformers.FlavaImageProcessorPil.from_pretrained(folder)
    encoder = loaded(folder)
    for image in pictures():
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
        np.testing.assert_allclose(encoder.read_picture(image, ""), theirs, atol=1e-6)


def test_a_published_processor_is_known_where_the_folder_has_none(
    folder: Path, tmp_path: Path
) -> None:
    import transformers

    place = tmp_path / "m"
    shutil.copytree(folder, place)
    (place / "preprocessor_config.json").unlink()
    encoder = loaded(place)
    assert encoder.settings["preprocessing_from"] == "documented"
    square = {"height": 32, "width": 32}
    processor = transformers.FlavaImageProcessorPil(size=square, crop_size=square)
    theirs = processor(pictures()[0], return_tensors="pt")["pixel_values"][0]
    np.testing.assert_allclose(encoder.read_picture(pictures()[0], ""), theirs, atol=1e-6)


@pytest.mark.parametrize("text", ["", "🙂 🎬", "שלום", "word " * 5000])
def test_odd_texts_have_a_vector(folder: Path, text: str) -> None:
    encoder = loaded(folder)
    (ids,) = encoder.tokenize([text])
    assert len(ids.ids) <= POSITIONS
    assert ids.cut == text.startswith("word")
    assert torch.isfinite(encoded(encoder, [text], pictures()[:1])["textual"].pooled).all()


@pytest.mark.parametrize("preprocess", ["pad", "mmsr"])
def test_settings_are_json_and_tell_what_matters(folder: Path, preprocess: str) -> None:
    encoder = loaded(folder)
    settings = encoder.settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["attention"] == "eager"  # these have no other
    assert settings["weights_sha256"] == encoder.weights.digest
    assert settings["max_tokens"] == POSITIONS  # fewer than the 77 of the published weights
    assert not settings["l2_normalised"]
    assert loaded(folder, variant="proj").settings["l2_normalised"]
    other = loaded(folder, preprocess=preprocess)
    assert other.settings["preprocessing"] != settings["preprocessing"]
    assert other.read_picture(pictures()[0], "").shape == (3, 32, 32)
    assert loaded(folder, max_tokens=9).settings["max_tokens"] == 9


def test_options_that_mean_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Flava takes no mask-ratio"):
        Flava(Options(mask_ratio=0.75))
    with pytest.raises(UnknownNameError, match="unknown preprocessing 'crop'"):
        Flava(Options(preprocess="crop"))
    with pytest.raises(UnknownNameError, match="unknown variant of Flava 'pooled'"):
        Flava(Options(variant="pooled"))
    with pytest.raises(ConfigError, match="max-tokens 1 does not suit Flava"):
        Flava(Options(max_tokens=1))
    with pytest.raises(ConfigError, match=f"more than the {POSITIONS} positions"):
        loaded(folder, max_tokens=POSITIONS + 1)


def test_folders_of_something_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"E403 .*is not here"):
        loaded(tmp_path / "nowhere")

    def changed(name: str, **keys: Any) -> Path:
        place = tmp_path / name
        shutil.copytree(folder, place)
        for file in ("config.json", "preprocessor_config.json"):
            content = json.loads((place / file).read_text())
            content |= {key: value for key, value in keys.items() if key in content}
            (place / file).write_text(json.dumps(content))
        return place

    with pytest.raises(DataError, match=r"E406 .*type 'vilt'; FlavaModel needs 'flava'"):
        loaded(changed("vilt", model_type="vilt"))
    large = {"height": 48, "width": 48}
    with pytest.raises(DataError, match=r"pictures of 48 x 48 pixels and the model takes 32 x 32"):
        loaded(changed("size", size=large, crop_size=large))

    def without(name: str, part: str) -> Path:
        place = changed(name)
        tensors = load_file(place / "model.safetensors")
        kept = {key: value for key, value in tensors.items() if part not in key}
        assert len(kept) < len(tensors)
        save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
        return place

    with pytest.raises(DataError, match=r"lacks weights of FlavaModel: text_model\.layernorm"):
        loaded(without("gap", "text_model.layernorm"))
    # What plays no part may be missing: it would be random, and nobody looks at it.
    spared = encoded(loaded(without("poolers", "pooler")), TEXTS, pictures())
    whole = encoded(loaded(folder), TEXTS, pictures())
    assert torch.equal(spared["visual"].pooled, whole["visual"].pooled)
