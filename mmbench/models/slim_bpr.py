"""SLIM-BPR: a linear model of items from items, learned by Bayesian personalised ranking.

Ning and Karypis, ICDM 2011, with the ranking loss of Rendle et al., UAI 2009; updates as in
Ferrari Dacrema, Cremonesi and Jannach, RecSys 2019. https://arxiv.org/abs/1907.06902

    score   x_uj = sum over l in N_u, l != j, of S_jl,  the top_k largest entries of each row
    triple  u with 0 < |N_u| < I, i in N_u, j not in N_u, all uniform;  g = sigmoid(x_uj - x_ui)
    update  S_il += learning_rate (adapt_i(g) - positive_decay S_il)     l in N_u, l != i
            S_jl -= learning_rate (adapt_j(g) + negative_decay S_jl)     l in N_u

adapt_r keeps one state for each row r of S: sgd g; adagrad g / sqrt(sum of g^2); rmsprop and adam
the usual moving averages. An epoch is U triples.

Shapes: U users, I items, B = config.batch_size triples, H items in the histories of a batch.
Departures: B triples are drawn at once, read S before the batch and add their updates (B = 1 is
the published one-at-a-time form); Adam's first moment is signed, so a row that is pushed up
as positive and down as negative does not add the two; decay shrinks negative rows too, where
the public code makes them grow. Validation ranks with the truncated S, as the test does. S is
dense: 4 I^2 bytes.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from mmbench.models.base import (
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.item_graphs import BLOCK_ROWS, largest_columns
from mmbench.models.neighbours import product_rows


class SLIMBPRConfig(ModelConfig):
    """Settings of SLIM-BPR; it has updates of its own, so their settings are here."""

    top_k: PositiveInt = 200  # weights kept per item
    learning_rate: PositiveFloat = 1e-4
    optimizer: Literal["sgd", "adagrad", "rmsprop", "adam"] = "adagrad"
    symmetric: bool = True
    """Whether S_il and S_li are one parameter."""
    positive_decay: NonNegativeFloat = 0.0  # lambda_i
    negative_decay: NonNegativeFloat = 0.0  # lambda_j
    batch_size: PositiveInt = 1024  # B


@register_model(
    "slim-bpr",
    config=SLIMBPRConfig,
    citation=(
        "Ning and Karypis. SLIM: sparse linear methods for top-n recommender systems. ICDM 2011."
    ),
)
class SLIMBPR(Recommender):
    """Item-to-item weights for which what was chosen outranks what was not."""

    fitting = "epochs"
    factors = False
    config: SLIMBPRConfig
    weights: Tensor  # S, [I, I]; if symmetric, S_rl is stored where r > l
    first: Tensor  # sum or average of g of each row, [I]
    second: Tensor  # sum or average of g^2 of each row, [I]
    n_seen: Tensor  # triples so far, a scalar

    def __init__(
        self, config: SLIMBPRConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.interactions = train
        self.register_buffer("weights", torch.zeros(train.n_items, train.n_items))
        self.register_buffer("first", torch.zeros(train.n_items))
        self.register_buffer("second", torch.zeros(train.n_items))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        self._truncated: sp.csr_array | None = None

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load stored buffers; what was derived from the earlier ones is dropped."""
        self._forget()
        return super().load_state_dict(*args, **kwargs)

    def fit_epoch(self, generator: torch.Generator) -> dict[str, float]:
        """U triples in batches; returns the mean BPR loss before each update."""
        self._forget()
        n_triples, loss = self.interactions.n_users, 0.0
        for start in range(0, n_triples, self.config.batch_size):
            size = min(self.config.batch_size, n_triples - start)
            loss += float(self._update(*self._triples(size, generator))) * size
        return {"bpr": loss / n_triples}

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items by the truncated S, float32 [B, I]."""
        if self._truncated is None:
            self._truncated = self._truncate()
        return product_rows(self.interactions.matrix, users, self._truncated)

    def _triples(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Users, positives and negatives, int64 [size] each."""
        train = self.interactions

        def draw(count: Tensor | int) -> Tensor:
            """Integers below `count`, uniform, int64 [size]."""
            uniform = torch.rand(
                size, generator=generator, device=generator.device, dtype=torch.float64
            )
            return (uniform.to(train.users.device) * count).long().clamp_max(count - 1)

        eligible = self._eligible
        users = eligible[draw(len(eligible))]
        positives = train.items[train.pointers[users] + draw(train.user_degrees[users])]
        # The rank-th item outside a history is the rank plus the number of items a_0 < a_1 < ...
        # of the history with a_t - t <= rank; so no draw has to be rejected.
        rank = draw(train.n_items - train.user_degrees[users])
        below = torch.searchsorted(self._gaps, users * train.n_items + rank, right=True)
        return users, positives, rank + below - train.pointers[users]

    @cached_property
    def _eligible(self) -> Tensor:
        """Users with at least one item and not all, int64."""
        degrees = self.interactions.user_degrees
        return ((degrees > 0) & (degrees < self.interactions.n_items)).nonzero()[:, 0]

    @cached_property
    def _gaps(self) -> Tensor:
        """Position u I + a_t - t of the t-th item a_t of each user u, ascending, int64 [E]."""
        train = self.interactions
        position = torch.arange(len(train.users), device=train.users.device)
        return train.users * train.n_items + train.items - (position - train.pointers[train.users])

    def _update(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Apply the updates of some triples; returns their mean loss before it, a scalar."""
        config, train, device = self.config, self.interactions, self.weights.device
        history, _ = train.histories(users)
        owner = torch.repeat_interleave(train.user_degrees[users]).to(device)  # [H]
        history, positives, negatives = (x.to(device) for x in (history, positives, negatives))
        entries = self.weights.view(-1)
        up_cells = self._cells(positives[owner], history)
        down_cells = self._cells(negatives[owner], history)
        counts = (history != positives[owner]).to(entries.dtype)  # l != i
        up_entries, down_entries = entries[up_cells], entries[down_cells]
        margins = entries.new_zeros(len(users))
        margins.index_add_(0, owner, up_entries * counts - down_entries)
        slopes = torch.sigmoid(-margins)  # g
        up, down = self._adapt(positives, negatives, slopes)
        up_steps = (up[owner] - config.positive_decay * up_entries) * counts
        down_steps = down[owner] - config.negative_decay * down_entries
        steps = torch.cat([up_steps, down_steps]) * config.learning_rate
        entries.index_add_(0, torch.cat([up_cells, down_cells]), steps)
        return F.softplus(-margins).mean()

    def _cells(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Positions of S_rl in the flat storage."""
        if self.config.symmetric:
            rows, columns = torch.maximum(rows, columns), torch.minimum(rows, columns)
        return rows * len(self.weights) + columns

    def _adapt(self, positives: Tensor, negatives: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Steps of the positive rows, upward, and of the negative rows, downward; [B] each."""
        rows, signed = torch.cat([positives, negatives]), torch.cat([slopes, -slopes])
        self.n_seen += len(slopes)
        name = self.config.optimizer
        if name == "adagrad":
            self.second.index_add_(0, rows, signed.square())
        elif name in ("rmsprop", "adam"):
            decay = 0.995 if name == "rmsprop" else 0.999
            visits = torch.bincount(rows, minlength=len(self.second)).to(signed.dtype)
            self.second *= decay**visits
            self.second.index_add_(0, rows, (1 - decay) * signed.square())
            self.first *= 0.9**visits
            self.first.index_add_(0, rows, 0.1 * signed)
        if name == "adam":
            seen = self.n_seen.to(signed.dtype)
            signed = self.first[rows] / (1 - 0.9**seen)
            second = self.second[rows] / (1 - 0.999**seen)
        else:
            second = self.second[rows]
        if name != "sgd":
            signed = signed / (second.sqrt() + 1e-8)
        up, down = signed.chunk(2)
        return up, down

    def _truncate(self) -> sp.csr_array:
        """The top_k largest entries of each row of S, history by target [I, I]."""
        n_items = len(self.weights)
        k = min(self.config.top_k, n_items)
        values, columns = [], []
        for start in range(0, n_items, BLOCK_ROWS):
            rows = self.weights[start : start + BLOCK_ROWS]
            if self.config.symmetric:
                rows = rows + self.weights[:, start : start + BLOCK_ROWS].T
            kept = largest_columns(rows, k)
            columns.append(kept.cpu().numpy().ravel())
            values.append(rows.gather(1, kept).cpu().numpy().ravel())
        parts = (np.concatenate(values), np.concatenate(columns), np.arange(n_items + 1) * k)
        by_target = sp.csr_array(parts, shape=(n_items, n_items))
        by_target.eliminate_zeros()
        return sp.csr_array(by_target.T)

    def _forget(self) -> None:
        self._truncated = None
