"""Extractions that are killed, or shared by several processes: the bytes stay the same."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmbench.data.prepared import load_dataset
from mmbench.engine import extraction
from mmbench.engine.extraction import How, extract_neural

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def folder_bytes(data, *keys):
    files = [p for key in keys for p in sorted((data / "mine" / "features" / key).iterdir())]
    return {f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def left_in(data):
    return sorted(p.name for p in (data / "mine" / "features").iterdir())


@pytest.fixture
def undisturbed(tiny, content, tmp_path, monkeypatch):
    """The data folder, and the bytes of an extraction in one go, which are put away again."""

    def make(kind, *keys):
        data = content(n_items=40)
        monkeypatch.setattr(extraction, "POOLED_ITEMS", 4)
        how = How(device="cpu", batch_size=3)
        extract_neural(load_dataset("mine", data), "tiny", tiny.KINDS[kind](), how)
        wanted = folder_bytes(data, *keys)
        for key in keys:
            (data / "mine/features" / key).rename(tmp_path / key)
        return data, wanted

    return make


def start(data, kind, slow_s, **environment):
    return subprocess.Popen(
        [sys.executable, HERE / "tiny_encoders.py", data, kind, str(slow_s)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_extraction_goes_on_and_gives_the_same_bytes(undisturbed):
    data, wanted = undisturbed("dual", "textual__tiny", "visual__tiny")
    killed = start(data, "dual", 0.1)
    features = data / "mine" / "features"
    until = time.monotonic() + 60
    while len(list(features.glob(".visual__tiny~*.work/00*.json"))) < 3:
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not [name for name in left_in(data) if not name.startswith(".")]
    # What a kill in the midst of writing leaves, and a shard that the disk damaged.
    work = next(features.glob(".visual__tiny~*.work"))
    (work / "000009.visual.matrix.npy.partial").write_bytes(b"half")
    shard = work / "000001.visual.matrix.npy"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    resumed, err = start(data, "dual", 0).communicate(timeout=60)
    n_encoded = int(resumed.split()[-1])
    assert 20 < n_encoded <= 78 - 2 * 4, err
    assert folder_bytes(data, "textual__tiny", "visual__tiny") == wanted
    assert left_in(data) == ["textual__tiny", "visual__tiny"]


def test_two_processes_give_the_bytes_of_one(undisturbed):
    data, wanted = undisturbed("joint", "joint__tiny", "textual__tiny")
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [start(data, "joint", 0, RANK=str(k), LOCAL_RANK=str(k), **torchrun) for k in (0, 1)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    counts = [int(out.split()[-1]) for out, _ in told]
    assert sum(counts) == 38
    assert min(counts) > 10
    assert folder_bytes(data, "joint__tiny", "textual__tiny") == wanted


def test_an_error_in_one_process_ends_all(content, tmp_path):
    data = content(n_items=40)
    (tmp_path / "raw" / "images" / "i006.png").unlink()  # shard 1, which is rank 1's
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [start(data, "picture", 0, RANK=str(k), LOCAL_RANK=str(k), **torchrun) for k in (0, 1)]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], told
    assert "rank 1: " in told[0]
    assert all("i006.png cannot be read" in message for message in told)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
