"""What a recommender is: the face that the engine trains, ranks with, and stores.

Shapes: U users, I items, E training interactions, B rows of a batch, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmbench.errors import DataError
from mmbench.registry import Registry

Family = Literal["general", "sequential"]
Integration = Literal["none", "fusion", "ensemble"]

MODELS: Registry[type[Recommender]]


class ModelConfig(BaseModel):
    """Base of every model's settings: frozen, unknown keys and infinities forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Interactions:
    """The training interactions, all that a model may see of them.

    Attributes:
        n_users: U.
        n_items: I, items without interactions included.
        users: user of each interaction, int64 [E], sorted by (user, item).
        items: item of each interaction, int64 [E].
        chronological: items of each user in the order of time, user after user as `pointers`
            says, int64 [E]; None unless the model is sequential.
    """

    n_users: int
    n_items: int
    users: Tensor
    items: Tensor
    chronological: Tensor | None = None

    @cached_property
    def matrix(self) -> sp.csr_array:
        """The binary user-item matrix R, float32 [U, I], on the CPU."""
        rows, columns = self.users.cpu().numpy(), self.items.cpu().numpy()
        ones = np.ones(len(rows), dtype=np.float32)
        return sp.csr_array((ones, (rows, columns)), shape=(self.n_users, self.n_items))

    @cached_property
    def pointers(self) -> Tensor:
        """Where each user's interactions start and the last one's end, int64 [U + 1]."""
        return F.pad(self.user_degrees.cumsum(0), (1, 0))

    def histories(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Items of some users, one history after the other, and where each starts.

        Returns:
            items int64 [H] and starts int64 [len(users)], on the interactions' device; a user
            without interactions starts where the next one does.
        """
        users = users.to(self.items.device)
        lengths = self.user_degrees[users]
        starts = lengths.cumsum(0) - lengths
        shift = torch.repeat_interleave(self.pointers[users] - starts, lengths)
        return self.items[torch.arange(len(shift), device=shift.device) + shift], starts

    @cached_property
    def user_degrees(self) -> Tensor:
        """Interactions of each user, int64 [U]."""
        return torch.bincount(self.users, minlength=self.n_users)

    @cached_property
    def item_degrees(self) -> Tensor:
        """Interactions of each item, int64 [I]."""
        return torch.bincount(self.items, minlength=self.n_items)


@dataclass(frozen=True)
class ItemFeatures:
    """One feature set as a model is given it.

    Attributes:
        name: unique name of the set, for example "visual__colour-edge".
        modality: one of `mmbench.modality.MODALITIES`.
        matrix: float32 [I, F], finite; rows of items without the modality are imputed already.
        present: which items truly have the modality, bool [I].
        tokens: stored states of the items' tokens, float [I, T, E], where the set has them and
            the model asks (`reads_tokens`).
        token_mask: which tokens are real, bool [I, T]; None where all are.
        encoder: learns with the model in place of `matrix`, which is then [I, 0] for a
            sequential model and the encoder's first pooled vectors for any other.
        learns: whether the rows of `matrix` are trained with the model, as parameters.
    """

    name: str
    modality: str
    matrix: Tensor
    present: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    encoder: ItemEncoder | None = None
    learns: bool = False

    @property
    def changes(self) -> bool:
        """Whether rows differ from step to step, so that nothing of them may be kept."""
        return self.learns or self.encoder is not None


class ItemEncoder(nn.Module):
    """An encoder that learns with the recommender, in place of stored vectors.

    The engine makes it, decides which of its parameters learn, and gives those learning rates of
    their own. Called with real items it reads their content, whatever their order and number.

    Attributes:
        modality: "visual", "textual", "acoustic", or "joint" for one that reads texts and
            pictures together.
        width: E, of a token's state.
    """

    modality: str
    width: int

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """States of the items' tokens [N, T, E] and which of them are real, bool [N, T].

        Args:
            items: int64 [N], on the encoder's device; an item without content has tokens too (the
                special ones of a text, those of a grey picture).
        """
        raise NotImplementedError

    def vectors(self, items: Tensor) -> Tensor:
        """Pooled vectors of items int64 [N], float32 [N, F], with gradient to what learns."""
        raise NotImplementedError


@dataclass(frozen=True)
class Batch:
    """B training rows, on the model's device: int64 [B] each."""

    users: Tensor
    positives: Tensor
    negatives: Tensor

    def __len__(self) -> int:
        return len(self.users)

    def batch(self, rows: slice) -> Batch:
        """Some of the rows."""
        return Batch(self.users[rows], self.positives[rows], self.negatives[rows])


