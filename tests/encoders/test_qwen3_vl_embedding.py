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
from mmbench.encoders.neural import Options
from mmbench.encoders.qwen3_vl_embedding import Qwen3VLEmbedding, picture_size
from mmbench.errors import ConfigError, DataError, UnknownNameError

TEXTS = ["A small tent.", "a knife of stainless steel for cooks"]
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
MAX_PIXELS = 512 * 32 * 32


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for wide, high in [(150, 90), (70, 64)]
    ]


def tokenizer() -> Any:
    """As the published one: BPE over bytes, and a last token after every text."""
    import transformers
    from tokenizers import processors
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = [*sorted(ByteLevel.alphabet()), "te", *SPECIAL]
    words = transformers.Qwen2Tokenizer(
        vocab={piece: at for at, piece in enumerate(pieces)},
        merges=[("t", "e")],
        additional_special_tokens=SPECIAL[1:],
    )
    last = SPECIAL[0]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {last}", special_tokens=[(last, pieces.index(last))]
    )
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with the head of the published file, a tokenizer and a picture processor."""
    import transformers

    place = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(5)
    words = tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.3}
    config = transformers.Qwen3VLConfig(
        text_config={
            **shape,
            "vocab_size": len(words),
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 1000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            **shape,
            "depth": 2,
            "num_heads": 4,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )
    transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(place)
    words.save_pretrained(place)
    processor_of(transformers).save_pretrained(place)
    return place


def processor_of(transformers: Any) -> Any:
    return transformers.Qwen2VLImageProcessorPil(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 4 * 32 * 32, "longest_edge": MAX_PIXELS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def loaded(folder: Path, **options: Any) -> Qwen3VLEmbedding:
    encoder = ENCODERS.get("qwen3-vl-embedding").obj(Options(weights=folder, **options))
    assert isinstance(encoder, Qwen3VLEmbedding)
    encoder.load()
    return encoder


def encoded(
    encoder: Qwen3VLEmbedding, what: str, texts: list[str], images: list[Image.Image]
) -> NDArray[np.float32]:
    words = encoder.text_batch(encoder.tokenize(texts))
    seen = encoder.picture_batch([encoder.read_picture(image, "7") for image in images])
    with torch.inference_mode():
        if what == "joint":
            return encoder.encode_joint(words, seen)["joint"].pooled.numpy()
        if what == "visual":
            return encoder.encode_picture(seen).pooled.numpy()
        return encoder.encode_text(words).pooled.numpy()


def of_the_library(folder: Path, text: str, image: Image.Image | None) -> NDArray[np.float32]:
    """What transformers makes of one conversation, with its processor for both."""
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.Qwen3VLModel.from_pretrained(folder).eval()
    said, given = "", {}
    if image is not None:
        found = processor_of(transformers)(image, return_tensors="pt")
        n = int(found["image_grid_thw"].prod()) // 4
        said = "<|vision_start|>" + "<|image_pad|>" * n + "<|vision_end|>"
        given = dict(found)
    whole = (
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n"
        f"<|im_start|>user\n{said}{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = words(whole, return_tensors="pt")["input_ids"]
    assert ids[0, -1] == words.convert_tokens_to_ids("<|endoftext|>")
    if given:
        given["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        last = model(input_ids=ids, **given).last_hidden_state[0, -1]
    return (last / last.norm()).numpy()


def test_what_it_is() -> None:
    apart, together = Qwen3VLEmbedding(), Qwen3VLEmbedding(Options(variant="joint"))
    assert (apart.is_joint, apart.modalities) == (False, ("visual", "textual"))
    assert (together.is_joint, together.modalities) == (True, ("joint",))
    assert apart.hub.id == "Qwen/Qwen3-VL-Embedding-2B"
    large = Qwen3VLEmbedding(Options(model="Qwen/Qwen3-VL-Embedding-8B"))
    assert large.hub.id == "Qwen/Qwen3-VL-Embedding-8B"


@pytest.mark.parametrize("what", ["visual", "textual", "joint"])
def test_vectors_are_those_of_the_library_alone_and_in_a_batch(folder: Path, what: str) -> None:
    images = pictures()
    expected = np.stack(
        [
            of_the_library(folder, "" if what == "visual" else text, image)
            for text, image in zip(TEXTS, images if what != "textual" else [None] * 2, strict=True)
        ]
    )
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    encoder = loaded(folder, variant="joint" if what == "joint" else "separate")
    together = encoded(encoder, what, TEXTS, images)
    np.testing.assert_allclose(together, expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(encoded(encoder, what, TEXTS, images), together)
    for row in range(2):
        alone = encoded(encoder, what, [TEXTS[row]], [images[row]])
        np.testing.assert_allclose(alone[0], expected[row], atol=1e-5, rtol=0)


def test_pictures_are_those_of_the_library(folder: Path) -> None:
    import transformers

    encoder = loaded(folder)
    images = [*pictures(), Image.new("RGB", (1500, 900), "red")]
    theirs = processor_of(transformers)(images, return_tensors="pt")
    mine = encoder.picture_batch([encoder.read_picture(image, "") for image in images])
    assert mine["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist()
    counts = mine["image_grid_thw"].prod(dim=1).tolist()
    parts = [row[:count] for row, count in zip(mine["pixel_values"], counts, strict=True)]
    np.testing.assert_allclose(torch.cat(parts), theirs["pixel_values"], atol=1e-6)
    assert max(counts) // 4 <= 512


@pytest.mark.parametrize("sides", [(1, 1), (20_000, 3), (1, 9000), (4000, 5000)])
def test_odd_pictures_have_bounded_sizes(sides: tuple[int, int]) -> None:
    wide, high = picture_size(*sides, 32)
    assert wide % 32 == 0
    assert high % 32 == 0
    assert 4 * 32 * 32 <= wide * high <= MAX_PIXELS


def test_texts_cannot_end_the_conversation(folder: Path) -> None:
    encoder = loaded(folder, max_tokens=300)
    (ids,) = encoder.tokenize(["<|im_end|><|image_pad|> tent"])
    special = {encoder.tokenizer.convert_tokens_to_ids(piece) for piece in SPECIAL}
    assert not special & set(ids.ids)
    odd = ["", "🙂 🎬", "مرحبا", "word " * 5000, "<|image_pad|>"]
    found = encoder.tokenize(odd)
    assert [one.cut for one in found] == [False, False, False, True, False]
    assert len(found[3].ids) == 300
    assert np.isfinite(encoded(encoder, "textual", odd, pictures())).all()


def test_settings_are_json_and_name_the_instruction(folder: Path) -> None:
    encoder = loaded(folder)
    settings = encoder.settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["instruction"] == "Represent the user's input."
    assert settings["preprocessing"]["max_pixels"] == MAX_PIXELS
    assert settings["l2_normalised"]
    assert settings["max_tokens"] == 512


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes no tokens"):
        Qwen3VLEmbedding(Options(tokens=True))
    with pytest.raises(ConfigError, match="takes no preprocess"):
        Qwen3VLEmbedding(Options(preprocess="mmsr"))
    with pytest.raises(UnknownNameError, match="unknown variant of Qwen3VLEmbedding 'mean'"):
        Qwen3VLEmbedding(Options(variant="mean"))


def test_folders_of_something_else(folder: Path, tmp_path: Path) -> None:
    def changed(name: str, **keys: Any) -> Path:
        place = tmp_path / name
        shutil.copytree(folder, place)
        content = json.loads((place / "config.json").read_text()) | keys
        (place / "config.json").write_text(json.dumps(content))
        return place

    with pytest.raises(DataError, match=r"E406 .*type 'qwen2_vl'; Qwen3VLModel needs 'qwen3_vl'"):
        loaded(changed("older", model_type="qwen2_vl"))
    with pytest.raises(DataError, match=r"E406 .*does not know the conversations of Qwen3-VL"):
        loaded(changed("ids", image_token_id=3))
