"""The recipe: everything that moves the numbers, read in one place, checked whole, frozen.

A recipe is YAML. It is refused with every problem reported at once, each with its key path and
the nearest valid key. A recipe with several seeds or a grid stands for several runs; `expand`
makes one `RunRecipe` per trial and seed, with every default written out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

import mmbench
from mmbench.errors import ConfigError, UnknownNameError, did_you_mean
from mmbench.metrics.base import Metric, parse_metric
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS, ModelConfig
from mmbench.search_space import Dimension

SHIPPED = next(
    folder
    for folder in (
        Path(mmbench.__file__).parent / "recipes",
        Path(mmbench.__file__).parents[1] / "recipes",
    )
    if folder.is_dir()
)


SEED_MARK = "{seed}"


class Section(BaseModel):
    """Base of every part of a recipe: frozen, unknown keys and infinities forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Protocol(Section):
    """How the data are split, what is ranked, and how an epoch is selected.

    Presets give the fields their values; a mapping with `name` changes single fields.
    """

    name: Literal["standard", "mmrec", "mmsr"] = "standard"
    """`standard`: this project's defaults. `mmrec`: what the public toolbox does. `mmsr`: the
    next item, as arXiv 2403.17372 has it."""
    split: str | None = None
    """A stored split of the dataset; the dataset's first one if not given."""
    mask_validation_at_test: bool = True
    """Whether a user's validation items leave the candidates of the test ranking."""
    history_mask: Literal["all", "except-target", "public-code", "none"] = "all"
    """Which items of a user's history leave the candidates: all; all but the one to be found,
    where a user takes an item again; the last L + 1 (L the model's `max_length`); or none."""
    negatives: Literal["seen", "all"] = "seen"
    """Negatives are drawn from the items that occur in training, or from all items."""
    selection_decimals: NonNegativeInt | None = None
    """Round the selection metric before two epochs are compared; not at all if not given."""
    stop: Literal["reached", "exceeded"] = "reached"
    """Stop when the evaluations without a gain reach `training.patience`, or exceed it."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            return value
        name = value.get("name", "standard")
        preset = PROTOCOLS.get(name, {}) if isinstance(name, str) else {}
        return {**preset, **value}


PROTOCOLS: dict[str, dict[str, Any]] = {
    "standard": {},
    "mmrec": {
        "mask_validation_at_test": False,
        "selection_decimals": 4,
        "stop": "exceeded",
    },
    "mmsr": {
        "split": "leave-one-out",
        "history_mask": "except-target",
        "negatives": "all",
    },
}


class Schedule(Section):
    """The learning rate over epochs, counted from 0, as a factor on `training.learning_rate`."""

    name: Literal["constant", "exponential", "cosine", "step", "linear"] = "constant"
    """How the rate goes; a bare name stands for the mapping."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.96
    """Exponential: the factor is gamma ** (epoch / period); step: gamma ** floor((epoch + 1) /
    period)."""
    period: PositiveInt = 50
    """Exponential and step: epochs after which the rate has fallen by gamma. Linear: epochs at
    the full rate before it begins to fall."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Cosine and linear: the factor at the last epoch."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs of linear warm-up before the schedule begins."""


class StartFrom(Section):
    """A finished run, of this dataset or of another one, whose weights training starts from."""

    run: Annotated[str, Field(min_length=1)]
    """The run's folder; `{seed}` stands for the seed, so that each starts from one of its own."""
    train: bool = True
    """Whether training follows; without it the weights are ranked with as they are."""
    same_space: tuple[str, ...] = ()
    """Modalities whose stored vectors are said to be comparable where nothing shows it, as of
    imported ones; what shows that they are not is believed all the same."""

    @field_validator("same_space")
    @classmethod
    def _modalities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for modality in value:
            if modality not in MODALITIES:
                raise UnknownNameError("modality", modality, MODALITIES)
        return value


class UserSubset(Section):
    """Some of the users alone, the first ones of a seeded order: more of them are a superset.

    The catalogue stays whole, so that models of more and of fewer users can be compared.
    """

    train: PositiveInt
    """Users who train and validate: all that a model is made and chosen by."""
    test: PositiveInt | Literal["all"] | None = None
    """Users who are tested, the first of the same order; those who train unless given. A
    sequential model is shown the histories of the others, a general one does not know them."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Draws the order; the training seed plays no part."""


