"""The traps of SigLIP: fixed length, last position, lower case, its tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmbench.encoders.neural import Options
from mmbench.encoders.siglip import SigLIP
from mmbench.encoders.siglip2_b16 import SigLIP2B16
from mmbench.encoders.siglip_b16 import SigLIPB16
from mmbench.errors import DataError

KINDS: list[tuple[type[SigLIP], str, int]] = [(SigLIPB16, "siglip", 1), (SigLIP2B16, "siglip2", 0)]


def loaded(kind: type[SigLIP], folder: Path) -> SigLIP:
    encoder = kind(Options(weights=folder))
    encoder.load()
    return encoder


def encoded(encoder: SigLIP, texts: list[str]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return encoder.encode_text(encoder.text_batch(encoder.tokenize(texts))).pooled.numpy()


@pytest.mark.parametrize(("kind", "name", "pad"), KINDS)
def test_texts_are_padded_to_all_positions(
    kind: type[SigLIP], name: str, pad: int, dual_folders: dict[str, Path]
) -> None:
    encoder = loaded(kind, dual_folders[name])
    ids = encoder.tokenize(["tent", "", "a b " * 100])
    batch = encoder.text_batch(ids)
    assert batch["input_ids"].shape == (3, 64)
    assert [len(text.ids) for text in ids][1:] == [1, 64]
    assert ids[1].ids == (1,)  # the end token
    assert ids[2].ids[-1] == 1  # kept, where a text is cut
    assert batch["input_ids"][1].tolist() == [1, *[pad] * 63]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(text.ids) for text in ids]
    assert encoder.settings["padding"] == "64, right"


@pytest.mark.parametrize(("kind", "name", "pad"), KINDS)
def test_case_says_nothing(
    kind: type[SigLIP], name: str, pad: int, dual_folders: dict[str, Path]
) -> None:
    # The tokenizers of the fixtures know capitals, as Gemma's does.
    encoder = loaded(kind, dual_folders[name])
    assert encoder.tokenize(["A TENT"]) == encoder.tokenize(["a tent"])
    assert encoder.settings["lower_case"]


def test_punctuation_is_taken_away_for_the_first_generation_alone(
    dual_folders: dict[str, Path],
) -> None:
    first = loaded(SigLIPB16, dual_folders["siglip"])
    second = loaded(SigLIP2B16, dual_folders["siglip2"])
    with_, without = ["A tent, (new)!"], ["a tent new"]
    assert first.tokenize(with_) == first.tokenize(without)
    assert second.tokenize(with_) != second.tokenize(without)
    assert not first.settings["keeps_punctuation"]
    assert second.settings["keeps_punctuation"]


def test_a_stated_side_of_the_padding_is_kept(
    dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    import transformers

    folder = shutil.copytree(dual_folders["siglip2"], tmp_path / "left")
    file = folder / "tokenizer_config.json"
    stated = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(stated | {"padding_side": "left"}), encoding="utf-8")
    encoder = loaded(SigLIP2B16, folder)
    assert encoder.settings["padding"] == "64, left"
    texts = ["a tent", "te"]
    (tent, te) = encoder.tokenize(texts)
    rows = [[*[0] * (64 - len(text.ids)), *text.ids] for text in (tent, te)]
    assert encoder.text_batch([tent, te])["input_ids"].tolist() == rows
    model = transformers.SiglipModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model.get_text_features(input_ids=torch.tensor(rows)).pooler_output
    expected = found / found.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(encoded(encoder, texts), expected.numpy(), atol=1e-5, rtol=0)
    # The side matters, so it may not be guessed.
    right = encoded(loaded(SigLIP2B16, dual_folders["siglip2"]), texts)
    assert np.abs(encoded(encoder, texts) - right).max() > 0.01
    file.write_text(json.dumps(stated | {"padding_side": "middle"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"E404 .*padding_side 'middle'"):
        loaded(SigLIP2B16, folder)


def test_a_sentencepiece_file_alone_is_refused(
    dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(dual_folders["siglip"], tmp_path / "siglip")
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    with pytest.raises(DataError, match=r"E403 .*: tokenizer\.json belongs there.*spiece\.model"):
        loaded(SigLIPB16, folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"E404 the tokenizer in .* does not load"):
        loaded(SigLIPB16, folder)


def test_weights_of_many_resolutions_are_refused(
    dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(dual_folders["siglip2"], tmp_path / "naflex")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "siglip2"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(DataError, match=r"E406 .*'siglip2'; SiglipModel needs 'siglip'"):
        loaded(SigLIP2B16, folder)
