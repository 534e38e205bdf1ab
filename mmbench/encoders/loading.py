"""Weights: found here or fetched from the hub, identified by their hash, and loaded safely.

Weights come from strangers. Nothing of them is executed: safetensors files are preferred, pickles
are read by `torch.load(weights_only=True)` alone, TorchScript archives and repositories that bring
code of their own are refused. A folder is searched first, then the local cache of the hub; the
network is used only where the user agreed to it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmbench.encoders.neural import Hub, Options
from mmbench.errors import DataError

SAFE = ".safetensors"
PICKLES = (".bin", ".pt", ".pth")
_STANDARD = ("model.safetensors", "pytorch_model.bin")
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "adapter_model")
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
_SETTINGS = (".json", ".txt", ".model")
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


@dataclass(frozen=True)
class Remote:
    """What would be fetched from the hub.

    Attributes:
        id: repository; `commit` is what its revision stands for now.
        sizes: bytes by file.
        sha256: of the large files, as the hub states them.
    """

    id: str
    commit: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]

    @property
    def n_bytes(self) -> int:
        """Size of the whole."""
        return sum(self.sizes.values())


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
    folder = _cached(hub.id, revision)
    if folder is not None and _is_whole(folder):
        return _weights(hub.id, folder, weights_files(folder), folder.name)
    if not fetch:
        raise DataError(_not_here(hub.id, revision, "nothing is fetched unasked", "--download"))
    if _offline():
        raise DataError(_not_here(hub.id, revision, "HF_HUB_OFFLINE is set", ""))
    return _fetch(hub.id, revision, agree)


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
        (SAFE, *PICKLES), (*_STANDARD, "model.pt", "model.pth"), strict=True
    ):
        if (folder / standard).is_file():
            return (folder / standard,)
        index = folder / f"{standard}.index.json"
        if index.is_file():
            return _shards(index)
        found = sorted(
            file
            for file in folder.glob(f"*{suffix}")
            if file.is_file() and not file.name.startswith(_NOT_WEIGHTS)
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
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"E403 {path.parent} holds no {path.name}{_seen(path.parent)}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"E404 {path} is broken ({problem}); fetch it again") from None
    if not isinstance(content, dict):
        raise DataError(f"E404 {path} is broken (no JSON object); fetch it again")
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
        else:
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


def load_transformer(
    architecture: Any, weights: Weights, *, may_miss: Sequence[str] = (), **settings: Any
) -> Any:
    """A model of transformers in float32 and in evaluation mode.

    Args:
        architecture: class of the model, for example `transformers.BertModel`, or an Auto class.
        may_miss: beginnings of names of weights that need not be in the file, because they are
            not used; a class may have random ones there.
        settings: further arguments of `from_pretrained`.

    Raises:
        DataError: E403 a file is missing, E404 broken, E405 unsafe, E406 of another architecture
            or incomplete.
    """
    config = read_config(weights)
    expected = getattr(getattr(architecture, "config_class", None), "model_type", None)
    if expected is not None and config.get("model_type") != expected:
        raise DataError(
            f"E406 {weights.folder / 'config.json'} is of a model of type "
            f"{config.get('model_type')!r}; {architecture.__name__} needs {expected!r}. Name the "
            "folder of such a model with --weights, or take it by its id with the encoder hf"
        )
    for file, key in (("adapter_config.json", None), ("config.json", "transformers_weights")):
        if (weights.folder / file).is_file() and (key is None or config.get(key)):
            raise DataError(
                f"E406 {weights.folder / file}: this names weights elsewhere (an adapter); merge "
                "them into one model.safetensors first"
            )
    safe = weights.files[0].suffix == SAFE
    if len(weights.files) == 1 and weights.files[0].name != _STANDARD[0 if safe else 1]:
        raise DataError(
            f"E403 {weights.files[0]} must be called {_STANDARD[0 if safe else 1]} for transformers"
        )
    if "attn_implementation" not in settings:
        # Always stated: a config.json could name a kernel that is fetched and run.
        sdpa = getattr(architecture, "_supports_sdpa", None)
        settings["attn_implementation"] = "eager" if sdpa is False else "sdpa"
    with quiet(), unsafe_is_refused(weights.files[0]):
        try:
            model, info = _from_pretrained(architecture, weights.folder, safe, settings)
        except DataError:
            raise
        except pickle.UnpicklingError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise DataError(
                f"E406 {weights.name} in {weights.folder} does not load as "
                f"{architecture.__name__}: {_first_line(problem)}"
            ) from problem
        except ImportError as problem:
            raise DataError(
                f"E406 {weights.name} needs a package that is not here: {_first_line(problem)}"
            ) from problem
    lacking = [
        name for name in sorted(info["missing_keys"]) if not name.startswith(tuple(may_miss))
    ]
    unfit = sorted(str(name) for name in info["mismatched_keys"])
    if lacking or unfit:
        kind, names = ("lacks", lacking) if lacking else ("has in another shape", unfit)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DataError(
            f"E406 {weights.files[0]} {kind} weights of {type(model).__name__}: "
            f"{', '.join(names[:3])}{more}; it is of another model or incomplete"
        )
    return model.eval()


def _from_pretrained(
    architecture: Any, folder: Path, safe: bool, settings: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any]]:
    arguments = {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": safe,
        "dtype": torch.float32,
        "output_loading_info": True,
        **settings,
    }
    try:
        loaded = architecture.from_pretrained(folder, **arguments)
    except ValueError as problem:
        # Some architectures have no fused attention.
        if arguments["attn_implementation"] != "sdpa" or "scaled_dot_product" not in str(problem):
            raise
        loaded = architecture.from_pretrained(
            folder, **{**arguments, "attn_implementation": "eager"}
        )
    model, info = loaded
    return model, info


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


def load_tokenizer(weights: Weights, **settings: Any) -> Any:
    """The fast tokenizer of a model.

    Raises:
        DataError: E403 it has no files, E404 they are broken.
    """
    from transformers import AutoTokenizer

    tokenizer_files(weights.folder)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                weights.folder, local_files_only=True, trust_remote_code=False, **settings
            )
        except Exception as problem:  # the tokenizers library raises bare Exceptions
            raise DataError(
                f"E404 the tokenizer in {weights.folder} does not load: {_first_line(problem)}"
            ) from problem
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"E404 the tokenizer in {weights.folder} has no tokenizer.json")
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, progress bars and notices of transformers inside."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def unsafe_is_refused(path: Path) -> Iterator[None]:
    """Turn what `torch.load(weights_only=True)` raises for code in a pickle into one message."""
    try:
        yield
    except pickle.UnpicklingError as problem:
        if "weights_only" not in str(problem) and "WeightsUnpickler" not in str(problem):
            raise DataError(f"E404 {path} is broken ({_first_line(problem)})") from None
        raise DataError(
            f"E405 {path} is a pickle that holds more than tensors; it could run code and is not "
            "opened. Take the model's safetensors file"
        ) from None
    except (EOFError, RuntimeError) as problem:
        raise DataError(f"E404 {path} is broken ({_first_line(problem)})") from None


def _refuse_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
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
        raise DataError(f"E403 {index.parent} lacks {', '.join(absent)}, which {index.name} names")
    return files


def _is_whole(folder: Path) -> bool:
    try:
        weights_files(folder)
    except DataError:
        return False
    return True


def _cached(repository: str, revision: str) -> Path | None:
    """The snapshot of a repository in the local cache of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError as problem:
        raise DataError(f"E402 {repository!r} is no id of the hub: {problem}") from None
    return Path(found).parent if isinstance(found, str) else None


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _fetch(repository: str, revision: str, agree: Callable[[Remote], bool] | None) -> Weights:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    remote = remote_weights(repository, revision)
    if agree is not None and not agree(remote):
        raise DataError(_not_here(repository, revision, "it was not to be fetched", "--download"))
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=sorted(remote.sizes),
                tqdm_class=Silent,
            )
        )
    except (OSError, ValueError, HTTPError) as problem:
        raise DataError(_not_fetched(repository, revision, problem)) from problem
    weights = _weights(repository, folder, weights_files(folder), folder.name)
    for name, stated in remote.sha256.items():
        if weights.sha256.get(name, stated) != stated:
            raise DataError(
                f"E404 {folder / name} is not what the hub says (SHA-256 "
                f"{weights.sha256[name][:12]}..., stated {stated[:12]}...); delete it and repeat"
            )
    return weights