class Recommender(nn.Module):
    """A recommender, built as `Model(config, train, given)`.

    The constructor sees training interactions and the given feature sets alone. A modality is
    dropped by not giving its feature set: the model is then the one without that branch.
    Parameters are initialised in the constructor from torch's global generator, which the engine
    has seeded. `training_step` and `on_epoch_start` draw from it too (dropout, dropped edges): its
    state is stored with the run, so that training resumes to the same bits. `fit` and
    `fit_epoch` use the generator that the engine hands over. Scoring draws nothing.

    A gradient model implements `training_step`; a closed-form one sets `fitting` to
    "closed-form" and implements `fit`; one with updates of its own sets it to "epochs" and
    implements `fit_epoch`. Scoring: a factor model implements `user_vectors` and
    `item_vectors`, whose products are the scores, or `vectors`, which computes both at once; any
    other one sets `factors = False` and implements `scores`.
    """

    family: ClassVar[Family] = "general"
    integration: ClassVar[Integration] = "none"
    modalities: ClassVar[frozenset[str]] = frozenset()
    requires_modality: ClassVar[bool] = False
    """Whether the model is undefined without any feature set."""
    fitting: ClassVar[Literal["gradient", "closed-form", "epochs"]] = "gradient"
    factors: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = False
    """Whether the model wants the stored token states of a feature set that has them."""
    of_dataset: ClassVar[tuple[str, ...] | None] = None
    """Stored tensors, or modules of them, with a place for each user or item, which mean nothing in
    another dataset; None where their sizes tell them, see `mmbench.engine.start`."""
    fitted_tensors: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of stored tensors whose sizes follow from the data that they were
    fitted to; they move to another dataset all the same."""
    reads_features: ClassVar[Literal["once", "batch", "all"]] = "once"
    """When a general model reads its features: "once", at construction, so that they cannot learn
    with it; else in every step, the rows of `batch_items` alone or those of all items."""

    config: ModelConfig

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        """Loss terms of a batch, scalars; the engine minimises their sum.

        A general model is given a `Batch`, a sequential one a `SequenceBatch`.
        """
        raise TypeError(f"{type(self).__name__} is not trained by gradient")

    def n_terms(self, batch: Any) -> float | Tensor:
        """How many terms the loss of a batch is the mean of; a part of a batch counts by it."""
        return len(batch)

    def batch_items(self, batch: Any) -> Tensor:
        """The items whose features a step on a batch reads first of all, int64, with repetition.

        Of an encoder that learns their rows carry the gradient.
        """
        items: Tensor = torch.cat([batch.positives, batch.negatives])
        return items

    def on_features_change(self) -> None:
        """Called when tables of features have been computed anew by an encoder that learns.

        What stands still in between, such as who is near whom, is computed again here.
        """

    def on_epoch_start(self, epoch: int) -> None:
        """Called before each epoch, counted from 1; graphs are rebuilt here."""

    def describe_state(self) -> dict[str, float]:
        """What the model has learned about its own make-up, a few named numbers.

        Gates of modalities, for example; the engine keeps them with the run.
        """
        return {}

    def fit(self, generator: torch.Generator) -> None:
        """Compute a closed-form model; results go to buffers, so that they are stored."""
        raise TypeError(f"{type(self).__name__} has no closed form")

    def fit_epoch(self, generator: torch.Generator) -> dict[str, float]:
        """One epoch of a model with updates of its own; returns its mean losses."""
        raise TypeError(f"{type(self).__name__} is not trained by epochs of its own")

    def user_vectors(self) -> Tensor:
        """User vectors for ranking [U, D]."""
        return self._both()[0]

    def item_vectors(self) -> Tensor:
        """Item vectors for ranking [I, D]."""
        return self._both()[1]

    def vectors(self) -> tuple[Tensor, Tensor]:
        """User and item vectors for ranking, [U, D] and [I, D].

        Computed once per evaluation. A model says what they are here, where it computes them
        together, as one that propagates over a graph does, or in the two methods above.
        """
        return self.user_vectors(), self.item_vectors()

    def _both(self) -> tuple[Tensor, Tensor]:
        if type(self).vectors is Recommender.vectors:
            raise TypeError(f"{type(self).__name__} has no vectors of users and items")
        return self.vectors()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned, also into a model that has not been fitted.

        Buffers whose sizes are known only after `fit` are empty before it; they are made anew
        in the stored size.

        Raises:
            DataError: the tensors are not those of this model, as for another recipe or dataset.
        """
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            try:
                owner = self.get_submodule(path)
            except AttributeError:
                continue  # load_state_dict names all such keys at once
            current = owner._buffers.get(leaf)
            if current is not None and current.numel() == 0:
                owner.register_buffer(leaf, torch.empty_like(tensor, device=current.device))
        try:
            self.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise DataError(
                f"the stored weights do not fit this {type(self).__name__}: they belong to other "
                f"settings or another dataset. {error}"
            ) from error

    def start_from(self, tensors: Mapping[str, Tensor], given: Sequence[ItemFeatures]) -> None:
        """Take tensors over from a model of another run, by name.

        Args:
            tensors: of the shapes that this model has, but for `fitted_tensors`.
            given: the feature sets of this model, for what follows from both.
        """
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        with torch.no_grad():
            for name, tensor in tensors.items():
                if own[name].shape == tensor.shape:
                    own[name].copy_(tensor)
                    continue
                path, _, leaf = name.rpartition(".")
                self.get_submodule(path).register_buffer(leaf, tensor.to(own[name], copy=True))

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items for some users, float32 [B, I]; by default of the vectors."""
        user_vectors, item_vectors = self.vectors()
        return user_vectors[users] @ item_vectors.T


MODELS = Registry("model", "mmbench.models", "register_model")


def register_model(
    name: str, *, config: type[ModelConfig], citation: str
) -> Callable[[type[Any]], type[Any]]:
    """Register a model class with its settings type and the paper to cite."""
    return MODELS.register(name, config=config, citation=citation)
