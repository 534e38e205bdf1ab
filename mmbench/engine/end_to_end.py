"""Encoders inside a general model's own loss: what is encoded for a step, and how it learns.

    X    the features, [I, F]: a table without gradient that the encoder made some steps ago
    D    the items that carry gradient in a step, distinct; X_D = encoder(D) takes their rows
    g    d loss / d X_D, which goes on into the encoder

    batch, stale   D is what the step reads of its batch; the model reads D alone, or all of X.
                   Of a batch in parts, or of several processes, each has the D of its own rows
    full           D is every item
    accumulate     X is a leaf; g is added up over n steps, and one pass over all items, each with
                   its sum, is the gradient of the encoder's weights, which do not move meanwhile

More than `at_once` items are encoded by gradient caching (https://arxiv.org/abs/2101.06983): part
by part without gradient; g is computed; then each part once more, with the draws of the first
time, and g goes back through it. Value and gradient are those of one pass over all. In `full` and
`accumulate` it is always so, in `accumulate` without draws: the encoder is in evaluation mode, so
that what is applied is the gradient of what was computed.

Items without the modality are never encoded: their row is the mean of the others', computed with
the table, and has no gradient. The table is computed in evaluation mode and float32: at the
epoch's start or after so many steps, before every evaluation, and when weights are loaded.

A step waits for the device once, to learn which items are distinct; the encoder's own reading of
contents may wait again (`engine.live_contents`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.engine.device import Compute, Drawn
from mmbench.engine.exchange import joined_rows
from mmbench.engine.live import CHUNK, LiveItemEncoder, autocast_in, filled
from mmbench.errors import ConfigError
from mmbench.models.base import Recommender
from mmbench.models.fusion import FeatureTables
from mmbench.recipe_keys import EncoderTraining


@dataclass(frozen=True)
class Place:
    """Where in a model the vectors of an encoder that learns are read.

    Attributes:
        everything: the items that have the modality, int64.
    """

    tables: FeatureTables
    modality: str
    encoder: LiveItemEncoder
    everything: Tensor


def resolved(how: EncoderTraining, model: Recommender, compute: Compute) -> tuple[str, int | None]:
    """The mode, where it is left to the model, and `at_once`, where all items are encoded."""
    mode: str = how.mode
    if mode == "auto":
        mode = "batch" if model.reads_features == "batch" else "stale"
    at_once = how.at_once
    if at_once is None and mode in ("full", "accumulate"):
        at_once = CHUNK[compute.device.type]
    return mode, at_once


def places_of(model: nn.Module) -> list[Place]:
    """All such places of a model, which is on its device."""
    return [
        Place(tables, modality, encoder, tables.present(modality).nonzero()[:, 0])
        for tables in model.modules()
        if isinstance(tables, FeatureTables)
        for modality, encoder in tables.encoders.items()
        if isinstance(encoder, LiveItemEncoder)
    ]


def refresh(model: Recommender, compute: Compute) -> None:
    """Compute the tables of a model anew, of the weights of now; nothing without encoders.

    Several processes share the items.
    """
    places = places_of(model)
    for place in places:
        share = place.everything[compute.ranks.rows(len(place.everything))]
        vectors = place.encoder.every_vector(share).to(compute.device)
        vectors = joined_rows(compute.ranks, vectors, len(place.everything))
        n_items = len(place.tables.present(place.modality))
        place.tables.refresh(place.modality, filled(place.everything, vectors, n_items))
    if places:
        model.on_features_change()


@dataclass
class _Encoded:
    """What was encoded with gradient of one modality.

    Attributes:
        items: distinct, int64 [N].
        rows: [N, F], a leaf unless they were encoded in one piece, with the graph.
        drawn: states of the generators before each part; none of one piece.
    """

    place: Place
    items: Tensor
    rows: Tensor
    size: int
    drawn: list[Drawn]


class EndToEnd:
    """Encodes for the steps of one run, and leads gradients back.

    A step of the optimiser calls, in this order: `begin`, then for each part of its batch `give`
    before the loss and `take` after the backward pass, then `end`, and `done` when the weights
    have moved. A step that ran out of memory begins again.

    Attributes:
        age: steps since the table was computed.
        n_encoded: items encoded with gradient in this epoch, all modalities together.
        at_once: see the recipe; halved when memory is not enough.
    """

    def __init__(
        self, model: Recommender, how: EncoderTraining, precision: str, compute: Compute
    ) -> None:
        self.model, self.how, self.compute, self.precision = model, how, compute, precision
        self.mode, self.at_once = resolved(how, model, compute)
        self.places = places_of(model)
        if not self.places and how.trains_encoder:
            raise ConfigError("training.encoder: there is no encoder that could learn")
        self.age, self.n_encoded, self.rests = 0, 0, False
        self._moved = False
        self._left = 0
        """Steps until the end of the epoch."""
        self._window = 0
        """Steps whose gradients are added up in `_sums`."""
        self._encoded: list[_Encoded] = []
        self._leaves: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._adding: list[Tensor] = []
        self._first = [place.tables.encoded(place.modality).clone() for place in self.places]
        # On the host: which of a batch's items have the modality is asked there, without a wait.
        self._present = [place.tables.present(place.modality).cpu() for place in self.places]
        model.on_features_change()

    def start_epoch(self, epoch: int, n_steps: int) -> None:
        """Called before an epoch of so many steps, counted from 1."""
        self.rests = epoch <= self.how.warmup_epochs
        self._left, self.n_encoded = n_steps, 0
        if self.how.refresh == "epoch" and self.mode not in ("batch", "accumulate"):
            self.bring_up_to_date()

    def bring_up_to_date(self) -> None:
        """Compute the tables anew if the encoder has learned since they were."""
        if self._moved:
            refresh(self.model, self.compute)
        self.age, self._moved = 0, False

    def begin(self) -> None:
        """Before the parts of a batch."""
        self._encoded, self._leaves = [], []
        if self.rests or not self.places:
            return
        due = self.how.refresh != "epoch" and self.age >= self.how.refresh
        if (self.mode == "accumulate" and self._moved) or (due and self.mode in ("stale", "full")):
            self.bring_up_to_date()
        if self.mode == "full":
            self._encoded = [self._encode(place, place.everything) for place in self.places]
        elif self.mode == "accumulate":
            self._leaves = [
                place.tables.encoded(place.modality).detach().requires_grad_()
                for place in self.places
            ]

    def give(self, part: Any) -> None:
        """Let the model read rows with gradient in the loss of a part of the batch."""
        if self.rests:
            return
        if self.mode in ("batch", "stale"):
            distinct = torch.unique(self.model.batch_items(part).cpu())  # the one wait of a step
            chosen = [distinct[present[distinct]] for present in self._present]
            self._encoded = [
                self._encode(place, items.to(self.compute.device))
                for place, items in zip(self.places, chosen, strict=True)
                if len(items)
            ]
        for found in self._encoded:
            found.place.tables.give(found.place.modality, found.items, found.rows)
        for place, leaf in zip(self.places, self._leaves, strict=False):
            place.tables.give(place.modality, None, leaf)

    def take(self) -> None:
        """After the backward pass of a part: on into the encoder what can go."""
        self.withdraw()
        if self.mode in ("batch", "stale"):
            self._lead_back()

    def withdraw(self) -> None:
        """Nothing of this step is for the model to read any more."""
        for place in self.places:
            place.tables.withdraw()

    def end(self, scale: Tensor) -> None:
        """After the last part: the rest goes into the encoder.

        Args:
            scale: of the losses, which float16 scales up.
        """
        if self.rests:
            return
        if self.mode == "full":
            self._lead_back()
        if self.mode == "accumulate":
            self._accumulate(scale)

    def done(self) -> None:
        """The weights have moved."""
        self._encoded, self._leaves = [], []
        self._left -= 1
        if self.rests:
            return
        self.age += 1
        if self.mode == "accumulate":
            applied, self._sums, self._adding = not self._adding, self._adding, []
            self._window = 0 if applied else self._window + 1
            self._moved = applied
        else:
            self._moved = True

    def halve(self) -> None:
        """Encode fewer items at once, as memory was not enough."""
        if self.at_once is not None:
            self.at_once = max(1, self.at_once // 2)

    def drift(self) -> dict[str, float]:
        """Mean cosine of the items' vectors with those before training, by modality."""
        found = {}
        for place, first in zip(self.places, self._first, strict=True):
            items = place.everything
            now = place.tables.encoded(place.modality)
            found[place.modality] = float(F.cosine_similarity(now[items], first[items]).mean())
        return found

    def _encode(self, place: Place, items: Tensor) -> _Encoded:
        """The rows of some items; of more than are encoded at once without their graph."""
        self.n_encoded += len(items)
        size = self.at_once or len(items)
        if self.mode != "full" and len(items) <= size:
            with self._autocast():
                return _Encoded(place, items, place.encoder.vectors(items), size, [])
        drawn, parts = [], []
        for part in torch.split(items, size):
            drawn.append(self.compute.drawn())
            # One context for each: what a pass without gradient casts, autocast would keep for
            # the next one, and no gradient would go through it.
            with torch.no_grad(), self._autocast():
                parts.append(place.encoder.vectors(part))
        return _Encoded(place, items, torch.cat(parts).requires_grad_(), size, drawn)

    def _lead_back(self) -> None:
        """Encode what was encoded in parts once more, and let the gradients go on through it."""
        after = self.compute.drawn()
        for found in self._encoded:
            if not found.drawn or found.rows.grad is None:
                continue
            parts = zip(
                torch.split(found.items, found.size),
                torch.split(found.rows.grad, found.size),
                found.drawn,
                strict=True,
            )
            for items, gradient, drawn in parts:
                self.compute.draw_from(drawn)
                self._through(found.place, items, gradient)
        self.compute.draw_from(after)
        self._encoded = []

    def _accumulate(self, scale: Tensor) -> None:
        """Add up; at the end of a window lead the sums back."""
        added = []
        for at, leaf in enumerate(self._leaves):
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale
            # A step that float16 cannot hold is passed over, as the optimiser does.
            gradient = torch.where(gradient.isfinite().all(), gradient, 0.0)
            added.append(gradient + self._sums[at] if self._sums else gradient)
            leaf.grad = None
        n_steps = None if self.how.refresh == "epoch" else self.how.refresh
        if self._left > 1 and self._window + 1 != n_steps:
            self._adding = added
            return
        for place, total in zip(self.places, added, strict=True):
            items = place.everything
            self.n_encoded += len(items)
            place.encoder.train(False)
            for part in torch.split(items, self.at_once or len(items)):
                self._through(place, part, total.index_select(0, part) * scale)
            place.encoder.train(self.model.training)
        self._adding = []

    def _through(self, place: Place, items: Tensor, gradient: Tensor) -> None:
        with self._autocast():
            rows = place.encoder.vectors(items)
        torch.autograd.backward([rows], [gradient])

    def _autocast(self) -> torch.autocast:
        return autocast_in(self.compute.device, self.precision)

    def state(self) -> dict[str, Any]:
        """What the next epoch depends on, as tensors and plain values."""
        return {
            "age": self.age,
            "moved": self._moved,
            "at_once": self.at_once,
            "tables": [place.tables.encoded(place.modality) for place in self.places],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state()` of the same model and recipe."""
        self.age, self._moved, self.at_once = state["age"], state["moved"], state["at_once"]
        for place, table in zip(self.places, state["tables"], strict=True):
            place.tables.refresh(place.modality, table.to(self.compute.device))
        self.model.on_features_change()
