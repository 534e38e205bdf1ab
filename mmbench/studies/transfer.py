"""Transfer: what a model learns of one dataset, used in another one (arXiv 2403.17372).

scratch    the model on the target, as published encoders and random weights begin
transfer   pre-trained on the source, then all that fits fine-tuned on the target: optimiser and
           generators begin anew; see mmbench/engine/start.py for what fits
zero-shot  pre-trained on the source, ranked with on the target, not trained there; only where no
           weight of the model belongs to a dataset
baseline   a model of IDs, which has nothing to transfer, on the target

Each may be asked of several numbers of source and of target users. Users are drawn once, and
fewer are among more. Those of a rung train and validate; tested are the same on every rung: all
users by sequential models, which read the histories of users whom they never trained on, and
those of the smallest rung by general models. The catalogue stays whole, or rungs could not be
compared (in arXiv 2403.17372 every rung has users and a catalogue of its own).

A run of seed s starts from the source's run of seed s, so that the spread over seeds is that of
pre-training and fine-tuning together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmbench.data.prepared import load_dataset
from mmbench.engine.building import build_model
from mmbench.engine.inputs import Inputs, check_modalities, load_inputs
from mmbench.engine.spaces import check_shared, check_spaces
from mmbench.engine.start import KEY, sizes_of_inputs, what_moves
from mmbench.errors import ConfigError
from mmbench.models.base import MODELS
from mmbench.recipe import Recipe, RunRecipe
from mmbench.recipe_files import apply_settings, shipped_recipes
from mmbench.recipe_keys import SEED_MARK
from mmbench.runs import Run
from mmbench.studies.training import Events, Workplace, data_key, train_recipes

Role = Literal["source", "scratch", "zero-shot", "transfer", "baseline"]
BASELINES = {"sequential": "sasrec", "general": "bpr-mf"}
DEMO: dict[str, Any] = {
    "protocol": "mmsr",
    "features": {"visual": "colour-edge"},
    "model": {
        "name": "mmsr", "embedding_size": 32, "max_length": 20, "n_layers": 1, "dropout": 0.2,
    },
    "training": {
        "epochs": 30, "batch_size": 64, "learning_rate": 2.0e-3, "optimizer": "adamw",
        "patience": 8, "select_by": "ndcg@20",
    },
    "evaluation": {"metrics": ["hr@20", "ndcg@20"]},
    "seeds": [0, 1],
}  # fmt: skip
"""What the command runs where nothing is named: pictures alone, whose encoder is fitted to no
dataset, small enough for a minute."""
DEMO_USERS = (60, 480)
"""A tenth of the demo shop's users, whom transfer helps, and all of them, whom it need not."""


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        source: dataset that models are pre-trained on.
        target: dataset that they are used in.
        source_users: rungs of the source; none for all users.
        target_users: rungs of the target; none for all users.
        seed: draws the users.
        same_space: modalities whose vectors the user says are comparable.
        source_settings: "KEY=VALUE" that hold for pre-training alone.
    """

    source: str
    target: str
    source_users: tuple[int, ...] = ()
    target_users: tuple[int, ...] = ()
    seed: int = 0
    same_space: tuple[str, ...] = ()
    source_settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One system, or a model before it is transferred.

    Attributes:
        role: what it is.
        recipe: what is trained; without the run that it starts from, which is not there yet.
        model: which of the models, by number; a baseline has that of the first one it is for.
        target_users: its rung of the target; None for all users.
        source_users: its rung of the source; None for all users, or where there is no source.
    """

    role: Role
    recipe: Recipe
    model: int
    target_users: int | None = None
    source_users: int | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        shape = self.recipe.shape
        return shape.label or str(shape.model["name"])


