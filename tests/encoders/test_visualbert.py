from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.faster_rcnn import FasterRCNN
from mmbench.encoders.neural import Encoded, Options
from mmbench.encoders.trunks import Trunk, learning_names, towers_of
from mmbench.encoders.visualbert import VisualBert
from mmbench.engine.extraction import How, extract_neural
from mmbench.errors import ConfigError, DataError, UnknownNameError

TEXTS = ["A small tent.", "a knife of stainless steel for cooks"]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for wide, high in [(70, 45), (40, 60)]
    ]


def tokenizer() -> Any:
    import transformers

    letters = string.ascii_lowercase + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [*(f"##{letter}" for letter in letters), "tent", "knife", "steel"]
    return transformers.BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)})


def write_visualbert(place: Path, width: int) -> None:
    """A pickle with the heads of the published file, as the hub has it, and BERT's tokenizer."""
    import transformers

    torch.manual_seed(5)
    words = tokenizer()
    config = transformers.VisualBertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        visual_embedding_dim=width,
        max_position_embeddings=60,
        initializer_range=0.3,
    )
    assert config.pad_token_id != words.pad_token_id  # the trap
    model = transformers.VisualBertForPreTraining(config)
    place.mkdir(parents=True)
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    config.save_pretrained(place)
    words.save_pretrained(place)


@pytest.fixture(scope="module")
def grid_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VisualBERT for vectors of 2048 numbers, and a ResNet-50 of four blocks."""
    import timm

    place = tmp_path_factory.mktemp("visualbert-grid")
    write_visualbert(place / "visualbert", 2048)
    shape = {"layers": [1, 1, 1, 1], "base_width": 8}
    model = timm.create_model("resnet50", num_classes=0, **shape).eval()
    (place / "detector").mkdir()
    from safetensors.torch import save_file

    save_file(model.state_dict(), place / "detector/model.safetensors")
    config = {"architecture": "resnet50", "model_args": shape, "pretrained_cfg": {}}
    (place / "detector/config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def region_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VisualBERT for vectors of 1024 numbers, and a detector with random weights."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    place = tmp_path_factory.mktemp("visualbert-region")
    write_visualbert(place / "visualbert", 1024)
    torch.manual_seed(6)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with torch.no_grad():  # so that few boxes have a score above the threshold
        model.roi_heads.box_predictor.cls_score.weight.mul_(0.15)
    (place / "detector").mkdir()
    torch.save(model.state_dict(), place / "detector/model.pth")
    return place


@pytest.fixture(scope="module")
def patch_folder(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VisualBERT for vectors of 2048 numbers, which patches do not have, and a small CLIP."""
    place = tmp_path_factory.mktemp("visualbert-patches")
    write_visualbert(place / "visualbert", 2048)
    models.save("clip-vit-b32", place / "detector")
    return place


def loaded(folder: Path, **options: Any) -> VisualBert:
    encoder = ENCODERS.get("visualbert").obj(Options(weights=folder, **options))
    assert isinstance(encoder, VisualBert)
    encoder.load()
    return encoder


def encoded(encoder: VisualBert, texts: list[str], images: list[Image.Image]) -> Encoded:
    read = encoder.picture_batch([encoder.read_picture(image, "7") for image in images])
    with torch.inference_mode():
        found = encoder.encode_joint(encoder.text_batch(encoder.tokenize(texts)), read)
    assert set(found) == {"joint"}
    return found["joint"]


def of_the_library(folder: Path, text: str, regions: torch.Tensor) -> Any:
    """What transformers makes of a text and vectors of a picture [R, D]."""
    import transformers

    place = folder / "visualbert"
    model = transformers.VisualBertModel.from_pretrained(place).eval()
    words = transformers.AutoTokenizer.from_pretrained(place)([text], return_tensors="pt")
    with torch.no_grad():
        return model(**words, visual_embeds=regions[None])


