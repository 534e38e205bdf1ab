"""Tiny models of the same architectures, random and saved as timm saves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Encoded, Options
from mmbench.encoders.timm_vision import TimmVision, visible_patches
from mmbench.errors import ConfigError, DataError, UnknownNameError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TINY: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet50": ("resnet50", 96, {"layers": [1, 1, 1, 1], "channels": [4, 8, 16, 32]}),
    "vgg16": ("vgg16", 64, {"mlp_ratio": 0.005}),
    "vgg19": ("vgg19", 64, {"mlp_ratio": 0.005}),
    "vit-b16": ("vit_base_patch16_224", 64, {**VIT, "img_size": 64}),
    "mae-b16": ("vit_base_patch16_224", 64, {**VIT, "img_size": 64}),
    "swin-b": (
        "swin_base_patch4_window7_224",
        64,
        {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "img_size": 64},
    ),
    "dinov2-b14": ("vit_base_patch14_dinov2", 56, {**VIT, "img_size": 56}),
    "dinov2-b14-reg4": ("vit_base_patch14_reg4_dinov2", 56, {**VIT, "img_size": 56}),
}
VITS = ("vit-b16", "mae-b16", "dinov2-b14", "dinov2-b14-reg4")


class Tiny(NamedTuple):
    """A saved model: its folder, and the model that was saved."""

    folder: Path
    model: Any
    size: int


def randomise(model: nn.Module) -> None:
    """Weights large enough that two pictures differ."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=draw)
            else:
                spread = 1 / np.sqrt(max(1, value[0].numel())) if value.ndim > 1 else 0.3
                value.normal_(1.0 if "norm" in name else 0.0, spread, generator=draw)


def make(folder: Path, architecture: str, size: int, arguments: dict[str, Any]) -> Tiny:
    import timm

    given = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    model = timm.create_model(architecture, num_classes=5, **given).eval()
    randomise(model)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": 5,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": MEAN,
            "std": STD,
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tiny(folder, model, size)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    root, made = tmp_path_factory.mktemp("timm"), {}

    def get(name: str) -> Tiny:
        if name not in made:
            architecture, size, arguments = TINY[name]
            made[name] = make(root / name, architecture, size, arguments)
        return made[name]

    return get


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    shapes = ((90, 140, 3), (300, 110, 3))
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def loaded(name: str, folder: Path, **options: Any) -> TimmVision:
    encoder = ENCODERS.get(name).obj(Options(weights=folder, **options))
    assert isinstance(encoder, TimmVision)
    encoder.load()
    assert not encoder.module.training
    return encoder


def encode(encoder: TimmVision, images: list[Image.Image], ids: str = "ab") -> Encoded:
    read = [encoder.read_picture(image, item) for image, item in zip(images, ids, strict=False)]
    with torch.inference_mode():
        return encoder.encode_picture(encoder.picture_batch(read))


def by_hand(found: Tiny) -> Tensor:
    """Both pictures as timm's own transform makes them."""
    from timm.data import create_transform

    transform = create_transform(
        input_size=(3, found.size, found.size),
        interpolation="bicubic",
        crop_pct=0.9,
        mean=MEAN,
        std=STD,
        is_training=False,
    )
    return torch.stack([transform(picture) for picture in pictures()])


def close(ours: Tensor | None, theirs: Tensor) -> bool:
    assert ours is not None
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.01  # else anything is close
    return torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max().clamp(min=1)))


def test_these_are_all_encoders_of_timm() -> None:
    classes = {name: ENCODERS.get(name).obj for name in ENCODERS.names()}
    found = {name for name, known in classes.items() if issubclass(known, TimmVision)}
    assert found == {*TINY, "timm"}


