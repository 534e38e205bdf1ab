"""What CARCA and CARCA++ share: a profile, and candidates that attend to it.

    q_i    = W_f a_i + b_f;   x_i = W_e [s E_i ; q_i] + b_e;   o_i = W_e [s' E_i ; q_i] + b_e   (1)
             a_i all features given, side by side; s and s' are the models'
    X^0    = m * drop(x + P);   m is 1 at real slots; P only with positions                     (2)
    A(Q, K, V) = softmax(Q K' / sqrt(D / H) + M) V by head; 0 for a query that sees nothing
    Z      = LN(X);   X' = A(act(Z W_Q + b), act(X W_K + b), act(X W_V + b)) * Z                (3)
    Z'     = LN(X');  X'' = m * (Z' + drop(W_2 drop(act(W_1 Z' + b_1)) + b_2))                  (4)
    F      = LN(X^n)
    r_i    = A(act(o_i U_Q + b), act(F U_K + b), act(F U_V + b));   r_i = r_i * o_i with use_res
    x_ui   = w . r_i + b_o                                                                     (5)
    loss   binary cross-entropy of these logits, see base.py                                   (6)

act is the leaky relu of slope 0.2, LN has epsilon 1e-8, * goes by element. A padded slot is never
seen. With `causal` slot t, and the candidate of position t, see slots up to t; without, all.

All items are scored exactly by two products: with S = Q_i K' / sqrt(D / H) and G = (w * o_i) V'
(w V' without use_res), both [I, L] for each head, x_ui = sum over heads of softmax(S) . G + b_o.
Nothing of size I x D exists for a user, and blocks of items and users bound the rest.

Shapes: I items, B sequences, L = config.max_length, D = config.embedding_size, H heads, g = 5 D.
Without features W_e reads E_i alone. There is no single user vector: `represent` gives F_L.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt, field_validator
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.modality import MODALITIES
from mmbench.models.base import Interactions, ItemFeatures
from mmbench.models.losses import full_precision
from mmbench.models.sequential.base import (
    ItemTable,
    Loss,
    SequenceBatch,
    SequentialConfig,
    SequentialRecommender,
    binary_cross_entropy,
    masked_mean,
)
from mmbench.models.sequential.dropout import DropoutLayer, dropout
from mmbench.models.sequential.sequence_encoders import Dropout
from mmbench.models.sequential.side_features import SideFeatures, distinct_items
from mmbench.models.sequential.transformer import HIDDEN

SLOPE = 0.2
CHUNK = 8192
"""Items that are encoded at once when the whole catalogue is."""
PROFILES = 512
"""Users whose profiles are made at once when all items are scored."""
BLOCK_LOGITS = {"cpu": 2**19, "cuda": 2**25}
"""Numbers of S, and of G, that exist at once: the cache of a processor, 128 MiB of a GPU."""
USERS = {"cpu": 16, "cuda": 256}
"""Users whose slots are the columns of one product."""


class CandidateConfig(SequentialConfig):
    """Settings that CARCA and CARCA++ share."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # n
    n_heads: PositiveInt = 2  # H
    dropout: Dropout = 0.1
    use_res: bool = True
    """Whether what a candidate found in the profile is multiplied by the candidate."""
    causal: bool = True
    """Whether slots, and the candidates of a position, see no later slot in training."""
    regularization: NonNegativeFloat = 0.0
    """Weight of |E|^2 / 2 over the whole table."""

    @field_validator("loss")
    @classmethod
    def _loss(cls, loss: Loss) -> Loss:
        if loss in ("softmax", "in-batch"):
            raise ValueError(
                "a candidate's logit is an attention over the profile, no product of two vectors, "
                f"so {loss} would hold an attention for each item and position; "
                "choose bce or sampled-softmax"
            )
        return loss


class Candidates(NamedTuple):
    """What scoring reads of all items, computed once an evaluation.

    Attributes:
        profile: x_i as the slots of a profile read it, [I, D].
        query: act(o_i U_Q + b), [I, D].
        gain: w * o_i [I, D], or w [1, D] without `use_res`.
    """

    profile: Tensor
    query: Tensor
    gain: Tensor


