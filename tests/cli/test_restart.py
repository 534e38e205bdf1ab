"""The README's study, killed in its midst and started again: nothing finished is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mmbench.data.prepare import prepare

MODELS = ("vbpr", "bm3", "grcn")
N_RUNS = 2 * 3 * 2 * 3  # datasets, models, conditions, seeds
ENOUGH = 8


@pytest.fixture
def study(tiny_data: Path) -> list[str]:
    """The words after `mmbench`: three models, two datasets, three seeds, one modality dropped."""
    data, raw = Path("data"), Path("raw")
    shutil.copytree(tiny_data / "tiny", data / "tiny")
    shutil.copytree(tiny_data.parent / "raw", raw)
    # Another shop: without the first users, so that no list of the one fits the other.
    head, *rows = (raw / "tiny.inter").read_text(encoding="utf-8").splitlines()
    kept = [f"{int(r.split()[0]) - 20}\t{r.split(chr(9), 1)[1]}" for r in rows[200:]]
    (raw / "tiny.inter").unlink()
    (raw / "other.inter").write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
    prepare("other", source=raw, format="mmrec", data_dir=data)
    files = []
    for dataset in ("tiny", "other"):
        for model in MODELS:
            recipe = {
                "dataset": dataset,
                "features": {"visual": "imported", "acoustic": "imported"},
                "model": {"name": model, "embedding_size": 4},
                "training": {"epochs": 2, "batch_size": 512, "select_by": "recall@10"},
                "evaluation": {"metrics": ["recall@10"], "depth": 10},
                "seeds": [0, 1, 2],
            }
            files.append(f"{dataset}-{model}.yaml")
            Path(files[-1]).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return ["ablate", *files, "--drop", "visual", "--format", "json", "--data-dir", "data"]


def finished(runs: Path) -> dict[str, str]:
    """When each finished run of a folder was finished."""
    found = {}
    for path in runs.glob("[!.]*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["status"] == "complete":
            found[path.parent.name] = f"{manifest['created']} {path.stat().st_mtime_ns}"
    return found


def results(runs: Path) -> dict[str, str]:
    """Every ranked list of every run of a folder."""
    return {
        str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(runs.glob("[!.]*/lists/*/*.npy"))
    }


def test_a_killed_study_goes_on_without_repeating_what_is_finished(
    mmbench: Callable, study: list[str]
) -> None:
    whole = mmbench(*study, "--runs-dir", "whole")
    assert whole.status == 0, whole.err
    command = [sys.executable, "-m", "mmbench", *study, "--runs-dir", "runs"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)
    until = time.monotonic() + 120
    while len(list(Path("runs").glob("[!.]*/lists/test"))) < ENOUGH:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=20) == -signal.SIGKILL
    before = finished(Path("runs"))
    assert ENOUGH - 1 <= len(before) < N_RUNS

    again = mmbench(*study, "--runs-dir", "runs")
    assert again.status == 0, again.err
    assert again.err.count("finished before") == len(before)
    after = finished(Path("runs"))
    assert len(after) == N_RUNS
    assert {name: after[name] for name in before} == before
    assert results(Path("runs")) == results(Path("whole"))
    assert len(results(Path("runs"))) > 2 * N_RUNS
    # The tables too, but for the folder's name.
    assert json.loads(again.out.replace("runs/", "whole/")) == json.loads(whole.out)
    assert len(json.loads(whole.out)) == 2
