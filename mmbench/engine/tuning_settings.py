"""Settings of a fine-tuning on the pairs of pictures and texts of a dataset, and published grids.

Defaults: AdamW (0.9, 0.98), 10 % linear warm-up and a linear fall, clipped at norm 1, at most 30
epochs, stopped after 5 without a better retrieval of held-out items. The preset arxiv-2310.20343
is what that paper states: Adam, a grid over learning rate and batch size, stopped when the
validation loss has not fallen for 50 epochs; it states no other number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from mmbench.errors import ConfigError, UnknownNameError

NEW_RATE = 1e-3
STEPS = 2
"""Of an epoch, where the pairs are too few for a batch that nobody asked for."""


class FineTuning(BaseModel):
    """How an encoder learns from the items that have both a picture and a text.

    Attributes:
        epochs: at most so many.
        batch_size: items that are told from each other in one step; several make a grid.
        adapts: whether a batch that is larger than all pairs gives way to a smaller one, as
            nobody asked for it.
        learning_rate: at its highest; several make a grid.
        new_learning_rate: of weights that no published ones are behind (the projections of a
            pair), which have a longer way to go; None for 1e-3, or learning_rate if it is higher.
        objective: losses by name; none for all that the encoder has.
        tune: "full", or "top" for the last blocks of each tower and what is behind them.
        blocks: how many of the last blocks; None for each tower's own number.
        optimizer: "adamw" with betas 0.9 and 0.98, or "adam" with 0.9 and 0.999.
        weight_decay: not on norms, biases, embeddings and temperatures.
        schedule: of the learning rate after the warm-up.
        warmup: share of all steps in which the rate rises.
        clip_norm: of the gradient of all parameters together; None not to clip.
        patience: epochs without a better held-out result before it stops.
        select_by: "recall", mean Recall@1, 5, 10 both ways, or "loss", the contrastive one; both
            on held-out items.
        held_out: share of the pairs; None for 5 %, at least 256, never more than a fifth.
        warm: a split; only items with training interactions there are learnt from. None for all.
        seed: of the held-out items, the order of the others, negatives and hidden words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: PositiveInt = 30
    batch_size: tuple[int, ...] = Field(default=(128,), min_length=1)
    adapts: bool = False
    learning_rate: tuple[float, ...] = Field(default=(3e-5,), min_length=1)
    new_learning_rate: float | None = Field(default=None, gt=0)
    objective: tuple[str, ...] = ()
    tune: Literal["full", "top"] = "full"
    blocks: PositiveInt | None = None
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    patience: PositiveInt = 5
    select_by: Literal["recall", "loss"] = "recall"
    held_out: float | None = Field(default=None, gt=0, lt=1)
    warm: str | None = None
    seed: int = Field(default=0, ge=0)

    def points(self) -> Iterator[FineTuning]:
        """The points of the grid; itself where there is none."""
        for rate, size in itertools.product(self.learning_rate, self.batch_size):
            yield self.model_copy(update={"learning_rate": (rate,), "batch_size": (size,)})

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines a result, as JSON values; what is newer only where it is set."""
        left_out = {"adapts"}  # what it leads to is the batch size of a point
        if self.new_learning_rate is None:
            left_out.add("new_learning_rate")
        return self.model_dump(mode="json", exclude=left_out)

    def fitted(self, n_pairs: int) -> FineTuning:
        """The settings for so many pairs to learn from: batches that are larger are left out.

        Where all are, half of the pairs make a batch: a larger one would show all of them the
        same in every epoch, or leave many of them out.
        """
        if not self.adapts:
            return self
        fit = tuple(size for size in self.batch_size if size <= n_pairs)
        return self.model_copy(update={"batch_size": fit or (max(2, n_pairs // STEPS),)})

    @property
    def rate_of_new(self) -> float:
        """The learning rate of new weights."""
        if self.new_learning_rate is not None:
            return self.new_learning_rate
        return max(NEW_RATE, *self.learning_rate)

    @property
    def n_points(self) -> int:
        """How many points the grid has."""
        return len(self.learning_rate) * len(self.batch_size)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "arxiv-2310.20343": {
        "epochs": 1000,
        "batch_size": (32, 64, 128, 256, 1024),
        "learning_rate": (1e-5, 3e-5, 5e-5, 1e-4, 1e-3),
        "optimizer": "adam",
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "patience": 50,
        "select_by": "loss",
    },
}
"""Settings that published work states."""


def fine_tuning(preset: str | None, **given: Any) -> FineTuning:
    """Settings: of a preset, or the defaults, changed by what is given and not None.

    Raises:
        UnknownNameError: there is no such preset.
        ConfigError: a value is out of its range, or settings contradict each other.
    """
    if preset is not None and preset not in PRESETS:
        raise UnknownNameError("fine-tuning preset", preset, PRESETS)
    chosen = dict(PRESETS[preset]) if preset is not None else {}
    chosen |= {name: value for name, value in given.items() if value is not None}
    chosen["adapts"] = given.get("batch_size") is None
    try:
        made = FineTuning(**chosen)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = str(first["loc"][0]).replace("_", "-") if first["loc"] else "fine-tuning"
        raise ConfigError(f"{where}: {first['msg']}, not {first['input']!r}") from None
    if made.blocks is not None and made.tune == "full":
        raise ConfigError("blocks goes with tune: top; with full all blocks learn")
    if small := [size for size in made.batch_size if size < 2]:
        raise ConfigError(
            f"batch-size {small[0]} leaves nothing to tell an item from; at least 2 are needed"
        )
    if low := [rate for rate in made.learning_rate if not rate > 0]:
        raise ConfigError(f"learning-rate {low[0]:g} must be above 0")
    for name in ("batch_size", "learning_rate"):
        if len(set(getattr(made, name))) < len(getattr(made, name)):
            raise ConfigError(f"{name.replace('_', '-')} names a value twice")
    return made