def remote_weights(repository: str, revision: str) -> Remote:
    """Ask the hub what would be fetched: one set of weights and the settings beside it.

    Raises:
        DataError: E402 the hub cannot be reached or has no such repository with weights.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except (OSError, ValueError, HTTPError) as problem:
        raise DataError(_not_fetched(repository, revision, problem)) from problem
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = _wanted(list(sizes))
    if not any(name.endswith((SAFE, *PICKLES)) for name in wanted):
        raise DataError(
            f"E402 {repository} (revision {revision}) holds no weights that are read here"
        )
    hashes = {
        file.rfilename: file.lfs.sha256
        for file in info.siblings or []
        if file.rfilename in wanted and file.lfs is not None
    }
    return Remote(repository, info.sha or "", {name: sizes[name] for name in wanted}, hashes)


def _wanted(names: Sequence[str]) -> list[str]:
    """Of the files of a repository: settings, tokenizer, and one set of weights."""
    top = [name for name in names if "/" not in name]
    wanted = [name for name in top if name.endswith(_SETTINGS)]
    # Modules of sentence-transformers: 1_Pooling/config.json, 2_Dense/model.safetensors.
    wanted += [
        name
        for name in names
        if name.count("/") == 1 and name[0].isdigit() and name.endswith((".json", SAFE))
    ]
    for suffix, standard in ((SAFE, "model"), (".bin", "pytorch_model")):
        weights = [name for name in top if name.endswith(suffix)]
        shards = [name for name in weights if name.startswith(f"{standard}-")]
        chosen = [f"{standard}{suffix}"] if f"{standard}{suffix}" in weights else shards or weights
        chosen = [name for name in chosen if not name.startswith(_NOT_WEIGHTS)]
        if chosen:
            return sorted({*wanted, *chosen})
    return sorted({*wanted, *(name for name in top if name.endswith(PICKLES))})


def _not_here(repository: str, revision: str, why: str, option: str) -> str:
    from huggingface_hub import constants

    first = f"Pass {option} to fetch it, or" if option else "Where there is a network,"
    return (
        f"E401 {repository} (revision {revision}) is not here: looked in "
        f"{constants.HF_HUB_CACHE}, and {why}. {first} place it by hand: `hf download "
        f"{repository} --local-dir DIR` (config.json, model.safetensors and, for texts, "
        "tokenizer.json with tokenizer_config.json), then pass --weights DIR. A cache elsewhere "
        "is named by HF_HOME"
    )


def _not_fetched(repository: str, revision: str, problem: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(problem, GatedRepoError):
        why = "its licence must be accepted on its page first, then `hf auth login`"
    elif isinstance(problem, RepositoryNotFoundError):
        why = "there is no such repository, or it is private"
    elif isinstance(problem, RevisionNotFoundError):
        why = "it has no such revision"
    else:
        why = f"{type(problem).__name__}: {_first_line(problem)}"
    return (
        f"E402 {repository} (revision {revision}) was not fetched from {constants.ENDPOINT}: "
        f"{why}. Repeat when the network is there, or place it by hand and pass --weights DIR"
    )


def _seen(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return (
        f". It holds {', '.join(names[:8])}{' ...' * (len(names) > 8)}"
        if names
        else ". It is empty"
    )


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(problem).__name__
