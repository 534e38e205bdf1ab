"""The recipe: everything that moves the numbers, read in one place, checked whole, frozen.

A recipe is YAML. It is refused with every problem reported at once, each with its key path and
the nearest valid key. A recipe with several seeds or a grid stands for several runs; `expand`
makes one `RunRecipe` per trial and seed, with every default written out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import (
    BaseModel,
    ValidationError,
)

from mmbench.errors import ConfigError, UnknownNameError, did_you_mean
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS, ModelConfig
from mmbench.recipe_files import SHIPPED, apply_settings, read_recipe, set_key, shipped_recipes
from mmbench.recipe_keys import (
    SEED_MARK,
    Shape,
    Training,
)
from mmbench.search_space import Dimension


class RunRecipe:
    """One trial and one seed: what the engine runs.

    Attributes:
        dataset, protocol, features, encoders, corruptions, subset, training, evaluation: as in
            the recipe, defaults filled in.
        model: registered name of the model.
        settings: the model's own settings.
        seed: the seed from which every random stream is spawned.
        label: what tables call the system.
        trial: the grid's values of this trial, by key.
    """

    def __init__(
        self, shape: Shape, settings: ModelConfig, seed: int, trial: Mapping[str, Any]
    ) -> None:
        self.dataset, self.protocol, self.features = shape.dataset, shape.protocol, shape.features
        self.encoders, self.corruptions = shape.encoders, shape.corruptions
        self.subset, self.training = shape.subset, _of_seed(shape.training, seed)
        self.evaluation = shape.evaluation
        self.model = str(shape.model["name"]).replace("_", "-")
        self.settings, self.seed, self.trial = settings, seed, dict(trial)
        self.label = shape.label or self.model
        if trial:
            self.label += f" ({', '.join(itertools.starmap(_told, trial.items()))})"

    def as_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain values, every default written out."""
        return {
            "dataset": self.dataset,
            "label": self.label,
            "protocol": self.protocol.model_dump(mode="json"),
            "features": dict(self.features),
            "encoders": {
                modality: encoder.model_dump(mode="json")
                for modality, encoder in self.encoders.items()
            },
            "corruptions": {
                modality: corruption.model_dump(mode="json")
                for modality, corruption in self.corruptions.items()
            },
            **({"subset": self.subset.model_dump(mode="json")} if self.subset else {}),
            "model": {"name": self.model, **self.settings.model_dump(mode="json")},
            "training": self.training.model_dump(
                mode="json", exclude=None if self.training.start_from else {"start_from"}
            ),
            "evaluation": self.evaluation.model_dump(mode="json"),
            "seeds": [self.seed],
        }

    def identity(self) -> dict[str, Any]:
        """What defines the system: the resolved recipe without its seed, label and metrics."""
        values = self.as_dict()
        del values["seeds"], values["label"]
        for later in ("encoder", "encoder_clip_norm"):  # keys that older runs do not have
            if values["training"][later] is None:
                del values["training"][later]
        if (encoding := values["training"].get("encoder")) and not encoding["warmup_share"]:
            del encoding["warmup_share"]
        if not self.corruptions:
            del values["corruptions"]
        # Metrics are computed from the stored lists at any time; only their length is fixed.
        values["evaluation"] = {"depth": self.evaluation.depth}
        # Where weights lie moves no number; the run's facts hold what they are.
        for encoder in values["encoders"].values():
            del encoder["weights"]
            encoder["name"] = _known_as(encoder["name"])
        if (start := self.training.start_from) is not None:
            # The weights themselves are the run's to tell, see `engine.start`.
            known = {} if not start.train else values["training"]
            values["training"] = {**known, "start_from": {"train": start.train}}
        if MODELS.get(self.model).obj.fitting == "closed-form":
            del values["training"]
        return values


def _known_as(encoder: str) -> str:
    """An encoder's name without folders of weights, which the run's facts tell by their hash."""
    if ":" not in encoder:
        return encoder
    from mmbench.encoders.pair import bare_name  # late: most recipes need no encoder's file

    return bare_name(encoder)