class EncoderTraining(Section):
    """How encoders learn inside a general model's own loss: `end_to_end`, for short."""

    name: Literal["end_to_end"] = "end_to_end"
    mode: Literal["auto", "table", "batch", "stale", "accumulate", "full"] = "auto"
    """Through which items gradients reach the encoder. batch: those of the batch, of which alone
    the loss may read. stale: those of the batch; the others are rows of a table. accumulate: all,
    once in `refresh` steps, by the sum of their gradients. full: all, in every step. table: no
    encoder learns, rows of features do. auto: batch where the model allows it, else stale."""
    refresh: Literal["epoch"] | PositiveInt = "epoch"
    """When the table is computed anew: with each epoch, or after so many steps; and always before
    an evaluation. For accumulate, after how many steps the encoder learns."""
    at_once: PositiveInt | None = None
    """Items that are encoded with gradient at once; a step that needs more encodes them twice, and
    its memory is that of so many. None: all of a batch's; a fixed number for accumulate and full.
    """
    warmup_epochs: NonNegativeInt = 0
    """Epochs in which the model learns alone, before the encoder does."""

    @property
    def trains_encoder(self) -> bool:
        """Whether it is an encoder that learns, not rows of a table."""
        return self.mode != "table"


class Training(Section):
    """How a model is trained; closed-form models ignore it."""

    epochs: PositiveInt = 1000
    """At most so many."""
    batch_size: PositiveInt = 2048
    """Triples of user, positive and negative item in one step; for sequential models sequences."""
    accumulate: PositiveInt = 1
    """Parts into which a batch is cut; their gradients are added up before the step."""
    learning_rate: PositiveFloat = 1e-3
    """Of everything but encoders that learn with the model."""
    weight_decay: NonNegativeFloat = 0.0
    """Likewise, as the optimiser has it."""
    encoder_learning_rate: PositiveFloat | None = None
    """Of encoders that learn with the model; `learning_rate` if not given."""
    encoder_weight_decay: NonNegativeFloat = 0.0
    """Of encoders that learn with the model."""
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    """torch's, with its other settings at their defaults."""
    schedule: Schedule = Schedule()
    """How the learning rates go over the epochs."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the whole gradient; none if not given."""
    encoder_clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient of encoders that learn with the model, which is then no part
    of what `clip_norm` limits; if not given, it is."""
    encoder: EncoderTraining | None = None
    """Trains encoders inside a general model (sequential models need no such key)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 and float16 run the training step under autocast, float16 with scaled losses;
    weights stay float32."""
    evaluate_every: PositiveInt = 1
    """Epochs between two evaluations on validation."""
    patience: PositiveInt | None = 20
    """Evaluations without a better validation score before training stops; null for never."""
    select_by: str = "recall@20"
    """The metric that chooses the epoch, on validation; there is no key for test."""
    start_from: StartFrom | None = None
    """The run whose weights come in place of random ones, as far as they fit."""

    @field_validator("start_from", mode="before")
    @classmethod
    def _start_from(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("schedule", mode="before")
    @classmethod
    def _schedule(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("select_by")
    @classmethod
    def _select_by(cls, value: str) -> str:
        metric = parse_metric(value)
        if not metric.per_user or not metric.higher_is_better:
            raise ValueError(f"{metric} cannot select an epoch; use for example recall@20")
        return str(metric)


class LiveEncoder(Section):
    """An encoder that learns with the recommender, in place of a stored feature set."""

    name: Annotated[str, Field(min_length=1)]
    """An encoder as `mmbench extract --list` names it."""
    weights: str | None = None
    """A local folder or file with the weights, in place of the hub."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    variant: str | None = None
    """Which vectors, as `mmbench extract --variant`."""
    tune: Literal["none", "top", "full"] = "top"
    """What learns: nothing, the last `blocks` transformer blocks (and the norm after them), or
    all of it."""
    blocks: PositiveInt | None = None
    """How many blocks learn with `tune: top`; if not given the encoder's own number, mostly two."""
    max_tokens: PositiveInt | None = None
    """Texts are cut after so many; the encoder's own limit if not given."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the patches that a masked autoencoder does not see."""
    preprocess: Literal["own", "pad", "mmsr"] = "own"
    """Pictures: as published, padded and uncropped, or squashed to 224 x 224."""
    frozen_eval: bool = True
    """Whether the blocks that do not learn run in evaluation mode, without dropout."""
    cache: bool = True
    """Whether what enters the first learning block is computed once and kept, where that is
    exact: `frozen_eval`, and nothing drawn at random below it."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept."""