def grid_of_the_library(folder: Path, image: Image.Image) -> torch.Tensor:
    """The cells [49, 2048] that timm's ResNet gives, with timm's own transform."""
    import timm
    from timm.data import create_transform, resolve_data_config

    config = json.loads((folder / "detector/config.json").read_text())
    model = timm.create_model(
        "resnet50",
        num_classes=0,
        checkpoint_path=str(folder / "detector/model.safetensors"),
        **config["model_args"],
    ).eval()
    described = timm.get_pretrained_cfg("resnet50.a1_in1k").to_dict()
    transform = create_transform(**resolve_data_config(pretrained_cfg=described))
    with torch.no_grad():
        return model.forward_features(transform(image)[None])[0].flatten(1).T


def test_what_it_is() -> None:
    regions, grid = VisualBert(), VisualBert(Options(variant="grid"))
    assert regions.is_joint
    assert regions.modalities == ("joint",)
    assert regions.hub.id == "uclanlp/visualbert-nlvr2-coco-pre"
    assert grid.hub.id == "uclanlp/visualbert-vqa-coco-pre"
    assert VisualBert.hub.id == "uclanlp/visualbert-nlvr2-coco-pre"


def test_vectors_on_a_grid_are_those_of_the_libraries(grid_folder: Path) -> None:
    images = pictures()
    theirs = [
        of_the_library(grid_folder, text, grid_of_the_library(grid_folder, image))
        for text, image in zip(TEXTS, images, strict=True)
    ]
    expected = torch.cat([out.pooler_output for out in theirs]).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    encoder = loaded(grid_folder, variant="grid", tokens=True)
    together = encoded(encoder, TEXTS, images)
    np.testing.assert_allclose(together.pooled.numpy(), expected, atol=1e-5, rtol=0)
    assert together.tokens is not None
    assert together.mask is not None
    for row in range(2):
        alone = encoded(encoder, [TEXTS[row]], [images[row]]).pooled.numpy()
        np.testing.assert_allclose(alone[0], expected[row], atol=1e-5, rtol=0)
        states = theirs[row].last_hidden_state[0].numpy()
        assert int(together.mask[row].sum()) == len(states)
        np.testing.assert_allclose(together.tokens[row, : len(states)], states, atol=1e-5)


def test_the_picture_matters_and_every_call_gives_the_same_bits(grid_folder: Path) -> None:
    encoder = loaded(grid_folder, variant="grid")
    first, second = (encoded(encoder, TEXTS, pictures()).pooled for _ in range(2))
    assert torch.equal(first, second)
    swapped = encoded(encoder, TEXTS, pictures()[::-1]).pooled
    assert (swapped - first).abs().max() > 1e-3


