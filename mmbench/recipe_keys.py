"""The keys of a recipe: sections of typed, frozen settings, each key with its default and meaning.

A section refuses unknown keys and infinities; what one key asks of another is checked here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mmbench.errors import UnknownNameError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.modality import MODALITIES
from mmbench.search_space import Dimension

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
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all later steps in which the encoder's learning rate rises from zero, 0.05 for
    example; of `training.epochs`, whenever patience ends them."""

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


class Shape(Section):
    """All keys of a recipe; `model` is checked by the model's own settings."""

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
    def _selectable(self) -> Shape:
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
