"""Stored token states on their way to a model that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.data.features import write_features
from mmbench.data.prepare import prepare
from mmbench.data.prepared import load_dataset
from mmbench.engine.device import choose
from mmbench.engine.inputs import features_to_device, load_inputs
from mmbench.engine.train import train_run
from mmbench.errors import ConfigError
from mmbench.models.base import MODELS
from mmbench.recipe import Recipe, RunRecipe

N_ITEMS, WIDTH = 12, 5


def states() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, tokens and their mask; items 3 and 7 have no text."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((N_ITEMS, 3, WIDTH)).astype(np.float16)
    mask = rng.random((N_ITEMS, 3)) < 0.7
    mask[:, 0] = True
    mask[[3, 7]] = False
    matrix = rng.standard_normal((N_ITEMS, WIDTH)).astype(np.float32)
    return matrix, np.where(mask[:, :, None], tokens, np.float16(0)), mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with "seq": 20 users walk round a ring of 12 items."""
    source = tmp_path / "raw"
    source.mkdir()
    rows = [f"u{u},i{(u + t) % 12:02d},{10**9 + t}" for u in range(20) for t in range(6)]
    text = "\n".join(["user_id,item_id,timestamp", *rows])
    (source / "interactions.csv").write_text(text + "\n")
    folder = tmp_path / "data"
    prepare("seq", source=source, data_dir=folder, splits=["leave-one-out"])
    store(folder)
    return folder


def store(folder: Path, change: float = 0.0) -> None:
    matrix, tokens, mask = states()
    dataset = load_dataset("seq", folder)
    present = ~np.isin(np.arange(N_ITEMS), [3, 7])
    tokens = np.where(mask[:, :, None], tokens + np.float16(change), np.float16(0))
    write_features(
        dataset.root, dataset.fingerprint, "textual", "made", matrix, present, {},
        tokens=(tokens, mask),
    )  # fmt: skip


def plan(model: str = "mmsr", **changes: Any) -> RunRecipe:
    settings = {"embedding_size": 8, "max_length": 4}
    raw: dict[str, Any] = {
        "dataset": "seq",
        "protocol": "mmsr",
        "features": {"textual": "made"},
        "model": {"name": model, **settings},
        "training": {"epochs": 3, "batch_size": 8, "select_by": "ndcg@10"},
        "evaluation": {"metrics": ["ndcg@10"], "depth": 12},
        **changes,
    }
    return Recipe(raw, "test").expand()[0]


def test_a_model_that_reads_tokens_is_given_them(data: Path) -> None:
    (given,) = load_inputs(plan(), data).features
    matrix, tokens, mask = states()
    having = [item for item in range(N_ITEMS) if item not in (3, 7)]
    assert given.tokens is not None
    assert given.token_mask is not None
    assert given.tokens.dtype == torch.float16
    np.testing.assert_array_equal(given.tokens[having], tokens[having])
    np.testing.assert_array_equal(given.token_mask[having], mask[having])
    # An item without any has one, the mean of the mean tokens of the others.
    means = [tokens[i][mask[i]].astype(np.float64).mean(axis=0) for i in having]
    for item in (3, 7):
        np.testing.assert_array_equal(given.token_mask[item], [True, False, False])
        np.testing.assert_allclose(given.tokens[item, 0], np.mean(means, axis=0), atol=1e-3)
        assert not given.tokens[item, 1:].any()
    np.testing.assert_array_equal(given.matrix[having], matrix[having])


def test_other_models_are_not(data: Path) -> None:
    assert not MODELS.get("fdsa").obj.reads_tokens
    (given,) = load_inputs(plan("fdsa"), data).features
    assert given.tokens is None
    assert given.token_mask is None


def test_tokens_go_to_the_device_with_the_rest(data: Path) -> None:
    features = load_inputs(plan(), data).features
    (moved,) = features_to_device(features, torch.device("cpu"))
    assert moved.name == features[0].name
    for name in ("matrix", "present", "tokens", "token_mask"):
        assert torch.equal(getattr(moved, name), getattr(features[0], name)), name


def test_a_run_is_known_by_the_tokens_that_it_read(data: Path) -> None:
    before = load_inputs(plan(), data).facts()["features"]
    pooled = load_inputs(plan("fdsa"), data).facts()["features"]
    assert set(before[0]) - set(pooled[0]) == {"tokens_sha256"}
    store(data, change=1.0)
    assert load_inputs(plan(), data).facts()["features"] != before
    assert load_inputs(plan("fdsa"), data).facts()["features"] == pooled


def test_spoilt_vectors_beside_whole_tokens_are_refused(data: Path) -> None:
    spoilt = {"corruptions": {"textual": {"kind": "shuffle", "share": 0.5}}}
    load_inputs(plan("fdsa", **spoilt), data)
    with pytest.raises(ConfigError, match=r"corruptions\.textual: the model reads the tokens of"):
        load_inputs(plan(**spoilt), data)


def test_it_trains_on_tokens(data: Path, tmp_path: Path) -> None:
    done = train_run(plan(), data_dir=data, runs_dir=tmp_path / "runs", compute=choose("cpu"))
    assert 0 <= done.manifest["metrics"]["test"]["ndcg@10"] <= 1
