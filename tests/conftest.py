"""Shared, tiny and offline: one prepared dataset with planted structure and two feature sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

N_USERS, N_ITEMS = 60, 40


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and test runs may share the machine."""
    torch.set_num_threads(1)


def write_mmrec(folder: Path, seed: int = 0) -> Path:
    """A dataset in the MMRec layout: even users like even items, odd users odd ones.

    The visual feature tells the parity of an item; the acoustic one is noise.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        liked = rng.permutation(np.arange(user % 2, N_ITEMS, 2))[:10]
        labels = [0] * 7 + [1] + [2] * 2
        rows += [f"{user}\t{item}\t{label}" for item, label in zip(liked, labels, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["userID\titemID\tx_label", *rows])
    (folder / "tiny.inter").write_text(text + "\n", encoding="utf-8")
    parity = np.arange(N_ITEMS) % 2
    visual = np.stack([parity, 1 - parity], axis=1) + 0.1 * rng.standard_normal((N_ITEMS, 2))
    np.save(folder / "image_feat.npy", visual.astype(np.float32))
    np.save(folder / "audio_feat.npy", rng.standard_normal((N_ITEMS, 3)).astype(np.float32))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds the prepared dataset "tiny"; tests only read it."""
    from mmbench.data.prepare import prepare

    root = tmp_path_factory.mktemp("tiny")
    prepare("tiny", source=write_mmrec(root / "raw"), format="mmrec", data_dir=root / "data")
    return root / "data"


def pytest_report_header() -> str:
    return f"gpu tests: {'run' if torch.cuda.is_available() else 'left out, no CUDA device here'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the GPU tests out where there is no GPU; the header says so."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=left_out)
