"""What the shell offers at a press of the tab key, by the name of an option or argument.

Parameters of one name mean the same in every subcommand, so a new subcommand completes without
a word about it. Nothing here loads torch: a press of the tab key must not wait for it. Whatever
goes wrong ends in no offer, never in a message across the line that is being typed.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from mmbench.recipe_files import shipped_recipes
from mmbench.registry import Registry

CUTOFFS = (5, 10, 20, 50)
Completer = Callable[[click.Context, click.Parameter, str], Iterable[str]]


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Models, shipped recipes, and recipe files on the disk."""
    from_disk = _beginning(incomplete, "*.yaml")
    return [*models(ctx, param, incomplete), *shipped_recipes(), *from_disk]


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Names of models."""
    return Registry[Any]("model", "mmbench.models", "register_model").names()


def encoders(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Names of encoders."""
    return Registry[Any]("encoder", "mmbench.encoders", "register_encoder").names()


def metrics(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Names of metrics, with the usual cut-offs where the option wants one."""
    from mmbench.metrics.base import METRICS

    if "@" not in str(getattr(param, "metavar", "")):
        return METRICS.names()
    return [f"{name}@{k}" for name in METRICS.names() for k in CUTOFFS]


def datasets(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Prepared datasets in the data folder, and the embedded one."""
    prepared = data_dir(ctx).glob("*/manifest.json")
    return sorted({"demo", *(path.parent.name for path in prepared)})


def known_datasets(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Prepared datasets and those with a card."""
    from mmbench.data.finding import known_names

    return sorted({*datasets(ctx, param, incomplete), *known_names()})


def feature_sets(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Stored feature sets of the dataset on the line."""
    name = ctx.params.get("dataset") or (ctx.args[0] if ctx.args else "")
    found = data_dir(ctx).glob(f"{glob.escape(str(name)) or '*'}/features/*/")
    return sorted({path.name for path in found if path.is_dir()})


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Run folders, and folders that hold some, below what is typed or in the usual place."""
    typed = incomplete or f"{os.environ.get('MMBENCH_RUNS') or 'runs'}/"
    found = [path for path in map(Path, _beginning(typed, "*")) if path.is_dir()]
    complete = [path for path in found if (path / "manifest.json").is_file()]
    holding = [path for path in found if next(path.glob("*/manifest.json"), None) is not None]
    return sorted([*map(str, complete), *(f"{path}/" for path in holding)])


def labels(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Labels of the runs on the line; models where it names none."""
    # An option without its value yet ends click's parsing: arguments before it are in `args`.
    given: Iterable[Any] = ctx.params.get("runs") or ctx.args
    folders = [Path(str(each)) for each in given]
    files = [file for at in folders for file in (at / "manifest.json", *at.glob("*/manifest.json"))]
    found = {
        str(json.loads(file.read_text(encoding="utf-8"))["label"])
        for file in files[:1000]
        if file.is_file()
    }
    return sorted(found) if folders else models(ctx, param, incomplete)


def modalities(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Modalities, and the word for each of them."""
    from mmbench.modality import MODALITIES

    return [*MODALITIES, "each"] if param.name != "modality" else MODALITIES


def devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Where to compute."""
    return ["auto", "cpu", "cuda", "cuda:0"]


def searches(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Ways to search settings."""
    from mmbench.studies.samplers import METHODS

    return METHODS


def layouts(ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterable[str]:
    """Layouts that can be written."""
    folder = Path(__file__).parents[1] / "data" / "exports"
    names = [path.stem for path in sorted(folder.glob("*.py"))]
    return [name for name in names if name not in ("__init__", "job")]


def data_dir(ctx: click.Context) -> Path:
    """The data folder that the line, the environment or the default names."""
    return Path(str(ctx.params.get("data_dir") or os.environ.get("MMBENCH_DATA") or "data"))


BY_NAME: dict[str, Completer] = {
    "recipes": recipes,
    "runs": runs,
    "against": runs,
    "dataset": datasets,
    "name": known_datasets,
    "encoders": encoders,
    "metrics": metrics,
    "baseline": labels,
    "features": feature_sets,
    "nearest": feature_sets,
    "source": feature_sets,
    "drops": modalities,
    "keeps": modalities,
    "shuffles": modalities,
    "noises": modalities,
    "modality": modalities,
    "device": devices,
    "tune": searches,
    "layout": layouts,
}
"""What completes a parameter of text, or of paths of runs, by the parameter's name."""


def attach(command: click.Command) -> click.Command:
    """Let a subcommand's parameters complete; those that choose from a list, or paths, do so."""
    for param in command.params:
        completer = BY_NAME.get(param.name or "")
        is_path = isinstance(param.type, click.Path)
        if completer is None or (is_path and completer is not runs):
            continue
        if param.name == "name" and not isinstance(param, click.Argument):
            continue  # an option of this name makes a new one
        if param.type is click.STRING or is_path:
            _complete_by(param, completer)
    return command


def _complete_by(param: click.Parameter, completer: Completer) -> None:
    def complete(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        try:
            offers = list(completer(ctx, param, incomplete))
        except Exception:  # noqa: BLE001  # a traceback across a half-typed line helps nobody
            offers = []
        fit = dict.fromkeys(offer for offer in offers if offer.startswith(incomplete))
        if not fit and completer in (recipes, runs):
            return [CompletionItem(incomplete, type="file")]  # the shell's own completion
        return [CompletionItem(offer) for offer in fit]

    param.shell_complete = complete  # type: ignore[method-assign]  # the public hook of a parameter


def _beginning(typed: str, pattern: str) -> list[str]:
    """Paths that begin with what is typed; `Path.glob` takes no absolute pattern."""
    return glob.glob(glob.escape(typed) + pattern)  # noqa: PTH207
