"""From a sequence of item vectors to a user vector after each slot.

Every sequence encoder has one face: `encoder(inputs [B, L, D], real [B, L]) -> [B, L, D]`, slot t
of the result a function of slots 1..t alone. Inputs are zero at padding.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmbench.models.sequential.base import xavier_normal_
from mmbench.models.sequential.transformer import SRBlock, causal_mask


class SASRecEncoder(nn.Module):
    """Self-attention over learned positions: Kang and McAuley, ICDM 2018, as MoRec has it.

        x_t = v_t + P_t;   X^0 = drop(LN(x));   X^k = SRblock_k(X^{k-1}), causal;   h = X^n

    P [L, D] belongs to the absolute slot, so the newest item always has the same position.
    """

    def __init__(
        self, size: int, max_length: int, n_layers: int = 2, n_heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_length, size)  # P
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(SRBlock(size, n_heads, dropout) for _ in range(n_layers))
        xavier_normal_(self)

    def forward(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        # Slots are counted from the newest, so a shorter array has the same positions.
        positions = self.positions.weight[-inputs.shape[1] :]
        x: Tensor = self.drop(self.norm(inputs + positions))
        mask = causal_mask(real)
        for block in self.blocks:
            x = block(x, mask)
        return x
