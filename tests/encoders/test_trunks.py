"""Which parts learn, and a trunk that is run once: on every architecture of the two papers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Batch, NeuralEncoder, Options
from mmbench.encoders.trunks import (
    Trunk,
    block_names,
    learning_names,
    recompute,
    top_names,
    towers_of,
    used_names,
)
from mmbench.errors import ConfigError

TEXTS = ["a small tent", "", "knife of steel for cooks"]
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "textual", {}),
    ("roberta", "textual", {}),
    ("electra", "textual", {}),
    ("mpnet", "textual", {}),
    ("mae-b16", "visual", {}),
    ("swin-b", "visual", {}),
    ("resnet50", "visual", {}),
    ("clip-vit-b32", "visual", {}),
    ("clip-vit-b32", "textual", {}),
    ("groupvit", "visual", {}),
    ("groupvit", "textual", {}),
    ("vilt", "joint", {"preprocess": "mmsr"}),
    ("visualbert", "joint", {"variant": "grid"}),
    ("visualbert", "joint", {"variant": "patch-emb"}),
    ("visualbert", "joint", {"variant": "patch-vit"}),
    ("flava", "joint", {"variant": "joint"}),
    ("flava", "visual", {}),
    ("flava", "textual", {}),
    ("vlmo-base-plus", "joint", {"variant": "joint"}),
    ("vlmo-base-plus", "textual", {}),
    ("vlmo-base-plus", "visual", {}),
]


def _tiny_models() -> ModuleType:
    path = Path(__file__).parents[1] / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    models, root = _tiny_models(), tmp_path_factory.mktemp("trunks")
    kinds = dict.fromkeys(models.kind_of(name, options) for name, _, options in CASES)
    return {kind: models.save(kind, root / kind) for kind in kinds}


class Live(NamedTuple):
    """A loaded encoder with a batch."""

    encoder: NeuralEncoder
    modality: str
    texts: Batch
    pictures: Batch

    def states(self) -> Tensor:
        tokens = self.encoder.read(self.texts, self.pictures, self.modality).tokens
        assert tokens is not None
        return tokens

    def blank(self) -> Live:
        """The same without anything in the pictures."""
        pixels = torch.zeros_like(self.pictures.get("pixel_values", torch.zeros(0)))
        return self._replace(pictures={**self.pictures, "pixel_values": pixels})


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)) for _ in TEXTS]


def live(folders: dict[str, Path], name: str, modality: str, **options: Any) -> Live:
    place = folders[_tiny_models().kind_of(name, options)]
    encoder = ENCODERS.get(name).obj(Options(weights=place, tokens=True, **options))
    assert isinstance(encoder, NeuralEncoder)
    encoder.load()
    texts, seen = {}, {}
    if modality != "visual":
        texts = encoder.text_batch(encoder.tokenize(TEXTS))
    if modality != "textual":
        read = [encoder.read_picture(picture, "7") for picture in pictures()]
        seen = encoder.picture_batch(read)
    return Live(encoder, modality, texts, seen)


def learn(case: Live, tune: str, blocks: int | None = None) -> list[str]:
    """Let the chosen part learn; returns the names of its parameters."""
    module = case.encoder.module
    names = learning_names(module, towers_of(module, case.modality), tune, blocks)
    names = used_names(module, names, case.states)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name in set(names))
    return names


def gradients(module: nn.Module, states: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    weights = torch.linspace(-1, 1, states.numel()).view(states.shape)
    (states * weights).sum().backward()
    return {n: w.grad.clone() for n, w in module.named_parameters() if w.grad is not None}


# Architecture, modality, index of the first parameter that learns (specification of MMSR, section
# 12), millions of weights that learn in the blocks themselves.
REAL = [
    ("BertModel", "BertConfig", {}, "textual", 165, 14.18),
    ("RobertaModel", "RobertaConfig", {"type_vocab_size": 1}, "textual", 165, 14.18),
    (
        "ElectraModel",
        "ElectraConfig",
        {
            "embedding_size": 768,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
        "textual",
        165,
        14.18,
    ),
    ("ViTMAEModel", "ViTMAEConfig", {}, "visual", 164, 14.18),
    ("CLIPVisionModel", "CLIPVisionConfig", {}, "visual", 165, 14.18),
    (
        "SwinModel",
        "SwinConfig",
        {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
        "visual",
        387,
        25.20,
    ),
]


@pytest.mark.parametrize(("model", "config", "given", "modality", "first", "millions"), REAL)
def test_the_top_of_real_architectures(
    model: str, config: str, given: dict[str, Any], modality: str, first: int, millions: float
) -> None:
    import transformers

    with torch.device("meta"):
        module = getattr(transformers, model)(getattr(transformers, config)(**given))
    towers = towers_of(module, modality)
    names = [name for name, _ in module.named_parameters()]
    learning = learning_names(module, towers, "top")
    assert names.index(learning[0]) == first
    assert not any("pooler" in name or "embedd" in name for name in learning)
    (tower,) = towers
    blocks = tuple(f"{name}." for name in block_names(module, tower)[-2:])
    n_weights = sum(w.numel() for n, w in module.named_parameters() if n.startswith(blocks))
    assert round(n_weights / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "blocks", "millions", "first"),
    [
        ("resnet50", 3, 14.96, 129),
        ("vit_base_patch16_224", 2, 14.18, 4 + 10 * 12),
        ("swin_base_patch4_window7_224", 2, 25.20, None),
    ],
)
def test_the_top_of_real_architectures_of_timm(
    name: str, blocks: int, millions: float, first: int | None
) -> None:
    import timm

    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0)
    towers = towers_of(module, "visual")
    stack = block_names(module, towers[0])
    top = tuple(f"{block}." for block in stack[-blocks:])
    learning = learning_names(module, towers, "top")
    n_weights = sum(w.numel() for n, w in module.named_parameters() if n.startswith(top))
    assert round(n_weights / 1e6, 2) == millions
    assert {n for n, _ in module.named_parameters() if n.startswith(top)} <= set(learning)
    if first is not None:
        assert [n for n, _ in module.named_parameters()].index(learning[0]) == first


@pytest.mark.parametrize(
    ("model", "config", "modality", "parts"),
    [
        ("ViltModel", "ViltConfig", "joint", [f"encoder.layer.{k}." for k in (8, 9, 10, 11)]),
        (
            "FlavaModel",
            "FlavaConfig",
            "joint",
            [
                "image_model.encoder.layer.10.",
                "image_model.encoder.layer.11.",
                "text_model.encoder.layer.10.",
                "text_model.encoder.layer.11.",
                "multimodal_model.",
                "image_to_mm_projection.",
                "text_to_mm_projection.",
            ],
        ),
        (
            "GroupViTModel",
            "GroupViTConfig",
            "visual",
            ["vision_model.encoder.stages.2.layers.1.", "vision_model.encoder.stages.2.layers.2."],
        ),
    ],
)
def test_the_top_of_models_of_pairs(
    model: str, config: str, modality: str, parts: list[str]
) -> None:
    import transformers

    with torch.device("meta"):
        module = getattr(transformers, model)(getattr(transformers, config)())
    learning = set(learning_names(module, towers_of(module, modality), "top"))
    named = [name for name, _ in module.named_parameters()]
    for part in parts:
        inside = {name for name in named if name.startswith(part)}
        assert inside
        assert inside <= learning
    allowed = (*parts, "layernorm", "pooler", "image_model.", "text_model.", "vision_model.")
    allowed += ("image_projection", "text_projection", "visual_projection")
    assert all(name.startswith(allowed) for name in learning)
    lower = {name for name in named if ".layer.7." in name or ".layers.0." in name}
    assert not lower & learning or model == "FlavaModel"


@pytest.mark.parametrize(("name", "modality", "options"), CASES)
def test_a_trunk_run_once_gives_the_same_values_and_gradients(
    folders: dict[str, Path], name: str, modality: str, options: dict[str, Any]
) -> None:
    case = live(folders, name, modality, **options)
    names = learn(case, "top")
    whole = case.states()
    expected = gradients(case.encoder.module, whole)
    assert set(expected) == set(names)
    trunk = Trunk(case.encoder.module, towers_of(case.encoder.module, modality), "top", None)
    with torch.no_grad():
        states = trunk.capture(case.states)
    trunk.release()
    with trunk.given(states):
        found = case.blank().states()
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)
    for weight, gradient in gradients(case.encoder.module, found).items():
        torch.testing.assert_close(gradient, expected[weight], atol=1e-5, rtol=1e-5)
    # And the states matter: others give something else.
    with trunk.given([state.roll(1, dims=0) for state in states]), torch.no_grad():
        assert not torch.allclose(case.blank().states(), whole)


@pytest.mark.parametrize(("name", "modality", "options"), CASES)
def test_all_that_learns_in_full_has_a_gradient(
    folders: dict[str, Path], name: str, modality: str, options: dict[str, Any]
) -> None:
    case = live(folders, name, modality, **options)
    top, full = learn(case, "top"), learn(case, "full")
    assert set(top) < set(full)
    assert set(gradients(case.encoder.module, case.states())) == set(full)
    assert learn(case, "none") == []


def test_states_are_the_librarys(folders: dict[str, Path]) -> None:
    import timm
    import transformers
    from safetensors.torch import load_file

    text = live(folders, "bert", "textual")
    bert = transformers.BertModel.from_pretrained(folders["bert"]).eval()
    with torch.no_grad():
        expected = bert(**text.texts).last_hidden_state
        real = text.texts["attention_mask"].bool()
        torch.testing.assert_close(text.states()[real], expected[real], atol=1e-5, rtol=0)
        words = live(folders, "clip-vit-b32", "textual")
        clip = transformers.CLIPModel.from_pretrained(folders["clip-vit-b32"]).eval()
        expected = clip.text_model(**words.texts).last_hidden_state
        real = words.texts["attention_mask"].bool()
        torch.testing.assert_close(words.states()[real], expected[real], atol=1e-5, rtol=0)
        seen = live(folders, "clip-vit-b32", "visual")
        expected = clip.vision_model(**seen.pictures).last_hidden_state
        expected = clip.vision_model.post_layernorm(expected)
        torch.testing.assert_close(seen.states(), expected, atol=1e-5, rtol=0)
    models = _tiny_models()
    for name in ("mae-b16", "swin-b", "resnet50"):
        architecture, _, arguments = models.TIMM[name]
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        model = timm.create_model(architecture, num_classes=0, **given).eval()
        model.load_state_dict(load_file(folders[name] / "model.safetensors"))
        case = live(folders, name, "visual")
        with torch.no_grad():
            features = model.forward_features(case.pictures["pixel_values"])
            if name == "resnet50":  # [B, E, H, W], read row by row
                features = features.flatten(2).transpose(1, 2)
            expected = features.flatten(1, -2)
            # Class tokens are among them.
            torch.testing.assert_close(case.states(), expected, atol=1e-5, rtol=0)


def test_states_of_vilt_are_the_librarys_but_for_the_order_of_patches(
    folders: dict[str, Path],
) -> None:
    import transformers

    case = live(folders, "vilt", "joint", preprocess="mmsr")
    vilt = transformers.ViltModel.from_pretrained(folders["vilt"]).eval()
    row = 2  # the longest text, so that nothing is padded
    with torch.no_grad():
        texts = {name: ids[row : row + 1] for name, ids in case.texts.items()}
        pixels = case.pictures["pixel_values"][row : row + 1]
        expected = vilt(**texts, pixel_values=pixels).last_hidden_state[0]
        found = case.states()[row]
    n_text = texts["input_ids"].shape[1]
    torch.testing.assert_close(found[: n_text + 1], expected[: n_text + 1], atol=1e-5, rtol=0)
    gap = torch.cdist(found[n_text + 1 :].double(), expected[n_text + 1 :].double())
    assert gap.min(dim=1).values.max() < 1e-5
    assert found.shape == expected.shape


@pytest.mark.parametrize("name", ["bert", "vlmo-base-plus", "swin-b"])
def test_recomputing_activations_changes_nothing(folders: dict[str, Path], name: str) -> None:
    modality = "visual" if name == "swin-b" else "textual"
    case = live(folders, name, modality)
    learn(case, "full")
    module = case.encoder.module.train()  # dropout and stochastic depth, drawn the same again
    torch.manual_seed(3)
    expected = gradients(module, case.states())
    recompute(module, towers_of(module, modality))
    torch.manual_seed(3)
    found = gradients(module, case.states())
    assert found.keys() == expected.keys()
    for weight in expected:
        torch.testing.assert_close(found[weight], expected[weight], atol=1e-6, rtol=1e-5)


def test_towers_of_models_without_a_layout_are_made_out() -> None:
    import timm
    import transformers

    sizes = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
    text = transformers.DistilBertModel(transformers.DistilBertConfig(**sizes))
    (tower,) = towers_of(text, "textual")
    assert block_names(text, tower) == [f"transformer.layer.{k}" for k in range(3)]
    causal = transformers.LlamaModel(
        transformers.LlamaConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=50,
        )
    )
    (tower,) = towers_of(causal, "textual")
    assert block_names(causal, tower)[-1] == "layers.2"
    assert "norm.weight" in learning_names(causal, (tower,), "top")
    picture = timm.create_model("convnext_atto", num_classes=0)
    (tower,) = towers_of(picture, "visual")
    assert block_names(picture, tower)[-1] == "stages.3.blocks.1"


def test_what_cannot_be_told_apart_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no stack of blocks"):
        towers_of(nn.Linear(2, 2), "textual")
    case = live(folders, "bert", "textual")
    towers = towers_of(case.encoder.module, "textual")
    with pytest.raises(ConfigError, match="9 is more than the 4 blocks of BertModel"):
        top_names(case.encoder.module, towers, 9)
    with pytest.raises(ConfigError, match="BertModel reads no visual content"):
        towers_of(case.encoder.module, "visual")


def test_a_number_of_blocks_may_be_asked_for(folders: dict[str, Path]) -> None:
    case = live(folders, "bert", "textual")
    towers = towers_of(case.encoder.module, "textual")
    assert top_names(case.encoder.module, towers, 1) == ["encoder.layer.3"]
    assert top_names(case.encoder.module, towers, 4)[0] == "encoder.layer.0"
    assert Trunk(case.encoder.module, towers, "top", 3).boundaries == ["encoder.layer.1"]
    assert Trunk(case.encoder.module, towers, "full", None).boundaries == []
    assert Trunk(case.encoder.module, towers, "none", None).boundaries == ["encoder.layer.3"]
