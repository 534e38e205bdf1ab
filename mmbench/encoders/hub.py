"""The hub: what its local cache holds, what would be fetched, and fetching it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.errors import DataError

SAFE = ".safetensors"
PICKLES = (".bin", ".pt", ".pth")
NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "adapter_model")
_SETTINGS = (".json", ".txt", ".model")


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


def cached_snapshot(repository: str, revision: str) -> Path | None:
    """The snapshot of a repository in the local cache of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError as problem:
        raise DataError(f"E402 {repository!r} is no id of the hub: {problem}") from None
    return Path(found).parent if isinstance(found, str) else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def fetch_snapshot(
    repository: str, revision: str, agree: Callable[[Remote], bool] | None
) -> tuple[Path, Mapping[str, str]]:
    """Fetch a repository's weights into the local cache: their folder, and the hashes stated.

    Raises:
        DataError: E401 it was not agreed to; E402 the hub cannot be reached or does not have it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    remote = remote_weights(repository, revision)
    if agree is not None and not agree(remote):
        raise DataError(not_here(repository, revision, "it was not to be fetched", "--download"))
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
    return folder, remote.sha256


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
        chosen = [name for name in chosen if not name.startswith(NOT_WEIGHTS)]
        if chosen:
            return sorted({*wanted, *chosen})
    return sorted({*wanted, *(name for name in top if name.endswith(PICKLES))})


def not_here(repository: str, revision: str, why: str, option: str) -> str:
    """The message for a model that is not here: what was tried, and how to place it by hand."""
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
        why = f"{type(problem).__name__}: {first_line(problem)}"
    return (
        f"E402 {repository} (revision {revision}) was not fetched from {constants.ENDPOINT}: "
        f"{why}. Repeat when the network is there, or place it by hand and pass --weights DIR"
    )


def first_line(problem: BaseException) -> str:
    """What an exception of a library says, shortened for a message."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(problem).__name__
