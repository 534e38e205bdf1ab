"""Curriculum ensemble: a score from ids at first, modalities join it one after the other.

Curriculum: Bengio, Louradour, Collobert and Weston, ICML 2009.
https://doi.org/10.1145/1553374.1553380
Modalities as its steps are proposed in Section 8.2 of https://arxiv.org/abs/2508.05377

Branches and the score x_ui(w) are those of `ensemble.py`, with ramps as weights w = r(t) in epoch
t = 1, 2, ...; modality m stands at place p_m = 0, 1, ... of the order.

    begin   t_m = begin_epoch + p_m * epochs_between
    linear  r_m(t) = min(1, max(0, (t - t_m + 1) / ramp_epochs))
    step    r_m(t) = 1 from epoch t_m on, 0 before
    none    r_m(t) = 1: the static ensemble
    loss    mean over (u, i, j) of -log sigmoid(x_ui(r) - x_uj(r))
            + regularization * (|P|^2 + |Q|^2 + |y|^2 of the batch's rows) / 2B

Shapes: U users, I items, B batch, M modalities, D = config.embedding_size.
Departures: Section 8.2 proposes and does not define; the ramp, the order by name and the ids
first are ours. Ranking uses the ramps of its epoch, and they are stored with the weights, so that
an epoch chosen before all ramps have ended ranks as it did. Without features this is LightGCN with
a squared penalty.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator
from torch import Tensor

from mmbench.errors import UnknownNameError
from mmbench.modality import MODALITIES
from mmbench.models.base import (
    Batch,
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.ensemble import Form, ModalityEnsemble, margins, penalty


class CurriculumEnsembleConfig(ModelConfig):
    """Settings of the curriculum ensemble."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    regularization: NonNegativeFloat = 1e-2
    schedule: Literal["none", "step", "linear"] = "linear"
    begin_epoch: PositiveInt = 5
    """The first epoch with the first modality."""
    epochs_between: NonNegativeInt = 5
    """From one modality's beginning to the next one's."""
    ramp_epochs: PositiveInt = 10
    """From a modality's beginning to its full weight."""
    order: tuple[str, ...] = ()
    """Who comes first; modalities that are not named come last, in their usual order."""
    integration: Form = "ensemble"

    @field_validator("order")
    @classmethod
    def _order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in MODALITIES:
                raise ValueError(str(UnknownNameError("modality", name, MODALITIES)))
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(value)}: a modality is named twice; name each once")
        return value


@register_model(
    "curriculum-ensemble",
    config=CurriculumEnsembleConfig,
    citation=(
        "Bengio, Louradour, Collobert and Weston. Curriculum learning. ICML 2009. Modalities as "
        "its steps: Does multimodality improve recommender systems as expected? arXiv 2508.05377."
    ),
)
class CurriculumEnsemble(Recommender):
    """Scores from ids and from each modality, added; modalities are introduced gradually."""

    integration = "ensemble"
    modalities = frozenset(MODALITIES)
    config: CurriculumEnsembleConfig
    ramps: Tensor  # r, [M]

    def __init__(
        self, config: CurriculumEnsembleConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.branches = ModalityEnsemble(train, given, config.embedding_size, config.n_layers)
        self.register_buffer("ramps", torch.ones(len(given)))
        if config.schedule == "none":
            return
        self.on_epoch_start(1)

    def on_epoch_start(self, epoch: int) -> None:
        """Set the ramps of an epoch."""
        self.ramps.copy_(torch.tensor(self.ramps_at(epoch)))

    def ramps_at(self, epoch: int) -> list[float]:
        """The ramps of an epoch, [M]."""
        config, given = self.config, self.branches.modalities
        order = [*config.order, *(name for name in MODALITIES if name not in config.order)]
        in_order = sorted(given, key=order.index)
        ramps = []
        for name in given:
            since = epoch - config.begin_epoch - in_order.index(name) * config.epochs_between
            if config.schedule == "none":
                ramps.append(1.0)
            elif config.schedule == "step":
                ramps.append(float(since >= 0))
            else:
                ramps.append(min(1.0, max(0.0, (since + 1) / config.ramp_epochs)))
        return ramps

    def describe_state(self) -> dict[str, float]:
        """The ramps at which it ranks, as `ramp.visual`."""
        if self.config.schedule == "none":
            return {}
        names = [f"ramp.{name}" for name in self.branches.modalities]
        return dict(zip(names, self.ramps.tolist(), strict=True))

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' and items' branches by their ramps, [., (M + 1) D]; of a fusion [., D]."""
        return self.branches.vectors(self.ramps, self.config.integration)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of B triples and the penalty of their rows, scalars."""
        config, branches = self.config, self.branches
        rows, starts = branches.rows(batch)
        terms = {"bpr": F.softplus(-margins(rows, self.ramps, config.integration)).mean()}
        if config.regularization:
            terms["regularization"] = config.regularization * penalty(starts)
        return terms