@pytest.mark.parametrize("name", TINY)
def test_vectors_are_those_of_timm_batched_and_alone(
    name: str, tiny: Callable[[str], Tiny]
) -> None:
    found = tiny(name)
    encoder = loaded(name, found.folder, tokens=True)
    with torch.inference_mode():
        features = found.model.forward_features(by_hand(found))
        pooled = found.model.forward_head(features, pre_logits=True)
    if name == "mae-b16":
        pooled = features.mean(dim=1)
    if features.ndim == 3:
        cells = features[:, {"dinov2-b14-reg4": 5}.get(name, 1) :]
    elif name == "swin-b":
        cells = features.reshape(2, 4, 64)
    else:
        cells = features.flatten(2).transpose(1, 2)
    both = encode(encoder, pictures())
    assert close(both.pooled, pooled)
    assert close(both.tokens, cells)
    assert both.mask is None
    assert both.pooled.dtype == torch.float32
    for index, picture in enumerate(pictures()):
        alone = encode(encoder, [picture])
        assert close(alone.pooled, pooled[index : index + 1])
        assert close(alone.tokens, cells[index : index + 1])
    again = encode(encoder, pictures())
    assert torch.equal(again.pooled, both.pooled)
    assert encode(loaded(name, found.folder), pictures()).tokens is None


def test_without_its_head_a_model_gives_what_it_gave_before(tiny: Callable[[str], Tiny]) -> None:
    import timm

    found = tiny("vgg16")
    direct = timm.create_model("vgg16", num_classes=0, mlp_ratio=0.005).eval()
    state = {k: v for k, v in found.model.state_dict().items() if not k.startswith("head.")}
    direct.load_state_dict(state)
    with torch.inference_mode():
        expected = direct(by_hand(found))
    assert expected.shape == (2, 4096)
    assert float(expected.min()) == 0.0  # after the ReLU of fc7
    assert close(encode(loaded("vgg16", found.folder), pictures()).pooled, expected)


@pytest.mark.parametrize("name", VITS)
def test_variants_of_vision_transformers(name: str, tiny: Callable[[str], Tiny]) -> None:
    found = tiny(name)
    prefix = {"dinov2-b14-reg4": 5}.get(name, 1)
    entering: list[Tensor] = []
    hook = found.model.blocks[0].register_forward_pre_hook(
        lambda module, inputs: entering.append(inputs[0])
    )
    with torch.inference_mode():
        features = found.model.forward_features(by_hand(found))
    hook.remove()
    patches = features[:, prefix:]
    expected = {
        "cls": features[:, 0],
        "mean": features.mean(dim=1),
        "patches": patches.mean(dim=1),
        "patch-emb": entering[0][:, prefix:].mean(dim=1),
    }
    for variant, pooled in expected.items():
        encoded = encode(loaded(name, found.folder, variant=variant, tokens=True), pictures())
        assert close(encoded.pooled, pooled), variant
        assert close(encoded.tokens, entering[0][:, prefix:] if "emb" in variant else patches)


