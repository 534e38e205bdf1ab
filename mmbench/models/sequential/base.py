"""What a sequential recommender is, and the objective that all of them share.

Shapes: I items, B sequences of a batch, L = config.max_length input slots, D vector width, T
tokens of an item.

Slots. A training sequence has L + 1 slots and is padded on the left, so that the newest item is
always in the last one. Slots 1..L are inputs, slots 2..L+1 their targets. The padding item is I,
one more than the last; its vector is the constant zero, and no item encoder ever sees it.

    loss  - mean log sigmoid(h_t . e(y_t)) - mean log(1 - sigmoid(h_t . e(z_t)))

over real slots t, y_t the next item, z_t one negative (SASRec, arXiv 1808.09781; with zero logits
2 log 2). Two means are added. `loss` chooses another one; never mix them in one table.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmbench.models.base import Interactions, ItemFeatures, ModelConfig, Recommender
from mmbench.models.losses import full_precision

Loss = Literal["bce", "softmax", "sampled-softmax", "in-batch"]


class SequentialConfig(ModelConfig):
    """Settings that every sequential model has."""

    max_length: PositiveInt = 20
    """L, the number of input items; older ones are cut off."""
    loss: Loss = "bce"
    """bce: one negative for each position. softmax: over all items. sampled-softmax: over the
    target and `n_negatives` uniform items. in-batch: over the batch's items, each logit less the
    logarithm of the item's popularity, items of the user's own sequence hidden."""
    n_negatives: PositiveInt = Field(default=128)
    """Of sampled-softmax, drawn once a step and shared by all positions."""


@dataclass(frozen=True)
class SequenceBatch:
    """B training sequences, on the model's device.

    Attributes:
        users: int64 [B].
        sequences: items, padded on the left with I, int64 [B, L + 1].
        negatives: for each real slot an item that the user has not in training, int64 [B, L + 1];
            I at padding.
    """

    users: Tensor
    sequences: Tensor
    negatives: Tensor

    def __len__(self) -> int:
        return len(self.users)

    def batch(self, rows: slice) -> SequenceBatch:
        """Some of the rows."""
        return SequenceBatch(self.users[rows], self.sequences[rows], self.negatives[rows])

    @property
    def inputs(self) -> Tensor:
        """Slots 1..L, int64 [B, L]."""
        return self.sequences[:, :-1]

    @property
    def targets(self) -> Tensor:
        """Slots 2..L+1: the item after each input, int64 [B, L]."""
        return self.sequences[:, 1:]


class SequentialRecommender(Recommender):
    """A recommender of the next item.

    A model whose score is the product of a user's and an item's vector implements `items` and
    `encode`; `training_step`, `catalogue` and `represent` follow from them. Any other one sets
    `factors = False` and implements `training_step` and `score` (and `catalogue`, which gives
    what `score` reads and is computed once an evaluation).
    """

    family = "sequential"
    content: ClassVar[bool] = False
    """Whether `items` is costly, so that each distinct item of a batch is encoded once."""
    config: SequentialConfig
    popularity: Tensor

    def __init__(
        self, config: SequentialConfig, train: Interactions, given: list[ItemFeatures]
    ) -> None:
        super().__init__()
        self.config = config
        self.n_items = train.n_items
        counts = train.item_degrees.float()
        # Only the in-batch loss reads it: log of the share of training rows, log 1 for padding.
        share = (counts / counts.sum().clamp_min(1)).clamp_min(1e-12).log()
        self.register_buffer("popularity", F.pad(share, (0, 1)), persistent=False)

    @property
    def padding(self) -> int:
        """The item that stands for no item: I."""
        return self.n_items

    def n_terms(self, batch: SequenceBatch) -> float | Tensor:
        """Real input slots, over which the loss is the mean; a scalar."""
        return (batch.inputs != self.padding).sum()

    @abstractmethod
    def items(self, items: Tensor) -> Tensor:
        """Vectors e(i) of some real items, [N, D] of int64 [N]."""

    @abstractmethod
    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, h [B, L, D].

        Args:
            inputs: item vectors [B, L, D], zero at padding.
            real: which slots hold an item, bool [B, L].
        """

    def encode_last(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The user vector after the last slot, [B, D]: of `encode`, or at less cost."""
        return self.encode(inputs, real)[:, -1]

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        """The loss of a `SequenceBatch`, a scalar."""
        inputs, targets, negatives = self._vectors(batch)
        hidden = self.encode(inputs, batch.inputs != self.padding)
        return {self.config.loss: self.next_item_loss(hidden, batch, targets, negatives)}

    def next_item_loss(
        self,
        hidden: Tensor,
        batch: SequenceBatch,
        targets: Tensor,
        negatives: Tensor | None,
        real: Tensor | None = None,
    ) -> Tensor:
        """The chosen loss of user vectors h [B, L, D], a scalar in float32.

        Args:
            hidden: h, one for each of the batch's targets.
            batch: whose items `targets` and `negatives` are.
            targets: vectors of the items to be found [B, L, D].
            negatives: of the drawn ones [B, L, D]; only "bce" reads them.
            real: which slots count, bool [B, L]; those with a real input unless given.
        """
        real = batch.inputs != self.padding if real is None else real
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, targets = full_precision(hidden), full_precision(targets)
            positive = (hidden * targets).sum(dim=2)
            if self.config.loss == "bce":
                assert negatives is not None
                negative = (hidden * full_precision(negatives)).sum(dim=2)
                return binary_cross_entropy(positive, negative, real)
            if self.config.loss == "in-batch":
                return self._in_batch(hidden, batch, targets, real)
            if self.config.loss == "softmax":
                others = full_precision(self.catalogue())
                logits = hidden @ others.T  # the target is among them
            else:
                drawn = torch.randint(
                    self.n_items, (self.config.n_negatives,), device=hidden.device
                )
                others = full_precision(self._encoded_once(drawn))
                same = drawn == batch.targets[:, :, None]
                logits = (hidden @ others.T).masked_fill(same, -1e9)
                logits = torch.cat([positive[:, :, None], logits], dim=2)
            return masked_mean(logits.logsumexp(dim=2) - positive, real)

    def _in_batch(
        self, hidden: Tensor, batch: SequenceBatch, targets: Tensor, real: Tensor
    ) -> Tensor:
        """Cross-entropy over all slot items of the batch, corrected by popularity (MoRec)."""
        candidates = torch.cat([batch.sequences[:, :1], batch.targets], dim=1)  # [B, L + 1]
        first = self._at_slots(batch.sequences[:, :1])
        vectors = torch.cat([full_precision(first), targets], dim=1).flatten(0, 1)
        logits = hidden @ vectors.T - self.popularity[candidates.flatten()]  # [B, L, B (L + 1)]
        # Hidden: padding, and what the user has, but for the slot that is the target.
        n, length = batch.targets.shape
        owns = torch.zeros(n, self.n_items + 1, dtype=torch.bool, device=hidden.device)
        owns.scatter_(1, batch.sequences, True)
        owns[:, self.padding] = True
        hide = owns[:, candidates.flatten()][:, None, :].expand(n, length, -1).clone()
        slots = torch.arange(1, length + 1, device=hidden.device)
        place = torch.arange(n, device=hidden.device)[:, None] * (length + 1) + slots
        hide.scatter_(2, place[:, :, None], False)
        logits = logits.masked_fill(hide, -1e4)
        target = logits.gather(2, place[:, :, None]).squeeze(2)
        return masked_mean(logits.logsumexp(dim=2) - target, real)

    def catalogue(self) -> Tensor:
        """Vectors of all items, [I, D]; what `represent` and `score` read, once an evaluation."""
        return self.vectors_of_many(torch.arange(self.n_items, device=self.popularity.device))

    def vectors_of_many(self, items: Tensor) -> Tensor:
        """Vectors of many items, [N, D] of int64 [N], N > 0; in bounded memory where they cost.

        Several processes share the catalogue of a `content` model by it.
        """
        return self.items(items)

    def represent(self, catalogue: Tensor, sequences: Tensor) -> Tensor:
        """User vectors after a sequence, [B, D].

        Args:
            catalogue: what `catalogue` returned.
            sequences: items, padded on the left with I, int64 [B, L].
        """
        return self.encode_last(*self.from_catalogue(catalogue, sequences))

    def from_catalogue(self, catalogue: Tensor, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the catalogue, zero at padding, [B, L, D], and the real slots, bool [B, L]."""
        real = sequences != self.padding
        # The catalogue may be large, so it is not copied for one row of zeros.
        rows = F.embedding(sequences.clamp(max=self.n_items - 1), catalogue)
        return torch.where(real[:, :, None], rows, 0.0), real

    def score(self, catalogue: Any, sequences: Tensor) -> Tensor:
        """Scores of all items after a sequence, float32 [B, I]."""
        scores: Tensor = self.represent(catalogue, sequences) @ catalogue.T
        return scores

    def item_vectors(self) -> Tensor:
        """Item vectors for ranking, [I, D]."""
        return self.catalogue()

    def scores(self, users: Tensor) -> Tensor:
        """Refused: the score of a sequential model needs a sequence, see `score`."""
        raise TypeError(f"{type(self).__name__} scores sequences, not users")

    def _vectors(self, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Vectors of inputs, targets and, where the loss reads them, negatives: [B, L, D] each."""
        slots = [batch.sequences]
        if self.config.loss == "bce":
            slots.append(batch.negatives[:, 1:])
        vectors = self._at_slots(torch.cat(slots, dim=1))
        length = batch.targets.shape[1]
        negatives = vectors[:, length + 1 :] if self.config.loss == "bce" else None
        return vectors[:, :length], vectors[:, 1 : length + 1], negatives

    def _at_slots(self, slots: Tensor) -> Tensor:
        """Item vectors at some slots, zero at padding, [B, S, D] of int64 [B, S]."""
        if not self.content:
            vectors = self.items(slots.flatten().clamp(max=self.n_items - 1))
            vectors = vectors.view(*slots.shape, -1)
            return vectors * (slots != self.padding)[:, :, None]
        return self._encoded_once(slots)

    def _encoded_once(self, items: Tensor) -> Tensor:
        """Vectors [..., D] of items [...], each distinct real one encoded once; padding is zero."""
        distinct, place = torch.unique(items, return_inverse=True)
        kept = distinct[: len(distinct) - int(distinct[-1] == self.padding)]
        table = self.items(kept)
        return F.embedding(place, F.pad(table, (0, 0, 0, 1)))


def binary_cross_entropy(positive: Tensor, negative: Tensor, real: Tensor) -> Tensor:
    """- mean log sigmoid(s+) - mean log(1 - sigmoid(s-)) over real slots [B, L], a scalar."""
    return masked_mean(F.softplus(-positive) + F.softplus(negative), real)


def masked_mean(values: Tensor, real: Tensor) -> Tensor:
    """The mean of values [B, L] over real slots; 0 where there is none."""
    return torch.where(real, values, 0.0).sum() / real.sum().clamp_min(1)


class ItemTable(nn.Module):
    """A free vector e(i) for each item, Xavier normal over (I + 1) x D as in the public code."""

    def __init__(self, n_items: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_items, size))
        nn.init.normal_(self.weight, std=(2 / (n_items + 1 + size)) ** 0.5)

    def forward(self, items: Tensor) -> Tensor:
        """Rows of some items, [N, D]."""
        return self.weight.index_select(0, items)


def xavier_normal_(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for every linear layer and embedding of a module."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.xavier_normal_(part.weight)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def bert_normal_(module: nn.Module) -> None:
    """BERT's start: normal weights of deviation 0.02 and zero biases, linear and embedding."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def pad_sequences(
    items: Tensor, ends: Tensor, lengths: Tensor, n_slots: int, padding: int
) -> Tensor:
    """The last `n_slots` items before each end, padded on the left, int64 [N, n_slots].

    Args:
        items: histories, one after the other, int64 [H].
        ends: where each history ends in `items`, int64 [N].
        lengths: of the histories, int64 [N].
    """
    back = torch.arange(n_slots, 0, -1, device=items.device)  # slots before the end
    places = ends[:, None] - back
    real = back <= lengths[:, None]
    found = items[places.clamp(0, max(0, len(items) - 1))] if len(items) else places
    return torch.where(real, found, padding)
