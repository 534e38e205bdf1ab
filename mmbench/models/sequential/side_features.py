"""Stored features beside the ids of items: frozen rows, each item asked for once.

Shapes: I items, F columns of a feature set, S slots of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmbench.errors import ConfigError
from mmbench.models.base import ItemFeatures
from mmbench.models.losses import full_precision


class SideFeatures(nn.Module):
    """The feature sets given, kept as they are.

    Args:
        given: any number of sets, none with an encoder that learns.
        model: the model's name, for the message.

    Raises:
        ConfigError: a set comes from an encoder that learns.
    """

    def __init__(self, given: Sequence[ItemFeatures], model: str) -> None:
        super().__init__()
        for features in given:
            if features.encoder is not None:
                raise ConfigError(
                    f"encoders.{features.modality}: {model} reads stored features alone; extract "
                    f"them first and name the set under features.{features.modality}"
                )
            self.register_buffer(features.modality, features.matrix, persistent=False)
        self.widths = {features.modality: features.matrix.shape[1] for features in given}
        """F of each set, by modality, in the order given."""

    def __len__(self) -> int:
        return len(self.widths)

    def rows(self, modality: str, items: Tensor) -> Tensor:
        """Features of some items, [N, F] of int64 [N]."""
        stored: Tensor = getattr(self, modality)
        return full_precision(stored.index_select(0, items))

    def joined(self, items: Tensor) -> Tensor:
        """Features of some items from all sets side by side, [N, sum of F]."""
        return torch.cat([self.rows(modality, items) for modality in self.widths], dim=1)


def distinct_items(
    slots: Tensor, n_items: int, counting: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Which items to encode for some slots, so that none is encoded needlessly often.

    Args:
        slots: items, I at padding, int64 of any shape.
        n_items: I.
        counting: whether to count distinct ones, for which the host waits for a GPU; by default
            only on a processor. Each slot is its own item else.

    Returns:
        The items int64 [N], and for each slot its item's place among them; N at padding.
    """
    if n_items <= slots.numel():
        return torch.arange(n_items, device=slots.device), slots
    if counting is False or (counting is None and slots.is_cuda):
        place = torch.arange(slots.numel(), device=slots.device).view_as(slots)
        padded = slots == n_items
        return slots.flatten().clamp(max=n_items - 1), place.masked_fill(padded, slots.numel())
    distinct, place = torch.unique(slots, return_inverse=True)
    # Padding is larger than any item, hence the last one.
    return distinct[: int((distinct < n_items).sum())], place
