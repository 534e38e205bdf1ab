from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmbench.encoders import preprocessing
from mmbench.encoders.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    from_processor,
    from_timm,
)
from mmbench.errors import DataError, UnknownNameError

SIZES = [
    (1, 1),
    (1, 7),
    (201, 333),
    (224, 224),
    (225, 227),
    (223, 500),
    (640, 481),
    (31, 33),
    (900, 10),
    (10, 900),
]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 10_007 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def timm_config(**changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "crop_pct": 0.9,
        "crop_mode": "center",
        **changes,
    }


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_equals_the_transforms_of_timm(size: tuple[int, int]) -> None:
    from timm.data import create_transform

    picture = noise(*size)
    for side in (224, 33):
        for share in (0.875, 0.9, 1.0):
            for mode in ("center", "squash"):
                for how in ("bicubic", "bilinear"):
                    config = timm_config(
                        input_size=(3, side, side),
                        crop_pct=share,
                        crop_mode=mode,
                        interpolation=how,
                    )
                    theirs = create_transform(**config, is_training=False)(picture)
                    assert torch.equal(from_timm(config).apply(picture), theirs), config


CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
}
SIGLIP = {"size": {"height": 224, "width": 224}, "resample": 3, "image_mean": 0.5, "image_std": 0.5}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_equals_the_pillow_processors_of_transformers(size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    picture = noise(*size)
    for theirs, config in (
        (CLIPImageProcessorPil(), CLIP),
        (CLIPImageProcessorPil(crop_size=301), {**CLIP, "crop_size": 301}),  # black around
        (
            CLIPImageProcessorPil(size={"shortest_edge": 257}, crop_size=224, resample=2),
            {**CLIP, "size": {"shortest_edge": 257}, "resample": 2},
        ),
        (SiglipImageProcessorPil(), SIGLIP),
    ):
        expected = theirs(picture, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(from_processor(config, {}).apply(picture), expected)


def test_every_value_of_a_byte_is_scaled_as_torchvision_and_transformers_do() -> None:
    values = np.arange(256)
    picture = Image.fromarray(np.repeat(values.astype(np.uint8)[None, :, None], 3, axis=2))
    ours = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)).normalise(picture)[0, 0]
    assert torch.equal(ours, torch.arange(256).div(255))
    assert np.array_equal(ours.numpy(), (values * (1 / 255)).astype(np.float32))


def test_sizes_of_older_files_are_numbers_and_missing_keys_are_those_of_the_class() -> None:
    own = from_processor({"size": 384, "image_mean": None}, SIGLIP)
    assert (own.size, own.resize, own.mean) == (384, "squash", HALF)
    clip = from_processor({"size": 256, "crop_size": 224}, CLIP, square=False)
    assert (clip.size, clip.resize, clip.scaled) == (224, "short", 256)
    raw = from_processor({"do_normalize": False}, SIGLIP)
    assert (raw.mean, raw.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": {"shortest_edge": 224}}, "different sizes"),
        ({"size": {"height": 224, "width": 112}}, "not a square"),
        ({"size": {"shortest_edge": 224, "longest_edge": 640}, "do_center_crop": True}, "longest"),
        ({"do_resize": False}, "different sizes"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"do_rescale": False}, "from 0 to 255"),
        ({"resample": 77}, "77"),
        ({"image_mean": [0.5]}, "unpack"),
        ({"size": "big"}, "big"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_processors_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"E406 .*{words}"):
        from_processor({**SIGLIP, "crop_size": 224, **change}, {})


def test_other_transforms_of_timm_are_refused() -> None:
    for change in (
        {"crop_mode": "border"},
        {"input_size": (3, 224, 192)},
        {"input_size": (1, 8, 8)},
    ):
        with pytest.raises(DataError, match=r"E406 .*cannot be fed"):
            from_timm(timm_config(**change))


def test_pad_shows_the_whole_picture_in_the_middle_of_white() -> None:
    own = Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1)).chosen("pad")
    black = own.apply(Image.new("RGB", (400, 100)))
    expected = torch.ones(3, 8, 8)
    expected[:, 3:5] = 0
    assert torch.equal(black, expected)
    tall = own.apply(Image.new("RGB", (1, 3000)))  # one column is left of it
    assert torch.equal(tall.sum(dim=(0, 1)) == 0, torch.arange(8) == 3)
    assert own.settings["fill"] == "white"


def test_mmsr_squashes_with_mean_and_deviation_a_half() -> None:
    from torchvision import transforms

    theirs = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(HALF, HALF)]
    )
    picture = noise(300, 100)
    assert torch.equal(Preprocessing(scaled=256).chosen("mmsr").apply(picture), theirs(picture))


@pytest.mark.parametrize("resize", ["short", "squash", "pad"])
@pytest.mark.parametrize("size", [(5000, 9), (9, 5000), (30_000, 60), (1, 3000)], ids=str)
def test_the_way_with_less_memory_gives_the_same(
    size: tuple[int, int], resize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = noise(*size)
    for scaled in (None, 61):
        own = Preprocessing(48, resize, scaled, mean=(0, 0, 0), std=(1, 1, 1))
        monkeypatch.setattr(preprocessing, "MAX_BETWEEN", 2**40)
        plain = own.apply(picture)
        monkeypatch.setattr(preprocessing, "MAX_BETWEEN", 1000)
        # Pillow rounds to bytes between the two passes, which come in another order here.
        assert (own.apply(picture) - plain).abs().max() < 4.5 / 255


def test_a_strip_of_millions_of_pixels_is_not_blown_up() -> None:
    picture = Image.new("RGB", (1, 2_000_000), (9, 200, 30))
    for resize in ("short", "squash", "pad"):
        assert Preprocessing(resize=resize).apply(picture).shape == (3, 224, 224)


def test_settings_are_json_and_tell_everything() -> None:
    import json

    own = Preprocessing(scaled=248)
    assert json.loads(json.dumps(own.settings)) == {
        "size": 224,
        "resize": "short",
        "scaled": 248,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "rounding": "even",
        "fill": "black",
        "backend": "pillow",
    }


def test_unknown_names_and_impossible_numbers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r'Did you mean "squash"\?'):
        Preprocessing(resize="squish")
    with pytest.raises(UnknownNameError, match="interpolation"):
        Preprocessing(interpolation="random")
    with pytest.raises(UnknownNameError, match=r'preprocessing .mmrs.\. Did you mean "mmsr"'):
        Preprocessing().chosen("mmrs")
    with pytest.raises(DataError, match="0"):
        Preprocessing(size=0)
    with pytest.raises(DataError, match="deviation"):
        Preprocessing(std=(0.5, 0, 0.5))
    with pytest.raises(ValueError, match="mode L"):
        Preprocessing().apply(Image.new("L", (3, 3)))
