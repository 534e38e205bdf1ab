from __future__ import annotations

import json
import shutil
import string
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Encoded, Options
from mmbench.encoders.vlmo_base_plus import VlmoBasePlus
from mmbench.encoders.vlmo_model import Vlmo, VlmoShape
from mmbench.errors import ConfigError, DataError, UnknownNameError

FILE = "vlmo_base_plus_patch16_224.pt"
LETTERS = string.ascii_lowercase + string.digits + string.punctuation
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{x}" for x in LETTERS)]
SHAPE = VlmoShape(
    width=32,
    blocks=4,
    heads=4,
    vl_from=2,
    image_size=32,
    patch_size=8,
    vocabulary=len(PIECES),
    text_length=20,
)
TEXTS = ["A tent.", "a knife of stainless steel, for cooks"]  # 8 and 34 ids, cut to 20
ODD = ["", " ", "x", "🙂 tent 🎬", "مرحبا بالعالم", "שלום", "a" * 300, "word " * 20_000]
SEPARATE = ("hidden", "proj", "vl", "vl-proj")


def random_state(shape: VlmoShape) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(9)
    state = {}
    for name, tensor in Vlmo(shape).state_dict().items():
        state[name] = 0.2 * torch.randn(tensor.shape, generator=rng)
        state[name] += "norm" in name.lower() and name.endswith("weight")
    return state


