from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Encoded, Options
from mmbench.encoders.timm import AnyTimm
from mmbench.errors import ConfigError, DataError

CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [4, 8, 16, 24]}
VIT = {"embed_dim": 16, "depth": 1, "num_heads": 1, "img_size": 32}
SIGLIP = {**VIT, "img_size": 32}


def make(folder: Path, architecture: str, arguments: dict[str, Any], size: int = 32) -> nn.Module:
    import timm

    torch.manual_seed(5)
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    model: nn.Module = timm.create_model(architecture, num_classes=3, **given).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, size, size], "crop_mode": "squash", "crop_pct": 1.0},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return model


def picture() -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))


def encode(encoder: AnyTimm) -> Encoded:
    encoder.load()
    with torch.inference_mode():
        return encoder.encode_picture(encoder.picture_batch([encoder.read_picture(picture(), "a")]))


def pixels(model: Any, folder: Path) -> torch.Tensor:
    from timm.data import create_transform, resolve_data_config

    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    config = resolve_data_config(pretrained_cfg={**model.pretrained_cfg, **stated})
    made: torch.Tensor = create_transform(**config, is_training=False)(picture())[None]
    return made


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("convnext_tiny", CONVNEXT),
        ("vit_base_patch16_siglip_224", {**SIGLIP, "num_heads": 2}),
        ("vit_base_patch16_224", {**VIT, "global_pool": "avg"}),
    ],
    ids=str,
)
def test_any_model_by_its_folder(
    architecture: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model: Any = make(tmp_path / "it", architecture, arguments)
    given = pixels(model, tmp_path / "it")
    with torch.inference_mode():
        features = model.forward_features(given)
        expected = model.forward_head(features, pre_logits=True)
    assert expected.abs().max() > 0.1
    for options in (
        Options(model=str(tmp_path / "it"), tokens=True),
        Options(weights=tmp_path / "it", tokens=True),
        Options(weights=tmp_path / "it", model=architecture, tokens=True),
    ):
        encoder = AnyTimm(options)
        encoded = encode(encoder)
        assert torch.allclose(encoded.pooled, expected, rtol=0, atol=1e-5)
        assert encoded.tokens is not None
        if features.ndim == 4:
            cells = features.flatten(2).transpose(1, 2)
        else:
            cells = features[:, model.num_prefix_tokens :]
        assert torch.allclose(encoded.tokens, cells, rtol=0, atol=1e-5)
        assert encoder.settings["architecture"] == architecture


def test_vectors_that_a_model_does_not_have(tmp_path: Path) -> None:
    make(tmp_path / "grid", "convnext_tiny", CONVNEXT)
    make(tmp_path / "row", "vit_base_patch16_224", VIT)
    make(tmp_path / "classless", "vit_base_patch16_siglip_224", {**SIGLIP, "num_heads": 2})
    for folder, variant in (
        ("grid", "cls"),
        ("grid", "patches"),
        ("grid", "patch-emb"),
        ("row", "grid"),
        ("classless", "cls"),
    ):
        with pytest.raises(DataError, match=f"E407 .*no '{variant}' vectors: .*Another variant"):
            AnyTimm(Options(weights=tmp_path / folder, variant=variant)).load()
    assert encode(AnyTimm(Options(weights=tmp_path / "grid", variant="grid"))).pooled.shape == (
        1,
        24,
    )


def test_names_lead_to_the_published_weights() -> None:
    named = {
        "resnet50": "timm/resnet50.a1_in1k",
        "resnet50.tv_in1k": "timm/resnet50.tv_in1k",
        "hf-hub:somebody/model": "somebody/model",
        "somebody/model": "somebody/model",
    }
    for name, hub in named.items():
        assert AnyTimm(Options(model=name)).hub.id == hub
    assert AnyTimm(Options(model="vit_base_patch16_224.mae")).hub.licence == "cc-by-nc-4.0"
    assert ENCODERS.get("timm").obj is AnyTimm
    assert AnyTimm.hub.id == ""  # of the class, not changed by any of these


def test_unknown_names_show_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnet5O'\. Did you mean \"resnet50\""):
        AnyTimm(Options(model="resnet5O"))
    with pytest.raises(ConfigError, match=r'weights .*a1_in1\'\. Did you mean "resnet50\.a1_in1k"'):
        AnyTimm(Options(model="resnet50.a1_in1"))
    with pytest.raises(ConfigError, match="timm needs a model"):
        AnyTimm()


def test_a_folder_and_a_name_that_do_not_go_together(tmp_path: Path) -> None:
    make(tmp_path / "it", "convnext_tiny", CONVNEXT)
    with pytest.raises(DataError, match=r"E406 .*'convnext_tiny', not 'resnet50'"):
        AnyTimm(Options(weights=tmp_path / "it", model="resnet50")).load()
    (tmp_path / "it" / "config.json").unlink()
    with pytest.raises(DataError, match=r"E403 .*no config\.json that names a timm"):
        AnyTimm(Options(weights=tmp_path / "it")).load()
    with pytest.raises(DataError, match=r"E406 .*(lacks|does not fit)"):
        AnyTimm(Options(weights=tmp_path / "it", model="resnet18")).load()


def test_an_architecture_that_timm_does_not_know(tmp_path: Path) -> None:
    make(tmp_path / "it", "convnext_tiny", CONVNEXT)
    path = tmp_path / "it" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "architecture": "convnext_tinny"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r'no model .convnext_tinny.*"convnext_tiny"'):
        AnyTimm(Options(weights=tmp_path / "it")).load()