def _of_seed(training: Training, seed: int) -> Training:
    """The section with the run's folder of this seed."""
    start = training.start_from
    if start is None or SEED_MARK not in start.run:
        return training
    of_seed = start.model_copy(update={"run": start.run.replace(SEED_MARK, str(seed))})
    return training.model_copy(update={"start_from": of_seed})


def _told(key: str, value: Any) -> str:
    """A point on one axis of a grid, in a label."""
    short = _short(value)
    return short if len(keys_of(key)) > 1 else f"{key.rpartition('.')[2]}={short}"


def _short(value: Any) -> str:
    """A value of a grid in a label; of a whole section its values, each once."""
    if isinstance(value, Mapping):
        if "name" in value:
            # Of a pair without the folders of its weights, which would fill a table's line.
            name = str(value["name"])
            return re.sub(r"=[^+]*", "", name) if name.startswith("pair:") else name
        return _short(list(value.values()))
    if isinstance(value, (list, tuple)):
        return "+".join(dict.fromkeys(_short(one) for one in value if one not in ({}, None)))
    return str(value)


def keys_of(axis: str) -> list[str]:
    """The keys that one axis of a grid sets; `features, encoders` sets two together."""
    return [key.strip() for key in axis.split(",")]


SEARCHABLE = ("model", "features", "encoders", "corruptions", "training")
OPTIONAL = ("features", "encoders", "corruptions")
"""Sections by modality, whose keys another condition of a study may lack."""
_LISTING = "mmbench train --list"


