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
from mmbench.encoders.neural import Encoded, Options
from mmbench.encoders.vilt import Vilt, picture_size
from mmbench.errors import ConfigError, DataError, UnknownNameError

TEXTS = ["A small tent.", "a knife of stainless steel for cooks", "x"]
# Wide, high (and cut at the longest side), and square; 96 pixels on the short side, 159 at most.
SIDES = [(300, 200), (120, 250), (40, 40)]
N_PATCHES = [4 * 3, 2 * 4, 3 * 3]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for wide, high in SIDES
    ]


def tokenizer() -> Any:
    import transformers

    letters = string.ascii_lowercase + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [*(f"##{letter}" for letter in letters), "tent", "knife", "steel"]
    return transformers.BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with the head of the published file, a tokenizer and a picture processor."""
    import transformers

    place = tmp_path_factory.mktemp("vilt")
    torch.manual_seed(5)
    words = tokenizer()
    config = transformers.ViltConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=96,
        patch_size=32,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    model = transformers.ViltForMaskedLM(config)
    with torch.no_grad():  # a fresh model has zeros there
        model.vilt.embeddings.position_embeddings.normal_()
        model.vilt.embeddings.cls_token.normal_()
    model.save_pretrained(place)
    words.save_pretrained(place)
    transformers.ViltImageProcessorPil(size={"shortest_edge": 96}).save_pretrained(place)
    return place


def loaded(folder: Path, **options: Any) -> Vilt:
    encoder = ENCODERS.get("vilt").obj(Options(weights=folder, **options))
    assert isinstance(encoder, Vilt)
    encoder.load()
    return encoder


def encoded(encoder: Vilt, texts: list[str], images: list[Image.Image]) -> Encoded:
    read = [encoder.read_picture(image, "7") for image in images]
    with torch.inference_mode():
        found = encoder.encode_joint(
            encoder.text_batch(encoder.tokenize(texts)), encoder.picture_batch(read)
        )
    assert set(found) == {"joint"}
    return found["joint"]


def of_the_library(folder: Path, text: str, image: Image.Image) -> Any:
    """What transformers makes of one pair, with its own picture processor and tokenizer."""
    import transformers

    model = transformers.ViltModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    processor = transformers.ViltImageProcessorPil.from_pretrained(folder)
    seen = processor(image, return_tensors="pt")
    assert seen["pixel_mask"].all()
    with torch.no_grad():
        return model(**words, **seen)


def test_what_it_is() -> None:
    encoder = Vilt()
    assert encoder.is_joint
    assert encoder.modalities == ("joint",)
    assert (Vilt.hub.id, Vilt.max_tokens) == ("dandelin/vilt-b32-mlm", 40)


@pytest.mark.parametrize("variant", ["pooled", "hidden"])
def test_vectors_are_those_of_the_library_alone_and_in_a_batch(folder: Path, variant: str) -> None:
    images = pictures()
    theirs = [
        of_the_library(folder, text, image) for text, image in zip(TEXTS, images, strict=True)
    ]
    expected = torch.cat(
        [
            out.pooler_output if variant == "pooled" else out.last_hidden_state[:, 0]
            for out in theirs
        ]
    ).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    encoder = loaded(folder, variant=variant)
    together = encoded(encoder, TEXTS, images).pooled.numpy()
    np.testing.assert_allclose(together, expected, atol=1e-5, rtol=0)
    for row in range(3):
        alone = encoded(encoder, [TEXTS[row]], [images[row]]).pooled.numpy()
        np.testing.assert_allclose(alone[0], expected[row], atol=1e-5, rtol=0)


def test_every_call_gives_the_same_bits(folder: Path) -> None:
    encoder = loaded(folder, tokens=True)
    first, second = (encoded(encoder, TEXTS, pictures()) for _ in range(2))
    assert first.tokens is not None
    assert second.tokens is not None
    assert torch.equal(first.pooled, second.pooled)
    assert torch.equal(first.tokens, second.tokens)


def test_tokens_are_those_of_the_library_in_the_order_of_the_picture(folder: Path) -> None:
    images = pictures()
    encoder = loaded(folder, tokens=True)
    found = encoded(encoder, TEXTS, images)
    assert found.tokens is not None
    assert found.mask is not None
    for row, text in enumerate(TEXTS):
        n_words = len(encoder.tokenize([text])[0].ids)
        n = n_words + 1 + N_PATCHES[row]
        assert found.mask[row].tolist() == [True] * n + [False] * (found.mask.shape[1] - n)
        assert not found.tokens[row, n:].any()
        theirs = of_the_library(folder, text, images[row]).last_hidden_state[0].numpy()
        mine = found.tokens[row, :n].numpy()
        np.testing.assert_allclose(mine[: n_words + 1], theirs[: n_words + 1], atol=1e-5)
        # The library shuffles the patches: each of its vectors is there once.
        gaps = np.abs(mine[n_words + 1 :, None] - theirs[None, n_words + 1 :]).max(axis=2)
        assert (gaps < 1e-5).sum(axis=0).tolist() == [1] * N_PATCHES[row]


def test_patches_stand_in_rows_from_the_top_left(folder: Path) -> None:
    encoder = loaded(folder, tokens=True)
    grey = np.full((96, 128, 3), 128, dtype=np.uint8)
    marked = grey.copy()
    marked[32:64, 64:96] = 255  # second row, third column of 3 x 4 patches
    with torch.inference_mode():
        parts = []
        for values in (grey, marked):
            read = encoder.read_picture(Image.fromarray(values), "")
            batch = encoder.picture_batch([read])
            parts.append(encoder._patches(batch["pixel_values"], batch["sizes"])[0][0])
    differs = (parts[0] - parts[1]).abs().amax(dim=1) > 1e-3
    assert differs.nonzero().flatten().tolist() == [1 + 1 * 4 + 2]


def test_pictures_are_those_of_the_library(folder: Path) -> None:
    import transformers

    encoder = loaded(folder)
    processor = transformers.ViltImageProcessorPil.from_pretrained(folder)
    images = pictures()
    theirs = processor(images, return_tensors="pt")
    mine = encoder.picture_batch([encoder.read_picture(image, "") for image in images])
    assert mine["pixel_values"].shape == theirs["pixel_values"].shape
    high, wide = theirs["pixel_mask"].sum(dim=1)[:, 0], theirs["pixel_mask"].sum(dim=2)[:, 0]
    assert mine["sizes"].tolist() == torch.stack([high, wide], dim=1).tolist()
    np.testing.assert_allclose(mine["pixel_values"], theirs["pixel_values"], atol=1e-6)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((300, 200), (576, 384)),
        ((1000, 300), (608, 192)),
        ((384, 384), (384, 384)),
        ((1, 1), (384, 384)),
        ((20_000, 10), (608, 32)),
        ((1, 20_000), (32, 608)),
    ],
)
def test_sizes_of_pictures(sides: tuple[int, int], expected: tuple[int, int]) -> None:
    assert picture_size(*sides, 384, 32) == expected


@pytest.mark.parametrize("sides", [(1, 1), (20_000, 3), (2, 3000)])
def test_odd_pictures_have_a_vector(folder: Path, sides: tuple[int, int]) -> None:
    found = encoded(loaded(folder), ["x"], [Image.new("RGB", sides, "red")])
    assert torch.isfinite(found.pooled).all()


@pytest.mark.parametrize("text", ["", "🙂 🎬", "مرحبا بالعالم", "word " * 5000])
def test_odd_texts_have_a_vector(folder: Path, text: str) -> None:
    encoder = loaded(folder)
    (ids,) = encoder.tokenize([text])
    assert len(ids.ids) <= 40
    assert ids.cut == text.startswith("word")
    found = encoded(encoder, [text], pictures()[:1])
    assert torch.isfinite(found.pooled).all()


def test_fewer_tokens_and_squashed_pictures(folder: Path) -> None:
    encoder = loaded(folder, max_tokens=5, preprocess="mmsr")
    assert [len(found.ids) for found in encoder.tokenize(TEXTS)] == [5, 5, 3]
    read = encoder.read_picture(pictures()[0], "")
    assert read.shape == (3, 224, 224)
    assert torch.isfinite(encoded(encoder, TEXTS, pictures()).pooled).all()
    assert encoder.settings["max_tokens"] == 5
    assert encoder.settings["preprocessing"]["resize"] == "squash"


def test_settings_are_json_and_tell_what_matters(folder: Path) -> None:
    encoder = loaded(folder)
    settings = encoder.settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["attention"] == "eager"  # these have no other
    assert settings["weights_sha256"] == encoder.weights.digest
    assert settings["preprocessing"]["short"] == 96
    assert settings["preprocessing_from"] == "preprocessor_config.json"
    assert settings != loaded(folder, variant="hidden").settings
    assert settings != loaded(folder, max_tokens=7).settings
    assert settings != loaded(folder, preprocess="mmsr").settings


def test_without_a_processor_pictures_are_made_as_published(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m/preprocessor_config.json").unlink()
    encoder = loaded(tmp_path / "m")
    assert encoder.settings["preprocessing_from"] == "documented"
    read = encoder.read_picture(Image.new("RGB", (300, 200)), "")
    assert read.shape == (3, 384, 576)
    assert float(read.max()) == -1.0


def test_options_that_mean_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Vilt takes no mask-ratio"):
        Vilt(Options(mask_ratio=0.5))
    with pytest.raises(ConfigError, match="Vilt takes no model"):
        Vilt(Options(model="a/b"))
    with pytest.raises(ConfigError, match="crops no picture"):
        Vilt(Options(preprocess="pad"))
    with pytest.raises(UnknownNameError, match="unknown preprocessing 'mmrs'"):
        Vilt(Options(preprocess="mmrs"))
    with pytest.raises(UnknownNameError, match="unknown variant of Vilt 'proj'"):
        Vilt(Options(variant="proj"))
    with pytest.raises(ConfigError, match="max-tokens 2 does not suit Vilt"):
        Vilt(Options(max_tokens=2))
    with pytest.raises(ConfigError, match="more than the 40 positions"):
        loaded(folder, max_tokens=41)
    with pytest.raises(TypeError, match="reads no pictures"):
        Vilt().encode_picture({})
    with pytest.raises(TypeError, match="reads no texts"):
        Vilt().encode_text({})


def test_folders_of_something_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"E403 .*holds no weights"):
        loaded(tmp_path)

    def changed(name: str, **keys: Any) -> Path:
        place = tmp_path / name
        shutil.copytree(folder, place)
        for file in ("config.json", "preprocessor_config.json"):
            content = json.loads((place / file).read_text())
            content |= {key: value for key, value in keys.items() if key in content}
            (place / file).write_text(json.dumps(content))
        return place

    with pytest.raises(DataError, match=r"E406 .*type 'clip'; ViltModel needs 'vilt'"):
        loaded(changed("clip", model_type="clip"))
    with pytest.raises(DataError, match="do not divide into patches of 32"):
        loaded(changed("divisor", size_divisor=16))
    with pytest.raises(DataError, match="pictures that cannot be made"):
        loaded(changed("size", size={"height": 3, "width": 3}))
    place = changed("vocabulary")
    (place / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"E403 .*holds no tokenizer"):
        loaded(place)
    place = changed("gap")
    tensors = load_file(place / "model.safetensors")
    gone = next(name for name in tensors if "pooler.dense.weight" in name)
    tensors.pop(gone)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"E406 .*lacks weights of ViltModel: pooler\.dense"):
        loaded(place)
