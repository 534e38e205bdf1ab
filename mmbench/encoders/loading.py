"""Files of weights: found here or fetched from the hub, known by their hash, read safely.

Weights come from strangers. Nothing of them is executed: safetensors files are preferred, pickles
are read by `torch.load(weights_only=True)` alone, TorchScript archives and repositories that bring
code of their own are refused. A folder is searched first, then the local cache of the hub; the
network is used only where the user agreed to it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmbench.encoders.hub import (
    NOT_WEIGHTS,
    PICKLES,
    SAFE,
    Remote,
    cached_snapshot,
    fetch_snapshot,
    is_offline,
    not_here,
)
from mmbench.encoders.neural import Hub, Options
from mmbench.errors import DataError

STANDARD = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MAX_JSON = 64 * 2**20


@dataclass(frozen=True)
class Weights:
    """A model that is here.

    Attributes:
        name: what messages call it: the id on the hub, or the folder.
        folder: holds the weights, their configuration and tokenizer.
        files: the files with the weights, in order.
        sha256: of each of `files`, hexadecimal, by name.
        revision: commit of the hub's repository; empty for a local folder.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    sha256: Mapping[str, str]
    revision: str = ""

    @property
    def digest(self) -> str:
        """One hash of all weights: of the file, or of the hashes of the shards in order."""
        hashes = list(self.sha256.values())
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, str]:
        """What a manifest says of the weights."""
        return {"model": self.name, "revision": self.revision, "weights_sha256": self.digest}


def find_weights(
    hub: Hub,
    options: Options,
    *,
    fetch: bool = False,
    agree: Callable[[Remote], bool] | None = None,
) -> Weights:
    """The weights in `options.weights`, in the local cache of the hub, or fetched from the hub.

    Args:
        fetch: whether the network may be used; what `agree` says no to is not fetched.

    Raises:
        DataError: E401 not here, E402 not to be had from the hub, E403 a folder without weights,
            E404 a file that is broken or is not what the hub says.
    """
    if options.weights is not None:
        return local_weights(options.weights, name=hub.id)
    revision = options.revision or hub.revision
    folder = cached_snapshot(hub.id, revision)
    if folder is not None and _is_whole(folder):
        return _weights(hub.id, folder, weights_files(folder), folder.name)
    if not fetch:
        raise DataError(not_here(hub.id, revision, "nothing is fetched unasked", "--download"))
    if is_offline():
        raise DataError(not_here(hub.id, revision, "HF_HUB_OFFLINE is set", ""))
    folder, stated = fetch_snapshot(hub.id, revision, agree)
    weights = _weights(hub.id, folder, weights_files(folder), folder.name)
    for name, digest in weights.sha256.items():
        if stated.get(name, digest) != digest:
            raise DataError(
                f"E404 {folder / name} is not what the hub says (SHA-256 {digest[:12]}..., stated "
                f"{stated[name][:12]}...); delete it and repeat"
            )
    return weights


def local_weights(place: Path, *, name: str = "") -> Weights:
    """The weights in a local folder, or in one file with its configuration beside it.

    Raises:
        DataError: E403 it does not exist or holds no weights; E404 a file is broken.
    """
    name = name or str(place)
    if place.is_file():
        return _weights(name, place.parent, (place,), "")
    if not place.is_dir():
        raise DataError(f"E403 {place} is not here; --weights names the folder of a model")
    return _weights(name, place, weights_files(place), "")


def weights_files(folder: Path) -> tuple[Path, ...]:
    """The files with the weights in a folder: safetensors if there are any, else pickles.

    Raises:
        DataError: E403 there are none, a shard is missing, or it is unclear which to take.
    """
    for suffix, standard in zip(
        (SAFE, *PICKLES), (*STANDARD, "model.pt", "model.pth"), strict=True
    ):
        if (folder / standard).is_file():
            return (folder / standard,)
        index = folder / f"{standard}.index.json"
        if index.is_file():
            return _shards(index)
        found = sorted(
            file
            for file in folder.glob(f"*{suffix}")
            if file.is_file() and not file.name.startswith(NOT_WEIGHTS)
        )
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise DataError(
                f"E403 {folder} holds several weights ({names}) and no {standard}; name one file "
                f"with --weights, or leave one in the folder"
            )
        if found:
            return (found[0],)
    raise DataError(
        f"E403 {folder} holds no weights: a model.safetensors (or pytorch_model.bin) belongs "
        f"there, with its config.json{_seen(folder)}"
    )


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by name, read in blocks of 1 MiB, hexadecimal."""
    hashes = {}
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        hashes[path.name] = digest.hexdigest()
    return hashes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: E403 it is missing; E404 it is not a JSON object.
    """
    content = _json(path)
    if not isinstance(content, dict):
        raise DataError(f"E404 {path} is broken (no JSON object); fetch it again")
    return content


