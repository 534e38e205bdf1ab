"""A pair of encoders against the libraries called directly, its folder, its towers, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Options
from mmbench.encoders.objectives import objective_of
from mmbench.encoders.pair import Pair, label
from mmbench.encoders.trunks import block_names, towers_of
from mmbench.encoders.tuned import save_tuned, tuned_digest
from mmbench.errors import ConfigError, DataError, UnknownNameError

TEXTS = ["red and green", "b"]


@pytest.fixture(scope="module")
def folders(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("a+b")  # a folder may hold what joins two names
    return {
        "text": models.save("bert", root / "text", n_layers=3),
        "vision": models.save("vit-b16", root / "vision"),
        "resnet": models.save("resnet50", root / "resnet"),
        "clip": models.save("clip-vit-b32", root / "clip", n_layers=1),
    }


def address(folders: dict[str, Path], vision: str = "vit-b16", folder: str = "vision") -> str:
    return f"minilm-l6={folders['text']}+{vision}={folders[folder]}"


@pytest.fixture(scope="module")
def pair(folders: dict[str, Path]) -> Pair:
    made = Pair(Options(model=address(folders), tokens=True))
    made.load()
    return made


@pytest.fixture(scope="module")
def saved(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pair"
    save_tuned(pair, folder)
    return folder


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]


def encode(pair: Pair) -> dict[str, Any]:
    texts = pair.text_batch(pair.tokenize(TEXTS))
    seen = pair.picture_batch([pair.read_picture(one, "x") for one in pictures()])
    with torch.no_grad():
        return {"textual": pair.encode_text(texts), "visual": pair.encode_picture(seen)}


def test_vectors_are_those_of_the_libraries_projected(pair: Pair, folders: dict[str, Path]) -> None:
    import timm
    import transformers
    from timm.data import create_transform, resolve_data_config

    found = encode(pair)
    model = transformers.BertModel.from_pretrained(folders["text"], add_pooling_layer=False).eval()
    words = transformers.AutoTokenizer.from_pretrained(folders["text"])
    weight = pair.module.textual_projection.weight.detach()
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            hidden = model(**words([text], return_tensors="pt")).last_hidden_state[0]
        mean = hidden.sum(dim=0) / len(hidden)
        projected = (mean / mean.norm()) @ weight.T
        expected = projected / projected.norm()
        assert torch.allclose(found["textual"].pooled[row], expected, atol=1e-5)
        tokens = found["textual"].tokens[row][: len(hidden)]
        assert torch.allclose(tokens, hidden, atol=1e-5)  # as the encoder gives them

    stated = json.loads((folders["vision"] / "config.json").read_text(encoding="utf-8"))
    vision = timm.create_model(stated["architecture"], num_classes=0, **stated["model_args"]).eval()
    vision.load_state_dict(load_file(folders["vision"] / "model.safetensors"))
    config = resolve_data_config(
        pretrained_cfg={**vision.pretrained_cfg, **stated["pretrained_cfg"]}
    )
    change = create_transform(**config, is_training=False)
    with torch.no_grad():
        pooled = vision(torch.stack([change(one) for one in pictures()]))
    projected = pooled @ pair.module.visual_projection.weight.detach().T
    expected = projected / projected.norm(dim=1, keepdim=True)
    assert torch.allclose(found["visual"].pooled, expected, atol=1e-5)


def test_projections_are_drawn_by_the_seed(folders: dict[str, Path]) -> None:
    made = Pair(Options(model=address(folders)))
    made.load()
    assert made.new == {"textual_projection.weight", "visual_projection.weight"}
    drawn = []
    for seed in (0, 1, 1):
        made.draw(seed)
        drawn.append(made.module.textual_projection.weight.detach().clone())
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], drawn[2])
    assert drawn[1].std().item() == pytest.approx(16**-0.5, rel=0.1)
    # What is drawn is no property of the encoder.
    before = dict(made.settings)
    made.draw(5)
    assert made.settings == before


def test_a_stored_pair_is_the_pair_that_was_stored(pair: Pair, saved: Path) -> None:
    again = Pair(Options(weights=saved, tokens=True))
    again.load()
    assert not again.new
    wanted, found = encode(pair), encode(again)
    for modality in wanted:
        assert torch.equal(wanted[modality].pooled, found[modality].pooled)
        assert torch.equal(wanted[modality].tokens, found[modality].tokens)
    again.draw(3)  # nothing is new in it
    assert torch.equal(encode(again)["visual"].pooled, wanted["visual"].pooled)
    assert (saved / "textual" / "tokenizer.json").is_file()
    assert len(tuned_digest(saved)) == 64


@pytest.mark.parametrize(("vision", "folder"), [("resnet50", "resnet"), ("timm", "vision")])
def test_other_vision_encoders(
    folders: dict[str, Path], tmp_path: Path, vision: str, folder: str
) -> None:
    made = Pair(Options(model=address(folders, vision, folder), preprocess="pad", max_tokens=6))
    made.load()
    save_tuned(made, tmp_path / "pair")
    again = Pair(Options(weights=tmp_path / "pair"))
    again.load()
    # How pictures are framed and texts cut was learnt with, and is kept.
    assert again.text.options.max_tokens == 6
    assert again.vision.options.preprocess == "pad"
    for modality, one in encode(made).items():
        assert torch.equal(one.pooled, encode(again)[modality].pooled)


def test_one_of_a_dual_encoder_will_do(folders: dict[str, Path]) -> None:
    made = Pair(Options(model=f"clip-vit-b32={folders['clip']}+vit-b16={folders['vision']}"))
    made.load()
    assert encode(made)["textual"].pooled.shape == (2, 256)


def test_what_learns_of_its_upper_part(pair: Pair) -> None:
    module = pair.module
    for modality, n_blocks in (("textual", 3), ("visual", 4)):
        (tower,) = towers_of(module, modality)
        assert len(block_names(module, tower)) == n_blocks
    names = objective_of(pair).learning("top", 1)
    assert {name for name in names if not name.startswith(("textual.", "visual."))} == {
        "textual_projection.weight",
        "visual_projection.weight",
        "logit_scale",
    }
    blocks = {name.split("layer.")[1][0] for name in names if "encoder.layer." in name}
    assert blocks == {"2"}
    assert {name.split(".")[2] for name in names if name.startswith("visual.blocks")} == {"3"}
    everything = objective_of(pair).learning("full", None)
    assert set(everything) == {name for name, _ in module.named_parameters()}


def test_names_of_sets(folders: dict[str, Path]) -> None:
    assert label("minilm-l6+resnet50") == "minilm-l6+resnet50"
    assert label("minilm_l6+timm:resnet18.a1_in1k") == "minilm-l6+timm-resnet18.a1_in1k"
    assert label("hf:a/b-c+resnet50") == "hf-a/b-c+resnet50"
    assert label(f"hf:{folders['text']}+timm={folders['vision']}") == "hf-text+timm-vision"
    assert label(address(folders)) == "minilm-l6+vit-b16"


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        ("minilm-l6", ConfigError, "does not name a text and a vision encoder"),
        ("+resnet50", ConfigError, "does not name a text and a vision encoder"),
        ("minilm-l6+nothing", ConfigError, "does not name a text and a vision encoder"),
        ("nothing+resnet50", UnknownNameError, "unknown encoder 'nothing'"),
        ("minilm-l6=+resnet50", ConfigError, "a folder belongs behind minilm-l6="),
        ("resnet50+minilm-l6", ConfigError, "resnet50 gives no textual vectors"),
        ("minilm-l6+minilm-l12", ConfigError, "minilm-l12 gives no visual vectors"),
        ("tfidf-svd+resnet50", ConfigError, "tfidf-svd cannot be one of a pair"),
        ("minilm-l6+vilt", ConfigError, "vilt gives no visual vectors"),
        ("minilm-l6+pair", ConfigError, "pair cannot be one of a pair"),
    ],
)
def test_addresses_that_cannot_be(model: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Pair(Options(model=model))


def test_options_that_mean_nothing(folders: dict[str, Path], saved: Path) -> None:
    with pytest.raises(ConfigError, match="pair needs two encoders"):
        Pair()
    with pytest.raises(ConfigError, match="a pair has no revision"):
        Pair(Options(model="minilm-l6+resnet50", revision="main"))
    with pytest.raises(ConfigError, match="is a pair of minilm-l6 and vit-b16, not of"):
        Pair(Options(model="minilm-l6+resnet50", weights=saved))
    with pytest.raises(DataError, match=r"E403 .* names one of a fine-tuned pair"):
        Pair(Options(weights=saved / "nowhere"))
    with pytest.raises(DataError, match=r"E403 .* holds no pair\.json"):
        Pair(Options(weights=folders["clip"]))


def test_broken_folders(saved: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(saved, tmp_path / name))

    def load(folder: Path) -> None:
        Pair(Options(weights=folder)).load()

    part = copied("part")
    shutil.copyfile(folders["text"] / "model.safetensors", part / "textual" / "model.safetensors")
    tensors = load_file(part / "textual" / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"] += 1
    save_file(tensors, part / "textual" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"E404 .*textual is not what pair\.json says"):
        load(part)

    other = copied("other")
    save_file({"textual_projection.weight": torch.zeros(3, 3)}, other / "model.safetensors")
    with pytest.raises(DataError, match=r"E406 .* holds textual_projection\.weight \[3, 3\], not"):
        load(other)

    old = copied("old")
    known = json.loads((old / "pair.json").read_text(encoding="utf-8"))
    (old / "pair.json").write_text(json.dumps({**known, "dim": 7}), encoding="utf-8")
    with pytest.raises(DataError, match=r"E406 .* of another version of mmbench"):
        load(old)
    (old / "pair.json").write_text(json.dumps({**known, "visual": 3}), encoding="utf-8")
    with pytest.raises(DataError, match=r"E404 .* names no vision encoder"):
        load(old)
    (old / "pair.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="E404 "):
        load(old)


def test_it_is_registered() -> None:
    assert ENCODERS.get("pair").obj is Pair
