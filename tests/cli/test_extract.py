"""`mmbench extract`: real command lines, their output and their exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


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
    assert [line.split()[0] for line in done.out.splitlines()] == ["colour-edge", "tfidf-svd"]
    listed = json.loads(mmbench("extract", "--list", "--format", "json").out)
    assert "TF-IDF" in listed["tfidf-svd"]


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
