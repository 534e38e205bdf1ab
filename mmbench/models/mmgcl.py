"""MMGCL: views of users and items in which edges or a modality's nodes are missing.

Yi, Wang, Ounis and Macdonald, SIGIR 2022. Released code: https://github.com/zxy-ml84/MMGCL

    1. branches   x_0 of ids and x_m of each modality, over one graph (mmbench.models.branches)
    2. read-outs  e_u = [x_0 ; x_v ; x_a ; x_t]_u W_U + b_U,  e_i likewise with W_I
                  score x_ui = e_u . e_i
    3. loss       mean over (u, i, j) of -log sigmoid(x_ui - x_uj) + ssl_weight * SSL

    4. view 1     every branch over S', the graph of floor((1 - dropout) E) random edges
    5. view 2     a modality m drawn by `masking`: its branch over S'', the graph without
                  floor(dropout U) users and floor(dropout I) items; the other branches over S
    6. challenge  c_r, the read-out in view 2 of the positive item whose branch m is that of the
                  row's negative item
    7. SSL = NCE(e'_u, e''_u; t) + NCE(e'_i, e''_i, c; t) of the batch's users u and positives i,
       where exp(cos(e'_i, c) / t) joins the denominator of its own row

`ssl: released` trains what the released code does: the second view and the challenge are made
there and not used, which leaves SSL = 2 NCE(e'_u, e'_i; t), both of view 1.

Shapes: U users, I items, E training interactions, B batch, C branches, D =
config.embedding_size.
Departures: the paper leaves the details of equations 5 to 7 open; they are ours. -log sigmoid
without the released 1e-5 inside. Without features view 2 has nothing to mask: it is S itself and
there is no challenge; what remains is LightGCN with read-outs and this contrast. The released
weight decay of 1e-4 is `training.weight_decay`. `integration: ensemble` gives each branch a
read-out of its own and takes the mean of their scores.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

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
from mmbench.models.branches import BranchEncoder, ReadOut


class MMGCLConfig(ModelConfig):
    """Settings of MMGCL."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 3  # L
    ssl: Literal["paper", "released"] = "paper"
    ssl_weight: NonNegativeFloat = 0.4
    temperature: PositiveFloat = 0.2  # t
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of edges, and of users and items, that a view lacks."""
    masking: dict[str, NonNegativeFloat] = Field(
        default={"visual": 0.4, "textual": 0.4, "acoustic": 0.2, "joint": 0.4}
    )
    """How often each modality is the one that view 2 masks; over those given they sum to 1."""
    integration: Literal["fusion", "ensemble"] = "fusion"

    @field_validator("masking")
    @classmethod
    def _masking(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(value) - set(MODALITIES)):
            known = ", ".join(MODALITIES)
            raise ValueError(f"{', '.join(unknown)}: no such modality; known: {known}")
        return value


@register_model(
    "mmgcl",
    config=MMGCLConfig,
    citation=(
        "Yi, Wang, Ounis and Macdonald. Multi-modal graph contrastive learning for micro-video "
        "recommendation. SIGIR 2022."
    ),
)
class MMGCL(Recommender):
    """Propagated branches, read out together, contrasted between incomplete graphs."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: MMGCLConfig

    def __init__(self, config: MMGCLConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        size, fused = config.embedding_size, config.integration == "fusion"
        self.encoder = BranchEncoder(train, given, size, config.n_layers)
        self.read_users = ReadOut(self.encoder.n_branches, size, fused=fused)  # W_U, b_U
        self.read_items = ReadOut(self.encoder.n_branches, size, fused=fused)  # W_I, b_I
        # On the host: what is drawn there needs no wait for the device. All equal if none is said.
        masking = torch.tensor([config.masking.get(name, 0.0) for name in self.encoder.modalities])
        self._masking = masking if masking.sum() > 0 else torch.ones(len(masking))

    def vectors(self) -> tuple[Tensor, Tensor]:
        """e_u [U, D] and e_i [I, D]; of an ensemble [., C D]."""
        users, items = self.encoder.propagate(self.encoder.starts())
        return self.read_users(users), self.read_items(items)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 3 for B triples, scalars."""
        starts = self.encoder.starts()
        all_users, all_items = self.encoder.propagate(starts)
        pairs = torch.cat([batch.positives, batch.negatives])
        users = all_users.index_select(0, batch.users)  # [B, C D]
        items = all_items.index_select(0, pairs)  # [2 B, C D]
        chosen = self.read_users(users)
        positives, negatives = self.read_items(items).chunk(2)
        terms = {"bpr": losses.bpr((chosen * positives).sum(1), (chosen * negatives).sum(1))}
        if self.config.ssl_weight:
            terms["contrast"] = self.config.ssl_weight * self._contrast(batch, starts, users, items)
        return terms

    def _contrast(self, batch: Batch, starts: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """SSL of equation 7, from the item rows of level 0 and the batch's rows over S."""
        halves = self.encoder.graph.without_edges(self.config.dropout)
        view_users, view_items = self.encoder.propagate(starts, halves)
        view_users = self.read_users(view_users.index_select(0, batch.users))
        view_items = self.read_items(view_items.index_select(0, batch.positives))
        temperature = self.config.temperature
        if self.config.ssl == "released":
            return 2 * losses.info_nce(view_users, view_items, temperature)
        items = items[: len(batch.positives)]
        challenge = None
        if self.encoder.modalities:
            masked = 1 + int(torch.multinomial(self._masking, 1))
            columns = slice(masked * self.encoder.size, (masked + 1) * self.encoder.size)
            halves = self.encoder.graph.without_nodes(self.config.dropout)
            masked_users, masked_items = self.encoder.propagate(starts[:, columns], halves)
            masked_items = masked_items.index_select(
                0, torch.cat([batch.positives, batch.negatives])
            )
            own, of_negatives = masked_items.chunk(2)
            users = _replaced(users, columns, masked_users.index_select(0, batch.users))
            challenge = self.read_items(_replaced(items, columns, of_negatives))
            items = _replaced(items, columns, own)
        return losses.info_nce(view_users, self.read_users(users), temperature) + _challenged_nce(
            view_items, self.read_items(items), challenge, temperature
        )


def _replaced(branches: Tensor, columns: slice, other: Tensor) -> Tensor:
    """The branches of some rows with the columns of one branch taken from elsewhere."""
    return torch.cat([branches[:, : columns.start], other, branches[:, columns.stop :]], dim=1)


def _challenged_nce(
    anchors: Tensor, others: Tensor, challenge: Tensor | None, temperature: float
) -> Tensor:
    """`losses.info_nce` with one more negative in each row, c_r, a scalar."""
    if challenge is None:
        return losses.info_nce(anchors, others, temperature)
    with torch.autocast(anchors.device.type, enabled=False):
        unit, keys, extra = (
            F.normalize(losses.full_precision(rows), dim=1, eps=1e-12)
            for rows in (anchors, others, challenge)
        )
        unit = unit / temperature
        own, extra = (unit * keys).sum(1), (unit * extra).sum(1)
        return (torch.logaddexp((unit @ keys.T).logsumexp(dim=1), extra) - own).mean()