def test_patches_of_swin_before_the_blocks(tiny: Callable[[str], Tiny]) -> None:
    found = tiny("swin-b")
    with torch.inference_mode():
        patches = found.model.patch_embed(by_hand(found))
    encoded = encode(loaded("swin-b", found.folder, variant="patch-emb", tokens=True), pictures())
    assert close(encoded.tokens, patches.reshape(2, 16 * 16, 8))
    assert close(encoded.pooled, patches.mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("name", "variant"), [("resnet50", "grid"), ("swin-b", "grid"), ("vit-b16", "patch-emb")]
)
def test_cells_go_row_by_row(name: str, variant: str, tiny: Callable[[str], Tiny]) -> None:
    found = tiny(name)
    encoder = loaded(name, found.folder, variant=variant, tokens=True)
    side = found.size * 10 // 9 + 1
    plain = Image.new("RGB", (side, side), (40, 90, 160))
    changed = plain.copy()
    changed.paste((250, 250, 10), (0, 0, side // 8, side))  # a strip on the left
    both = encode(encoder, [plain, changed])
    assert both.tokens is not None
    moved = (both.tokens[0] - both.tokens[1]).abs().amax(dim=1)
    rows = int(np.sqrt(len(moved)))
    columns = moved.view(rows, rows).mean(dim=0)
    assert columns.argmax() == 0
    assert columns[0] > 1.5 * columns[-1]


def test_a_mask_hides_the_same_patches_of_an_item_always(tiny: Callable[[str], Tiny]) -> None:
    found = tiny("mae-b16")
    encoder = loaded("mae-b16", found.folder, mask_ratio=0.75, tokens=True)
    both = encode(encoder, pictures())
    assert both.tokens is not None
    assert both.tokens.shape == (2, 4, 32)
    model, pixels = found.model, by_hand(found)
    for index, item in enumerate("ab"):
        kept = visible_patches(item, 16, 4).tolist()
        with torch.inference_mode():
            whole = model.patch_embed(pixels[index : index + 1]) + model.pos_embed[:, 1:]
            first = model.cls_token + model.pos_embed[:, :1]
            seen = torch.cat([first, whole[:, kept]], dim=1)
            seen = model.norm(model.blocks(seen))
        assert close(both.pooled[index : index + 1], seen.mean(dim=1))
        assert close(both.tokens[index : index + 1], seen[:, 1:])
        alone = encode(encoder, [pictures()[index]], item)
        assert close(alone.pooled, seen.mean(dim=1))
    other = encode(encoder, pictures(), "cd")
    assert not torch.allclose(other.pooled, both.pooled, atol=1e-3)
    assert encoder.settings["mask_ratio"] == 0.75


def test_visible_patches_are_drawn_uniformly_and_by_the_id_alone() -> None:
    import hashlib

    noise = hashlib.shake_256(b"0017").digest(8 * 196)
    ranked = sorted(range(196), key=lambda n: int.from_bytes(noise[8 * n : 8 * n + 8], "little"))
    assert visible_patches("0017", 196, 49).tolist() == sorted(ranked[:49])
    assert visible_patches("17", 196, 49).tolist() != sorted(ranked[:49])
    counts = np.zeros(196)
    for item in range(2000):
        counts[visible_patches(str(item), 196, 49)] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard deviations of 0.0097
    assert visible_patches("\ud800 and 🙂", 4, 1).shape == (1,)


def test_positions_of_dinov2_are_resampled_from_its_larger_pictures(tmp_path: Path) -> None:
    import timm

    arguments = {"embed_dim": 16, "depth": 1, "num_heads": 1, "img_size": 266}
    found = make(tmp_path / "large", "vit_base_patch14_dinov2", 266, arguments)
    encoder = loaded("dinov2-b14", found.folder, tokens=True)
    direct = timm.create_model(
        "vit_base_patch14_dinov2",
        pretrained=True,
        num_classes=5,
        pretrained_cfg_overlay={"file": str(found.folder / "model.safetensors")},
        **{**arguments, "img_size": 224},
    ).eval()
    with torch.inference_mode():
        features = direct.forward_features(by_hand(found._replace(size=224)))
    encoded = encode(encoder, pictures())
    assert close(encoded.pooled, features[:, 0])
    assert close(encoded.tokens, features[:, 1:])
    assert encoder.settings["image"]["size"] == 224


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_ema"])
def test_a_single_pth_file_is_read_in_its_wrapper(
    wrapper: str, tmp_path: Path, tiny: Callable[[str], Tiny]
) -> None:
    found = tiny("vit-b16")
    state = {f"module.{key}": value for key, value in found.model.state_dict().items()}
    content = {wrapper: state, "epoch": 3, "args": {"lr": 0.1}} if wrapper else state
    torch.save(content, tmp_path / "vit.pth")
    (tmp_path / "config.json").write_bytes((found.folder / "config.json").read_bytes())
    for place in (tmp_path, tmp_path / "vit.pth"):
        encoder = loaded("vit-b16", place)
        assert close(
            encode(encoder, pictures()).pooled,
            encode(loaded("vit-b16", found.folder), pictures()).pooled,
        )


def flat(state: dict[str, Tensor], key: str) -> Tensor:
    return state.pop(key).flatten(1).contiguous()


@pytest.mark.parametrize("name", ["vgg16", "vit-b16", "swin-b"])
def test_older_layouts_are_converted_as_timm_does(
    name: str, tmp_path: Path, tiny: Callable[[str], Tiny]
) -> None:
    found = tiny(name)
    state = load_file(found.folder / "model.safetensors")
    if name == "vgg16":  # torchvision's: a linear layer in place of a convolution of 7 x 7
        state["classifier.0.weight"] = flat(state, "pre_logits.fc1.weight")
        state["classifier.0.bias"] = state.pop("pre_logits.fc1.bias")
    elif name == "swin-b":  # tables that were stored and are computed now
        state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49).long()
        state["layers.0.blocks.0.attn_mask"] = torch.zeros(4, 49, 49)
    else:  # patches cut by hand before they were a convolution
        state["patch_embed.proj.weight"] = flat(state, "patch_embed.proj.weight")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((found.folder / "config.json").read_bytes())
    ours = encode(loaded(name, tmp_path), pictures()).pooled
    assert close(ours, encode(loaded(name, found.folder), pictures()).pooled)


@pytest.mark.parametrize("preprocess", ["pad", "mmsr"])
def test_preprocessing_is_chosen_and_stated(preprocess: str, tiny: Callable[[str], Tiny]) -> None:
    found = tiny("vit-b16")
    own, other = (
        loaded("vit-b16", found.folder),
        loaded("vit-b16", found.folder, preprocess=preprocess),
    )
    assert other.settings["preprocess"] == preprocess
    assert other.settings["image"] != own.settings["image"]
    assert (other.preprocessing.size, own.preprocessing.scaled) == (64, 71)
    assert not torch.allclose(
        encode(own, pictures()).pooled, encode(other, pictures()).pooled, atol=1e-3
    )


def test_settings_are_json_and_follow_the_weights(
    tmp_path: Path, tiny: Callable[[str], Tiny]
) -> None:
    found = tiny("vit-b16")
    settings = loaded("vit-b16", found.folder).settings
    assert json.loads(json.dumps(settings))["architecture"] == "vit_base_patch16_224"
    assert settings["model"] == "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
    other = make(tmp_path / "other", *TINY["vit-b16"])
    state = load_file(other.folder / "model.safetensors")
    state["norm.bias"] += 1
    save_file(state, other.folder / "model.safetensors")
    changed = loaded("vit-b16", other.folder).settings
    assert changed["weights_sha256"] != settings["weights_sha256"]


# --------------------------------------------------------------------------------------------
# What cannot be used.


class Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.fixture
def copy(tmp_path: Path, tiny: Callable[[str], Tiny]) -> Path:
    """A folder of a ViT to be spoilt."""
    for file in tiny("vit-b16").folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(config), encoding="utf-8")