class CandidateAttention(SequentialRecommender):
    """The recommender of equations (1) to (6); a model states how its ids are scaled."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    factors = False
    config: CandidateConfig
    name: ClassVar[str]

    def __init__(
        self, config: CandidateConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__(config, train, given)
        size = config.embedding_size
        self.table = ItemTable(train.n_items, size)  # E
        bound = math.sqrt(6 / (train.n_items + 1 + size))
        nn.init.uniform_(self.table.weight, -bound, bound)
        self.features = SideFeatures(given, self.name)
        wide = 5 * size if given else 0  # g
        if given:
            self.project = nn.Linear(sum(self.features.widths.values()), wide)  # W_f, b_f
            _small_(self.project)
        self.combine = nn.Linear(size + wide, size)  # W_e, b_e
        _small_(self.combine)
        self.positions: nn.Embedding | None = None  # P
        self.drop = DropoutLayer(config.dropout)
        self.blocks = nn.ModuleList(
            ProfileBlock(size, config.n_heads, config.dropout) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(size, eps=1e-8)
        self.cross = LeakyAttention(size, config.n_heads, config.dropout)
        self.output = nn.Linear(size, 1)  # w, b_o
        _small_(self.output)

    @property
    def scales(self) -> tuple[float, float]:
        """The factors s and s' of E in a profile and in a candidate."""
        raise NotImplementedError

    def views(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """x_i and o_i of some items, [N, D] each: equation (1)."""
        size = self.config.embedding_size
        ids = F.linear(self.table(items), self.combine.weight[:, :size])
        rest: Tensor = self.combine.bias
        if len(self.features):
            wide = self.project(self.features.joined(items))
            rest = F.linear(wide, self.combine.weight[:, size:], self.combine.bias)
        as_slot, as_candidate = self.scales
        slot = as_slot * ids + rest
        return slot, slot if as_slot == as_candidate else as_candidate * ids + rest

    def items(self, items: Tensor) -> Tensor:
        """Candidates o_i, [N, D]."""
        return self.views(items)[1]

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The profile F, [B, L, D]: equations (2) to (4).

        Args:
            inputs: x of each slot [B, L, D].
            real: which slots hold an item, bool [B, L].
        """
        if self.positions is not None:
            inputs = inputs + self.positions.weight[-inputs.shape[1] :]
        shown = real[:, :, None]
        x = torch.where(shown, self.drop(inputs), 0.0)
        visible = (self._visible(real) & shown)[:, None]
        for block in self.blocks:
            x = block(x, shown, visible)
        profile: Tensor = self.norm(x)
        return profile

    def _visible(self, real: Tensor) -> Tensor:
        """Which slots position t sees, bool [B, L, L]."""
        length = real.shape[1]
        seen = real[:, None, :].expand(-1, length, -1)
        return seen.tril() if self.config.causal else seen

    def training_step(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """The loss of a batch and the penalty of E, scalars."""
        real = batch.inputs != self.padding
        others = batch.negatives[:, 1:] if self.config.loss == "bce" else batch.targets[:, :0]
        asked, place = distinct_items(
            torch.cat([batch.inputs, batch.targets, others], dim=1), self.n_items
        )
        as_slot, as_candidate = (F.pad(view, (0, 0, 0, 1)) for view in self.views(asked))
        length = real.shape[1]
        profile = self.encode(F.embedding(place[:, :length], as_slot), real)
        candidates = F.embedding(place[:, length:], as_candidate)  # of t, then the negative of t
        visible = self._visible(real).repeat(1, candidates.shape[1] // length, 1)
        logits = self.logits(candidates, profile, visible)
        if self.config.loss == "bce":
            positive, negative = logits.chunk(2, dim=1)
            loss = binary_cross_entropy(positive, negative, real)
        else:
            loss = self._sampled_softmax(logits, batch, profile, real)
        terms: dict[str, Tensor] = {self.config.loss: loss}
        if weight := self.config.regularization:
            terms["regularization"] = 0.5 * weight * self.table.weight.square().sum()
        return terms

    def logits(self, candidates: Tensor, profile: Tensor, visible: Tensor) -> Tensor:
        """Logits of candidates by equation (5) as it stands, in full precision [B, C].

        Args:
            candidates: o [B, C, D].
            profile: F [B, L, D].
            visible: which slots each candidate sees, bool [B, C, L].
        """
        found = self.cross(candidates, profile, visible[:, None])
        if self.config.use_res:
            found = found * candidates
        logits: Tensor = self.output(found).squeeze(2)
        return full_precision(logits)

    def _sampled_softmax(
        self, positive: Tensor, batch: SequenceBatch, profile: Tensor, real: Tensor
    ) -> Tensor:
        """Cross-entropy of the target among shared negatives, a scalar."""
        drawn = torch.randint(self.n_items, (self.config.n_negatives,), device=real.device)
        query, gain = self._questions(self.items(drawn))
        key, value = self.cross.memory(profile)
        with torch.autocast(real.device.type, enabled=False):
            logits, gains = _products(*map(full_precision, (query, gain, key, value)))
            # Sums of exponentials up to each position. In double precision they hold whatever a
            # later slot's logit is: it would have to be 700 larger for an earlier one to vanish.
            shares = (logits - logits.amax(dim=3, keepdim=True).detach()).double().exp()
            shares = shares * real
            total = _up_to(shares, self.config.causal)
            found = _up_to(
                dropout(shares, self.config.dropout, self.training) * gains, self.config.causal
            )
            found = (found / torch.where(total > 0, total, 1.0)).sum(dim=0)  # [S, B, L]
            negative = found.permute(1, 2, 0).to(positive.dtype) + full_precision(self.output.bias)
            same = drawn == batch.targets[:, :, None]
            every = torch.cat([positive[:, :, None], negative.masked_fill(same, HIDDEN)], dim=2)
            return masked_mean(every.logsumexp(dim=2) - positive, real)

    def _questions(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and gains of candidates o [N, D]: [N, D], and [N, D] or [1, D]."""
        weight = self.output.weight
        gain = weight * candidates if self.config.use_res else weight
        return self.cross.activated(self.cross.query, candidates), gain

    def catalogue(self) -> Candidates:  # type: ignore[override]
        """What scoring reads of all items."""
        every = torch.arange(self.n_items, device=self.popularity.device)
        parts = []
        for items in torch.split(every, CHUNK):
            slot, candidate = self.views(items)
            parts.append((slot, *self._questions(candidate)))
        slots, queries, gains = zip(*parts, strict=True)
        gain = torch.cat(gains) if self.config.use_res else gains[0]
        return Candidates(torch.cat(slots), torch.cat(queries), gain)

    def item_vectors(self) -> Tensor:
        """Candidates o_i of all items, [I, D]; their products are no scores."""
        every = torch.arange(self.n_items, device=self.popularity.device)
        return torch.cat([self.items(items) for items in torch.split(every, CHUNK)])

    def profiles(self, catalogue: Candidates, sequences: Tensor) -> Tensor:
        """F after sequences int64 [B, L], padded on the left with I, [B, L, D]."""
        table = F.pad(catalogue.profile, (0, 0, 0, 1))
        return self.encode(F.embedding(sequences, table), sequences != self.padding)

    def represent(self, catalogue: Candidates, sequences: Tensor) -> Tensor:  # type: ignore[override]
        """F at the last slot, [B, D]: what comes nearest to a user vector."""
        return self.profiles(catalogue, sequences)[:, -1]

    def score(self, catalogue: Candidates, sequences: Tensor) -> Tensor:
        """Scores of all items after a sequence, float32 [B, I], block by block."""
        parts = torch.split(sequences, PROFILES)
        return torch.cat([self._score(catalogue, part) for part in parts])

    def _score(self, catalogue: Candidates, sequences: Tensor) -> Tensor:
        key, value = self.cross.memory(self.profiles(catalogue, sequences))
        mask = torch.where(sequences != self.padding, 0.0, HIDDEN).to(key.dtype)
        # Who has no history found nothing: every item then has the score b_o.
        known = (sequences != self.padding).any(dim=1, keepdim=True)
        n_heads, length = self.config.n_heads, sequences.shape[1]
        device = key.device.type
        block = BLOCK_LOGITS[device] // (n_heads * length)  # pairs of an item and a user
        n_users = max(1, min(USERS[device], len(sequences), block))
        n_items = max(1, block // n_users)
        scores = []
        for first in range(0, len(sequences), n_users):
            users = slice(first, first + n_users)
            parts = []
            for start in range(0, self.n_items, n_items):
                rows = slice(start, start + n_items)
                gain = catalogue.gain[rows] if self.config.use_res else catalogue.gain
                logits, gains = _products(
                    catalogue.query[rows], gain, key[users], value[users], mask[users]
                )
                parts.append((logits.softmax(dim=3) * gains).sum(dim=(0, 3)))  # [N, B]
            scores.append(torch.cat(parts).T)
        return torch.where(known, torch.cat(scores), 0.0) + self.output.bias


class LeakyAttention(nn.Module):
    """A of equation (3): activated queries, keys and values, and no map of the result."""

    def __init__(self, size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if size % n_heads:
            raise ConfigError(
                f"model.n_heads: vectors of {size} numbers do not divide into {n_heads} heads; "
                "choose a number of heads that divides the size"
            )
        self.n_heads, self.dropout = n_heads, dropout
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        _glorot_(self)

    def activated(self, layer: nn.Linear, rows: Tensor) -> Tensor:
        """act(rows W + b), of the same shape."""
        return F.leaky_relu(layer(rows), SLOPE)

    def memory(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context [B, L, D], [B, H, L, D / H] each."""
        return (
            self._by_head(self.activated(self.key, context)),
            self._by_head(self.activated(self.value, context)),
        )

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], self.n_heads, -1).transpose(1, 2)

    def forward(self, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """What queries [B, C, D] find in a context [B, L, D], [B, C, D].

        Args:
            queries: rows before W_Q.
            context: rows before W_K and W_V.
            visible: bool [B, 1, C, L].
        """
        query = self._by_head(self.activated(self.query, queries))
        key, value = self.memory(context)
        logits = full_precision(query @ key.transpose(2, 3)) / math.sqrt(query.shape[3])
        weights = torch.where(visible, logits, HIDDEN).softmax(dim=3)
        weights = torch.where(visible.any(dim=3, keepdim=True), weights, 0.0)
        weights = dropout(weights, self.dropout, self.training)
        return (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)


class ProfileBlock(nn.Module):
    """Equations (3) and (4)."""

    def __init__(self, size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(size, eps=1e-8)
        self.attention = LeakyAttention(size, n_heads, dropout)
        self.second_norm = nn.LayerNorm(size, eps=1e-8)
        self.inner = nn.Linear(size, size)  # W_1, b_1
        self.outer = nn.Linear(size, size)  # W_2, b_2
        self.drop = DropoutLayer(dropout)
        _glorot_(self)

    def forward(self, x: Tensor, shown: Tensor, visible: Tensor) -> Tensor:
        """X'' of X [B, L, D]; `shown` is bool [B, L, 1], `visible` [B, 1, L, L]."""
        normed = self.first_norm(x)
        normed = self.second_norm(self.attention(normed, x, visible) * normed)
        inner = self.drop(F.leaky_relu(self.inner(normed), SLOPE))
        return torch.where(shown, normed + self.drop(self.outer(inner)), 0.0)


def _products(
    query: Tensor, gain: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S and G of some items and users, [H, N, B, L] each; G [H, 1, B, L] where one gain serves all.

    Args:
        query: [N, D].
        gain: [N, D] or [1, D].
        key: [B, H, L, D / H].
        value: as `key`.
        mask: what is added to S, [B, L].
    """
    n_users, n_heads, length, width = key.shape

    def product(rows: Tensor, slots: Tensor) -> Tensor:
        columns = slots.permute(1, 3, 0, 2).flatten(2)  # [H, D / H, B L]
        return rows.view(-1, n_heads, width).transpose(0, 1) @ columns

    logits = product(query / math.sqrt(width), key)  # [H, N, B L]
    if mask is not None:
        logits = logits + mask.flatten()
    shape = (n_heads, -1, n_users, length)
    return logits.view(shape), product(gain, value).view(shape)


def _up_to(values: Tensor, causal: bool) -> Tensor:
    """Sums of values [..., L] up to each slot, or over all of them at each."""
    if causal:
        return values.cumsum(dim=-1)
    return values.sum(dim=-1, keepdim=True).expand_as(values)


def _small_(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


def _glorot_(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
