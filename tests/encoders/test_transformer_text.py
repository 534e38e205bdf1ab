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
from mmbench.encoders.transformer_text import TransformerText, pool, positions
from mmbench.errors import ConfigError, DataError, UnknownNameError

# name, ids a text may have with the published weights, scaled to length 1
FACTS = [
    ("bert", 512, False),
    ("electra", 512, False),
    ("minilm-l12", 128, True),
    ("minilm-l6", 256, True),
    ("mpnet", 384, True),
    ("roberta", 512, False),
]
NAMES = [name for name, _, _ in FACTS]
POSITIONS = 60
TEXTS = ["A small tent.", "a knife of stainless steel, " * 6 + "for cooks"]
ODD = ["", "x", "🙂 tent 🎬", "مرحبا بالعالم", "שלום", "a" * 300, "word " * 20_000]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def wordpiece(specials: list[str]) -> dict[str, int]:
    letters = string.ascii_lowercase + string.punctuation
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), "tent", "##ife", "steel"]
    return {piece: number for number, piece in enumerate(pieces)}


def tokenizer_of(name: str) -> Any:
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    if name == "roberta":
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "te", "<mask>"]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        return transformers.RobertaTokenizer(vocab=vocabulary, merges=[("t", "e")])
    if name == "mpnet":
        return transformers.MPNetTokenizer(
            vocab=wordpiece(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
        )
    return transformers.BertTokenizer(
        vocab=wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    )


def model_of(name: str, n_ids: int) -> Any:
    """A model with the heads that the published files have."""
    import transformers

    shape = {**SHAPE, "vocab_size": n_ids, "max_position_embeddings": POSITIONS}
    if name == "roberta":
        return transformers.RobertaForMaskedLM(
            transformers.RobertaConfig(**shape, type_vocab_size=1)
        )
    if name == "mpnet":
        return transformers.MPNetForMaskedLM(transformers.MPNetConfig(**shape))
    if name == "electra":
        config = transformers.ElectraConfig(**shape, embedding_size=16)
        return transformers.ElectraForPreTraining(config)
    config = transformers.BertConfig(**shape)
    return (transformers.BertForPreTraining if name == "bert" else transformers.BertModel)(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        tokenizer = tokenizer_of(name)
        torch.manual_seed(7)
        model_of(name, len(tokenizer)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in NAMES}


def loaded(name: str, folder: Path, **options: Any) -> TransformerText:
    encoder = ENCODERS.get(name).obj(Options(weights=folder, **options))
    assert isinstance(encoder, TransformerText)
    encoder.load()
    return encoder


def encoded(encoder: TransformerText, texts: list[str]) -> NDArray[np.float32]:
    with torch.inference_mode():
        batch = encoder.text_batch(encoder.tokenize(texts))
        return encoder.encode_text(batch).pooled.numpy()


def of_the_library(folder: Path, texts: list[str], length: int) -> list[NDArray[np.float32]]:
    """Last hidden states [N, D] of each text alone, straight from transformers."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    states = []
    for text in texts:
        inputs = tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            states.append(model(**inputs).last_hidden_state[0].numpy())
    return states


def test_the_encoders_are_those_of_the_papers() -> None:
    for name, limit, normalise in FACTS:
        found = ENCODERS.get(name).obj
        assert issubclass(found, TransformerText)
        assert (found.max_tokens, found.normalise) == (limit, normalise)
        assert found.modalities == ("textual",)
        assert found.hub.id.count("/") == 1
        assert found.hub.licence
        assert found.citation


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_the_library_alone_and_in_a_batch(
    name: str, folders: dict[str, Path]
) -> None:
    states = of_the_library(folders[name], TEXTS, POSITIONS - 2)
    assert len(states[0]) * 3 < len(states[1])  # lengths differ enough to make padding matter
    expected = np.stack([state.mean(axis=0) for state in states])
    if name in {fact[0] for fact in FACTS if fact[2]}:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    # Two positions of RoBERTa and MPNet hold no token.
    encoder = loaded(name, folders[name], max_tokens=POSITIONS - 2)
    np.testing.assert_allclose(encoded(encoder, TEXTS), expected, atol=1e-5, rtol=0)
    for text, row in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(encoded(encoder, [text])[0], row, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_odd_texts_have_vectors_that_padding_does_not_change(
    name: str, folders: dict[str, Path]
) -> None:
    encoder = loaded(name, folders[name])
    together = encoded(encoder, ODD)
    assert together.shape == (len(ODD), 32)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    alone = np.concatenate([encoded(encoder, [text]) for text in ODD])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(together, encoded(encoder, ODD))


def test_cls_is_the_vector_of_the_first_position(folders: dict[str, Path]) -> None:
    encoder = loaded("electra", folders["electra"], variant="cls")
    states = of_the_library(folders["electra"], TEXTS, POSITIONS)
    expected = np.stack([state[0] for state in states])
    np.testing.assert_allclose(encoded(encoder, TEXTS), expected, atol=1e-5, rtol=0)
    assert encoder.settings["pooling"] == "cls"


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_tokens_are_kept_with_their_mask(name: str, folders: dict[str, Path]) -> None:
    encoder = loaded(name, folders[name], tokens=True, max_tokens=20)
    ids = encoder.tokenize(TEXTS)
    with torch.inference_mode():
        found = encoder.encode_text(encoder.text_batch(ids))
    assert found.tokens is not None
    assert found.mask is not None
    for row, state in enumerate(of_the_library(folders[name], TEXTS, 20)):
        n_tokens = len(ids[row].ids)
        assert found.mask[row].tolist() == [True] * n_tokens + [False] * (20 - n_tokens)
        np.testing.assert_allclose(found.tokens[row, :n_tokens], state, atol=1e-5, rtol=0)
        assert not found.tokens[row, n_tokens:].any()


def test_texts_are_cut_to_the_limit_and_marked(folders: dict[str, Path]) -> None:
    encoder = loaded("bert", folders["bert"], max_tokens=5)
    exact, longer, empty = encoder.tokenize(["tent tent tent", "tent tent tent tent", ""])
    tent, first, last = wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])["tent"], 2, 3
    assert (exact.ids, exact.cut) == ((first, tent, tent, tent, last), False)
    assert (longer.ids, longer.cut) == ((first, tent, tent, tent, last), True)
    assert (empty.ids, empty.cut) == ((first, last), False)
    assert encoder.tokenize([]) == []


def test_a_batch_is_padded_to_its_longest(folders: dict[str, Path]) -> None:
    encoder = loaded("roberta", folders["roberta"])
    batch = encoder.text_batch(encoder.tokenize(["te", "te te"]))
    # <s>=0 </s>=2 pad=1: the first text has one id between the special ones.
    assert batch["input_ids"][0].tolist()[:1] == [0]
    assert batch["input_ids"][0].tolist()[2:] == [2, *[1] * (batch["input_ids"].shape[1] - 3)]
    assert batch["attention_mask"].sum(dim=1).tolist()[0] == 3
    assert batch["attention_mask"][1].all()


@pytest.mark.parametrize(("name", "expected"), [("bert", 60), ("roberta", 58), ("mpnet", 58)])
def test_the_positions_of_the_weights_limit_a_text(
    name: str, expected: int, folders: dict[str, Path]
) -> None:
    encoder = loaded(name, folders[name])
    assert encoder.limit == expected
    assert len(encoder.tokenize(["a b " * 100])[0].ids) == expected


def test_settings_tell_all_that_determines_the_result(folders: dict[str, Path]) -> None:
    import hashlib

    encoder = loaded("minilm-l6", folders["minilm-l6"], max_tokens=50)
    content = (folders["minilm-l6"] / "model.safetensors").read_bytes()
    settings = dict(encoder.settings)
    assert json.loads(json.dumps(settings)) == settings
    assert settings["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert settings["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert settings["max_tokens"] == 50
    assert settings["l2_normalised"] is True
    assert settings["architecture"] == "BertModel"
    assert set(settings["tokenizer_sha256"]) >= {"tokenizer.json", "tokenizer_config.json"}


def test_the_model_is_frozen_in_float32_without_a_pooler(folders: dict[str, Path]) -> None:
    encoder = loaded("bert", folders["bert"])
    assert not encoder.module.training
    assert {parameter.dtype for parameter in encoder.module.parameters()} == {torch.float32}
    assert not [name for name, _ in encoder.module.named_parameters() if "pooler" in name]


@pytest.mark.parametrize("asked", [0, 2, 257])
def test_a_limit_that_the_encoder_does_not_have_is_refused(asked: int) -> None:
    with pytest.raises(ConfigError, match=rf"max-tokens {asked} .* 3 to 256 tokens"):
        ENCODERS.get("minilm-l6").obj(Options(max_tokens=asked))


def test_a_limit_beyond_the_positions_of_the_weights_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="max-tokens 100 is more than the 60 positions"):
        loaded("bert", folders["bert"], max_tokens=100)


def test_options_of_other_encoders_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown variant of Bert 'proj'"):
        ENCODERS.get("bert").obj(Options(variant="proj"))
    with pytest.raises(ConfigError, match="Bert takes no mask-ratio"):
        ENCODERS.get("bert").obj(Options(mask_ratio=0.5))


def test_a_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in folders["roberta"].glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"E406 .* the tokenizer knows 262 ids and the model 124"):
        loaded("bert", tmp_path)


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 4.0], [3.0, -8.0], [torch.inf, torch.nan]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, -2.0]]
    assert pool(hidden, mask, "cls").tolist() == [[1.0, 4.0]]
    assert pool(hidden, mask, "last").tolist() == [[3.0, -8.0]]
    assert pool(hidden, mask, "max").tolist() == [[3.0, 4.0]]
    root = 2**0.5
    expected = torch.tensor([[4.0 / root, -4.0 / root]])
    torch.testing.assert_close(pool(hidden, mask, "mean_sqrt_length"), expected)


def test_means_are_taken_in_float32() -> None:
    # In half precision 2048 + 1 is 2048, so that the sum would stop growing.
    hidden = torch.ones((1, 4096, 1), dtype=torch.float16)
    assert pool(hidden, torch.ones((1, 4096)), "mean").tolist() == [[1.0]]


def test_positions_of_models_without_a_limit_are_unknown() -> None:
    import transformers

    assert positions(transformers.T5Config()) is None
    assert positions(transformers.BertConfig()) == 512
    assert positions(transformers.RobertaConfig(max_position_embeddings=514)) == 512
    assert positions(transformers.GPT2Config()) == 1024