class Corruption(Section):
    """What is done to a feature set before a model is given it, in training and ranking alike."""

    kind: Literal["shuffle", "noise", "missing"]
    """shuffle: vectors are exchanged among items. noise: Gaussian vectors with the mean and the
    deviation of each column. missing: the items count as having none."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of items that it befalls."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Draws the items and what becomes of them; the training seed plays no part."""


class Evaluation(Section):
    """What is measured on the ranked lists."""

    metrics: tuple[str, ...] = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
    """What is stored with the run and printed, as NAME@K."""
    depth: PositiveInt = 100
    """Length of the stored lists; any metric up to this cut-off can be computed later."""

    @field_validator("metrics")
    @classmethod
    def _metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one metric, for example recall@20")
        names = [str(parse_metric(name)) for name in value]
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _deep_enough(self) -> Evaluation:
        for metric in self.parsed:
            if metric.k > self.depth:
                raise ValueError(
                    f"{metric} needs lists of {metric.k} items, but depth is {self.depth}"
                )
        return self

    @property
    def parsed(self) -> list[Metric]:
        """The metrics with their cut-offs."""
        return [parse_metric(name) for name in self.metrics]


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Shape(Section):
    """The keys of a recipe; `model` is checked by the model's own settings."""

    dataset: Annotated[str, Field(min_length=1)] = "demo"
    """A prepared dataset, as `mmbench prepare` stored it."""
    label: str | None = None
    """What tables call the system; the model's name, and its point of a grid, if not given."""
    protocol: Protocol = Protocol()
    """A preset's name, or a mapping that changes single fields of one."""
    features: dict[str, str] = {}
    """The feature set of each modality that the model is given, by the name of its encoder."""
    encoders: dict[str, LiveEncoder] = {}
    """Encoders that learn with the model, by modality; `joint` for one that reads both."""
    corruptions: dict[str, Corruption] = {}
    """Feature sets that are spoilt on purpose, by modality."""
    subset: UserSubset | None = None
    """All users unless given."""
    model: dict[str, Any]
    """`name` and the model's own settings."""
    training: Training = Training()
    """How the model is trained."""
    evaluation: Evaluation = Evaluation()
    """What is measured."""
    seeds: tuple[Seed, ...] = (0,)
    """One run each; tables average over them."""
    grid: dict[str, list[Any]] = {}
    """Values to try by key, in all combinations; the best mean over seeds on validation wins. Keys
    joined by commas are set together, each value a list: `features, encoders`."""
    search: dict[str, Dimension] = {}
    """What `--tune` may try, by key; without it the settings above are trained."""

    @field_validator("features")
    @classmethod
    def _modalities(cls, value: dict[str, str]) -> dict[str, str]:
        for modality in value:
            if modality not in MODALITIES:
                raise UnknownNameError("modality", modality, MODALITIES)
        return {name: value[name] for name in MODALITIES if name in value}

    @field_validator("encoders", mode="before")
    @classmethod
    def _encoders(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for modality in value:
            if modality not in MODALITIES:
                raise UnknownNameError("modality", str(modality), MODALITIES)
        given = {name: value[name] for name in MODALITIES if name in value}
        return {name: {"name": v} if isinstance(v, str) else v for name, v in given.items()}

    @field_validator("corruptions", mode="before")
    @classmethod
    def _corruptions(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"kind": v} if isinstance(v, str) else v for name, v in value.items()}

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("give at least one seed")
        if len(set(value)) != len(value):
            raise ValueError("a seed is listed twice")
        return value

    @model_validator(mode="after")
    def _selectable(self) -> _Shape:
        for modality in self.corruptions:
            if modality not in self.features:
                raise ValueError(
                    f"corruptions.{modality}: features names no {modality} set that could be spoilt"
                )
        for modality in self.encoders:
            if modality in self.features:
                raise ValueError(
                    f"{modality} is under features and under encoders; stored vectors or an "
                    "encoder that learns, not both"
                )
        # Trials are chosen by the stored lists; told here, not after hours of training.
        metric = parse_metric(self.training.select_by)
        if metric.k > self.evaluation.depth:
            raise ValueError(
                f"training.select_by {metric} needs lists of {metric.k} items, but "
                f"evaluation.depth is {self.evaluation.depth}"
            )
        return self


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
        self, shape: _Shape, settings: ModelConfig, seed: int, trial: Mapping[str, Any]
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
        if not self.corruptions:
            del values["corruptions"]
        # Metrics are computed from the stored lists at any time; only their length is fixed.
        values["evaluation"] = {"depth": self.evaluation.depth}
        # Where weights lie moves no number; the run's facts hold what they are.
        for encoder in values["encoders"].values():
            del encoder["weights"]
        if (start := self.training.start_from) is not None:
            # The weights themselves are the run's to tell, see `engine.start`.
            known = {} if not start.train else values["training"]
            values["training"] = {**known, "start_from": {"train": start.train}}
        if MODELS.get(self.model).obj.fitting == "closed-form":
            del values["training"]
        return values


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
        values = [value["name"]] if "name" in value else list(value.values())
        return _short(values)
    if isinstance(value, (list, tuple)):
        return "+".join(dict.fromkeys(_short(one) for one in value if one not in ({}, None)))
    return str(value)


