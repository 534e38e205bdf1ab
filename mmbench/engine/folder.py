"""The run folder as the engine writes it: its name, its lock, its checkpoint and its results."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save

from mmbench import runs as run_folder
from mmbench.engine.building import make_ranker
from mmbench.engine.cost import Cost
from mmbench.engine.device import Compute
from mmbench.engine.encoding_facts import encoding_facts
from mmbench.engine.inputs import Inputs
from mmbench.engine.ranking import Ranker
from mmbench.engine.start import (
    Start,
    find_start,
    read_weights,
    sizes_of,
    sizes_of_inputs,
    what_moves,
)
from mmbench.engine.training import Progress, TrainingLoop
from mmbench.errors import ConfigError, DataError, MMBenchError, TrainingError
from mmbench.metrics.lists import RankedLists
from mmbench.models.base import Recommender
from mmbench.recipe import RunRecipe, system_hash
from mmbench.runs import Run, open_run, write_array, write_json, write_lists

CHECKPOINT = "checkpoint.pt"
_UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EEXIST,
}  # fmt: skip


def run_path(recipe: RunRecipe, inputs: Inputs, runs_dir: Path) -> tuple[Path, str]:
    """The folder of a run and the hash of its system; equal settings and data, equal names.

    Raises:
        ConfigError, DataError: as `find_start`.
    """
    start = find_start(recipe)
    system = system_of(recipe, inputs)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{recipe.dataset}-{recipe.label}").strip("-.")[:80]
    weights = "" if start is None else f"-from-{start.weights_sha256[:8]}"
    return runs_dir / f"{slug}-{system[:8]}-s{recipe.seed}{weights}", system


def system_of(recipe: RunRecipe, inputs: Inputs, identity: Mapping[str, Any] | None = None) -> str:
    """The hash of all that defines a run but its seed.

    Args:
        recipe: of the run.
        inputs: what the recipe names.
        identity: what counts as the recipe's identity, if not its own.

    Raises:
        ConfigError, DataError: as `find_start`.
    """
    start = find_start(recipe)
    begins = {} if start is None else {"start": start.identity(recipe.seed)}
    known = recipe.identity() if identity is None else identity
    return system_hash({"recipe": known, "data": inputs.facts(), **begins})


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the run folder alone; the lock is the operating system's and dies with the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is training {path}; wait for it to end") from None
        yield
    (path / ".lock").unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into one message; remove a folder left empty."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in _UNWRITABLE:
            raise
        with contextlib.suppress(OSError):  # it is not there, or holds a run that can be resumed
            (path / ".lock").unlink(missing_ok=True)
            path.rmdir()
        raise DataError(
            f"{path} cannot be written ({os.strerror(problem.errno)}); free space or choose "
            "another --runs-dir; the same command resumes"
        ) from None


@contextlib.contextmanager
def keeping_what_resumes(path: Path) -> Iterator[None]:
    """After an error keep a run that can go on from a checkpoint, and remove any other.

    An unfinished folder that nothing can finish would stand in the way of `compare runs/*`.
    """
    try:
        yield
    except (OSError, MMBenchError):
        with contextlib.suppress(OSError):  # the error to be told is the first one
            (path / CHECKPOINT).with_suffix(".partial").unlink(missing_ok=True)
        if not (path / CHECKPOINT).exists():
            shutil.rmtree(path, ignore_errors=True)
        raise


def begin(path: Path, recipe: RunRecipe, system: str) -> None:
    """Mark a fresh folder as a run that is not finished."""
    write_json(
        path / "manifest.json",
        {
            "schema": run_folder.SCHEMA,
            "status": "unfinished",
            "label": recipe.label,
            "system": system,
            "seed": recipe.seed,
        },
    )


def save_checkpoint(path: Path, loop: TrainingLoop) -> None:
    """Write all that an exact resumption needs, whole or not at all."""
    with (partial := path.with_suffix(".partial")).open("wb") as file:
        try:
            torch.save(loop.state(), file)
        except RuntimeError as problem:
            # The archive writer covers a failed write with an error of its own.
            if isinstance(problem.__context__, OSError):
                raise problem.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def resume(path: Path, loop: TrainingLoop) -> None:
    """Bring a loop to where the checkpoint was written.

    Raises:
        DataError: the file is damaged or belongs to another loop.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        loop.restore(state)
    except (
        RuntimeError,
        LookupError,
        TypeError,
        EOFError,
        ValueError,
        OSError,
        UnpicklingError,
    ) as problem:
        raise DataError(
            f"{path} cannot be resumed ({type(problem).__name__}); delete the folder {path.parent} "
            "and train again"
        ) from None