def restate(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def refused(folder: Path, words: str, name: str = "vit-b16") -> None:
    with pytest.raises(DataError, match=words):
        loaded(name, folder)


def test_a_folder_that_is_not_there_or_has_no_weights(copy: Path) -> None:
    refused(copy / "absent", "E403 .*absent is not here")
    (copy / "model.safetensors").unlink()
    refused(copy, r"E403 .*holds no weights.*config\.json")


def test_a_pickle_with_code_is_not_opened(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"state_dict": Code()}, copy / "vit.pth")
    refused(copy, "E405 .*could run code")
    assert "run" not in capsys.readouterr().out


def test_truncated_and_foreign_files(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(copy, "E404 .*is broken")
    (copy / "model.safetensors").unlink()
    torch.save([torch.zeros(3)], copy / "list.pth")
    refused(copy, "E406 .*holds a list, not weights")


def test_weights_that_are_missing_left_over_or_of_another_shape(copy: Path) -> None:
    def lacking(state: dict[str, Tensor]) -> None:
        del state["blocks.1.mlp.fc1.weight"]

    restate(copy, lacking)
    refused(copy, r"E406 .*lacks blocks\.1\.mlp\.fc1\.weight")
    restate(copy, lambda state: state.update({"blocks.1.mlp.fc1.weight": torch.zeros(128, 33)}))
    refused(copy, r"E406 .*does not fit VisionTransformer.*blocks\.1\.mlp\.fc1\.weight")
    restate(
        copy,
        lambda state: state.update(
            {"blocks.1.mlp.fc1.weight": torch.zeros(128, 32), "blocks.2.norm1.bias": torch.ones(2)}
        ),
    )
    refused(copy, r"E406 .*no place: blocks\.2\.norm1\.bias")


def test_another_architecture(copy: Path, tiny: Callable[[str], Tiny]) -> None:
    refused(copy, "E406 .*'vit_base_patch16_224'; SwinB needs 'swin_base_patch4", "swin-b")
    (copy / "config.json").unlink()
    (copy / "config.json").write_bytes((tiny("resnet50").folder / "config.json").read_bytes())
    refused(copy, "E406 .*(lacks|does not fit)", "resnet50")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_args": {"checkpoint_path": "x.pth"}}, "E405 .*checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "E405 .*pretrained"),
        ({"model_args": {"in_chans": 1}}, "E405 .*in_chans"),
        ({"model_args": {"wings": 2}}, "E406 .*timm cannot make .*wings"),
        ({"model_args": [1]}, "E405 .*model_args"),
        ({"pretrained_cfg": {"mean": "red"}}, "E406 .*no preprocessing"),
        ({"pretrained_cfg": ["mean"]}, "E406 .*no JSON object"),
        ({"model_args": {"num_heads": 0}}, "E406 .*timm cannot make"),
    ],
    ids=str,
)
def test_configurations_that_ask_for_what_must_not_be(
    changes: dict[str, Any], words: str, copy: Path
) -> None:
    edit(copy, **changes)
    refused(copy, words)


