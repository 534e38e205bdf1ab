from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmbench.encoders.hub import Remote, fetch_snapshot, remote_weights
from mmbench.encoders.loading import find_weights
from mmbench.encoders.neural import Hub, Options
from mmbench.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = Hub("someone/some-model")


def safetensors(content: bytes) -> bytes:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + content


FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": safetensors(b"0123456789"),
    "pytorch_model.bin": b"the same weights again",
    "tf_model.h5": b"and again",
    "onnx/model.onnx": b"and again",
    "1_Pooling/config.json": b"{}",
    "README.md": b"# Model",
}
WANTED = {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"}


def hub_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """The answers of a hub that holds one repository."""

    def entry(name: str, content: bytes, key: str) -> dict[str, Any]:
        facts: dict[str, Any] = {key: name, "size": len(content)}
        facts |= {"blobId": "1" * 40, "oid": "1" * 40, "type": "file"}
        if name.endswith((".safetensors", ".bin")):
            digest = hashlib.sha256(content).hexdigest()
            large = {"size": len(content), "pointerSize": 130}
            facts["lfs"] = {**large, "sha256": digest, "oid": digest}
        return facts

    api = f"api/models/{HUB.id}"
    info = {
        "id": HUB.id,
        "modelId": HUB.id,
        "sha": COMMIT,
        "siblings": [entry(name, content, "rfilename") for name, content in files.items()],
    }
    tree = [entry(name, content, "path") for name, content in files.items()]
    answers = {
        f"{api}/revision/main": json.dumps(info).encode(),
        api: json.dumps(info).encode(),
        f"{api}/tree/{COMMIT}": json.dumps(tree).encode(),
    }
    for name, content in files.items():
        answers[f"{HUB.id}/resolve/{COMMIT}/{name}"] = content
    return answers


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def hub(
    cache: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, bytes]], Any]:
    from huggingface_hub import constants

    def start(files: dict[str, bytes]) -> Any:
        server = serve(hub_of(files))
        for name in files:
            path = f"{HUB.id}/resolve/{COMMIT}/{name}"
            server.fault(path, headers={"X-Repo-Commit": COMMIT})
        monkeypatch.setattr(constants, "ENDPOINT", server.url.rstrip("/"))
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "{repo_id}/resolve/{revision}/{filename}",
        )
        return server

    return start


def test_what_would_be_fetched_is_one_set_of_weights(hub: Callable[..., Any]) -> None:
    hub(FILES)
    remote = remote_weights(HUB.id, "main")
    assert set(remote.sizes) == WANTED
    assert remote.commit == COMMIT
    assert remote.n_bytes == sum(len(FILES[name]) for name in WANTED)
    digest = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert remote.sha256 == {"model.safetensors": digest}


def test_pickles_are_fetched_where_there_is_nothing_else(hub: Callable[..., Any]) -> None:
    hub({name: content for name, content in FILES.items() if "safetensors" not in name})
    sizes = remote_weights(HUB.id, "main").sizes
    assert set(sizes) == WANTED - {"model.safetensors"} | {"pytorch_model.bin"}


def test_shards_are_fetched_with_their_index(hub: Callable[..., Any]) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": b"" for n in (1, 2)}
    index = {"model.safetensors.index.json": b"{}", "training_args.bin": b""}
    hub({"config.json": b"{}", **shards, **index})
    assert set(remote_weights(HUB.id, "main").sizes) == {
        "config.json",
        "model.safetensors.index.json",
        *shards,
    }


def test_fetched_once_and_found_afterwards_without_the_network(
    hub: Callable[..., Any], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = hub(FILES)
    asked: list[Remote] = []

    def agree(remote: Remote) -> bool:
        asked.append(remote)
        return True

    weights = find_weights(HUB, Options(), fetch=True, agree=agree)
    assert len(asked) == 1
    assert weights.revision == COMMIT
    assert weights.folder.is_relative_to(cache)
    found = {p.relative_to(weights.folder).as_posix() for p in weights.folder.rglob("*.*")}
    assert found - {"1_Pooling"} == WANTED
    assert weights.files[0].read_bytes() == FILES["model.safetensors"]
    n_requests = len(server.requests)
    assert find_weights(HUB, Options()) == weights
    assert find_weights(HUB, Options(revision=COMMIT)) == weights
    assert len(server.requests) == n_requests
    assert capfd.readouterr() == ("", "")


def test_nothing_is_fetched_unasked(hub: Callable[..., Any], cache: Path) -> None:
    server = hub(FILES)
    with pytest.raises(
        DataError, match=r"E401 someone/some-model \(revision main\) is not here"
    ) as e:
        find_weights(HUB, Options())
    for part in (str(cache), "--download", "--weights DIR", "config.json, model.safetensors"):
        assert part in str(e.value)
    assert server.requests == []
    with pytest.raises(DataError, match=r"E401 .* it was not to be fetched"):
        find_weights(HUB, Options(), fetch=True, agree=lambda remote: False)
    assert not cache.exists()


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub: Callable[..., Any]) -> None:
    server = hub(FILES)
    other = safetensors(b"9876543210")
    server.files[f"{HUB.id}/resolve/{COMMIT}/model.safetensors"] = other
    with pytest.raises(DataError, match=r"E404 .*model\.safetensors is not what the hub says"):
        find_weights(HUB, Options(), fetch=True)


def test_a_cache_with_half_a_model_is_completed(hub: Callable[..., Any]) -> None:
    hub(FILES)
    folder, _ = fetch_snapshot(HUB.id, "main", None)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="E401"):
        find_weights(HUB, Options())
    assert find_weights(HUB, Options(), fetch=True).files[0].is_file()


def test_a_repository_that_is_not_there(hub: Callable[..., Any]) -> None:
    server = hub(FILES)
    missing = {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}
    server.fault(f"api/models/{HUB.id}/revision/main", **missing)
    with pytest.raises(DataError, match=r"E402 .* there is no such repository, or it is private"):
        find_weights(HUB, Options(), fetch=True)
    revision = {"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}
    server.fault(f"api/models/{HUB.id}/revision/main", **revision)
    with pytest.raises(DataError, match=r"E402 .* it has no such revision"):
        find_weights(HUB, Options(), fetch=True)
    gated = {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}
    server.fault(f"api/models/{HUB.id}/revision/main", **gated)
    with pytest.raises(DataError, match=r"E402 .* its licence must be accepted"):
        find_weights(HUB, Options(), fetch=True)


def test_a_repository_without_weights(hub: Callable[..., Any]) -> None:
    hub({"README.md": b"", "tf_model.h5": b""})
    with pytest.raises(DataError, match=r"E402 .* holds no weights that are read here"):
        find_weights(HUB, Options(), fetch=True)


@pytest.mark.parametrize("name", ["a/b/c", "../x", "", "a b"])
def test_an_id_that_is_none(name: str, cache: Path) -> None:
    with pytest.raises(DataError, match=r"E402 .* is no id of the hub"):
        find_weights(Hub(name), Options())


def test_offline_is_honoured_and_said(tmp_path: Path) -> None:
    code = (
        "from mmbench.encoders.loading import find_weights\n"
        "from mmbench.encoders.neural import Hub, Options\n"
        "from mmbench.errors import DataError\n"
        "try: find_weights(Hub('someone/some-model'), Options(), fetch=True)\n"
        "except DataError as problem: print(problem)\n"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "E401 someone/some-model (revision main) is not here" in done.stdout
    assert "HF_HUB_OFFLINE is set" in done.stdout
    assert str(tmp_path) in done.stdout
