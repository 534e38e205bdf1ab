"""SLMRec: what users choose, and items whose views must tell each other apart.

Tao, Liu, Xia, Wang, Yang, Huang and Chua, IEEE TMM 2022.
Released code: https://github.com/zltao/SLMRec

    1. branches   x_0 of ids and x_m of each modality, over one graph (mmbench.models.branches)
    2. read-outs  e_u = [x_0 ; x_v ; x_a ; x_t]_u W_U + b_U,  e_i likewise with W_I
                  score x_ui = e_u . e_i
    3. loss       NCE(e_u, e_i; temperature) over the pairs (u, i) of the batch
                  + ssl_weight * (L_v + L_a + L_t)
    4. contrast   a_0 = g_1(x_0),  L_v = CE(a_0, g_2 x_v)         of the batch's items i
                  a_1 = g_3(a_0),  L_a = CE(a_1, g_4 x_a)
                  a_2 = g_5(a_1),  L_t = CE(a_2, g_6 x_t),        g_5, g_6 half as wide
                  CE(a, b) = mean over r of -log softmax_s(a_r . b_s / ssl_temperature)[s = r]

No negatives are drawn: the other items of the batch are. CE is of dot products, not cosines, and
the order v, a, t is fixed; a modality that is missing drops its term and its g, not the steps
a_0, a_1, a_2 up to the last that is there.

Shapes: U users, I items, B batch, C branches, D = config.embedding_size.
Departures: no sigmoid on scores, which ties the large ones; g_2, g_4 and g_6 have no bias, which
the softmax does not see; `joint` features are a fourth step, a_3 = g_7(a_2) and g_8, as wide as
a_2; the release's other contrasts, of dropped or masked features, are not offered. The released
weight decay of 1e-4 is `training.weight_decay`. Without features this is LightGCN with read-outs
and the in-batch softmax. `integration: ensemble` gives each branch a read-out of its own and takes
the mean of their scores.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from mmbench.modality import MODALITIES
from mmbench.models import losses
from mmbench.models.base import (
    Batch,
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.branches import ORDER, BranchEncoder, ReadOut


class SLMRecConfig(ModelConfig):
    """Settings of SLMRec."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 3  # L
    temperature: PositiveFloat = 0.2
    ssl_weight: NonNegativeFloat = 0.05
    ssl_temperature: PositiveFloat = 0.2
    integration: Literal["fusion", "ensemble"] = "fusion"


@register_model(
    "slmrec",
    config=SLMRecConfig,
    citation=(
        "Tao, Liu, Xia, Wang, Yang, Huang and Chua. Self-supervised learning for multimedia "
        "recommendation. IEEE Transactions on Multimedia 2022."
    ),
)
class SLMRec(Recommender):
    """Propagated branches, read out together, contrasted step by step."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: SLMRecConfig

    def __init__(
        self, config: SLMRecConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        size, fused = config.embedding_size, config.integration == "fusion"
        self.encoder = BranchEncoder(train, given, size, config.n_layers)
        self.read_users = ReadOut(self.encoder.n_branches, size, fused=fused)  # W_U, b_U
        self.read_items = ReadOut(self.encoder.n_branches, size, fused=fused)  # W_I, b_I
        self.steps = nn.ModuleList()  # g_1, g_3, g_5 up to the last modality there is
        self.views = nn.ModuleDict()  # g_2, g_4, g_6 of the modalities there are
        if given and config.ssl_weight:
            half = max(1, size // 2)
            widths = [size, size, half, half]
            last = ORDER.index(self.encoder.modalities[-1])
            for place in range(last + 1):
                before = size if place == 0 else widths[place - 1]
                self.steps.append(_linear(before, widths[place], bias=True))
                if ORDER[place] in self.encoder.modalities:
                    self.views[ORDER[place]] = _linear(size, widths[place], bias=False)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """e_u [U, D] and e_i [I, D]; of an ensemble [., C D]."""
        users, items = self.encoder.propagate(self.encoder.starts())
        return self.read_users(users), self.read_items(items)

    def batch_items(self, batch: Batch) -> Tensor:
        """The positives: the batch's negatives are not used."""
        return batch.positives

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 3 for B pairs, scalars; the batch's negatives are not used."""
        users, items = self.encoder.propagate(self.encoder.starts())
        users = users.index_select(0, batch.users)  # [B, C D]
        items = items.index_select(0, batch.positives)
        choice = losses.info_nce(
            self.read_users(users), self.read_items(items), self.config.temperature
        )
        terms = {"choice": choice}
        if self.views:
            terms["contrast"] = self.config.ssl_weight * self._contrast(items)
        return terms

    def _contrast(self, items: Tensor) -> Tensor:
        """L_v + L_a + L_t of the branches of B items, [B, C D]."""
        ids, *views = items.chunk(self.encoder.n_branches, dim=1)
        branches = dict(zip(self.encoder.modalities, views, strict=True))
        total, state = items.new_zeros(()), ids
        for name, step in zip(ORDER, self.steps, strict=False):
            state = step(state)
            if name in branches:
                total = total + self._cross_entropy(state, self.views[name](branches[name]))
        return total

    def _cross_entropy(self, anchors: Tensor, others: Tensor) -> Tensor:
        with torch.autocast(anchors.device.type, enabled=False):
            anchors = losses.full_precision(anchors) / self.config.ssl_temperature
            others = losses.full_precision(others)
            together = (anchors * others).sum()
            return (losses.summed_logsumexp(anchors, others) - together) / len(anchors)


def _linear(width_in: int, width_out: int, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(width_in, width_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    return layer
