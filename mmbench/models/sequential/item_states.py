"""States of the items' tokens, from stored features or from an encoder that learns.

Modality-based models read items through this one face, so that each runs on extracted features
(a vector is one token) and on encoders alike. Shapes: I items, N items asked for, T tokens, E
width of a state.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmbench.models.base import ItemEncoder, ItemFeatures


class ItemStates(nn.Module):
    """Token states of one modality.

    Attributes:
        modality: of the features.
        width: E.
        learns: whether an encoder makes the states, with gradient.
    """

    def __init__(self, features: ItemFeatures) -> None:
        super().__init__()
        self.modality = features.modality
        self.encoder: ItemEncoder | None = features.encoder
        self.learns = features.encoder is not None
        if features.encoder is not None:
            self.width = features.encoder.width
            return
        tokens = features.matrix[:, None] if features.tokens is None else features.tokens
        mask = features.token_mask
        self.width = tokens.shape[2]
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """States [N, T, E] and which are real, bool [N, T], of items int64 [N]."""
        if self.encoder is not None:
            states, mask = self.encoder(items)
            return states, mask
        stored: Tensor = self.tokens  # type: ignore[assignment]
        states = stored.index_select(0, items).float()
        if isinstance(self.mask, Tensor):
            return states, self.mask.index_select(0, items)
        return states, states.new_ones(states.shape[:2], dtype=bool)  # type: ignore[call-overload]


def masked_pool(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens' states, [N, E] of [N, T, E] and bool [N, T]."""
    weights = mask.to(states.dtype)[:, :, None]
    total: Tensor = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)
    return total
