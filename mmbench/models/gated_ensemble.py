"""Gated ensemble: a score from ids and one per modality, each behind a gate that can close.

Gates: Louizos, Welling and Kingma, ICLR 2018. https://arxiv.org/abs/1712.01312
Who trains them: Liu, Simonyan and Yang (DARTS), ICLR 2019. https://arxiv.org/abs/1806.09055

Branches and the score x_ui(w) are those of `ensemble.py`, with the gates as weights w = z.

    1. draw      s_m = sigmoid((log v - log(1 - v) + log a_m) / beta),  v uniform in (0, 1)
                 z_m = min(1, max(0, s_m (zeta - gamma) + gamma))       (hard concrete)
                 beta = 2/3, gamma = -0.1, zeta = 1.1
    2. rank      z^_m = min(1, max(0, sigmoid(log a_m) (zeta - gamma) + gamma))
    3. weights   (1 / ((1 - h) B)) * sum over kept rows of -log sigmoid(x_ui(z) - x_uj(z))
                 + regularization * (|P|^2 + |Q|^2 + |y|^2 of the batch's rows) / 2B,
                 with z held still
    4. gates     (1 / (h B)) * sum over held-out rows of -log sigmoid(x_ui(z) - x_uj(z)), with
                 all but z held still
                 + gate_weight * sum over m of P(z_m > 0)
                 P(z_m > 0) = sigmoid(log a_m - beta log(-gamma / zeta))

Why both: a gate that is trained on the rows that the weights learn from stays open on noise,
because users' vectors learn these rows by heart through any features. So a share h of the
training interactions is held out, from the weights and from their graph, and teaches the gates
alone, as DARTS does with its architecture (its first-order form). And why the penalty is of being
open: one of the gate's size would be undone by longer vectors. What closes is what does not help
to rank: features that say nothing and have about as many columns as there are items still tell
items apart, as ids do, and may stay.

In epochs before `gate_from` branches learn behind gates that stay where they start. In those from
`gate_from` to `gate_until` gates and weights learn. After that the gates stand still at z^, and the
weights are drawn anew and learn from all rows, over the whole graph, as DARTS trains what it has
found. Ranking uses the whole graph in every epoch, and patience has to reach past `gate_until`.
`gate: training-loss` holds nothing out, h = 0 in equation 3, and takes equation 4 over all rows:
L0 as published. `gate: fixed` leaves all gates at one, which is the static ensemble.

Shapes: U users, I items, E interactions, B batch, M modalities, D = config.embedding_size.
Departures: one gate for a whole branch and not for each weight; every row of a batch draws its own
gates, which changes no expectation; log a_m = gate_start + gate_rate * (a parameter that starts at
0), so that gates can learn faster than weights under one learning rate; gates between 0 and 1 stay
as they are found; the optimiser keeps its averages when weights start anew. A modality that is
switched off is still computed. Without features this is LightGCN with a squared penalty.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

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
from mmbench.models.graph import normalised_adjacency

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


class GatedEnsembleConfig(ModelConfig):
    """Settings of the gated ensemble."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    regularization: NonNegativeFloat = 1e-2
    gate: Literal["learned", "training-loss", "fixed"] = "learned"
    gate_weight: NonNegativeFloat = 0.01
    gate_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # h
    gate_from: PositiveInt = 5
    """The first epoch in which gates learn."""
    gate_until: PositiveInt | None = 20
    """The last one; null for the last of training, and weights then never start anew."""
    gate_start: float = 2.4
    """log a_m at first; 2.4 is where z^ = 1 begins."""
    gate_rate: PositiveFloat = 20.0
    integration: Form = "ensemble"

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> GatedEnsembleConfig:
        if self.gate_until is not None and self.gate_until < self.gate_from:
            raise ValueError(
                f"gate_until={self.gate_until} is before gate_from={self.gate_from}; for gates "
                "that never learn set gate: fixed"
            )
        return self