def keys_of(axis: str) -> list[str]:
    """The keys that one axis of a grid sets; `features, encoders` sets two together."""
    return [key.strip() for key in axis.split(",")]


SEARCHABLE = ("model", "features", "encoders", "corruptions", "training")
OPTIONAL = ("features", "encoders", "corruptions")
"""Sections by modality, whose keys another condition of a study may lack."""


class Recipe:
    """A checked recipe, which expands to one run per trial and seed."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw, self.source = dict(raw), source
        self.shape, self.settings = _check(self.raw, source)
        self.trials = list(self._trials())
        self._check_search()

    def _trials(self) -> Iterator[tuple[_Shape, ModelConfig, dict[str, Any]]]:
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

    def _at(self, point: Mapping[str, Any]) -> tuple[_Shape, ModelConfig]:
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


def set_key(raw: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with one dotted key set."""
    head, _, rest = key.partition(".")
    copy = dict(raw)
    if rest:
        inner = copy.get(head, {})
        # `protocol: mmrec` and `schedule: cosine` are short for a mapping with that name.
        if isinstance(inner, str):
            inner = {"name": inner}
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{key} cannot be set: {head} is not a mapping")
        value = set_key(inner, rest, value)
    copy[head] = value
    return copy


def apply_settings(raw: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply `--set key=value` options; values are read as YAML.

    Raises:
        ConfigError: an option is not KEY=VALUE.
    """
    result = dict(raw)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {setting!r} is not KEY=VALUE; for example --set model.embedding_size=32"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None
        result = set_key(result, key.strip(), value)
    return result


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, where YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: {key!r} is written twice")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file to plain values, unchecked.

    Raises:
        ConfigError: it is missing, no YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"recipe {path} cannot be read: {problem}") from None
    try:
        raw = yaml.load(text, _UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{where}: not YAML: {getattr(problem, 'problem', problem)}"
        ) from None
    except ConfigError as problem:
        raise ConfigError(f"{path} {problem}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: a recipe is a mapping of keys; see the recipes folder for examples"
        )
    return raw


def shipped_recipes() -> list[str]:
    """Names `<dataset>/<model>` of the recipes that ship with the package."""
    return sorted(
        path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml")
    )


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
            raise UnknownNameError("recipe", name, shipped)
        raw, source = read_recipe(SHIPPED / f"{name}.yaml"), f"{name}.yaml"
    else:
        model = MODELS.get(name, hint="A recipe file ends in .yaml.").name
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


def _check(raw: Mapping[str, Any], source: str) -> tuple[_Shape, ModelConfig]:
    """Check all of a recipe and report every problem at once."""
    problems: list[str] = []
    shape, settings = None, None
    try:
        shape = _Shape.model_validate(raw)
    except ValidationError as error:
        problems += _problems(error, _Shape, ())
    model = raw.get("model")
    if isinstance(model, str):
        problems = [line for line in problems if not line.startswith("model:")]
        problems.append(f"model: write {{name: {model}}}")
    elif isinstance(model, Mapping):
        if not isinstance(model.get("name"), str):
            problems.append(f"model.name is missing; known models: {', '.join(MODELS.names())}")
        else:
            try:
                entry = MODELS.get(model["name"])
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


def _encoder_problems(shape: _Shape) -> list[str]:
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
            lines.append(f"{path} is not a setting.{near} Known: {', '.join(known)}.")
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