def read_list(path: Path) -> list[Any]:
    """A JSON list.

    Raises:
        DataError: E403 it is missing; E404 it is not a JSON list.
    """
    content = _json(path)
    if not isinstance(content, list):
        raise DataError(f"E404 {path} is broken (no JSON list); fetch it again")
    return content


def _json(path: Path) -> object:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError("it is too large")
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"E403 {path.parent} holds no {path.name}: put it there, or take the whole folder as "
            f"it was published{_seen(path.parent)}"
        ) from None
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"E404 {path} is broken ({problem}); fetch it again") from None
    return content


def read_config(weights: Weights) -> dict[str, Any]:
    """The content of config.json, checked to ask for no code of its own.

    Raises:
        DataError: E403, E404 as `read_json`; E405 the model needs code from its repository.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_json(weights.folder / "config.json")
    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise DataError(
            f"E405 {weights.name} needs code from its repository (config.json: auto_map, model "
            f"type {kind!r}), which is never run; take a model that transformers knows"
        )
    return config


def check_file(path: Path) -> None:
    """Check that a file of weights is whole and safe to open.

    Raises:
        DataError: E404 it is broken; E405 it is a TorchScript archive, or a pickle with code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise ValueError("a Git LFS pointer in place of the file; run git lfs pull")
        if head.lstrip()[:1] == b"<":
            raise ValueError("a web page in place of the file")
        if path.suffix == SAFE:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as tensors:
                tensors.keys()
        elif head.startswith(b"PK"):
            _refuse_archive(path)
    except DataError:
        raise
    except Exception as problem:  # noqa: BLE001  SafetensorError is an Exception, no more
        raise DataError(
            f"E404 {path} is broken ({problem}); fetch it again or take it from a backup"
        ) from None


def load_pickle(path: Path) -> Any:
    """What a `.bin` or `.pt` file holds, tensors on the CPU; no code in it is run.

    Raises:
        DataError: E404 it is broken; E405 it is a TorchScript archive, or a pickle with code.
    """
    check_file(path)
    with unsafe_is_refused(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files of a tokenizer.

    Raises:
        DataError: E403 there is no vocabulary; transformers would silently make an empty one.
    """
    vocabulary = [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    if not vocabulary:
        raise DataError(
            f"E403 {folder} holds no tokenizer: tokenizer.json (or vocab.txt, or vocab.json with "
            f"merges.txt) belongs there{_seen(folder)}"
        )
    settings = [folder / name for name in _TOKENIZER_SETTINGS if (folder / name).is_file()]
    return (*vocabulary, *settings)


@contextmanager
def unsafe_is_refused(path: Path) -> Iterator[None]:
    """Turn what `torch.load(weights_only=True)` raises for code in a pickle into one message."""
    try:
        yield
    except DataError:
        raise
    except Exception as problem:  # noqa: BLE001  the unpickler of torch raises all kinds
        # An operand that is none is damage; a name that is not allowed is more than tensors.
        if isinstance(problem, pickle.UnpicklingError) and "Unsupported operand" not in str(
            problem
        ):
            raise DataError(
                f"E405 {path} is a pickle that holds more than tensors; it could run code and is "
                "not opened. Take the model's safetensors file"
            ) from None
        raise DataError(
            f"E404 {path} is broken, or holds no tensors ({type(problem).__name__}); fetch it again"
        ) from None


def _refuse_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") or "/code/" in f"/{name}" for name in names):
        raise DataError(
            f"E405 {path} is a TorchScript archive: a program, not only weights. It is not opened; "
            "take the model's safetensors file"
        )


def _weights(name: str, folder: Path, files: tuple[Path, ...], revision: str) -> Weights:
    for file in files:
        check_file(file)
    return Weights(name, folder, files, hash_files(files), revision)


def _shards(index: Path) -> tuple[Path, ...]:
    shards = read_json(index).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DataError(f"E404 {index} is broken (no weight_map of files beside it)")
    files = tuple(index.parent / name for name in sorted(names))
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise DataError(
            f"E403 {index.parent} lacks {', '.join(absent)}, which {index.name} names; fetch what "
            "is missing into that folder"
        )
    return files


def _is_whole(folder: Path) -> bool:
    try:
        weights_files(folder)
    except DataError:
        return False
    return True


def _seen(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return (
        f". It holds {', '.join(names[:8])}{' ...' * (len(names) > 8)}"
        if names
        else ". It is empty"
    )