@register_model(
    "gated-ensemble",
    config=GatedEnsembleConfig,
    citation=(
        "Gates: Louizos, Welling and Kingma. Learning sparse neural networks through L0 "
        "regularization. ICLR 2018. Trained on held-out rows: Liu, Simonyan and Yang. DARTS: "
        "differentiable architecture search. ICLR 2019."
    ),
)
class GatedEnsemble(Recommender):
    """Scores from ids and from each modality, added; a useless modality is switched off."""

    integration = "ensemble"
    modalities = frozenset(MODALITIES)
    config: GatedEnsembleConfig
    keys: Tensor  # of the training interactions, ascending [E]
    held_out: Tensor  # bool [E]

    def __init__(
        self, config: GatedEnsembleConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config, self.n_items = config, train.n_items
        self.branches = ModalityEnsemble(train, given, config.embedding_size, config.n_layers)
        self.learns = bool(given) and config.gate != "fixed"
        self.holds_out = bool(given) and config.gate == "learned"
        if self.learns:
            self.gate = nn.Parameter(torch.zeros(len(given)))
        if self.holds_out:
            n_held = min(len(train.users), max(1, round(config.gate_share * len(train.users))))
            held_out = torch.zeros(len(train.users), dtype=torch.bool)
            held_out[torch.randperm(len(held_out))[:n_held]] = True
            kept = Interactions(
                train.n_users, train.n_items, train.users[~held_out], train.items[~held_out]
            )
            self.kept_graph = normalised_adjacency(kept)
            keys = train.users * train.n_items + train.items
            self.register_buffer("keys", keys, persistent=False)
            self.register_buffer("held_out", held_out, persistent=False)
        self.on_epoch_start(1)

    def on_epoch_start(self, epoch: int) -> None:
        """Gates learn from epoch `gate_from` to `gate_until`; weights start anew after that."""
        config = self.config
        over = config.gate_until is not None and epoch > config.gate_until
        if self.learns and config.gate_until is not None and epoch == config.gate_until + 1:
            self.branches.reset()
        self.searches = self.learns and config.gate_from <= epoch and not over
        self.is_split = self.holds_out and not over

    def log_alpha(self) -> Tensor:
        """The values log a of all modalities, [M]."""
        return self.config.gate_start + self.config.gate_rate * self.gate

    def gates(self) -> Tensor:
        """The values z^ of all modalities, [M]; ones where gates are fixed."""
        if not self.learns:
            return self.branches.nodes.new_ones(len(self.branches.modalities))
        return stretched(torch.sigmoid(self.log_alpha()))

    def describe_state(self) -> dict[str, float]:
        """Values z^ of all modalities, as `gate.visual`."""
        if not self.learns:
            return {}
        gates = self.gates().detach().tolist()
        names = [f"gate.{name}" for name in self.branches.modalities]
        return dict(zip(names, gates, strict=True))

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' and items' branches behind their gates, [., (M + 1) D]; of a fusion [., D]."""
        return self.branches.vectors(self.gates(), self.config.integration)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equations 3 and 4 for B triples, scalars."""
        config, branches = self.config, self.branches
        rows, starts = branches.rows(batch, self.kept_graph if self.is_split else None)
        gates = self._drawn(len(batch)) if self.searches else self.gates()
        loss = F.softplus(-margins(rows, gates.detach(), config.integration))
        held_out = self._held_out(batch).float() if self.is_split else None
        if held_out is None:
            terms = {"bpr": loss.mean()}
        else:  # by what is expected of a batch, so that its parts add up to the whole
            terms = {"bpr": (loss * (1 - held_out)).mean() / (1 - config.gate_share)}
        if self.searches:
            loss = F.softplus(-margins(rows.detach(), gates, config.integration))
            if held_out is not None:
                loss = loss * held_out / config.gate_share
            terms["gates"] = loss.mean()
            terms["open"] = config.gate_weight * open_probability(self.log_alpha()).sum()
        if config.regularization:
            terms["regularization"] = config.regularization * penalty(starts)
        return terms

    def _drawn(self, n_rows: int) -> Tensor:
        """A draw of all gates for each row, [B, M]: equation 1."""
        log_alpha = self.log_alpha()
        noise = torch.rand(n_rows, len(log_alpha), device=log_alpha.device)
        # A float32 can be drawn as 0, whose logarithm is not finite.
        noise = noise.clamp(1e-6, 1 - 1e-6).to(log_alpha.dtype)
        return stretched(torch.sigmoid((noise.logit() + log_alpha) / BETA))

    def _held_out(self, batch: Batch) -> Tensor:
        """Which rows the gates learn from, bool [B]; pairs of no training interaction are kept."""
        keys = batch.users * self.n_items + batch.positives
        places = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        return (self.keys[places] == keys) & self.held_out[places]


def stretched(share: Tensor) -> Tensor:
    """Numbers in (0, 1), stretched over both ends and cut off there."""
    return (share * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z > 0) of gates [M]."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))
