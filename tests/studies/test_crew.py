from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mmbench.runs import open_run
from mmbench.studies.crew import Alone, Outcome, Processes, Site, Task

TASK = Task(
    {
        "dataset": "tiny",
        "model": {"name": "bpr-mf", "embedding_size": 4},
        "training": {"epochs": 40, "batch_size": 64, "learning_rate": 0.01, "patience": None},
    },
    "test.yaml",
    {},
    0,
)


def site(data: Path, runs: Path, checkpoint_every_s: float = 0.0) -> Site:
    return Site(str(data), str(runs), "cpu", False, checkpoint_every_s, 1)


@pytest.mark.slow
def test_the_run_of_a_killed_process_is_tried_again_and_resumed(
    tiny_data: Path, tmp_path: Path
) -> None:
    alone = Alone(site(tiny_data, tmp_path / "a", 30.0))
    assert list(alone.work([TASK])) == [Outcome(0, None, True)]
    crew = Processes(site(tiny_data, tmp_path / "b"), 1)

    def kill() -> None:
        while not list((tmp_path / "b").glob("*/checkpoint.pt")):
            time.sleep(0.002)
        (worker,) = crew._workers
        os.kill(worker._process.pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        outcomes = list(crew.work([TASK]))
    finally:
        killer.join()
        crew.close()
    assert outcomes == [
        Outcome(0, "its process was killed by signal 9", False),
        Outcome(0, None, True),
    ]
    (one,), (other,) = (list((tmp_path / name).iterdir()) for name in "ab")
    assert one.name == other.name
    assert open_run(one).manifest["metrics"] == open_run(other).manifest["metrics"]
    for name in ("weights.safetensors", "lists/test/items.npy", "lists/valid/items.npy"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
