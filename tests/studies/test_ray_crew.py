from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmbench.engine.device import choose
from mmbench.recipe import Recipe
from mmbench.runs import Run
from mmbench.studies.training import Workplace
from mmbench.studies.tuning import Tuned, Tuning, TuningEvents, tune_recipes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray leaves files and sockets to the end of the process.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def recipe(epochs: int = 2, **changes: Any) -> Recipe:
    raw = {
        "dataset": "tiny",
        "model": {"name": "bpr-mf", "embedding_size": 4},
        "training": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.05, "patience": None},
        "search": {"model.embedding_size": [2, 4], "training.learning_rate": [0.01, 0.05]},
        "seeds": [0, 1],
    }
    return Recipe({**raw, **changes}, "test.yaml")


def content(run: Run) -> list[Any]:
    files = sorted([*run.path.glob("lists/*/*.npy"), run.path / "weights.safetensors"])
    assert len(files) == 13
    return [run.path.name, run.manifest["metrics"], [file.read_bytes() for file in files]]


def everything(tuned: Tuned) -> list[Any]:
    runs = [trial.run for trial in tuned.tried if trial.run] + tuned.trained.chosen.runs
    return [tuned.chosen.number, [content(run) for run in runs]]


def test_two_nodes_give_what_one_process_gives(
    tiny_data: Path, tmp_path: Path, two_nodes: Any
) -> None:
    here = Workplace(tiny_data, tmp_path / "here", choose("cpu"))
    there = Workplace(tiny_data, tmp_path / "there", choose("cpu"))
    (expected,) = tune_recipes([recipe()], Tuning("grid"), here)
    (found,) = tune_recipes([recipe()], Tuning("grid", ray="auto"), there)
    assert everything(found) == everything(expected)


def test_the_run_of_a_killed_worker_is_tried_again_and_resumed(
    tiny_data: Path, tmp_path: Path, two_nodes: Any
) -> None:
    import ray

    asked = [recipe(400, search={"model.embedding_size": [4]}, seeds=[0])]
    here = Workplace(tiny_data, tmp_path / "here", choose("cpu"))
    there = Workplace(tiny_data, tmp_path / "there", choose("cpu"), checkpoint_every_s=0)
    (expected,) = tune_recipes(asked, Tuning("grid"), here)
    told: list[str] = []

    @ray.remote(num_cpus=0)
    def kill(runs: str) -> int:
        """Wait for the first checkpoint, and kill the process that holds the run's lock."""
        import time

        while True:
            for lock in Path(runs).glob("*/.lock"):
                if (lock.parent / "checkpoint.pt").exists():
                    for process in Path("/proc").glob("[0-9]*"):
                        for handle in _handles(process):
                            if handle == str(lock):
                                os.kill(int(process.name), signal.SIGKILL)
                                return int(process.name)
            time.sleep(0.005)

    def _handles(process: Path) -> list[str]:
        try:
            return [os.readlink(handle) for handle in (process / "fd").iterdir()]  # noqa: PTH115
        except OSError:
            return []

    killed = kill.remote(str(there.runs_dir.resolve()))
    events = TuningEvents(retried=lambda what, error: told.append(error))
    (found,) = tune_recipes(asked, Tuning("grid", ray="auto"), there, events)
    assert ray.get(killed) > 0
    assert len(told) == 1
    assert told[0].startswith("its worker on Ray ended")
    assert everything(found) == everything(expected)
