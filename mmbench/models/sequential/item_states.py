"""States of the items' tokens, from stored features or from an encoder that learns.

Modality-based models read items through this one face, so that each runs on extracted features
(a vector is one token) and on encoders alike. Shapes: I items, N items asked for, T tokens, E
width of a state, D of an item vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.models.base import ItemEncoder, ItemFeatures
from mmbench.models.losses import full_precision

ORDER = ("textual", "joint", "acoustic", "visual")
"""Modalities as fusion reads them: of two, the first one conditions, or gates, the second."""
CHUNK_LIVE = 128
"""Items that an encoder is given at once when the whole catalogue is encoded."""
CHUNK_STORED = 2**22
"""Numbers of stored states that are read at once when the whole catalogue is encoded."""


class ItemStates(nn.Module):
    """Token states of one modality.

    Args:
        standardize: whether stored states get mean 0 and deviation 1 by column.

    Attributes:
        modality: of the features.
        width: E.
        learns: whether an encoder makes the states, with gradient.
    """

    def __init__(self, features: ItemFeatures, *, standardize: bool = False) -> None:
        super().__init__()
        self.modality = features.modality
        self.encoder: ItemEncoder | None = features.encoder
        self.learns = features.encoder is not None
        if features.encoder is not None:
            self.width = features.encoder.width
            return
        tokens = features.matrix[:, None] if features.tokens is None else features.tokens
        mask = None if features.tokens is None else features.token_mask
        self.width = tokens.shape[2]
        if standardize:
            tokens = _standardized(tokens, mask, features.present)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """States [N, T, E] and which are real, bool [N, T], of items int64 [N]."""
        if self.encoder is not None:
            states, mask = self.encoder(items)
            return states, mask
        stored: Tensor = self.tokens  # type: ignore[assignment]
        # Stored in half precision; a model made double stays double.
        states = full_precision(stored.index_select(0, items))
        if isinstance(self.mask, Tensor):
            return states, self.mask.index_select(0, items)
        return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)

    @property
    def chunk(self) -> int:
        """How many items to ask for at once, so that memory stays bounded."""
        if self.encoder is not None:
            return CHUNK_LIVE
        stored: Tensor = self.tokens  # type: ignore[assignment]
        return max(1, CHUNK_STORED // max(1, stored[:1].numel()))


class ContentStates(nn.ModuleDict):
    """The `ItemStates` of each modality given, by modality, in `ORDER`.

    Args:
        model: the name that messages give.
        standardize: as of `ItemStates`.

    Raises:
        ConfigError: none is given, or two of one modality.
    """

    def __init__(
        self, given: Sequence[ItemFeatures], model: str, *, standardize: bool = False
    ) -> None:
        modalities = [features.modality for features in given]
        if not given:
            raise ConfigError(
                f"{model} reads items by their content and is given none; name a feature set "
                "under features: or an encoder under encoders:"
            )
        if len(set(modalities)) < len(modalities):
            raise ConfigError(
                f"{model} takes one feature set for each modality, but is given "
                f"{', '.join(features.name for features in given)}; leave one out"
            )
        by_modality = {features.modality: features for features in given}
        super().__init__(
            {
                modality: ItemStates(by_modality[modality], standardize=standardize)
                for modality in ORDER
                if modality in by_modality
            }
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those given, in `ORDER`."""
        return tuple(self.keys())

    @property
    def widths(self) -> dict[str, int]:
        """E of each modality."""
        return {states.modality: states.width for states in self._each()}

    def read(self, modality: str, items: Tensor) -> tuple[Tensor, Tensor]:
        """States [N, T, E] and mask [N, T] of one modality of items int64 [N]."""
        states, mask = self[modality](items)
        return states, mask

    def in_chunks(self, encode: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
        """Vectors [I, D] of many items int64 [I], encoded some at a time, in bounded memory.

        Args:
            encode: vectors [N, D] of items int64 [N].
        """
        size = min(states.chunk for states in self._each())
        starts = range(0, len(items), size)
        return torch.cat([encode(items[start : start + size]) for start in starts])

    def _each(self) -> Iterator[ItemStates]:
        for states in self.values():
            assert isinstance(states, ItemStates)
            yield states


def _standardized(tokens: Tensor, mask: Tensor | None, present: Tensor) -> Tensor:
    """Tokens [I, T, E] less their mean and over their deviation, by column; a constant one is 0.

    Both are of the real tokens of items that have the modality; the others are scaled alike.
    """
    real = present[:, None].expand(tokens.shape[:2])
    real = real if mask is None else real & mask
    states = full_precision(tokens)
    known = states[real].double()
    mean, deviation = known.mean(dim=0), known.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * mean.abs() + 1e-12, 1 / deviation, 0.0)
    scaled = ((states - mean.to(states.dtype)) * scale.to(states.dtype)).to(tokens.dtype)
    return scaled if mask is None else scaled * mask[:, :, None]


def masked_pool(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens' states, [N, E] of [N, T, E] and bool [N, T].

    In float32 under autocast; zero for an item without a real token.
    """
    states = full_precision(states)
    weights = mask.to(states.dtype)[:, :, None]
    total: Tensor = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)
    return total
