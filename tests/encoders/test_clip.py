"""The traps of CLIP: where a text is pooled, what its tokenizer must end texts with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmbench.encoders.clip_vit_b32 import CLIPViTB32
from mmbench.encoders.neural import Options
from mmbench.errors import DataError

TEXTS = ["A tent", "another tent, and a longer text beside it", ""]


def loaded(folder: Path, **options: Any) -> CLIPViTB32:
    encoder = CLIPViTB32(Options(weights=folder, **options))
    encoder.load()
    return encoder


def encoded(encoder: CLIPViTB32, texts: list[str]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return encoder.encode_text(encoder.text_batch(encoder.tokenize(texts))).pooled.numpy()


def changed(folder: Path, copy: Path, **stated: Any) -> Path:
    """A copy of a folder whose configuration of texts says something else."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= stated
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def test_old_configurations_pool_the_end_token_too(
    dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    # Those of the published B/32 and L/14 state 0, 1 and 2, which are the ids of other tokens.
    old = changed(
        dual_folders["clip"], tmp_path / "old", bos_token_id=0, pad_token_id=1, eos_token_id=2
    )
    encoder = loaded(old)
    assert encoder.module.text_model.eos_token_id == 2
    expected = encoded(loaded(dual_folders["clip"]), TEXTS)
    np.testing.assert_allclose(encoded(encoder, TEXTS), expected, atol=1e-6, rtol=0)


def test_a_model_that_pools_at_another_token_is_refused(
    dual_folders: dict[str, Path], tmp_path: Path
) -> None:
    other = changed(dual_folders["clip"], tmp_path / "other", eos_token_id=5)
    with pytest.raises(DataError, match=r"E406 .* the model pools at id 5; they are of two models"):
        loaded(other)
    # A tokenizer that writes no end token: every text would be pooled at its first position.
    endless = shutil.copytree(dual_folders["clip"], tmp_path / "endless")
    file = endless / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["post_processor"] = None
    file.write_text(json.dumps(content), encoding="utf-8")
    stated = json.loads((endless / "tokenizer_config.json").read_text(encoding="utf-8"))
    stated["tokenizer_class"] = "PreTrainedTokenizerFast"
    (endless / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")
    with pytest.raises(DataError, match="they are of two models"):
        loaded(endless)


def test_ids_are_those_of_byte_pairs_in_lower_case(dual_folders: dict[str, Path]) -> None:
    # 256 symbols, the same at the end of a word, then the merges te, nt</w>, tent</w>, an.
    (text,) = loaded(dual_folders["clip"]).tokenize(["TENT"])
    assert text.ids == (516, 514, 517)
    (text,) = loaded(dual_folders["clip"], max_tokens=3).tokenize(["tent tent tent"])
    assert (text.ids, text.cut) == ((516, 514, 517), True)


def test_a_vocabulary_with_merges_serves_too(dual_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(dual_folders["clip"], tmp_path / "clip")
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    expected = encoded(loaded(dual_folders["clip"]), TEXTS)
    np.testing.assert_allclose(encoded(loaded(folder), TEXTS), expected, atol=1e-6, rtol=0)


def test_padding_never_reaches_the_end_token(dual_folders: dict[str, Path]) -> None:
    encoder = loaded(dual_folders["clip"], variant="hidden")
    batch = dict(encoder.text_batch(encoder.tokenize(TEXTS)))
    expected = encoder.encode_text(batch).pooled
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
    torch.testing.assert_close(encoder.encode_text(batch).pooled, expected, atol=1e-6, rtol=0)


def test_a_missing_projection_is_an_error(dual_folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(dual_folders["clip"], tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights of CLIPModel: visual_projection\.weight;"):
        loaded(folder)
