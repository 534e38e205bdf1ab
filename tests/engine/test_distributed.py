"""Several processes that train one run: the same numbers as one, and all stop together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmbench.data.prepare import prepare
from mmbench.engine.building import build_model, make_ranker
from mmbench.engine.device import choose
from mmbench.engine.extract import extract_builtin
from mmbench.engine.inputs import load_inputs
from mmbench.engine.ranking import Ranker
from mmbench.engine.ranks import Ranks
from mmbench.engine.train import train_run
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run, open_run, read_manifest

CPU = choose("cpu")
SGD = {"optimizer": "sgd", "learning_rate": 0.5, "epochs": 4}
# Batches whose last one has a single row: a process is left without any.
GENERAL = {"dataset": "tiny", "training": {**SGD, "batch_size": 419}}
SEQUENTIAL = {"dataset": "seq", "protocol": "mmsr", "training": {**SGD, "batch_size": 29}}
SASREC = {"name": "sasrec", "max_length": 4, "embedding_size": 8, "dropout": 0.0, "n_layers": 1}
RECIPES: dict[str, dict[str, Any]] = {
    "adam": {
        **GENERAL,
        "model": {"name": "bpr-mf", "embedding_size": 8, "regularization": 0.0},
        "training": {"epochs": 4, "batch_size": 419, "learning_rate": 0.05, "clip_norm": 0.1},
    },
    # Draws a part of its graph at the start of each epoch.
    "freedom": {
        **GENERAL,
        "features": {"visual": "imported"},
        "model": {"name": "freedom", "embedding_size": 8, "pruning": 0.5},
    },
    "sequential": {**SEQUENTIAL, "model": SASREC},
    "parts": {**SEQUENTIAL, "model": SASREC, "training": {**SGD, "accumulate": 3}},
    # Its items are encoded by both processes, each half of them.
    "content": {
        **SEQUENTIAL,
        "features": {"textual": "tfidf-svd"},
        "model": {**SASREC, "name": "morec"},
    },
    "own-updates": {**GENERAL, "model": {"name": "slim-bpr"}},
}


def plan(name: str, **training: Any) -> RunRecipe:
    raw = {"label": name, **RECIPES[name]}
    raw["training"] = {**raw["training"], **training}
    return Recipe(raw, name).expand()[0]


@pytest.fixture(scope="module")
def data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with "tiny", and "seq": 30 users walk round a ring of 12 items."""
    root = tmp_path_factory.mktemp("both")
    (root / "data").mkdir()
    (root / "data" / "tiny").symlink_to(tiny_data / "tiny")
    (root / "raw").mkdir()
    rows = [f"u{u},i{(u + t) % 12},{10**9 + t}" for u in range(30) for t in range(5 + u % 3)]
    text = "\n".join(["user_id,item_id,timestamp", *rows])
    (root / "raw" / "interactions.csv").write_text(text + "\n")
    words = ["sail", "tide", "oven", "dough", "drum", "tuba"]
    titles = [f"i{k},{words[k // 2]} {words[k // 3]} {words[k % 5]}" for k in range(12)]
    (root / "raw" / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    prepare("seq", source=root / "raw", data_dir=root / "data", splits=["leave-one-out"])
    extract_builtin("seq", root / "data")
    return root / "data"


def run_alone(recipe: RunRecipe, data: Path, runs: Path) -> Run:
    return train_run(recipe, data_dir=data, runs_dir=runs, compute=CPU)


def assert_equal_runs(one: Run, other: Run) -> None:
    assert other.path.name == one.path.name
    for name, value in one.manifest["metrics"]["test"].items():
        assert other.manifest["metrics"]["test"][name] == pytest.approx(value, abs=1e-12), name
    for part in ("valid", "test"):
        np.testing.assert_array_equal(one.lists(part).users, other.lists(part).users)
        np.testing.assert_array_equal(one.lists(part).items, other.lists(part).items)
        np.testing.assert_array_equal(one.lists(part).hits, other.lists(part).hits)
    first, second = (load_file(run.path / "weights.safetensors") for run in (one, other))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-6)
    losses = [[r["losses"] for r in history(run)] for run in (one, other)]
    for mine, theirs in zip(*losses, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


def history(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]


# --- what a process takes


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 7, 8, 9, 100])
def test_shares_are_even_and_whole_and_the_first_has_a_row(size: int, n_rows: int) -> None:
    shares = [Ranks(rank, size).rows(n_rows) for rank in range(size)]
    assert [row for share in shares for row in range(n_rows)[share]] == list(range(n_rows))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths)


@pytest.mark.parametrize("name", ["adam", "sequential"])
@pytest.mark.parametrize("size", [2, 3, 70])
def test_shares_of_the_users_have_the_lists_of_all(name: str, size: int, data: Path) -> None:
    recipe = plan(name)
    inputs = load_inputs(recipe, data)
    model = build_model(recipe, inputs, CPU)
    items, hits = make_ranker(recipe, inputs, inputs.test, CPU).top(model, 5)
    parts = []
    for rank in range(size):  # 70 processes are more than there are users
        compute = replace(CPU, ranks=Ranks(rank, size))
        ranker: Ranker = make_ranker(recipe, inputs, inputs.test, compute)
        with torch.no_grad():
            parts.append(ranker._top(model.eval(), 5))
    assert torch.equal(torch.cat([part[0] for part in parts]), items)
    assert torch.equal(torch.cat([part[1] for part in parts]), hits)
    assert all(bool(part[2]) for part in parts)


