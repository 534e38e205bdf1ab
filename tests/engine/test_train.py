"""Failed writes and failed runs: one message, and nothing left that cannot go on."""

from __future__ import annotations

import json
import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmbench.engine.device import choose
from mmbench.engine.folder import CHECKPOINT
from mmbench.engine.train import train_run
from mmbench.errors import DataError, TrainingError
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import open_run


def plan(model: str = "bpr-mf", size: int = 8, **training: Any) -> RunRecipe:
    raw = {
        "dataset": "tiny",
        "model": {"name": model, "embedding_size": size},
        "training": {"epochs": 6, "batch_size": 64, **training},
    }
    return Recipe(raw, "test").expand()[0]


def run(recipe: RunRecipe, data: Path, runs: Path, **options: Any) -> Any:
    return train_run(recipe, data_dir=data, runs_dir=runs, compute=choose("cpu"), **options)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail as on a full disk, also for the superuser."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("limit", "size", "every"),
    [
        pytest.param(6_000, 8, 30, id="lists"),
        pytest.param(8_000, 64, 30, id="weights"),
        pytest.param(8_000, 64, 0, id="checkpoint"),
    ],
)
def test_a_full_disk_is_one_message_wherever_it_strikes(
    tiny_data: Path, tmp_path: Path, limit: int, size: int, every: float
) -> None:
    message = r"cannot be written \(File too large\); free space"
    with files_of_at_most(limit), pytest.raises(DataError, match=message):
        run(plan(size=size), tiny_data, tmp_path, checkpoint_every_s=every)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_takes_no_checkpoint_away(tiny_data: Path, tmp_path: Path) -> None:
    def stop(recipe: RunRecipe, record: dict[str, Any], progress: Any) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(size=64), tiny_data, tmp_path, on_epoch=stop, checkpoint_every_s=0)
    with files_of_at_most(8_000), pytest.raises(DataError, match="the same command resumes"):
        run(plan(size=64), tiny_data, tmp_path, checkpoint_every_s=0)
    (folder,) = tmp_path.iterdir()
    assert (folder / CHECKPOINT).exists()
    assert not list(folder.glob("*.partial"))
    seen: list[int] = []
    done = run(
        plan(size=64), tiny_data, tmp_path, on_epoch=lambda *told: seen.append(told[1]["epoch"])
    )
    assert seen[0] == 3
    assert open_run(folder).manifest == done.manifest
    assert not (folder / CHECKPOINT).exists()


def test_a_diverged_run_leaves_no_folder_in_the_way_of_compare(
    tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError):
        run(plan("lightgcn", learning_rate=1e38, optimizer="sgd"), tiny_data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_runs_folder_below_a_file_is_one_message(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\)"):
        run(plan(), tiny_data, tmp_path / "file" / "runs")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"PK\x03\x04" + bytes(100), pickle.dumps({"epoch": print}, protocol=2)],
    ids=["empty", "text", "truncated", "pickle"],
)
def test_a_damaged_checkpoint_is_one_message(
    tiny_data: Path, tmp_path: Path, content: bytes
) -> None:
    folder = run(plan(), tiny_data, tmp_path).path
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "unfinished"}))
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be resumed .*; delete the folder"):
        run(plan(), tiny_data, tmp_path)
    assert (folder / CHECKPOINT).read_bytes() == content


def test_a_manifest_without_status_is_trained_anew(tiny_data: Path, tmp_path: Path) -> None:
    folder = run(plan(), tiny_data, tmp_path).path
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({"schema": manifest["schema"]}))
    assert run(plan(), tiny_data, tmp_path).manifest["metrics"] == manifest["metrics"]