@dataclass(frozen=True)
class Plan:
    """What is trained: first the sources, then all the others.

    Attributes:
        sources: pre-training.
        systems: what is compared, on the target.
        notes: what the user should know.
    """

    asked: Asked
    sources: tuple[Variant, ...]
    systems: tuple[Variant, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A variant with its finished runs, one per seed."""

    variant: Variant
    runs: tuple[Run, ...]

    @property
    def system(self) -> str:
        """The hash of the system; equal for all its seeds."""
        return self.runs[0].system


@dataclass
class _Reading:
    """The inputs of recipes, each read once."""

    place: Workplace
    kept: dict[str, Inputs] = field(default_factory=dict)

    def of(self, plan: RunRecipe) -> Inputs:
        check_modalities(plan)
        key = data_key(plan)
        if key not in self.kept:
            self.kept[key] = load_inputs(plan, self.place.data_dir)
        return self.kept[key]


def design(
    recipes: Sequence[Recipe], baselines: Mapping[str, Recipe], asked: Asked, place: Workplace
) -> Plan:
    """Everything that is to be trained, checked before anything is.

    Args:
        recipes: the models, on the target.
        baselines: by family of models, the recipe that they are compared with.
        asked: what is asked for.
        place: where data lie.

    Raises:
        ConfigError: source and target have nothing in common, vectors are not comparable, a model
            has nothing to transfer, or a recipe does not fit the study.
        DataError: a dataset, split or feature set is missing, or there are not as many users.
    """
    if asked.source == asked.target:
        raise ConfigError(
            f"source and target are both {asked.source}; to start from a run of the same dataset "
            f"set {KEY} in a recipe"
        )
    reading = _Reading(place)
    sources: list[Variant] = []
    systems: list[Variant] = []
    notes: dict[str, None] = {}
    compared: set[str] = set()
    for number, recipe in enumerate(recipes):
        check_recipe(recipe)
        source = _source_recipe(recipe, asked, place, notes)
        able = _check_transfer(recipe, source, asked, reading, notes)
        own_sources, own = _variants(number, recipe, source, asked, zero_shot=able)
        family = MODELS.get(str(recipe.shape.model["name"])).obj.family
        if family in baselines and (key := f"{family} {recipe.shape.protocol}") not in compared:
            compared.add(key)
            own += _of_baseline(number, baselines[family], recipe, asked)
        sources += own_sources
        systems += own
    for variant in (*sources, *systems):
        for plan in variant.recipe.expand()[:1]:
            reading.of(plan)
    return Plan(asked, tuple(sources), tuple(systems), tuple(notes))


def transfer(plan: Plan, place: Workplace, events: Events | None = None) -> list[Done]:
    """Train (or take as they are) the sources, and then what starts from them.

    Returns:
        The systems that are compared, in the order of the plan.

    Raises:
        ConfigError, DataError: as `train_recipes` raises.
    """
    events = events or Events()
    everything = [p for v in (*plan.sources, *plan.systems) for p in v.recipe.expand()]
    events.planned(everything)
    told = replace(events, planned=lambda plans: None)
    trained = train_recipes([variant.recipe for variant in plan.sources], place, told)
    folders = {
        (variant.model, variant.source_users): _folder(result.chosen.runs)
        for variant, result in zip(plan.sources, trained, strict=True)
    }
    recipes = [
        _started(v, folders[v.model, v.source_users], plan.asked)
        if v.role in ("transfer", "zero-shot")
        else v.recipe
        for v in plan.systems
    ]
    results = train_recipes(recipes, place, told)
    return [
        Done(variant, tuple(result.chosen.runs))
        for variant, result in zip(plan.systems, results, strict=True)
    ]


def check_recipe(recipe: Recipe) -> None:
    """Refuse what a study of transfer cannot have.

    Raises:
        ConfigError: its model has no weights that could be fine-tuned, or it has a grid, a start
            or a subset of users already.
    """
    name = str(recipe.shape.model["name"])
    if MODELS.get(name).obj.fitting != "gradient":
        raise ConfigError(
            f"{recipe.source}: {name} is not trained by gradient, so it has no weights that could "
            "be fine-tuned; choose another model, or name it with --baseline"
        )
    if recipe.shape.grid:
        raise ConfigError(
            f"{recipe.source}: a grid has one best point per dataset, and weights of one point do "
            "not fit another; fix its keys with --set, and the grid with --set grid={}"
        )
    if recipe.shape.training.start_from is not None or recipe.shape.subset is not None:
        raise ConfigError(
            f"{recipe.source}: remove {KEY} and subset, which the study sets for each run"
        )


def _source_recipe(
    recipe: Recipe, asked: Asked, place: Workplace, notes: dict[str, None]
) -> Recipe:
    """The recipe on the source, with those of its feature sets that are there."""
    shape = recipe.shape
    keys = load_dataset(asked.source, place.data_dir).feature_keys
    here = {m: e for m, e in shape.features.items() if f"{m}__{e}" in keys}
    if shape.features and not here and not shape.encoders:
        raise ConfigError(
            f"{asked.source} and {asked.target} share no modality that {recipe.source} reads: it "
            f"names {', '.join(f'{m} {e}' for m, e in shape.features.items())}, and "
            f"{asked.source} has {', '.join(keys) or 'no feature set'}; extract one encoder's "
            "vectors of both, or choose other sets with --set features.visual=NAME"
        )
    for modality in shape.features:
        if modality not in here:
            notes[
                f"{recipe.source}: pre-trained without {modality}, as {asked.source} has no set "
                f"{shape.features[modality]}"
            ] = None
    source = recipe.replace(dataset=asked.source, features=here or None)
    if not asked.source_settings:
        return source
    return Recipe(apply_settings(source.raw, asked.source_settings), f"{recipe.source} (source)")


def _check_transfer(
    recipe: Recipe, source: Recipe, asked: Asked, reading: _Reading, notes: dict[str, None]
) -> bool:
    """Check that something moves, and say what; returns whether zero-shot is defined."""
    there, here = source.expand()[0], recipe.expand()[0]
    inputs = reading.of(there), reading.of(here)
    check_shared(asked.source, inputs[0].modalities, asked.target, inputs[1].modalities)
    check_spaces(inputs[0].facts(), inputs[1], asked.same_space)
    models = [
        build_model(plan, read, reading.place.compute)
        for plan, read in zip((there, here), inputs, strict=True)
    ]
    moved = what_moves(
        models[1], models[0].state_dict(), sizes_of_inputs(inputs[0]), sizes_of_inputs(inputs[1])
    )
    weights = dict(models[1].named_parameters())
    moving = [name for name in weights if name in moved.taken]
    if not moving:
        raise ConfigError(
            f"{recipe.source}: no weight of {here.model} can move to another dataset, since all "
            "belong to users and items; choose a model that reads content"
        )
    label = here.label
    n_all, n_moving = (sum(weights[name].numel() for name in names) for names in (weights, moving))
    told = f"{label}: {n_moving:,} of {n_all:,} weights move to {asked.target}"
    if moved.own:
        kept = ", ".join(moved.own[:4]) + (", ..." if len(moved.own) > 4 else "")
        told += f"; {kept} begin anew, so there is no zero-shot"
    notes[told] = None
    if getattr(recipe.settings, "standardize", False):
        notes[
            f"{label}: model.standardize scales vectors by each dataset's own mean and deviation, "
            "so they are comparable only as far as those agree"
        ] = None
    return not moved.own


def _variants(
    number: int, recipe: Recipe, source: Recipe, asked: Asked, *, zero_shot: bool
) -> tuple[list[Variant], list[Variant]]:
    """The pre-training of one model, and what is compared of it."""
    name = recipe.shape.label or str(recipe.shape.model["name"])
    target_rungs: tuple[int | None, ...] = asked.target_users or (None,)
    source_rungs: tuple[int | None, ...] = asked.source_users or (None,)
    sources = [
        Variant("source", _subset(source, n, n, asked, f"{name}{_users(n)}"), number, None, n)
        for n in source_rungs
    ]
    systems: list[Variant] = []
    smallest = target_rungs[0]
    for rung in target_rungs:
        own = _users(rung)
        on_rung = _subset(recipe, rung, _tested(recipe, asked), asked, f"{name}{own}")
        systems.append(Variant("scratch", on_rung, number, rung))
        for n in source_rungs:
            from_ = f"from {asked.source}{_of(n)}"
            if zero_shot and rung == smallest:
                label = f"{name} zero-shot {from_}"
                systems.append(Variant("zero-shot", on_rung.replace(label=label), number, rung, n))
            label = f"{name} {from_}{own}"
            systems.append(Variant("transfer", on_rung.replace(label=label), number, rung, n))
    return sources, systems


def _of_baseline(number: int, baseline: Recipe, like: Recipe, asked: Asked) -> list[Variant]:
    """The baseline on every rung, split, chosen, ranked and measured as the models are.

    One that is a name alone, without a recipe for this dataset, is trained like them too.
    """
    rungs: tuple[int | None, ...] = asked.target_users or (None,)
    protocol, evaluation = (
        like.shape.protocol.model_dump(mode="json"),
        like.shape.evaluation.model_dump(mode="json"),
    )
    is_name = not baseline.source.endswith((".yaml", ".yml"))
    own = dict(baseline.raw.get("training") or {})
    if is_name and baseline.source not in shipped_recipes():
        own = {**(like.raw.get("training") or {}), **own}
    same = baseline.replace(
        protocol=protocol,
        evaluation=evaluation,
        seeds=list(like.shape.seeds),
        training={**own, "select_by": like.shape.training.select_by},
    )
    name = same.shape.label or str(same.shape.model["name"])
    return [
        Variant(
            "baseline",
            _subset(same, n, _tested(like, asked), asked, f"{name}{_users(n)}"),
            number,
            n,
        )
        for n in rungs
    ]


def _tested(recipe: Recipe, asked: Asked) -> int | str | None:
    """Who is tested on every rung of the target."""
    if MODELS.get(str(recipe.shape.model["name"])).obj.family == "sequential":
        return "all"
    return min(asked.target_users, default=None)


def _subset(
    recipe: Recipe, train: int | None, test: int | str | None, asked: Asked, label: str
) -> Recipe:
    if train is None:  # as it is, so that a run that is there already is taken
        return recipe
    subset = {"train": train, "test": test, "seed": asked.seed}
    return recipe.replace(subset=subset, label=label)


def _started(variant: Variant, folder: str, asked: Asked) -> Recipe:
    """The recipe with the runs that it starts from."""
    start = {
        "run": folder,
        "train": variant.role == "transfer",
        "same_space": list(asked.same_space),
    }
    raw = dict(variant.recipe.raw.get("training") or {})
    return variant.recipe.replace(training={**raw, "start_from": start})


def _folder(runs: Sequence[Run]) -> str:
    """The folders of runs that differ in their seeds alone, with a mark for these."""
    ends = {str(run.path).removesuffix(f"-s{run.seed}") for run in runs}
    (same,) = ends
    return f"{same}-s{SEED_MARK}"


def _users(n: int | None) -> str:
    return "" if n is None else f", {n:,} users"


def _of(n: int | None) -> str:
    return "" if n is None else f" ({n:,} users)"