def tokenizer() -> Any:
    import transformers

    return transformers.BertTokenizer(vocab={piece: k for k, piece in enumerate(PIECES)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as published, at a tiny size, with tokenizer and sizes beside it."""
    place = tmp_path_factory.mktemp("vlmo")
    named = {f"module.{name}": tensor for name, tensor in random_state(SHAPE).items()}
    torch.save({"state_dict": named, "epoch": 3}, place / FILE)
    tokenizer().save_pretrained(place)
    (place / "vlmo_config.json").write_text(json.dumps(asdict(SHAPE)), encoding="utf-8")
    return place


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture(scope="module")
def model() -> Vlmo:
    found = Vlmo(SHAPE).eval()
    found.load_state_dict(random_state(SHAPE))
    return found


def picture(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, size=(6, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


PICTURES = [picture(50, 70, 1), picture(40, 30, 2)]


def loaded(place: Path | None, **options: Any) -> VlmoBasePlus:
    encoder = VlmoBasePlus(Options(weights=place, **options))
    encoder.load()
    return encoder


def text_batch(encoder: VlmoBasePlus, texts: list[str]) -> Mapping[str, torch.Tensor]:
    return encoder.text_batch(encoder.tokenize(texts))


def picture_batch(encoder: VlmoBasePlus, pictures: list[Image.Image]) -> Mapping[str, torch.Tensor]:
    return encoder.picture_batch([encoder.read_picture(one, "0") for one in pictures])


def encoded(
    encoder: VlmoBasePlus, texts: list[str], pictures: list[Image.Image]
) -> Mapping[str, Encoded]:
    with torch.inference_mode():
        if encoder.is_joint:
            return encoder.encode_joint(
                text_batch(encoder, texts), picture_batch(encoder, pictures)
            )
        return {
            "textual": encoder.encode_text(text_batch(encoder, texts)),
            "visual": encoder.encode_picture(picture_batch(encoder, pictures)),
        }


# What the model gives when called directly, for one item, without anything of the encoder.


def ids_of(text: str, length: int = 20) -> torch.Tensor:
    found = tokenizer()([text], truncation=True, max_length=length, return_tensors="pt")
    ids: torch.Tensor = found["input_ids"]
    return ids


def pixels_of(one: Image.Image) -> torch.Tensor:
    squashed = one.resize((32, 32), Image.Resampling.BICUBIC)
    values = torch.tensor(np.asarray(squashed).astype(np.float64) / 255.0)
    return ((values - 0.5) / 0.5).permute(2, 0, 1)[None].float()


def direct(model: Vlmo, variant: str, text: str, one: Image.Image) -> dict[str, torch.Tensor]:
    ids, pixels = ids_of(text), pixels_of(one)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        if variant.startswith("joint"):
            pair = model.joint(ids, mask, pixels)[0]
            if variant == "joint-cls":
                return {"textual": pair[0], "visual": pair[ids.shape[1]]}
            return {"joint": model.pooler(pair[:1])[0] if variant == "joint-pooled" else pair[0]}
        top = variant in {"vl", "vl-proj"}
        textual = model.text(ids, mask, vl_top=top)[0, 0]
        visual = model.image(pixels, vl_top=top)[0, 0]
        if variant.endswith("proj"):
            heads = "itc_vl_{}_proj" if top else "itc_{}_proj"
            textual = getattr(model, heads.format("text")).fc.weight @ textual
            visual = getattr(model, heads.format("image")).fc.weight @ visual
            textual, visual = textual / textual.norm(), visual / visual.norm()
        return {"textual": textual, "visual": visual}


def close(found: torch.Tensor, expected: torch.Tensor | NDArray[Any], atol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=atol, rtol=0)


def test_it_is_found_under_its_name_and_says_where_the_weights_are() -> None:
    assert ENCODERS.get("vlmo-base-plus").obj is VlmoBasePlus
    assert VlmoBasePlus.hub.address == (
        "https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/" + FILE
    )
    assert VlmoBasePlus.modalities == ("visual", "textual", "joint")
    assert VlmoBasePlus.variants[0] == "hidden"


@pytest.mark.parametrize("variant", VlmoBasePlus.variants)
def test_vectors_are_those_of_the_model_alone_and_in_a_batch(
    folder: Path, model: Vlmo, variant: str
) -> None:
    encoder = loaded(folder, variant=variant)
    pairs = list(zip(TEXTS, PICTURES, strict=True))
    expected = [direct(model, variant, text, one) for text, one in pairs]
    together = encoded(encoder, TEXTS, PICTURES)
    assert set(together) == set(expected[0]) == set(encoder.modalities)
    for row, (text, one) in enumerate(pairs):
        alone = encoded(encoder, [text], [one])
        for modality, vector in expected[row].items():
            assert together[modality].pooled.shape == (2, 32)
            assert together[modality].pooled.dtype == torch.float32
            assert together[modality].tokens is None
            close(together[modality].pooled[row], vector)
            close(alone[modality].pooled[0], vector)
    for modality in encoder.modalities:
        assert np.abs(np.diff(together[modality].pooled, axis=0)).max() > 0.01


def test_what_an_encoder_gives_depends_on_its_variant() -> None:
    given = {
        variant: (encoder.modalities, encoder.is_joint)
        for variant in VlmoBasePlus.variants
        for encoder in [VlmoBasePlus(Options(variant=variant))]
    }
    apart = ("visual", "textual")
    assert given == {
        **dict.fromkeys(SEPARATE, (apart, False)),
        "joint": (("joint",), True),
        "joint-pooled": (("joint",), True),
        "joint-cls": (apart, True),
    }
    assert VlmoBasePlus.modalities == (*apart, "joint")


@pytest.mark.parametrize("variant", SEPARATE)
def test_tokens_of_one_modality(folder: Path, model: Vlmo, variant: str) -> None:
    encoder = loaded(folder, variant=variant, tokens=True)
    found = encoded(encoder, TEXTS, PICTURES)
    top = variant.startswith("vl")
    textual, visual = found["textual"], found["visual"]
    assert textual.tokens is not None
    assert textual.mask is not None
    assert visual.tokens is not None
    assert visual.mask is None
    assert visual.tokens.shape == (2, 17, 32)
    assert textual.mask.sum(dim=1).tolist() == [8, 20]
    assert not textual.tokens[0, 8:].any()
    with torch.no_grad():
        for row, (text, one) in enumerate(zip(TEXTS, PICTURES, strict=True)):
            ids = ids_of(text)
            hidden = model.text(ids, torch.ones_like(ids), vl_top=top)[0]
            close(textual.tokens[row, : ids.shape[1]], hidden)
            close(visual.tokens[row], model.image(pixels_of(one), vl_top=top)[0])


def test_tokens_of_pairs_are_words_then_patches_without_a_gap(folder: Path, model: Vlmo) -> None:
    found = encoded(loaded(folder, variant="joint", tokens=True), TEXTS, PICTURES)["joint"]
    assert found.tokens is not None
    assert found.mask is not None
    assert found.mask.sum(dim=1).tolist() == [8 + 17, 20 + 17]
    with torch.no_grad():
        for row, (text, one) in enumerate(zip(TEXTS, PICTURES, strict=True)):
            ids = ids_of(text)
            pair = model.joint(ids, torch.ones_like(ids), pixels_of(one))[0]
            close(found.tokens[row, : len(pair)], pair)
            assert not found.tokens[row, len(pair) :].any()
    by_cls = encoded(loaded(folder, variant="joint-cls", tokens=True), TEXTS, PICTURES)
    assert by_cls["visual"].tokens is not None
    assert by_cls["textual"].mask is not None
    close(by_cls["visual"].tokens[1], found.tokens[1, 20:37])
    assert by_cls["textual"].mask.sum(dim=1).tolist() == [8, 20]


@pytest.mark.parametrize("variant", VlmoBasePlus.variants)
def test_padding_does_not_change_odd_texts(folder: Path, variant: str) -> None:
    encoder = loaded(folder, variant=variant)
    ids = encoder.tokenize(ODD)
    assert [(text.ids[0], text.ids[-1]) for text in ids] == [(2, 3)] * len(ODD)  # [CLS], [SEP]
    assert [len(text.ids) for text in ids][:3] == [2, 2, 3]
    assert [text.cut for text in ids] == [*[False] * 7, True]  # 300 letters are one unknown word
    pictures = [PICTURES[k % 2] for k in range(len(ODD))]
    together = encoded(encoder, ODD, pictures)
    for row, (text, one) in enumerate(zip(ODD, pictures, strict=True)):
        for modality, alone in encoded(encoder, [text], [one]).items():
            assert torch.isfinite(alone.pooled).all()
            close(together[modality].pooled[row], alone.pooled[0])


def test_texts_are_cut_where_asked(folder: Path) -> None:
    encoder = loaded(folder, max_tokens=5)
    short, long = encoder.tokenize(["ab", "abcdefgh"])
    assert (len(short.ids), short.cut) == (4, False)
    assert (len(long.ids), long.cut) == (5, True)
    assert long.ids == tuple(ids_of("abcdefgh", 5)[0].tolist())
    assert encoder.settings["max_tokens"] == 5
    assert loaded(folder).settings["max_tokens"] == 20
    with pytest.raises(ConfigError, match="max-tokens 21 is more than the 20 text positions"):
        loaded(folder, max_tokens=21)
    with pytest.raises(ConfigError, match="max-tokens 2 does not suit VlmoBasePlus"):
        VlmoBasePlus(Options(max_tokens=2))


def test_pictures_are_squashed_unless_asked_otherwise(folder: Path) -> None:
    wide = picture(90, 30, 4)
    close(loaded(folder).read_picture(wide, "0"), pixels_of(wide)[0], atol=1e-6)
    padded = loaded(folder, preprocess="pad").read_picture(wide, "0")
    assert (padded[:, 0] == 1).all()  # white above and below
    assert not (padded[:, 16] == 1).all()
    with pytest.raises(UnknownNameError, match="preprocessing"):
        VlmoBasePlus(Options(preprocess="crop"))


def test_settings_tell_what_determines_the_result(folder: Path) -> None:
    encoder = loaded(folder, variant="proj")
    settings = encoder.settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["architecture"] == asdict(SHAPE)
    assert settings["l2_normalised"]
    assert settings["checkpoint"]["matched"] == len(Vlmo(SHAPE).state_dict())
    assert settings["checkpoint"]["share"] == 1
    assert len(settings["checkpoint"]["sums"]) == 5
    assert len(settings["weights_sha256"]) == 64
    assert settings["preprocessing"]["resize"] == "squash"
    assert settings["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert set(settings["tokenizer_sha256"]) == {"tokenizer.json", "tokenizer_config.json"}
    assert not loaded(folder).settings["l2_normalised"]


# --------------------------------------------------------------------------------------------
# Where weights and tokenizer come from.


def test_a_file_may_be_named_in_place_of_its_folder(folder: Path) -> None:
    assert loaded(folder / FILE).settings == loaded(folder).settings


def test_a_list_of_words_does_for_a_tokenizer(copied: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    (copied / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    assert loaded(copied).tokenize(TEXTS) == loaded(folder).tokenize(TEXTS)


def test_weights_are_found_where_torch_keeps_them(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(DataError) as caught:
        loaded(None)
    message = str(caught.value)
    place = tmp_path / "torch" / "hub" / "checkpoints" / FILE
    assert message.startswith(f"E401 {VlmoBasePlus.hub.id} is not here: looked for {place}")
    assert VlmoBasePlus.hub.address in message
    assert "--weights FILE" in message
    place.parent.mkdir(parents=True)
    shutil.copytree(copied, place.parent, dirs_exist_ok=True)
    assert loaded(None).settings == loaded(copied).settings


def test_the_tokenizer_is_that_of_bert_unless_one_stands_beside_the_weights(
    copied: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(DataError, match=r"E401 the tokenizer .* google-bert/bert-base-uncased"):
        loaded(copied)
    repository = cache / "models--google-bert--bert-base-uncased"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    (snapshot / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    tokenizer().save_pretrained(snapshot)
    assert loaded(copied).tokenize(TEXTS) == loaded(folder).tokenize(TEXTS)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"E403 .* holds no weights"):
        loaded(tmp_path)
    with pytest.raises(DataError, match=r"E403 .*nowhere is not here"):
        loaded(tmp_path / "nowhere")


def test_a_checkpoint_of_another_size_is_refused(copied: Path) -> None:
    (copied / "vlmo_config.json").unlink()  # so it would have to be of the published size
    with pytest.raises(DataError, match=r"E406 .*20 text positions, and 40 are asked for"):
        loaded(copied)


def test_a_variant_whose_head_is_missing_is_refused(copied: Path) -> None:
    state = random_state(SHAPE)
    kept = {name: t for name, t in state.items() if not name.startswith(("itc_vl", "pooler"))}
    torch.save({"state_dict": kept}, copied / FILE)
    for variant, head in (
        ("vl-proj", "itc_vl_image_proj and itc_vl_text"),
        ("joint-pooled", "pooler"),
    ):
        with pytest.raises(DataError, match=rf"E406 .* lacks {head}.*variant '{variant}' needs"):
            loaded(copied, variant=variant)
    assert loaded(copied, variant="proj").settings["checkpoint"]["random_heads"] == [
        "itc_vl_image_proj",
        "itc_vl_text_proj",
        "pooler",
    ]


def test_text_positions_are_interpolated_where_the_sizes_say_so(copied: Path) -> None:
    sizes = {**asdict(SHAPE), "text_length": 30}
    path = copied / "vlmo_config.json"
    path.write_text(json.dumps(sizes), encoding="utf-8")
    with pytest.raises(DataError, match="20 text positions, and 30 are asked for"):
        loaded(copied)
    path.write_text(json.dumps({**sizes, "extend_text": True}), encoding="utf-8")
    encoder = loaded(copied)
    assert encoder.settings["checkpoint"]["changes"] == ["text positions: 20 stretched to 30"]
    assert len(encoder.tokenize(["a" * 50 + " b" * 50])[0].ids) == 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"widht": 32}', r'widht is no size of a VLMo. Did you mean "width"\? Known: width'),
        ('{"width": 33}', "a width of 33 does not split into 16 heads"),
        ('{"extend_text": "yes"}', "extend_text is true or false, not 'yes'"),
        ("[]", "no JSON object"),
        ("{", "is broken"),
    ],
)
def test_sizes_that_are_none(copied: Path, content: str, message: str) -> None:
    (copied / "vlmo_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"vlmo_config.json.*{message}"):
        loaded(copied)


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    import transformers

    larger = {piece: k for k, piece in enumerate([*PIECES, "more"])}
    transformers.BertTokenizer(vocab=larger).save_pretrained(copied)
    with pytest.raises(
        DataError, match=f"E406 .*knows {len(larger)} ids and the model {len(PIECES)}"
    ):
        loaded(copied)
    (copied / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"E404 the tokenizer in .* does not load"):
        loaded(copied)
    (copied / "tokenizer.json").unlink()
    words = "\n".join(piece for piece in PIECES if piece not in {"[CLS]", "[UNK]"})
    (copied / "vocab.txt").write_text(words, encoding="utf-8")
    with pytest.raises(DataError, match=r"E406 .* vocabulary lacks \[UNK\], \[CLS\]; VLMo needs"):
        loaded(copied)


def test_several_files_are_no_checkpoint(copied: Path) -> None:
    (copied / FILE).unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    from safetensors.torch import save_file

    for name in set(index["weight_map"].values()):
        save_file({"a": torch.ones(2)}, copied / name)
    with pytest.raises(DataError, match=r"E406 .* holds a model in 2 files"):
        loaded(copied)


def test_options_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="have no revisions"):
        VlmoBasePlus(Options(revision="main"))
    with pytest.raises(ConfigError, match="takes no mask-ratio"):
        VlmoBasePlus(Options(mask_ratio=0.5))
    with pytest.raises(UnknownNameError, match="variant"):
        VlmoBasePlus(Options(variant="mean"))