@pytest.mark.slow
def test_vectors_on_regions_are_those_of_the_libraries(
    region_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FasterRCNN, "short_side", 96)
    monkeypatch.setattr(FasterRCNN, "long_side", 160)
    images = pictures()
    encoder = loaded(region_folder)
    detector = FasterRCNN(Options(weights=region_folder / "detector", tokens=True))
    detector.load()
    expected, counts = [], []
    for text, image in zip(TEXTS, images, strict=True):
        with torch.inference_mode():
            seen = detector.encode_picture(
                detector.picture_batch([detector.read_picture(image, "")])
            )
        assert seen.tokens is not None
        assert seen.mask is not None
        regions = seen.tokens[0, : int(seen.mask.sum())].clone()
        counts.append(len(regions))
        expected.append(of_the_library(region_folder, text, regions).pooler_output[0].numpy())
    assert counts[0] != counts[1]  # so that one is padded
    together = encoded(encoder, TEXTS, images).pooled.numpy()
    np.testing.assert_allclose(together, np.stack(expected), atol=1e-5, rtol=0)
    for row in range(2):
        alone = encoded(encoder, [TEXTS[row]], [images[row]]).pooled.numpy()
        np.testing.assert_allclose(alone[0], expected[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["patch-emb", "patch-vit"])
def test_vectors_on_patches_are_those_of_the_libraries(patch_folder: Path, variant: str) -> None:
    import transformers

    encoder = loaded(patch_folder, variant=variant, tokens=True)
    clip = transformers.CLIPModel.from_pretrained(patch_folder / "detector").eval().vision_model
    bert = transformers.VisualBertModel.from_pretrained(patch_folder / "visualbert").eval()
    drawn = dict(encoder.module.named_parameters())
    assert encoder.new < set(drawn)
    project = torch.nn.Linear(24, 32)  # widths of the two
    project.load_state_dict({n.rpartition(".")[2]: drawn[n].detach() for n in encoder.new})
    bert.embeddings.visual_projection = project
    words = transformers.AutoTokenizer.from_pretrained(patch_folder / "visualbert")
    together = encoded(encoder, TEXTS, pictures())
    assert together.tokens is not None
    assert together.mask is not None
    read = encoder.picture_batch([encoder.read_picture(image, "") for image in pictures()])
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            seen = clip(read["pixel_values"][row : row + 1], output_hidden_states=True)
            last = clip.post_layernorm(seen.last_hidden_state)
            patches = seen.hidden_states[0] if variant == "patch-emb" else last
            given = words([text], return_tensors="pt")
            theirs = bert(**given, visual_embeds=patches)
        assert patches.shape == (1, 1 + 4, 24)  # the class token, four patches
        np.testing.assert_allclose(together.pooled[row], theirs.pooler_output[0], atol=1e-5)
        states = theirs.last_hidden_state[0]
        assert int(together.mask[row].sum()) == len(states)
        np.testing.assert_allclose(together.tokens[row, : len(states)], states, atol=1e-5)


def test_the_projection_of_patches_is_drawn_with_a_seed(patch_folder: Path) -> None:
    encoder = loaded(patch_folder, variant="patch-emb")
    (name,) = (name for name in encoder.new if name.endswith("weight"))

    def drawn(seed: int) -> torch.Tensor:
        encoder.draw(seed)
        return encoder.module.get_parameter(name).detach().clone()

    first, again, other = drawn(4), drawn(4), drawn(5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Xavier-normal: deviation sqrt(2 / (24 + 32)); 768 draws are within a tenth of it.
    assert abs(float(first.std()) / (2 / 56) ** 0.5 - 1) < 0.1
    assert not encoder.module.get_parameter(name.replace("weight", "bias")).any()
    assert VisualBert(Options(variant="grid")).new == frozenset()


@pytest.mark.parametrize(
    ("variant", "below"),
    [("patch-emb", ()), ("patch-vit", ("detector.vision_model.encoder.layers.2.",))],
)
def test_what_of_patches_learns(patch_folder: Path, variant: str, below: tuple[str, ...]) -> None:
    encoder = loaded(patch_folder, variant=variant)
    towers = towers_of(encoder.module, "joint")
    for blocks in (None, 2):  # a projection that nobody trained learns in any case
        learning = learning_names(encoder.module, towers, "top", blocks)
        assert encoder.new < set(learning)
        assert all(any(name.startswith(part) for name in learning) for part in below)
        assert not any("layers.1." in name or "word_embed" in name for name in learning)
        seen = [name for name in learning if name.startswith("detector")]
        assert bool(seen) == bool(below)
    place = ["visualbert.embeddings.visual_projection"]
    if below:
        place = ["detector.vision_model.encoder.layers.2"]
    assert Trunk(encoder.module, towers, "top", None).boundaries == place


def test_patches_are_no_features_to_extract(patch_folder: Path, tmp_path: Path) -> None:
    encoder = VisualBert(Options(weights=patch_folder, variant="patch-emb"))
    dataset: Any = None  # refused before it is looked at
    with pytest.raises(ConfigError, match=r"patch-emb of VisualBert .* would be random.*tune: top"):
        extract_neural(dataset, "visualbert", encoder, How())
    with pytest.raises(DataError, match=r"E406 .*vectors of 2048 numbers and .* region gives 1024"):
        loaded(patch_folder, variant="region")


def test_settings_name_both_models(grid_folder: Path) -> None:
    encoder = loaded(grid_folder, variant="grid", max_tokens=9)
    settings = encoder.settings
    assert json.dumps(settings)
    assert settings["weights_sha256"] == encoder.weights.digest
    assert settings["max_tokens"] == 9
    assert len(settings["detector"]["weights_sha256"]) == 64
    assert settings["detector"]["weights_sha256"] != settings["weights_sha256"]
    names = {name.partition(".")[0] for name, _ in encoder.module.named_parameters()}
    assert names == {"visualbert", "detector"}


def test_the_tokenizer_is_that_of_bert_where_the_folder_has_none(
    grid_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "m"
    shutil.copytree(grid_folder, place)
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(place / "visualbert" / name, kept / name)
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with pytest.raises(DataError, match=r"E401 .*no tokenizer.*hf download google-bert/bert-base"):
        loaded(place, variant="grid")
    snapshot = cache / "models--google-bert--bert-base-uncased/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    for file in kept.iterdir():
        shutil.copy(file, snapshot)
    encoder = loaded(place, variant="grid")
    assert encoder.tokenize(TEXTS) == loaded(grid_folder, variant="grid").tokenize(TEXTS)


def test_a_folder_of_visualbert_alone_leaves_the_detector_to_its_own_place(
    grid_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with pytest.raises(DataError, match=r"E401 timm/resnet50.*--encoder resnet50 --download"):
        loaded(grid_folder / "visualbert", variant="grid")
    snapshot = cache / "models--timm--resnet50.a1_in1k/snapshots/abc"
    shutil.copytree(grid_folder / "detector", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    alone = loaded(grid_folder / "visualbert", variant="grid")
    both = loaded(grid_folder, variant="grid")
    found = [encoded(encoder, TEXTS, pictures()).pooled for encoder in (alone, both)]
    assert torch.equal(*found)
    assert alone.settings == both.settings


def test_options_that_mean_nothing_are_refused(grid_folder: Path) -> None:
    with pytest.raises(ConfigError, match="VisualBert takes no mask-ratio"):
        VisualBert(Options(mask_ratio=0.5))
    with pytest.raises(ConfigError, match="takes no preprocess with the variant region"):
        VisualBert(Options(preprocess="pad"))
    with pytest.raises(UnknownNameError, match="unknown preprocessing 'crop'"):
        VisualBert(Options(preprocess="crop", variant="grid"))
    with pytest.raises(UnknownNameError, match="unknown variant of VisualBert 'patches'"):
        VisualBert(Options(variant="patches"))
    with pytest.raises(ConfigError, match="more than the 60 positions"):
        loaded(grid_folder, variant="grid", max_tokens=61)
    padded = loaded(grid_folder, variant="grid", preprocess="pad")
    assert padded.settings["detector"]["image"]["resize"] == "pad"


def test_folders_of_something_else(grid_folder: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(grid_folder / "visualbert", mixed)
    (mixed / "detector").mkdir()
    for place in (tmp_path, mixed):
        with pytest.raises(DataError, match=r"E403 .*no folder visualbert: put .* faster-rcnn"):
            loaded(place)
    with pytest.raises(DataError, match=r"E406 .*vectors of 2048 numbers.*region gives 1024"):
        loaded(grid_folder)
    place = tmp_path / "m"
    shutil.copytree(grid_folder, place)
    (place / "detector/model.safetensors").unlink()
    with pytest.raises(
        DataError, match=r"E403 .*no weights.*VisualBert looks at pictures with res"
    ):
        loaded(place, variant="grid")
    (place / "visualbert/pytorch_model.bin").unlink()
    with pytest.raises(DataError, match=r"E403 .*visualbert holds no weights"):
        loaded(place, variant="grid")