def finish(
    path: Path,
    recipe: RunRecipe,
    system: str,
    inputs: Inputs,
    compute: Compute,
    model: Recommender,
    ranker: Ranker,
    progress: Progress,
    start: Start | None = None,
    cost: Cost | None = None,
) -> Run:
    """Rank both parts with the chosen weights and write all but the manifest, then that."""
    depth = recipe.evaluation.depth
    tester = make_ranker(recipe, inputs, inputs.test, compute)
    try:
        lists = {"valid": ranker.rank(model, depth), "test": tester.rank(model, depth)}
    except TrainingError as problem:
        raise TrainingError(f"{recipe.label}, seed {recipe.seed}: {problem}") from None
    costs = compute.ranks.gather(
        {"train_seconds": progress.train_s, "peak_memory_mib": compute.peak_memory_mib()}
    )
    if not compute.ranks.is_first:
        compute.ranks.say("written")
        return open_run(path)
    (path / "recipe.yaml").write_text(
        yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    with (path / "history.jsonl").open("w", encoding="utf-8") as file:
        for record in progress.history:
            file.write(json.dumps(record, sort_keys=True, allow_nan=False) + "\n")
    weights = {name: t.detach().contiguous().cpu() for name, t in model.state_dict().items()}
    # Not safetensors' own writer: its error on a full disk is no OSError.
    (path / "weights.safetensors").write_bytes(save(weights))
    write_array(path / "popularity.npy", inputs.popularity.astype(np.int32))
    for part, ranked in lists.items():
        write_lists(path / "lists" / part, ranked)
    manifest = {
        "schema": run_folder.SCHEMA,
        "status": "complete",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tool": {"name": "mmbench", "version": version("mmbench")},
        "label": recipe.label,
        "system": system,
        "seed": recipe.seed,
        "trial": recipe.trial,
        **inputs.facts(),
        **encoding_facts(recipe, inputs, model),
        **({} if start is None else {"start": _started(start, model, inputs)}),
        "protocol": recipe.protocol.model_dump(mode="json"),
        "model": {
            "name": recipe.model,
            "family": model.family,
            "integration": getattr(recipe.settings, "integration", model.integration),
            "modalities": inputs.modalities,
            "parameters": sum(p.numel() for p in model.parameters()),
            **({"learned": learned} if (learned := model.describe_state()) else {}),
        },
        "training": {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "stopped_by": progress.finished,
            "steps_per_epoch": progress.steps_per_epoch,
            "select_by": recipe.training.select_by,
            "accumulate": progress.parts,
            "seconds": progress.train_s + progress.evaluate_s,
            "train_seconds": progress.train_s,
            "seconds_per_epoch": progress.train_s / max(1, progress.epoch),
            "peak_memory_mib": max(cost["peak_memory_mib"] for cost in costs),
            **({"processes": costs} if len(costs) > 1 else {}),
        },
        **({} if cost is None else {"encoder_cost": cost.facts()}),
        "environment": compute.describe(),
        "users": {part: ranked.n_users for part, ranked in lists.items()},
        "metrics": {part: _aggregate(recipe, ranked) for part, ranked in lists.items()},
    }
    write_json(path / "manifest.json", manifest)
    (path / CHECKPOINT).unlink(missing_ok=True)
    compute.ranks.say("written")
    return open_run(path)


def _started(start: Start, model: Recommender, inputs: Inputs) -> dict[str, Any]:
    """What the manifest says of the run that this one starts from."""
    moved = what_moves(model, read_weights(start.run), sizes_of(start.run), sizes_of_inputs(inputs))
    return start.facts(moved)


def _aggregate(recipe: RunRecipe, lists: RankedLists) -> dict[str, float]:
    names = dict.fromkeys([*recipe.evaluation.parsed])
    return {str(metric): float(np.nanmean(metric.values(lists))) for metric in names}