class Recipe:
    """A checked recipe, which expands to one run per trial and seed."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw, self.source = dict(raw), source
        self.shape, self.settings = _check(self.raw, source)
        self.trials = list(self._trials())
        self._check_search()

    def _trials(self) -> Iterator[tuple[Shape, ModelConfig, dict[str, Any]]]:
        grid = self.shape.grid
        if not grid:
            yield self.shape, self.settings, {}
            return
        for key, values in grid.items():
            if not values:
                raise ConfigError(f"{self.source}: grid.{key} lists no value")
            if any(value in values[:place] for place, value in enumerate(values)):
                raise ConfigError(f"{self.source}: grid.{key} lists a value twice")
            self._check_axis(key, values)
        for point in itertools.product(*grid.values()):
            trial = dict(zip(grid, point, strict=True))
            yield (*self._at(trial), trial)

    def _check_axis(self, axis: str, values: Sequence[Any]) -> None:
        keys = keys_of(axis)
        for key in keys:
            self._check_searchable("grid", key)
        if len(keys) == 1:
            return
        for value in values:
            if not isinstance(value, list) or len(value) != len(keys):
                raise ConfigError(
                    f"{self.source}: grid.{axis} sets {len(keys)} keys together, so each of its "
                    f"values is a list of {len(keys)}, not {value!r}"
                )

    def _at(self, point: Mapping[str, Any]) -> tuple[Shape, ModelConfig]:
        raw = {key: value for key, value in self.raw.items() if key not in ("grid", "search")}
        for axis, value in point.items():
            keys = keys_of(axis)
            for key, one in zip(keys, [value] if len(keys) == 1 else value, strict=True):
                raw = set_key(raw, key, one)
        return _check(raw, f"{self.source} at {dict(point)}" if point else self.source)

    def _check_searchable(self, section: str, key: str) -> None:
        # Trials are compared on validation, so what is ranked and measured is the same in all.
        head = key.partition(".")[0]
        if head not in SEARCHABLE or key == "training.select_by":
            raise ConfigError(
                f"{self.source}: {section}.{key} cannot be searched over; only keys of model, "
                "features, encoders, corruptions and training (but select_by) can"
            )

    def _check_search(self) -> None:
        for key in self.shape.search:
            self._check_searchable("search", key)
            if key in self.shape.grid:
                raise ConfigError(
                    f"{self.source}: {key} is under search and under grid; remove one of them"
                )
            head, _, modality = key.partition(".")
            if head in OPTIONAL and modality.partition(".")[0] not in MODALITIES:
                raise UnknownNameError("modality", modality.partition(".")[0], MODALITIES)
            if self._has(key):
                for value in self.shape.search[key].edges():
                    self._at({key: value})

    @property
    def space(self) -> dict[str, Dimension]:
        """What can be searched over: `search` and `grid`, without what the recipe does not have.

        A recipe that gives no visual feature set has no `features.visual` to search over: the
        conditions of an ablation share one section, and each takes its part of it.
        """
        grid = {key: Dimension(choices=tuple(values)) for key, values in self.shape.grid.items()}
        space = {**self.shape.search, **grid}
        return {key: dimension for key, dimension in space.items() if self._has(key)}

    def _has(self, key: str) -> bool:
        head, _, rest = key.partition(".")
        return head not in OPTIONAL or rest.partition(".")[0] in getattr(self.shape, head)

    def at(self, point: Mapping[str, Any], seed: int) -> RunRecipe:
        """One point of the search space, and one seed.

        Raises:
            ConfigError: these settings do not go together.
        """
        return RunRecipe(*self._at(point), seed, point)

    def expand(self) -> list[RunRecipe]:
        """One recipe per trial and seed, seeds innermost."""
        return [
            RunRecipe(shape, settings, seed, trial)
            for shape, settings, trial in self.trials
            for seed in shape.seeds
        ]

    def replace(self, **changes: Any) -> Recipe:
        """The recipe with top-level keys changed; a value of None removes the key."""
        raw = {**self.raw, **changes}
        return Recipe({key: value for key, value in raw.items() if value is not None}, self.source)


def load_recipe(
    name: str,
    *,
    dataset: str | None = None,
    seeds: Sequence[int] = (),
    settings: Sequence[str] = (),
) -> Recipe:
    """A recipe by file, by shipped name `<dataset>/<model>`, or by model name.

    A bare model name takes the shipped recipe of that model for `dataset` ("demo" if none is
    given); where none is shipped, the model's defaults.

    Raises:
        ConfigError: the recipe is wrong; every problem is listed.
        UnknownNameError: there is no such model or recipe.
    """
    path = Path(name)
    shipped = shipped_recipes()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        raw, source = read_recipe(path), str(path)
    elif "/" in name:
        if name not in shipped:
            raise UnknownNameError("recipe", name, shipped, listing=_LISTING)
        raw, source = read_recipe(SHIPPED / f"{name}.yaml"), f"{name}.yaml"
    else:
        model = MODELS.get(name, hint="A recipe file ends in .yaml.", listing=_LISTING).name
        source = f"{dataset or 'demo'}/{model}"
        if source in shipped:
            raw = read_recipe(SHIPPED / f"{source}.yaml")
        else:
            raw = {"dataset": dataset or "demo", "model": {"name": model}}
    if dataset is not None:
        raw = {**raw, "dataset": dataset}
    if seeds:
        raw = {**raw, "seeds": list(seeds)}
    return Recipe(apply_settings(raw, settings), source)


def system_hash(identity: Mapping[str, Any]) -> str:
    """A short stable hash of plain values, 16 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(raw: Mapping[str, Any], source: str) -> tuple[Shape, ModelConfig]:
    """Check all of a recipe and report every problem at once."""
    problems: list[str] = []
    shape, settings = None, None
    try:
        shape = Shape.model_validate(raw)
    except ValidationError as error:
        problems += _problems(error, Shape, ())
    model = raw.get("model")
    if isinstance(model, str):
        problems = [line for line in problems if not line.startswith("model:")]
        problems.append(f"model: write {{name: {model}}}")
    elif isinstance(model, Mapping):
        if not isinstance(model.get("name"), str):
            problems.append(f"model.name is missing; known models: {', '.join(MODELS.names())}")
        else:
            try:
                entry = MODELS.get(model["name"], listing=_LISTING)
                config: type[ModelConfig] = entry.info["config"]
                settings = config.model_validate({k: v for k, v in model.items() if k != "name"})
            except UnknownNameError as error:
                problems.append(f"model.name: {error}")
            except ValidationError as error:
                problems += _problems(error, config, ("model",))
    if shape is not None and settings is not None:
        problems += _encoder_problems(shape)
    if problems or shape is None or settings is None:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return shape, settings


