from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Options
from mmbench.encoders.transformer_text import TransformerText
from mmbench.errors import ConfigError, DataError

TEXTS = ["A Small tent.", "a knife of stainless steel, " * 4 + "for Cooks"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.ascii_letters + string.punctuation
VOCABULARY = {
    piece: number
    for number, piece in enumerate([*PIECES, *LETTERS, *(f"##{letter}" for letter in LETTERS)])
}
SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
T5_SHAPE = {
    "vocab_size": len(VOCABULARY),
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_layers": 2,
    "num_heads": 4,
}
BART_SHAPE = {
    "vocab_size": len(VOCABULARY),
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 3,
}


def written(folder: Path, model: str, shape: dict[str, Any]) -> Path:
    """A tiny model with random weights and a cased tokenizer, in the layout of the hub."""
    import transformers

    made = getattr(transformers, model)
    torch.manual_seed(11)
    made(made.config_class(**shape)).save_pretrained(folder)
    # Without a limit of its own, as many tokenizers are.
    transformers.BertTokenizer(vocab=VOCABULARY, do_lower_case=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("hf") / "tiny-bert", "BertModel", SHAPE)


@pytest.fixture
def sentences(bert: Path, tmp_path: Path) -> Path:
    """The same model as a folder of sentence-transformers."""
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    steps = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    (tmp_path / "1_Pooling").mkdir()
    pool(tmp_path, pooling_mode_mean_tokens=True)
    settings = {"max_seq_length": 40, "do_lower_case": False}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    return tmp_path


def pool(folder: Path, **switches: Any) -> None:
    off = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
    config = {"word_embedding_dimension": 32, **off, **switches}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def loaded(folder: Path, **options: Any) -> TransformerText:
    encoder = ENCODERS.get("hf").obj(Options(model=str(folder), **options))
    assert isinstance(encoder, TransformerText)
    encoder.load()
    return encoder


def encoded(encoder: TransformerText, texts: list[str]) -> NDArray[np.float32]:
    with torch.inference_mode():
        batch = encoder.text_batch(encoder.tokenize(texts))
        return encoder.encode_text(batch).pooled.numpy()


def states(
    folder: Path, model: str, texts: list[str], length: int = 80
) -> list[NDArray[np.float32]]:
    """Last hidden states [N, D] of each text alone, straight from transformers."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = getattr(transformers, model).from_pretrained(folder).eval()
    network = network.get_encoder() if model == "BartModel" else network
    found = []
    for text in texts:
        inputs = tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            found.append(network(**inputs).last_hidden_state[0].numpy())
    return found


def assert_same(encoder: TransformerText, expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(encoded(encoder, TEXTS), expected, atol=1e-5, rtol=0)
    for text, row in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(encoded(encoder, [text])[0], row, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("saved", "shape", "read_as", "pooling"),
    [
        ("BertForMaskedLM", SHAPE, "BertModel", "mean"),
        ("DistilBertModel", {**SHAPE, "dim": 32, "n_layers": 2, "n_heads": 4}, None, "mean"),
        (
            "Qwen3ForCausalLM",
            {**SHAPE, "num_key_value_heads": 2, "head_dim": 8},
            "Qwen3Model",
            "last",
        ),
        ("T5ForConditionalGeneration", T5_SHAPE, "T5EncoderModel", "mean"),
        ("BartModel", BART_SHAPE, "BartModel", "mean"),
    ],
)
def test_any_text_model_gives_what_the_library_gives(
    saved: str, shape: dict[str, Any], read_as: str | None, pooling: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, saved, shape)
    found = states(folder, read_as or saved, TEXTS)
    expected = np.stack([s.mean(axis=0) if pooling == "mean" else s[-1] for s in found])
    encoder = loaded(folder, max_tokens=80)
    assert encoder.pooling == pooling
    assert_same(encoder, expected)


def test_a_folder_of_sentence_transformers_is_honoured(sentences: Path) -> None:
    encoder = loaded(sentences)
    assert (encoder.pooling, encoder.normalise, encoder.limit) == ("mean", True, 40)
    rows = np.stack([s.mean(axis=0) for s in states(sentences, "BertModel", TEXTS, 40)])
    assert_same(encoder, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert [text.cut for text in encoder.tokenize(TEXTS)] == [False, True]


def test_poolings_are_put_side_by_side(sentences: Path) -> None:
    pool(sentences, pooling_mode_cls_token=True, pooling_mode_max_tokens=True)
    rows = np.stack(
        [np.concatenate([s[0], s.max(axis=0)]) for s in states(sentences, "BertModel", TEXTS, 40)]
    )
    encoder = loaded(sentences)
    assert encoder.settings["pooling"] == "cls+max"
    assert_same(encoder, rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_the_newer_name_of_a_pooling_is_read(sentences: Path) -> None:
    pool(sentences, pooling_mode="lasttoken")
    assert loaded(sentences).pooling == "last"
    assert loaded(sentences, variant="mean").pooling == "mean"


def test_lower_case_and_prompt_of_the_folder_are_applied(sentences: Path) -> None:
    (sentences / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    prompts = {"prompts": {"query": "Q: ", "passage": "P: "}, "default_prompt_name": "passage"}
    (sentences / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = loaded(sentences)
    texts = [f"P: {text.lower()}" for text in TEXTS]
    rows = np.stack([s.mean(axis=0) for s in states(sentences, "BertModel", texts)])
    assert_same(encoder, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert (encoder.settings["lowercase"], encoder.settings["prompt"]) == (True, "P: ")


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ({"path": "2_Dense", "type": "sentence_transformers.models.Dense"}, "the step 'Dense'"),
        (
            {"path": "0_T", "type": "sentence_transformers.models.Transformer"},
            "the step 'Transformer'",
        ),
        ({"path": "../x", "type": "sentence_transformers.models.Pooling"}, "the step 'Pooling'"),
        ({"path": "", "type": "own_code.Evil"}, "the step 'Evil'"),
        ("text", "the step 'text'"),
    ],
)
def test_a_step_that_is_not_known_is_refused(step: object, named: str, sentences: Path) -> None:
    (sentences / "modules.json").write_text(json.dumps([step]))
    with pytest.raises(DataError, match=rf"E407 .*json: {named}.* Take the file away"):
        loaded(sentences)


@pytest.mark.parametrize(
    ("switches", "why"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "pooling weightedmean; known are"),
        ({}, "pooling is not stated"),
        ({"pooling_mode": "mean", "include_prompt": False}, "pooling without the prompt"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(
    switches: dict[str, Any], why: str, sentences: Path
) -> None:
    pool(sentences, **switches)
    with pytest.raises(DataError, match=rf"E407 .*config\.json: {why}.*modules\.json away"):
        loaded(sentences)


def test_a_model_of_pictures_is_sent_to_timm(tmp_path: Path) -> None:
    shape = {key: SHAPE[key] for key in SHAPE if key.startswith(("hidden", "num", "inter"))}
    folder = written(tmp_path, "ViTModel", {**shape, "image_size": 32, "patch_size": 16})
    with pytest.raises(DataError, match=r"E407 .* \(vit\) reads no texts; .* timm:"):
        loaded(folder)


def test_a_model_of_several_modalities_is_sent_to_its_encoder(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = {"model_type": "clip", "text_config": {}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"E407 .* \(clip\) reads more than text; CLIP"):
        loaded(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "own"}')
    with pytest.raises(DataError, match=r"E407 .* knows no model type 'own'; .*pip install"):
        loaded(tmp_path)


def test_vectors_that_padding_changes_are_refused(tmp_path: Path) -> None:
    # Its blocks mix all positions by a Fourier transform and know no mask.
    shape = {key: SHAPE[key] for key in SHAPE if key != "num_attention_heads"}
    folder = written(tmp_path, "FNetModel", shape)
    with pytest.raises(DataError, match=r"E407 .* change with the padding .* Take another"):
        loaded(folder)


def test_weights_that_are_not_numbers_are_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state["embeddings.LayerNorm.bias"][0] = torch.nan
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"E407 .* not finite: .*fetch them again"):
        loaded(tmp_path)


def test_which_model_must_be_said(bert: Path) -> None:
    with pytest.raises(ConfigError, match="hf needs a model: --encoder hf:ID"):
        ENCODERS.get("hf").obj(Options())
    by_id = ENCODERS.get("hf").obj(Options(model="someone/some-model"))
    assert by_id.hub.id == "someone/some-model"
    assert ENCODERS.get("hf").obj.hub.id == ""
    by_folder = ENCODERS.get("hf").obj(Options(weights=bert))
    by_folder.load()
    # The name of a folder must not decide whether features are the same.
    assert by_folder.settings["model"] == ""
    assert dict(by_folder.settings) == dict(loaded(bert).settings)
    assert str(bert) not in json.dumps(by_folder.settings)


def test_the_usual_limit_holds_where_none_is_stated(tmp_path: Path) -> None:
    folder = written(tmp_path, "T5EncoderModel", T5_SHAPE)
    encoder = loaded(folder)
    assert encoder.limit == 512
    assert loaded(folder, max_tokens=600).limit == 600
    assert encoder.tokenize(["word " * 30_000])[0].cut
    assert np.isfinite(encoded(encoder, ["", "🙂", "مرحبا", "x"])).all()
