"""The small world that a case of `fuzz.py` runs in, and command lines that work there."""

from __future__ import annotations

import shlex
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Runner = Callable[[Sequence[str], Path], "tuple[int, str, str]"]
"""Runs a command line in a folder: exit status, stdout, stderr."""


def make_playground(root: Path, run: Runner) -> None:
    """Datasets with texts and pictures, finished runs, raw files, recipes, weights, broken files.

    Raises:
        SystemExit: one of the command lines that make it failed.
    """
    rng = np.random.default_rng(0)
    _raw_files(root / "raw", rng)
    _raw_files(root / "raw-other", rng)
    _clip(root / "clip")
    np.save(root / "matrix.npy", rng.standard_normal((16, 3)).astype(np.float32))
    (root / "items.txt").write_text("\n".join(f"i{i}" for i in range(16)))
    (root / "notes.txt").write_text("no dataset")
    (root / "noise.bin").write_bytes(rng.bytes(500))
    (root / "empty").mkdir()
    recipe: dict[str, Any] = {
        "dataset": "tiny",
        "features": {"visual": "colour-edge", "textual": "tfidf-svd"},
        "model": {"name": "vbpr", "embedding_size": 4},
        "training": {"epochs": 1, "batch_size": 64, "select_by": "recall@5"},
        "evaluation": {"metrics": ["recall@5", "ndcg@5"], "depth": 10},
        "seeds": [0],
        "search": {"training.learning_rate": [0.01, 0.001]},
    }
    (root / "vbpr.yaml").write_text(yaml.safe_dump(recipe))
    plain = {**recipe, "features": {}, "model": {"name": "bpr-mf", "embedding_size": 4}}
    (root / "bpr-mf.yaml").write_text(yaml.safe_dump(plain))
    following = {**plain, "protocol": "mmsr", "model": {"name": "sasrec", "embedding_size": 4}}
    (root / "sasrec.yaml").write_text(yaml.safe_dump(following))
    looks = {**recipe, "features": {"visual": "colour-edge"}, "seeds": [0]}
    (root / "looks.yaml").write_text(yaml.safe_dump(looks))
    grid = {**plain, "grid": {"training.learning_rate": [0.01, 0.001]}}
    (root / "grid.yaml").write_text(yaml.safe_dump(grid))
    prepare = ["prepare", "tiny", "--source", "raw", "--user-core", "0", "--item-core", "0"]
    prepare += ["--split", "random-per-user", "--split", "leave-one-out"]
    other = ["prepare", "other", "--source", "raw-other", *prepare[4:]]
    train = ["train", "vbpr.yaml", "bpr-mf.yaml", "--seeds", "0,1"]
    layouts = [["export", "tiny", name, "--to", f"as-{name}"] for name in ("mmrec", "recbole")]
    for line in (prepare, other, train, *layouts):
        status, _, err = run(line, root)
        if status:
            raise SystemExit(f"the playground could not be made: mmbench {shlex.join(line)}\n{err}")


def _raw_files(raw: Path, rng: np.random.Generator) -> None:
    """Plain tables and pictures of 16 users and 16 items."""
    from PIL import Image

    (raw / "images").mkdir(parents=True)
    likes = [(u, i) for u in range(16) for i in range(16) if (u + i) % 2 == 0 or rng.random() < 0.2]
    times = [f"u{u},i{i},{(u + i) % 5 + 1},{10**9 + 10 * u + i}" for u, i in likes]
    (raw / "interactions.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *times]))
    words = ["red", "blue", "warm", "cold", "round", "long", "old", "new"]
    titles = [f"i{i},{words[i % 8]} {words[(i * 3 + 1) % 8]} thing" for i in range(16)]
    (raw / "items.csv").write_text("\n".join(["item_id,title", *titles]))
    for item in range(16):
        picture = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(raw / "images" / f"i{item}.png")


def _clip(folder: Path) -> None:
    """A CLIP of random weights in the layout of a published one, some hundred kilobytes."""
    import torch
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape["intermediate_size"] = 16
    signs = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    pieces = [*signs, "<|startoftext|>", "<|endoftext|>"]
    words = transformers.CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=16
    )
    text = {**shape, "vocab_size": len(pieces), "max_position_embeddings": 16}
    text |= {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
    text["pad_token_id"] = len(pieces) - 1
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**shape, "image_size": 24, "patch_size": 8},
        projection_dim=4,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    pictures.save_pretrained(folder)


_CLIP = ["tiny", "--encoder", "clip-vit-b32", "--weights", "clip"]
_TRANSFER = ["looks.yaml", "--from", "other", "--to", "tiny"]
SOUND: dict[str, list[list[str]]] = {
    "ablate": [
        ["vbpr.yaml", "--drop", "visual"],
        ["vbpr.yaml", "--sizes", "2,4"],
        ["vbpr.yaml", "--noise", "textual", "--stages", "--out", "figures"],
        ["vbpr.yaml", "--drop", "each", "--id-only", "--html", "page.html"],
    ],
    "cold-start": [
        ["vbpr.yaml"],
        ["sasrec.yaml", "--definition", "sequences"],
        ["vbpr.yaml", "bpr-mf.yaml", "--html", "page.html", "--out", "report"],
    ],
    "compare": [
        ["runs"],
        ["runs", "--html", "page.html", "--out", "report"],
        ["runs", "--cost"],
        ["runs", "--by", "modality-presence"],
        ["runs", "--published", "--details"],
        ["runs", "--alignment"],
        ["runs", "--html", "page.html", "--tsne"],
        ["runs", "--against", "runs", "--fail-on-regression"],
        ["runs", "--layout", "encoders"],
        ["runs", "--over-datasets"],
    ],
    "completion": [["bash"], ["zsh"], ["fish"]],
    "doctor": [[], ["--format", "json"]],
    "export": [["tiny", "mmrec", "--to", "new"], ["tiny", "recbole", "--to", "new"]],
    "extract": [
        ["tiny"],
        ["tiny", "--force"],
        ["tiny", "--from-file", "matrix.npy", "--modality", "visual", "--ids", "items.txt"],
        ["tiny", "--from", "visual__colour-edge", "--whiten", "zca"],
        ["tiny", "--nearest", "textual__tfidf-svd", "--item", "red"],
        ["tiny", "--encoder", "minilm-l6", "--weights", "empty"],
        _CLIP,
        [*_CLIP, "--finetune", "--epochs", "1", "--batch-size", "4"],
        [*_CLIP, "--finetune", "--epochs", "1", "--batch-size", "2,4", "--learning-rate", "1e-4"],
    ],
    "prepare": [
        ["new", "--source", "raw"],
        ["new", "--source", "as-mmrec"],
        ["new", "--source", "as-recbole"],
        ["tiny", "--describe"],
        ["--list"],
        ["movielens-100k", "--about"],
    ],
    "represent": [["runs", "--to", "new"], ["runs", "--to", "new", "--tsne"]],
    "stages": [
        ["runs"],
        ["runs", "--rerank", "3", "--to", "two-stage"],
        ["runs", "--html", "page.html", "--out", "figures"],
    ],
    "train": [
        ["vbpr.yaml", "--seeds", "2"],
        ["vbpr.yaml", "--tune", "random", "--trials", "1"],
        ["grid.yaml"],
        ["sasrec.yaml"],
        ["--list"],
    ],
    "transfer": [
        _TRANSFER,
        [*_TRANSFER, "--target-users", "6,12", "--baseline", "none"],
        [*_TRANSFER, "--html", "page.html", "--out", "report"],
    ],
}
"""Command lines that work, to which things are then done; other commands are guessed alone."""
