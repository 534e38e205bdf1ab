"""Which recipe made a run: told by computing identities, never by its name.

A run keeps its resolved recipe. Read by this version, it has an identity, and so has each point of
each shipped recipe; where two are equal, that shipped recipe made the run. Where none is equal, the
settings that lead from a shipped recipe to the run are worked out, applied, and believed only if
the identity then is the run's. Otherwise the run's own `recipe.yaml` is all there is to name.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mmbench.engine.folder import system_of
from mmbench.engine.inputs import load_inputs
from mmbench.errors import MMBenchError
from mmbench.recipe import Recipe, RunRecipe, load_recipe, system_hash
from mmbench.recipe_files import SHIPPED, read_recipe, shipped_recipes
from mmbench.report.systems import System, resolved_recipe
from mmbench.runs import Run

OWN = "recipe.yaml"
MANY_SETTINGS = 8
"""With more settings than these a command explains less than the run's own recipe does."""
RENAMED: Mapping[str, Mapping[str, str]] = {
    "dragon": {"n_neighbours": "user_k"},
    "dualgnn": {"n_neighbours": "user_k"},
    "lgmrec": {"keep_rate": "dropout"},
    "mgcn": {"n_neighbours": "k"},
    "mmgcn": {"frozen_ids": "freeze_tables", "compat": "penalize_visual_only"},
    "smore": {
        "n_neighbours": "k",
        "visual_neighbours": "visual_k",
        "textual_neighbours": "textual_k",
        "acoustic_neighbours": "acoustic_k",
    },
}
"""By model, what a setting is called since stored runs were made. Their names are hashes of the
earlier words; what was trained is the same."""
_OPPOSITE = {"keep_rate", "dropout"}
"""Of these one says what is kept, the other what is left out."""
_LEAVES = ("model", "training", "evaluation")  # sections whose keys are set one by one


@dataclass(frozen=True)
class Provenance:
    """What made a system.

    Attributes:
        recipe: name of the shipped recipe; `OWN` where none leads to the run.
        settings: of `--set`, where the shipped recipe alone does not make it.
        command: what trains it again.
        identity: hash of the recipe's identity as this version reads it; "" where it cannot.
        is_current: whether this version would give the run, on the data at hand, the very hash
            that it has, renamed settings called as they were; None where that could not be
            computed.
        reason: why not.
    """

    recipe: str
    settings: tuple[str, ...]
    command: str
    identity: str
    is_current: bool | None
    reason: str = ""


def provenance_of(system: System, data_dir: Path) -> Provenance:
    """What made a system, from its first run."""
    run = system.runs[0]
    seeds = f"--seeds {','.join(map(str, system.seeds))}"
    try:
        recipe = recipe_of(run)
    except MMBenchError as problem:
        reason = f"this version does not read its recipe: {str(problem).splitlines()[0]}"
        command = f"mmbench train {run.path.name}/{OWN} {seeds}"
        return Provenance(OWN, (), command, "", None, reason.replace(f"{run.path}/", ""))
    name, settings = _shipped(recipe)
    sets = "".join(f" --set {shlex.quote(setting)}" for setting in settings)
    command = f"mmbench train {name or f'{run.path.name}/{OWN}'} {seeds}{sets}"
    is_current, reason = _is_current(recipe, run, data_dir)
    return Provenance(
        name or OWN, tuple(settings), command, system_hash(recipe.identity()), is_current, reason
    )


def recipe_of(run: Run) -> RunRecipe:
    """The recipe that a run folder keeps, as this version reads it.

    Raises:
        ConfigError, DataError, UnknownNameError: it does not.
    """
    raw = resolved_recipe(run)
    return Recipe({**raw, "model": _renamed(raw["model"])}, OWN).expand()[0]


def _renamed(model: Mapping[str, Any], *, back: bool = False) -> dict[str, Any]:
    """A recipe's section `model` with its settings called as they are now, or as they were."""
    pairs = RENAMED.get(str(model["name"]), {}).items()
    names = {now: was for was, now in pairs} if back else dict(pairs)
    made = dict(model)
    for key in names.keys() & model.keys():
        value = made.pop(key)
        made[names[key]] = 1.0 - value if key in _OPPOSITE else value
    return made


def _is_current(recipe: RunRecipe, run: Run, data_dir: Path) -> tuple[bool | None, str]:
    try:
        inputs = load_inputs(recipe, data_dir)
        now = recipe.identity()
        before = {**now, "model": _renamed(now["model"], back=True)}
        systems = {system_of(recipe, inputs, identity) for identity in (now, before)}
    except MMBenchError as problem:
        return None, str(problem).splitlines()[0].replace(f"{data_dir}/", "")
    if run.system in systems:
        return True, ""
    facts = inputs.facts()
    changed = [what for what in facts if facts[what] != (run.manifest.get(what) or facts[what])]
    if changed:
        return False, f"other data now: {', '.join(changed)}"
    return False, "the same data; made by an earlier version, whose recipes had other keys"


def _shipped(recipe: RunRecipe) -> tuple[str, list[str]]:
    """The shipped recipe, and the settings, that have the identity; ("", []) if none has."""
    wanted = recipe.identity()
    near: list[tuple[int, str, list[str]]] = []
    for name, points in _candidates(recipe.dataset, recipe.model):
        for point in points:
            if point.identity() == wanted:
                settings = [f"{key}={_yaml(value)}" for key, value in point.trial.items()]
                if len(points) == 1:
                    return name, []
                near.append((len(settings), name, settings))
        settings = list(_settings(points[0].identity(), wanted))
        near.append((len(settings), name, settings))
    for count, name, settings in sorted(near):
        if count <= MANY_SETTINGS and _leads_to(wanted, name, settings):
            return name, settings
    return "", []


def _leads_to(wanted: Mapping[str, Any], name: str, settings: list[str]) -> bool:
    try:
        made = load_recipe(name, settings=settings).replace(grid=None).expand()
    except MMBenchError:
        return False
    return made[0].identity() == wanted


@cache
def _candidates(dataset: str, model: str) -> tuple[tuple[str, tuple[RunRecipe, ...]], ...]:
    """The shipped recipes of a model on a dataset, with the points that each stands for."""
    found = []
    for name in shipped_recipes():
        raw = read_recipe(SHIPPED / f"{name}.yaml")
        named = str((raw.get("model") or {}).get("name")).replace("_", "-")
        if raw.get("dataset") == dataset and named == model:
            recipe = Recipe({**raw, "seeds": [0]}, f"{name}.yaml")
            found.append((name, tuple(recipe.expand())))
    return tuple(found)


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What `--set` has to say to lead from one identity to another."""
    for section in after:
        old, new = before.get(section), after[section]
        if old == new:
            continue
        if section not in _LEAVES or not isinstance(old, Mapping):
            yield f"{section}={_yaml(new)}"
            continue
        for key, value in new.items():
            if key not in old or old[key] != value:
                yield f"{section}.{key}={_yaml(value)}"


def _yaml(value: Any) -> str:
    """A value as `--set` reads it, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