# --- real processes


def command(recipes: list[Path], data: Path, runs: Path, *options: str) -> list[str]:
    folders = ["--data-dir", str(data), "--runs-dir", str(runs), "--device", "cpu"]
    return ["train", *map(str, recipes), *folders, *options]


def write(folder: Path, *names: str, **training: Any) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for name in names:
        raw = {"label": name, **RECIPES[name]}
        raw["training"] = {**raw["training"], **training}
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(raw))
    return paths


@pytest.mark.slow
def test_torchrun_gives_the_lists_of_one_process(data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "mmbench"),
            *command(write(tmp_path / "recipes", *RECIPES), data, tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("NDCG@10") == 2  # a table for each dataset, printed once
    assert done.stderr.count("[1/6] ") == 1
    for name in RECIPES:
        one = run_alone(plan(name), data, tmp_path / "one")
        two = open_run(tmp_path / "two" / one.path.name)
        assert_equal_runs(one, two)
        facts = two.manifest["training"]
        if name == "own-updates":  # one process does it alone
            assert two.manifest["environment"]["processes"] == 1
            assert "processes" not in facts
            continue
        assert two.manifest["environment"]["processes"] == 2
        assert one.manifest["environment"]["processes"] == 1
        assert len(facts["processes"]) == 2
        peaks = [process["peak_memory_mib"] for process in facts["processes"]]
        assert facts["peak_memory_mib"] == max(peaks)
        assert all(process["train_seconds"] > 0 for process in facts["processes"])
    assert not list((tmp_path / "two").glob("*/checkpoint.pt"))


PROGRAM = """
import os
import torch
torch.set_num_threads(1)
fits = int(os.environ.get("FITS", 10**9))
from mmbench.models.bpr_mf import BPRMF
plain = BPRMF.training_step
def step(model, batch):
    if len(batch) > fits:
        raise MemoryError
    return plain(model, batch)
BPRMF.training_step = step
from mmbench.cli.main import main
main()
"""


@pytest.fixture
def both() -> Any:
    """Starts two processes as torchrun does, with options and variables of their own."""
    started: list[subprocess.Popen[str]] = []

    def start(
        arguments: Callable[[int], list[str]], second: dict[str, str] | None = None
    ) -> list[subprocess.Popen[str]]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in (0, 1):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments(rank)],
                env={**os.environ, **shared, **own, **((second or {}) if rank else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_all_stop_when_one_is_killed_and_the_run_resumes(
    data: Path, tmp_path: Path, both: Any
) -> None:
    recipes = write(
        tmp_path / "recipes", "sequential", epochs=30, patience=None, learning_rate=0.05
    )
    given = command(recipes, data, tmp_path / "cut", "--checkpoint-every", "0")
    first, second = both(lambda rank: given)
    until = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("*/checkpoint.pt")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 2, err
    assert "process 0 of 2 stops, because another one has ended" in " ".join(err.split())
    assert "the same command resumes" in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    (folder,) = (tmp_path / "cut").iterdir()
    assert read_manifest(folder)["status"] == "unfinished"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 0 < state["progress"]["epoch"] < 30
    # The run goes on, here in one process, to where it would have come undisturbed.
    recipe = plan("sequential", epochs=30, patience=None, learning_rate=0.05)
    resumed = run_alone(recipe, data, tmp_path / "cut")
    whole = run_alone(recipe, data, tmp_path / "whole")
    assert resumed.manifest["training"]["epochs"] == 30
    mine, theirs = (history(run) for run in (resumed, whole))
    for one, other in zip(mine, theirs, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)


@pytest.mark.slow
def test_memory_that_is_short_in_one_process_halves_the_parts_of_both(
    data: Path, tmp_path: Path, both: Any
) -> None:
    recipes = write(tmp_path / "recipes", "adam", batch_size=100)
    processes = both(lambda rank: command(recipes, data, tmp_path / "two"), {"FITS": "30"})
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    errors = " ".join(told[0][1].split())
    assert errors.count("a batch of 100 rows does not fit in memory") == 1
    assert told[1] == ("", "")
    one = run_alone(plan("adam", batch_size=100), data, tmp_path / "one")
    two = open_run(tmp_path / "two" / one.path.name)
    assert_equal_runs(one, two)
    assert two.manifest["training"]["accumulate"] == 2


@pytest.mark.slow
def test_processes_with_different_recipes_are_refused(
    data: Path, tmp_path: Path, both: Any
) -> None:
    recipes = write(tmp_path / "recipes", "adam")
    processes = both(lambda rank: command(recipes, data, tmp_path / "runs", "--seeds", str(rank)))
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "another one has ended" in told[0]
    assert "the processes were started with different recipes or data" in told[1]
    assert "Traceback" not in told[0] + told[1]
    assert not list((tmp_path / "runs").iterdir())