def _encoder_problems(shape: Shape) -> list[str]:
    """Why `training.encoder` and the rest of a recipe do not go together."""
    how = shape.training.encoder
    if how is None:
        return []
    model = MODELS.get(str(shape.model["name"]))
    where = "training.encoder"
    if model.obj.family == "sequential":
        return [
            f"{where}: {model.name} is a sequential model, which trains the encoders under "
            "encoders: without it; remove the key"
        ]
    if model.obj.reads_features == "once":
        able = [name for name in MODELS.names() if MODELS.get(name).obj.reads_features != "once"]
        return [
            f"{where}: {model.name} cannot be trained end to end, as it reads features once, "
            f"before it is trained; these models can: {', '.join(able)}"
        ]
    if not how.trains_encoder:
        useless = sorted(how.model_dump(exclude={"name", "mode"}, exclude_defaults=True))
        if useless:
            told = "says how an encoder learns, and with mode: table none does; remove it"
            return [f"{where}.{key} {told}" for key in useless]
        if shape.features or shape.encoders:
            return []
        return [f"{where}.mode table trains rows of features; name a set under features:"]
    if all(encoder.tune == "none" for encoder in shape.encoders.values()):
        if shape.encoders:
            names = ", ".join(f"encoders.{modality}.tune" for modality in shape.encoders)
            return [f"{where}: no encoder is to learn; set {names} to top or full, or remove it"]
        return [
            f"{where}: there is no encoder that could learn; name one under encoders:, for "
            "example encoders.textual: {name: minilm-l6}, or take mode: table for stored features"
        ]
    if how.mode == "batch" and model.obj.reads_features != "batch":
        return [
            f"{where}.mode batch: a step of {model.name} reads the features of all items, not of "
            "its batch alone; take stale, accumulate or full"
        ]
    return []


def _problems(error: ValidationError, root: type[BaseModel], prefix: tuple[str, ...]) -> list[str]:
    """One line per problem: the key's path, what is wrong, and the nearest valid key."""
    lines = []
    for detail in error.errors():
        location = tuple(str(part) for part in detail["loc"])
        path = ".".join((*prefix, *location)) or "recipe"
        if detail["type"] == "extra_forbidden":
            known = _fields(root, location[:-1])
            near = did_you_mean(location[-1], known)
            there = f"Known: {', '.join(known)}." if known else "There are none here."
            lines.append(f"{path} is not a setting.{near} {there}")
        elif detail["type"] == "missing":
            lines.append(f"{path} is missing")
        else:
            message = str(detail["msg"]).removeprefix("Value error, ")
            given = detail.get("input")
            shown = f" (found {given!r})" if isinstance(given, (str, int, float, bool)) else ""
            lines.append(f"{path}: {message[:1].lower()}{message[1:]}{shown}")
    return lines


def _fields(root: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Names of the settings at a place in a recipe."""
    current: type[BaseModel] | None = root
    is_key = False
    for part in location:
        if is_key:  # of a mapping such as `encoders`, whose values have the settings
            is_key = False
            continue
        if current is None or part not in current.model_fields:
            return []
        annotation: Any = current.model_fields[part].annotation
        inner = [annotation, *get_args(annotation)]
        models = (o for o in inner if isinstance(o, type) and issubclass(o, BaseModel))
        current, is_key = next(models, None), get_origin(annotation) is dict
    return sorted(current.model_fields) if current else []
