"""`mmbench extract`: real command lines, their output and their exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmbench import encoders


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the demo dataset, without extracted features."""
    from mmbench.data.prepare import prepare

    folder = tmp_path_factory.mktemp("demo")
    prepare("demo", data_dir=folder)
    return folder


def test_builtin_encoders_run_once(mmbench: Callable, demo: Path) -> None:
    done = mmbench("extract", "demo", "--data-dir", demo)
    assert done.status == 0, done.err
    lines = sorted(done.out.splitlines())
    assert lines[0].startswith("textual__tfidf-svd: stored, 628 of 640 items, 256 columns")
    assert lines[1].startswith("visual__colour-edge: stored, 624 of 640 items, 321 columns")
    again = mmbench("extract", "demo", "--data-dir", demo)
    assert again.out.count("up to date") == 2
    forced = mmbench(
        "extract", "demo", "--encoder", "tfidf-svd", "--force", "--format", "json",
        "--data-dir", demo,
    )  # fmt: skip
    assert json.loads(forced.out) == [
        {
            "features": "textual__tfidf-svd",
            "items": 628,
            "of": 640,
            "dim": 256,
            "repeated_rows": 0,
            "is_new": True,
        }
    ]


def test_import_from_file(mmbench: Callable, demo: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).normal(size=(640, 3)))
    done = mmbench(
        "extract", "demo", "--from-file", tmp_path / "clip.npy", "--modality", "joint",
        "--data-dir", demo,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.out.startswith("joint__clip: stored, 640 of 640 items, 3 columns")


def test_list_names_every_encoder(mmbench: Callable) -> None:
    done = mmbench("extract", "--list")
    assert done.status == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    files = (Path(encoders.__file__).parent).glob("*.py")
    marked = [file.stem for file in files if "@register_encoder(" in file.read_text("utf-8")]
    assert sorted(lines) == sorted(stem.replace("_", "-") for stem in marked if stem != "base")
    assert len(lines) > 20
    assert max(map(len, lines.values())) <= 80
    assert lines["minilm-l6"].split()[1:4] == ["textual", "384", "Apache-2.0"]
    assert lines["clip-vit-b16"].split()[1:4] == ["visual+textual", "512", "MIT"]
    assert "built in" in lines["tfidf-svd"]
    listed = json.loads(mmbench("extract", "--list", "--format", "json").out)
    assert "TF-IDF" in listed["tfidf-svd"]["summary"]
    assert listed["minilm-l6"]["hub"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert all(facts["modalities"] for facts in listed.values())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 blocks with random weights, as transformers saves it, for minilm-l6."""
    import string

    import torch
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [f"##{letter}" for letter in letters]
    tokenizer = transformers.BertTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}
    )
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_an_encoder_with_weights(mmbench: Callable, demo: Path, bert: Path) -> None:
    command = ("extract", "demo", "--encoder", "minilm-l6", "--weights", bert, "--data-dir", demo)
    done = mmbench(*command, "--max-tokens", 16, "--device", "cpu")
    assert done.status == 0, done.err
    assert done.out.startswith("textual__minilm-l6: stored, 628 of 640 items, 32 columns")
    assert "masked: 12 with no text" in done.err
    assert "texts were cut" in done.err
    assert "items/s" in done.err
    again = mmbench(*command, "--max-tokens", 16, "--device", "cpu")
    assert "up to date" in again.out
    other = mmbench(*command, "--max-tokens", 12)
    assert other.status == 2
    assert "made otherwise (encoder.max_tokens: 16 there, 12 now)" in " ".join(other.err.split())
    named = mmbench(*command, "--max-tokens", 12, "--name", "short", "--text-fields", "title")
    assert named.out.startswith("textual__short: stored")
    tokens = mmbench(
        *command, "--max-tokens", 16, "--tokens", "--name", "words", "--format", "json",
        "--batch-size", 100, "--precision", "bfloat16",
    )  # fmt: skip
    assert tokens.status == 0, tokens.err
    assert json.loads(tokens.out)[0]["tokens"] == [640, 16, 32]
    variant = mmbench(*command, "--variant", "cls", "--max-tokens", 8)
    assert variant.out.startswith("textual__minilm-l6-cls: stored")


def test_any_model_by_its_folder(mmbench: Callable, demo: Path, bert: Path) -> None:
    done = mmbench(
        "extract", "demo", "--encoder", f"hf:{bert}", "--max-tokens", 8, "--text-preset", "mmrec",
        "--data-dir", demo,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.out.startswith(f"textual__hf-{bert.name}: stored, 628 of 640 items, 32 columns")


def test_nothing_is_fetched_unasked(
    mmbench: Callable, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    done = mmbench("extract", "demo", "--encoder", "minilm-l6", "--data-dir", demo)
    assert done.status == 2
    said = " ".join(done.err.split())
    assert "E401 sentence-transformers/all-MiniLM-L6-v2 (revision main) is not here" in said
    assert "--download" in said
    assert "--weights DIR" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = mmbench("extract", "demo", "--encoder", "minilm-l6", "--download", "--data-dir", demo)
    assert done.status == 2
    assert "HF_HUB_OFFLINE is set" in " ".join(done.err.split())


def test_a_question_shows_what_would_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    from click.testing import CliRunner

    from mmbench.cli.extracting import Consent
    from mmbench.encoders.hub import Remote

    remote = Remote("some/model", "0123456789abcdef", {"model.safetensors": 2**20}, {})
    answers = []
    for answer in ("y\n", "n\n"):
        with CliRunner().isolation(input=answer):
            answers.append(Consent(False, "MIT")(remote))
    assert answers == [True, False]
    assert Consent(True, "MIT")(remote)
    said = capsys.readouterr().err
    assert "some/model, commit 0123456789ab: 1 files, 1.0 MiB; licence: MIT" in said
    assert "model.safetensors 1.0 MiB" in " ".join(said.split())


def test_a_set_is_whitened(mmbench: Callable, demo: Path) -> None:
    mmbench("extract", "demo", "--encoder", "colour-edge", "--data-dir", demo)
    done = mmbench(
        "extract", "demo", "--from", "visual__colour-edge", "--whiten", "pca", "--dim", 16, "--l2",
        "--data-dir", demo,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.out.startswith("visual__colour-edge-pcawhite16-l2: stored, 624 of 640 items, 16 co")
    lost = mmbench(
        "extract", "demo", "--from", "visual__x", "--whiten", "pca", "--data-dir", demo
    )  # fmt: skip
    assert lost.status == 2
    assert "demo has no feature set visual__x" in lost.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a prepared dataset"),
        (("demo", "--encoder", "tfidf"), 'Did you mean "tfidf-svd"'),
        (("dmeo",), 'Did you mean "demo"'),
        (("demo", "--modality", "visual"), "--modality goes with --from-file"),
        (("demo", "--from-file", "x.npy"), "--from-file needs --modality"),
        (("demo", "--from-file", "x.npy", "--modality", "visual"), "x.npy not found"),
        (("demo", "--from-file", "x.npy", "--modality", "visul"), 'Did you mean "visual"'),
        (
            ("demo", "--from-file", "x.npy", "--modality", "visual", "--encoder", "clip"),
            "exclude each other",
        ),
        (("demo", "--encoder", "minilm-l5"), 'Did you mean "minilm-l6"'),
        (("demo", "--encoder", "minilm-l6", "--variant", "clz"), 'Did you mean "cls"'),
        (("demo", "--encoder", "minilm-l6", "--mask-ratio", "0.5"), "takes no mask-ratio"),
        (("demo", "--encoder", "minilm-l6", "--weights", "no"), "E403 no is not here"),
        (("demo", "--encoder", "tfidf-svd", "--tokens"), "takes none of the options of models"),
        (("demo", "--encoder", "timm"), "timm needs a model"),
        (("demo", "--encoder", "tfidf-svd", "--batch-size", "0"), "neither auto nor a number"),
        (("demo", "--encoder", "tfidf-svd", "--text-fields", "titel"), 'Did you mean "title"'),
        (("demo", "--encoder", "tfidf-svd", "--text-preset", "mmrc"), 'Did you mean "mmrec"'),
        (("demo", "--tokens"), "--tokens goes with --encoder"),
        (("demo", "--whiten", "zca"), "--whiten goes with --from"),
        (("demo", "--from", "visual__x"), "--from needs a step"),
        (("demo", "--from", "visual__x", "--whiten", "zca", "--dim", "3"), "keeps all columns"),
        (("demo", "--from", "visual__x", "--encoder", "y", "--l2"), "--from stands alone"),
        (("demo", "--finetune"), "--finetune goes with --encoder"),
        (("demo", "--encoder", "bert", "--tune", "top"), "--tune goes with --finetune"),
        (
            ("demo", "--encoder", "bert", "--batch-size", "8,16"),
            "several numbers of --batch-size go with --finetune",
        ),
        (("demo", "--encoder", "bert", "--finetune"), "no common space"),
        (
            ("demo", "--encoder", "bert", "--finetune", "--learning-rate", "1e-3,nan"),
            "not a finite number",
        ),
        (
            ("demo", "--encoder", "bert", "--finetune", "--preset", "arxiv"),
            "unknown fine-tuning preset",
        ),
        (
            ("demo", "--encoder", "minilm-l6", "--encoder", "bert", "--name", "x"),
            "--name goes with one encoder",
        ),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    mmbench: Callable, demo: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = mmbench("extract", *arguments, "--data-dir", demo)
    assert done.status == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not done.out
