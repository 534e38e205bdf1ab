"""Fine-tuning an encoder on the pictures and texts of a dataset, then extracting with it.

    <dataset>/tuned/<name>/
        model.safetensors, config.json, ..   what --weights takes, in the encoder's own layout
        finetuning.json   base weights, objective, settings, data, chosen epoch, before and after
        history.jsonl     a record of each epoch of the chosen point of the grid
        steps.jsonl       a record of each step of it
        grid.jsonl        a record of each point, where there are several
        curves.svg, .png  the history, drawn

The folder appears by one rename, so it is whole or not there. A fine-tuning with the same
settings, data and base weights is not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmbench import seeding
from mmbench.data.features import feature_key
from mmbench.data.prepared import PreparedDataset, load_dataset
from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import NeuralEncoder
from mmbench.encoders.objectives import objective_of, refuse_other
from mmbench.encoders.pair import label
from mmbench.encoders.trunks import recompute, towers_of
from mmbench.encoders.tuned import FACTS, save_tuned, tuned_digest, tuning_of
from mmbench.encoders.vlmo_base_plus import VlmoBasePlus
from mmbench.engine import device
from mmbench.engine.contents import Contents, read_contents
from mmbench.engine.cost import Cost
from mmbench.engine.device import Compute
from mmbench.engine.encoding import PRECISIONS, precision_type
from mmbench.engine.extract import set_name
from mmbench.engine.extraction import WHENCE, Extraction, How, extract_neural, find_files
from mmbench.engine.foresight import foresee_tuning
from mmbench.engine.identity import versions
from mmbench.engine.shards import alone, canonical_hash
from mmbench.engine.tuning_loop import Tuner
from mmbench.engine.tuning_pairs import Pairs, facts, read_pairs
from mmbench.engine.tuning_settings import FineTuning
from mmbench.engine.tuning_state import Progress, StateFolder
from mmbench.errors import ConfigError, DataError, TrainingError, UnknownNameError
from mmbench.runs import write_json

FOLDER = "tuned"
SUFFIX = "-ft"
CHUNK = {"cpu": 32, "cuda": 128}
"""Items that are computed at a time with their graph."""


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned encoder on disk.

    Attributes:
        facts: content of its finetuning.json.
        history: a record of each epoch, the first of the published weights.
        grid: a record of each point; one where there is no grid.
        is_new: whether it was made now.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    grid: Sequence[Mapping[str, Any]]
    is_new: bool
    time_s: float = 0.0


@dataclass(frozen=True)
class _Work:
    """All that the points of a grid share."""

    dataset: PreparedDataset
    kind: type[NeuralEncoder]
    how: How
    settings: FineTuning
    name: str
    chunk: int | None
    recomputes: bool
    compute: Compute
    contents: Contents
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.dataset.root / FOLDER

    def encoder(self) -> NeuralEncoder:
        """The encoder without its weights, as it is learnt with."""
        variant = None if issubclass(self.kind, VlmoBasePlus) else "proj"
        return self.kind(replace(self.how.options, variant=variant, tokens=False))

    def loaded(self) -> NeuralEncoder:
        """The same with its published weights, on the device."""
        encoder = self.encoder()
        encoder.load()
        encoder.draw(seeding.integer(self.settings.seed, "fine-tune", "new"))
        encoder.module.eval().to(self.compute.device)
        return encoder


def extract_tuned(
    name: str,
    encoder: str,
    data_dir: Path,
    how: How,
    settings: FineTuning,
    *,
    chunk: int | None = None,
    recomputes: bool = False,
) -> tuple[Tuned, list[Extraction]]:
    """Fine-tune an encoder on a dataset's pairs, and make its feature sets of all items.

    Items with one modality only are not learnt from, but are encoded.

    Args:
        chunk: items computed at a time while it learns; None to choose. Moves no result.
        recomputes: whether activations are computed again in the backward pass, to save memory.

    Raises:
        UnknownNameError: there is no such encoder or dataset.
        ConfigError: the encoder cannot be fine-tuned, a batch is larger than all pairs, or another
            fine-tuning of that name is there.
        DataError: there are too few pairs, or the weights are not here or unfit.
        TrainingError: it diverged.
    """
    key, _, model = encoder.partition(":")
    entry = ENCODERS.get(key)
    kind = entry.obj
    if not issubclass(kind, NeuralEncoder):
        raise ConfigError(f"{entry.name} has no weights, so there is nothing to fine-tune")
    refuse_other(kind)
    if model and "model" not in kind.takes:
        raise ConfigError(
            f"{encoder} names no model with a common space; take a registered encoder"
        )
    if model:
        how = replace(how, options=replace(how.options, model=model))
    if how.precision not in PRECISIONS:
        raise UnknownNameError("precision", how.precision, PRECISIONS)
    if how.precision == "float16":
        raise ConfigError("gradients in float16 overflow; take --precision bfloat16 or float32")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a fine-tuning runs in one process; start it without torchrun")
    dataset = load_dataset(name, data_dir)
    kind(how.options)  # an unknown variant is refused before hours of work, not after them
    named = replace(how.options, variant=None, model=label(model) if model else None)
    called = how.name or f"{set_name(entry.name, named)}{SUFFIX}"
    feature_key("visual", called)
    compute = device.choose(how.device)
    precision_type(how.precision, compute)
    contents = read_contents(dataset, ("textual", "visual"), how.texts)
    work = _Work(dataset, kind, how, settings, called, chunk, recomputes, compute, contents)
    tuned = _fine_tune(work)
    options = replace(how.options, weights=tuned.folder, revision=None, model=None)
    # The batch size was that of the contrastive loss.
    how = replace(how, options=options, name=called, batch_size=None, fetch=False)
    return tuned, extract_neural(dataset, called, kind(how.options), how)


def _fine_tune(work: _Work) -> Tuned:
    """Fine-tune, unless that was done with the same settings on the same data.

    Raises:
        ConfigError: it was done with others, and `how.force` is not set.
    """
    began = time.monotonic()
    probe = work.encoder()
    find_files(probe, work.how)  # asks, and fetches what is not here
    probe.load()
    given = {key: value for key, value in probe.settings.items() if key not in WHENCE}
    config = {
        "version": 1,
        "kind": work.kind.__qualname__,
        "encoder": json.loads(json.dumps(given)),
        "settings": work.settings.identity,
        "contents_sha256": work.contents.sha256,
        "text": work.contents.template,
        "precision": work.how.precision,
    }
    if work.settings.warm is not None:
        config["split"] = work.dataset.split(work.settings.warm).fingerprint
    work = replace(work, config=config)
    del probe  # its memory is needed
    folder = work.root / work.name
    stored = tuning_of(folder)
    if stored is not None and not work.how.force:
        if stored.get("config_sha256") != canonical_hash(config):
            raise ConfigError(
                f"E411 {work.dataset.name} has a fine-tuned {work.name} that was made with other "
                "settings, weights or data. Call the new one by another name with --name, or "
                "replace it with --force"
            )
        if stored.get("weights_sha256") == _digest(folder):
            return _stored(work.name, folder)
    with alone(work.root, work.name):
        facts = _make(work, folder)
    work.how.watch.say(
        f"{work.name}: epoch {facts['chosen_epoch']} of {facts['epochs']} in {folder}"
    )
    return replace(_stored(work.name, folder), is_new=True, time_s=time.monotonic() - began)


def _make(work: _Work, folder: Path) -> dict[str, Any]:
    """Run all points of the grid and store the best."""
    states: list[StateFolder] = []
    costs: list[Cost] = []
    best: tuple[tuple[float, float], int] | None = None
    grid: list[dict[str, Any]] = []
    encoder = work.loaded()
    pairs = read_pairs(work.dataset, encoder, work.contents, work.settings, work.compute)
    fitted = work.settings.fitted(len(pairs.train))
    if fitted.batch_size != work.settings.batch_size:
        work.how.watch.say(f"{work.name}: {_fewer(work.settings, fitted, len(pairs.train))}")
    points = list(fitted.points())
    for number, point in enumerate(points):
        if number:
            encoder = work.loaded()
        state = _state(work, point)
        states.append(state)
        tuner = _tuner(work, encoder, pairs, point, state)
        costs.append(foresee_tuning(tuner, recomputes=work.recomputes))
        work.how.watch.say(f"{work.name}: {costs[-1].line()}")
        try:
            progress = tuner.run()
        except TrainingError as problem:
            if len(points) == 1:
                state.remove()
                raise
            # Of a grid this is a result: such a rate is too high.
            grid.append({**_told(point), "diverged": str(problem)})
            work.how.watch.say(str(problem))
            continue
        judged = progress.history[progress.best_epoch]["held_out"]
        both = (judged["recall"], -judged["losses"]["itc"])
        score = both if point.select_by == "recall" else (both[1], both[0])
        if best is None or score > best[0]:
            best = (score, number)
        grid.append({**_told(point), "epoch": progress.best_epoch, "held_out": judged})
    if best is None:
        for state in states:
            state.remove()
        raise TrainingError(
            f"all {len(points)} points of the grid diverged: {grid[-1]['diverged']}"
        )
    point, state = points[best[1]], states[best[1]]
    encoder = work.loaded()
    tuner = _tuner(work, encoder, pairs, point, state)
    found = state.read()
    assert found is not None
    progress = found[0]
    tuner.restore_best(progress)
    known = _store(work, tuner, progress, point, grid, folder, costs[best[1]])
    for state in states:
        state.remove()
    return known


def _state(work: _Work, point: FineTuning) -> StateFolder:
    config = {
        **work.config,
        "settings": point.identity,
        "dataset": work.dataset.fingerprint,
        "device": work.compute.device.type,
        "chunk": _chunk(work),
        "versions": versions(),
    }
    return StateFolder(work.root, work.name, config)


def _chunk(work: _Work) -> int:
    return work.chunk or CHUNK["cuda" if work.compute.is_cuda else "cpu"]


def _tuner(
    work: _Work, encoder: NeuralEncoder, pairs: Pairs, point: FineTuning, state: StateFolder
) -> Tuner:
    objective = objective_of(encoder, point.objective)
    if work.recomputes:
        for modality in ("visual", "textual"):
            recompute(encoder.module, towers_of(encoder.module, modality))
            if isinstance(encoder, VlmoBasePlus):
                break  # all modalities go through the same blocks
    return Tuner(
        objective,
        pairs,
        point,
        work.compute,
        state,
        _chunk(work),
        precision_type(work.how.precision, work.compute),
        work.how.watch,
    )


def _store(
    work: _Work,
    tuner: Tuner,
    progress: Progress,
    point: FineTuning,
    grid: Sequence[Mapping[str, Any]],
    folder: Path,
    cost: Cost,
) -> dict[str, Any]:
    """Write the folder of the fine-tuned weights, whole or not at all."""
    encoder, dataset = tuner.objective.encoder, work.dataset
    chosen, first = progress.history[progress.best_epoch], progress.history[0]
    settings = encoder.settings
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        known: dict[str, Any] = {
            "schema": 1,
            "config_sha256": canonical_hash(dict(work.config)),
            "weights_sha256": save_tuned(encoder, partial),
            "base": {
                "kind": work.kind.__qualname__,
                **{k: settings.get(k, "") for k in ("model", "revision", "weights_sha256")},
                "licence": encoder.hub.licence,
            },
            "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
            "data": facts(tuner.pairs, work.contents),
            "objective": dict(tuner.objective.weights),
            "settings": point.identity,
            "grid_points": len(grid),
            **_given_up(work.settings, len(tuner.pairs.train)),
            "learns": sum(weight.numel() for weight in tuner.learning.values()),
            "precision": work.how.precision,
            "seed": point.seed,
            "epochs": progress.epoch,
            "steps": progress.step,
            "chosen_epoch": progress.best_epoch,
            "chosen_step": chosen["step"],
            "temperatures": chosen["temperatures"],
            "helped": progress.best_epoch > 0,
            "before": first["held_out"],
            "after": chosen["held_out"],
            "cost": {
                **cost.facts(),
                "seconds": sum(record["seconds"] for record in progress.history),
                "peak_memory_mib": max(r.get("peak_memory_mib", 0.0) for r in progress.history),
            },
            "device": work.compute.device.type,
            "versions": versions(),
        }
        _write_lines(partial / "history.jsonl", progress.history)
        _write_lines(partial / "grid.jsonl", grid)
        (partial / "steps.jsonl").write_text(tuner.state.steps(progress), encoding="utf-8")
        write_json(partial / FACTS, known)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(folder)
    except OSError as problem:
        raise DataError(
            f"E108 {folder} cannot be written ({problem.strerror or problem}); make room, then "
            "run this again: what was learnt stays there"
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return known


def _fewer(asked: FineTuning, fitted: FineTuning, n_pairs: int) -> str:
    """Which batches there are in place of which, as the pairs are few."""
    sizes = ", ".join(str(size) for size in fitted.batch_size)
    left_out = ", ".join(str(size) for size in asked.batch_size if size > n_pairs)
    return f"batch size {sizes}: the {n_pairs:,} pairs to learn from are fewer than {left_out}"


def _given_up(settings: FineTuning, n_pairs: int) -> dict[str, Any]:
    """Batch sizes that were larger than the pairs, where there were any; for the manifest."""
    larger = [size for size in settings.batch_size if size > n_pairs]
    return {"larger_batch_sizes_left_out": larger} if larger else {}


def _told(point: FineTuning) -> dict[str, Any]:
    return {"learning_rate": point.learning_rate[0], "batch_size": point.batch_size[0]}


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(record, sort_keys=True, allow_nan=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _digest(folder: Path) -> str:
    try:
        return tuned_digest(folder)
    except (OSError, DataError):
        return ""


def _stored(name: str, folder: Path) -> Tuned:
    known = tuning_of(folder) or {}
    history, grid = _read_lines(folder / "history.jsonl"), _read_lines(folder / "grid.jsonl")
    return Tuned(name, folder, known, history, grid, is_new=False)
