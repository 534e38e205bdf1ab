"""An unfinished fine-tuning on disk: after each epoch, all that the next one needs.

    <dataset>/tuned/.<name>~<config>.work/
        last-0007.safetensors   what learns, and the optimiser's moments, after epoch 7
        best-0004.safetensors   what learns, at the best epoch so far
        steps-0007.jsonl        a record of each step of epoch 7
        state.json              epoch, step, best epoch, history, hashes of the two; written last

A state counts once state.json names it; files that it does not name are left from a process that
was killed, and are removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmbench.data.hashing import sha256_file
from mmbench.engine.shards import canonical_hash
from mmbench.errors import DataError
from mmbench.runs import write_json

STATE = "state.json"
STEPS = "steps-"


@dataclass
class Progress:
    """How far a fine-tuning is.

    Attributes:
        epoch: finished epochs; 0 when only the beginning was judged.
        step: finished steps.
        best_epoch: with the best held-out result.
        history: a record of each epoch, that of epoch 0 first.
        is_done: whether it came to its end.
        diverged: why it could not go on, where it could not.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False
    diverged: str = ""


class StateFolder:
    """Where the state of one fine-tuning is kept.

    Args:
        root: folder of all fine-tuned encoders of a dataset.
        name: of this one.
        config: all that determines the result, as JSON values.
    """

    def __init__(self, root: Path, name: str, config: Mapping[str, Any]) -> None:
        self.config_hash = canonical_hash(dict(config))
        self.root, self.name = root, name
        self.path = root / f".{name}~{self.config_hash[:12]}.work"

    def read(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The last whole state and its tensors; None where there is none of this configuration."""
        try:
            known = json.loads((self.path / STATE).read_text("utf-8"))
            if known["config_sha256"] != self.config_hash:
                return None
            progress = Progress(**known["progress"])
            for name, sha256 in known["files"].items():
                if sha256_file(self.path / name) != sha256:
                    return None
            if progress.diverged:
                return progress, {}
            return progress, read_tensors(self.path / f"last-{progress.epoch:04d}.safetensors")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(
        self, progress: Progress, last: Mapping[str, Tensor], best: Mapping[str, Tensor] | None
    ) -> None:
        """Store a state, whole or not at all.

        Args:
            last: what learns and the optimiser's moments; none where it cannot go on.
            best: what learns, where this epoch is the best so far.

        Raises:
            DataError: E108 it cannot be written.
        """
        names = [f"best-{progress.best_epoch:04d}.safetensors"]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if best is not None:
                write_tensors(self.path / names[0], best)
            if last:
                names.append(f"last-{progress.epoch:04d}.safetensors")
                write_tensors(self.path / names[1], last)
            files = {name: sha256_file(self.path / name) for name in names}
            known = {
                "config_sha256": self.config_hash,
                "progress": vars(progress),
                "files": files,
            }
            write_json(self.path / STATE, known)
        except OSError as problem:
            raise DataError(
                f"E108 {self.path} cannot be written ({problem.strerror or problem}); make room, "
                "then run this again: the epochs before stay done"
            ) from problem
        for left in self.path.iterdir():
            if left.name not in (*names, STATE) and not left.name.startswith(STEPS):
                left.unlink()

    def note_steps(self, epoch: int, steps: Sequence[Mapping[str, float]]) -> None:
        """Keep a record of each step of an epoch; one that is repeated is written anew.

        Raises:
            DataError: E108 it cannot be written.
        """
        if not steps:
            return
        lines = [json.dumps(step, sort_keys=True) + "\n" for step in steps]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / f"{STEPS}{epoch:04d}.jsonl").write_text("".join(lines), "utf-8")
        except OSError as problem:
            raise DataError(
                f"E108 {self.path} cannot be written ({problem.strerror or problem}); make room, "
                "then run this again"
            ) from problem

    def steps(self, progress: Progress) -> str:
        """The records of the steps of all finished epochs, a line each."""
        files = [self.path / f"{STEPS}{n:04d}.jsonl" for n in range(1, progress.epoch + 1)]
        return "".join(file.read_text("utf-8") for file in files if file.is_file())

    def best(self, progress: Progress) -> dict[str, Tensor]:
        """What learns, at the best epoch."""
        return read_tensors(self.path / f"best-{progress.best_epoch:04d}.safetensors")

    def remove(self) -> None:
        """Remove this folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file so that it is whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        save_file(plain, partial)
    except SafetensorError as problem:  # a full disk comes as this
        raise OSError(str(problem)) from problem
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: it is broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: value.to(torch.float32) for name, value in load_file(path).items()}
    except SafetensorError as problem:
        raise ValueError(str(problem)) from problem
