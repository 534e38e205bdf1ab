"""What commands that train share: the progress display, and printing the result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbench import console

if TYPE_CHECKING:
    from mmbench.engine.cost import Cost
    from mmbench.engine.training import Progress, Record
    from mmbench.recipe import Recipe, RunRecipe
    from mmbench.runs import Run
    from mmbench.studies.training import Events, Trained, Workplace

LOG_EVERY_S = 60.0
"""How often a line says that work goes on, where no progress bar can, as in a log file."""


def workplace(
    data_dir: Path, runs_dir: Path, device: str, deterministic: bool, checkpoint_every: float
) -> Workplace:
    """Where a command works and on what; under torchrun as one of several processes."""
    from mmbench.engine import device as devices
    from mmbench.engine.ranks import joined_ranks, local_device
    from mmbench.errors import ConfigError
    from mmbench.studies.training import Workplace

    compute = devices.choose(local_device(device), deterministic=deterministic)
    with joined_ranks(gpu_tensors=compute.is_cuda) as ranks:
        if ranks.size > 1 and device.startswith("cuda:"):
            raise ConfigError(
                f"--device {device}: each of the {ranks.size} processes needs a GPU of its own; "
                "give --device cuda"
            )
        if not ranks.is_first:
            console.hush()
        compute = replace(compute, ranks=ranks)
    return Workplace(data_dir, runs_dir, compute, checkpoint_every)


@contextmanager
def display(data_dir: Path) -> Iterator[Events]:
    """A progress display: one bar for all runs, one for the epochs of the current run.

    Args:
        data_dir: where the datasets of the runs lie; what is planned is checked against them.
    """
    from mmbench.studies.training import Events

    with console.progress() as bars:
        state: dict[str, Any] = {"done": 0, "total": 0, "begun": 0.0}

        def planned(plans: Sequence[RunRecipe]) -> None:
            state["total"] = len(plans)
            warn_of_the_future(
                [(plan.model, plan.dataset, plan.protocol.split) for plan in plans], data_dir
            )
            if len(plans) > 1:
                state["all"] = bars.add_task("all runs", total=len(plans), status="")

        def begun(plan: RunRecipe) -> None:
            state["begun"] = state["said"] = time.monotonic()
            name = f"{plan.label} seed {plan.seed}"
            state["run"] = bars.add_task(name, total=plan.training.epochs, status="")

        def epoch(plan: RunRecipe, record: Record, progress: Progress) -> None:
            if "memory" in record:
                console.warn(f"{plan.label} seed {plan.seed}: {record['memory']}")
            status = ""
            if progress.best_epoch:  # none yet where evaluations are epochs apart
                best = f"{progress.best_value:.4f} at epoch {progress.best_epoch}"
                status = f"best {plan.training.select_by} {best}"
            if bars.disable and time.monotonic() - state["said"] >= LOG_EVERY_S:
                state["said"] = time.monotonic()
                where = f"epoch {record['epoch']} of at most {plan.training.epochs}"
                said = ", ".join(part for part in (where, status) if part)
                console.note(f"{plan.label} seed {plan.seed}: {said}")
            bars.update(state["run"], completed=record["epoch"], status=status)

        def done(plan: RunRecipe, run: Run, was_finished: bool) -> None:
            bars.remove_task(state["run"])
            state["done"] += 1
            if "all" in state:
                bars.advance(state["all"])
            facts = run.manifest["training"]
            how = (
                "finished before" if was_finished else f"{time.monotonic() - state['begun']:.1f} s"
            )
            if facts["best_epoch"]:
                how += f", best epoch {facts['best_epoch']} of {facts['epochs']}"
            count = f"[{state['done']}/{state['total']}]"
            console.note(f"{count} {plan.label} seed {plan.seed}: {how}, {run.path}")

        def cost(plan: RunRecipe, foreseen: Cost) -> None:
            console.note(f"{plan.label} seed {plan.seed}: {foreseen.line()}")

        yield Events(planned, begun, epoch, done, cost)


def ensure_demo(dataset: str, data_dir: Path, split: str | None = None) -> None:
    """Prepare an embedded demo dataset, its features and a split if asked for and not there."""
    if dataset not in ("demo", "demo-source"):
        return
    from mmbench.engine.ranks import joined_ranks

    with joined_ranks() as ranks:
        ranks.together(lambda: _prepare_demo(dataset, data_dir, split), first_only=True)


def _prepare_demo(name: str, data_dir: Path, split: str | None) -> None:
    from mmbench.data.prepare import prepare
    from mmbench.engine.extract import extract_builtin

    if not (data_dir / name / "manifest.json").exists():
        console.note(f"preparing the embedded demo dataset in {data_dir / name}")
        prepare(name, data_dir=data_dir)
    if split is not None:  # its default split stays the first one, whoever asks first
        prepare(name, data_dir=data_dir, splits=[split])
    extract_builtin(name, data_dir)  # what is there already is not made again


def load_recipes(
    names: Sequence[str], *, dataset: str | None, seeds: Sequence[int], settings: Sequence[str]
) -> list[Recipe]:
    """The recipes of a command; what `--set` says of content reaches models that read some.

    A command may name models of IDs beside others, and its features are for the others; where no
    model reads any, features are the mistake that `load_recipe` or the engine tells.
    """
    from mmbench.models.base import MODELS
    from mmbench.recipe import OPTIONAL, load_recipe
    from mmbench.recipe_files import section_of

    loaded = [load_recipe(n, dataset=dataset, seeds=seeds, settings=settings) for n in names]
    others = [setting for setting in settings if section_of(setting) not in OPTIONAL]
    models = [str(recipe.shape.model["name"]) for recipe in loaded]
    reads = [bool(MODELS.get(model).obj.modalities) for model in models]
    if len(others) == len(settings) or all(reads) or not any(reads):
        return loaded
    without = [n for n, reading in zip(names, reads, strict=True) if not reading]
    console.note(f"{', '.join(without)}: no content is read, so --set of features is left out")
    return [
        one if reading else load_recipe(name, dataset=dataset, seeds=seeds, settings=others)
        for name, one, reading in zip(names, loaded, reads, strict=True)
    ]


def warn_of_no_features(recipe: Recipe) -> None:
    """Say that a model which could look at pictures or texts is given none."""
    from mmbench.models.base import MODELS

    model = MODELS.get(str(recipe.shape.model["name"]))
    shape = recipe.shape
    chosen = shape.features or shape.encoders or any(k.startswith("features") for k in shape.grid)
    if model.obj.modalities and not model.obj.requires_modality and not chosen:
        console.warn(
            f"{recipe.source}: {model.name} is given no feature set and learns from IDs alone; "
            "name one, for example with --set features.textual=tfidf-svd"
        )


def warn_of_the_future(planned: Sequence[tuple[str, str, str | None]], data_dir: Path) -> None:
    """Say that a sequential model will be shown what came after the items that it has to find.

    Args:
        planned: model, dataset and split of each run; a split of None is the dataset's first.
        data_dir: where the datasets lie.
    """
    from mmbench.data.order import shown_the_future
    from mmbench.data.prepared import load_dataset
    from mmbench.models.base import MODELS

    models: dict[tuple[str, str | None], list[str]] = {}
    for model, name, split in planned:
        if MODELS.get(model).obj.family == "sequential":
            models.setdefault((name, split), []).append(model)
    for (name, split), of in models.items():
        dataset = load_dataset(name, data_dir)
        if share := shown_the_future(dataset, split):
            console.warn(
                f"{', '.join(dict.fromkeys(of))}: in split {dataset.split(split).name} of {name} "
                f"the histories of {share:.0%} of the tested users hold what came after the item "
                "to be found, so this is no prediction of the next item. For that: "
                f"mmbench prepare {name} --split leave-one-out, and --set protocol=mmsr"
            )


def print_trained(trained: Sequence[Trained], output: str, before: Sequence[str] = ()) -> None:
    """Print every grid's trials, then one leaderboard per dataset of the chosen systems.

    As JSON this is always one document: a list where there is more than one of these and of the
    texts that come before.
    """
    from mmbench.report.comparison import compare
    from mmbench.report.leaderboard import leaderboard, render
    from mmbench.report.listing import TrialRow, trials_table, trials_text

    texts = list(before)
    for result in trained:
        if len(result.trials) > 1:
            chosen, metrics = result.chosen, result.recipe.shape.evaluation.parsed
            rows = [TrialRow(t.label, t.runs, t.value, t is chosen) for t in result.trials]
            if output == "table":
                console.result(trials_table(rows, chosen.select_by, metrics))
            else:
                texts.append(trials_text(rows, chosen.select_by, metrics, output))
    wanted = list(
        dict.fromkeys(m for result in trained for m in result.recipe.shape.evaluation.metrics)
    )
    for runs in _by_comparability(trained).values():
        comparison = compare(runs, metrics=wanted)
        if output == "table":
            console.result(leaderboard(comparison))
        else:
            texts.append(render(comparison, output))
    if output == "json" and len(texts) > 1:
        texts = [json.dumps([json.loads(text) for text in texts], indent=2)]
    for text in texts:
        console.text(text)


def _by_comparability(trained: Sequence[Trained]) -> dict[str, list[Run]]:
    """Runs of the chosen trials, by what must be equal for a table; first come, first shown."""
    groups: dict[str, list[Run]] = {}
    for result in trained:
        for run in result.chosen.runs:
            manifest = run.manifest
            key = repr((manifest["dataset"], manifest["split"], manifest["protocol"]))
            known = groups.setdefault(key, [])
            if all(run.path != other.path for other in known):
                known.append(run)
    return groups