def test_a_folder_of_transformers_is_told_apart(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    refused(copy, r"E406 .*names no timm architecture.*\(vit\)")
    (copy / "config.json").write_text("{", encoding="utf-8")
    refused(copy, "E404 .*is broken")


def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in TINY:
        encoder = ENCODERS.get(name).obj()
        with pytest.raises(DataError, match=f"E401 {encoder.hub.id} .*--download.*--weights DIR"):
            encoder.load()


def test_options_that_do_not_suit() -> None:
    with pytest.raises(ConfigError, match="ViTB16 takes no mask-ratio"):
        ENCODERS.get("vit-b16").obj(Options(mask_ratio=0.5))
    with pytest.raises(ConfigError, match=r"mask-ratio 1\.0 is not a share"):
        ENCODERS.get("mae-b16").obj(Options(mask_ratio=1.0))
    with pytest.raises(ConfigError, match="takes no max-tokens"):
        ENCODERS.get("resnet50").obj(Options(max_tokens=50))
    with pytest.raises(UnknownNameError, match=r"variant of ResNet50 .cls."):
        ENCODERS.get("resnet50").obj(Options(variant="cls"))
    with pytest.raises(UnknownNameError, match=r'Did you mean "pad"'):
        ENCODERS.get("resnet50").obj(Options(preprocess="pads"))


@pytest.mark.parametrize("name", TINY)
def test_dimensions_and_counts_are_those_of_the_docstrings(name: str) -> None:
    """At full size, on the meta device: no memory, no time."""
    import timm

    known: dict[str, tuple[int, int]] = {  # parameters without the classifier, picture size
        "resnet50": (23_508_032, 224),
        "vgg16": (134_260_544, 224),
        "vgg19": (139_570_240, 224),
        "vit-b16": (85_798_656, 224),
        "mae-b16": (85_798_656, 224),
        "swin-b": (86_743_224, 224),
        "dinov2-b14": (85_724_928, 224),
        "dinov2-b14-reg4": (85_727_232, 224),
    }
    encoder = ENCODERS.get(name).obj
    assert issubclass(encoder, TimmVision)
    size = {"img_size": encoder.max_size} if encoder.max_size else {}
    with torch.device("meta"):
        model = timm.create_model(encoder.hub.id.removeprefix("timm/"), num_classes=0, **size)
    assert sum(value.numel() for value in model.parameters()) == known[name][0]
    assert model.pretrained_cfg["license"].lower() == encoder.hub.licence.lower()
