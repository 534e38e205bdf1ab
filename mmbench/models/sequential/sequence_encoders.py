"""From a sequence of item vectors to a user vector after each slot.

Every sequence encoder has one face: `encoder(inputs [B, L, D], real [B, L]) -> [B, L, D]`, slot t
of the result a function of slots 1..t alone. Inputs are zero at padding. `make_sequence_encoder`
chooses one by name; at the published depths (2, 4 and 2) all three have 24 D^2 weights.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmbench.models.base import ModelConfig
from mmbench.models.sequential.base import xavier_normal_
from mmbench.models.sequential.dropout import DropoutLayer
from mmbench.models.sequential.transformer import (
    BertBlock,
    SRBlock,
    causal_mask,
    through,
    through_to_last,
)

SequenceEncoderName = Literal["sasrec", "grurec", "nextitnet"]
Dropout = Annotated[float, Field(ge=0, lt=1)]

N_LAYERS: dict[SequenceEncoderName, int] = {"sasrec": 2, "grurec": 4, "nextitnet": 2}
"""The depths of the published comparison."""


class SequenceEncoderConfig(ModelConfig):
    """Settings of a model that lets its sequence encoder be chosen."""

    sequence_encoder: SequenceEncoderName = "sasrec"
    n_layers: PositiveInt | None = None
    """Blocks of sasrec, layers of grurec, pairs of blocks of nextitnet; None is the published
    depth, 2, 4 and 2."""
    n_heads: PositiveInt = 2
    """Of sasrec; the others have none."""
    dropout: Dropout = 0.1
    """Of sasrec, and of grurec's inputs; nextitnet has none."""


def make_sequence_encoder(
    name: SequenceEncoderName,
    size: int,
    max_length: int,
    n_layers: int | None = None,
    n_heads: int = 2,
    dropout: float = 0.1,
) -> SequenceEncoder:
    """The sequence encoder of that name, for item vectors of `size` D and L = `max_length`.

    Args:
        n_layers: None for the published depth.
    """
    n_layers = n_layers or N_LAYERS[name]
    if name == "grurec":
        return GRURecEncoder(size, n_layers, dropout)
    if name == "nextitnet":
        return NextItNetEncoder(size, n_layers)
    return SASRecEncoder(size, max_length, n_layers, n_heads, dropout)


class SequenceEncoder(nn.Module):
    """The face of all of them."""

    def forward(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D], of item vectors [B, L, D] and bool [B, L]."""
        raise NotImplementedError

    def last(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The user vector after the last slot, [B, D]; all that ranking reads."""
        hidden: Tensor = self(inputs, real)
        return hidden[:, -1]


class SASRecEncoder(SequenceEncoder):
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
        self.drop = DropoutLayer(dropout)
        self.blocks = nn.ModuleList(SRBlock(size, n_heads, dropout) for _ in range(n_layers))
        xavier_normal_(self)

    def forward(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        return through(self.blocks, self._first(inputs), causal_mask(real))

    def last(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The user vector after the last slot, [B, D]."""
        return through_to_last(self.blocks, self._first(inputs), causal_mask(real))

    def _first(self, inputs: Tensor) -> Tensor:
        # Slots are counted from the newest, so a shorter array has the same positions.
        positions = self.positions.weight[-inputs.shape[1] :]
        x: Tensor = self.drop(self.norm(inputs + positions))
        return x


class BertSASRecEncoder(SequenceEncoder):
    """Self-attention in the form of RecBole, which UniSRec and VQ-Rec build on.

        x_t = v_t + P_t;   X^0 = drop(LN(x));   X^k = BertBlock_k(X^{k-1}), causal;   h = X^n

    Biases in the attention, GELU, LN with epsilon 1e-12, all weights from N(0, 0.02). P belongs
    to the absolute slot here too, where RecBole counts positions from the oldest item.

    Args:
        inner: width inside a block.
    """

    def __init__(
        self, size: int, max_length: int, n_layers: int, n_heads: int, dropout: float, inner: int
    ) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_length, size)  # P
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.drop = DropoutLayer(dropout)
        self.blocks = nn.ModuleList(
            BertBlock(size, n_heads, dropout, inner) for _ in range(n_layers)
        )
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)

    def freeze(self) -> None:
        """Hold P and the blocks still, as fine-tuning does; the input LN goes on learning."""
        for part in (self.positions, self.blocks):
            part.requires_grad_(False)

    def forward(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]."""
        return through(self.blocks, self._first(inputs), causal_mask(real))

    def last(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The user vector after the last slot, [B, D]."""
        return through_to_last(self.blocks, self._first(inputs), causal_mask(real))

    def _first(self, inputs: Tensor) -> Tensor:
        positions = self.positions.weight[-inputs.shape[1] :]
        x: Tensor = self.drop(self.norm(inputs + positions))
        return x


class GRURecEncoder(SequenceEncoder):
    """Stacked gated recurrent units: Hidasi et al., ICLR 2016, arXiv 1511.06939.

        x_t = drop(v_t)
        r = sigmoid(W_r x_t + U_r h_{t-1});   z = sigmoid(W_z x_t + U_z h_{t-1})
        c = tanh(W_c x_t + r * (U_c h_{t-1}));   h_t = (1 - z) * c + z * h_{t-1};   h_0 = 0

    The layer above reads h as its x. Without biases the state stays exactly 0 through padding on
    the left, so padding does nothing.
    """

    def __init__(self, size: int, n_layers: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.drop = DropoutLayer(dropout)
        self.layers = nn.GRU(size, size, n_layers, bias=False, batch_first=True)
        # The first layer's stacked [3 D, D] alone; the others keep the framework's default.
        for weight in self.layers.all_weights[0]:
            nn.init.xavier_uniform_(weight)

    def forward(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]; `real` is not needed."""
        hidden: Tensor = self.layers(self.drop(inputs))[0]
        return hidden


class NextItNetEncoder(SequenceEncoder):
    """Dilated causal convolutions: Yuan et al., WSDM 2019, arXiv 1808.05163.

    Residual blocks with dilations 1, 4, 1, 4, ..., two for each of `n_layers`. The paper's last
    linear layer is left out, as in the public multimodal code. Padding is not inert: biases and
    norms make something of its zeros.
    """

    def __init__(self, size: int, n_layers: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(size, d) for d in [1, 4] * n_layers)

    def forward(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors after each slot, [B, L, D]; `real` is not needed."""
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


class ResidualBlock(nn.Module):
    """Two causal convolutions of width 3, the second with twice the dilation.

    conv_d(X)_t = b + W_0 X_t + W_1 X_{t-d} + W_2 X_{t-2d},  zeros before the first slot
    Y = relu(LN(conv_d(X)));   Z = relu(LN(conv_2d(Y)));   result X + Z      (LN epsilon 1e-8)
    """

    def __init__(self, size: int, dilation: int) -> None:
        super().__init__()
        self.first = CausalConvolution(size, dilation)
        self.first_norm = nn.LayerNorm(size, eps=1e-8)
        self.second = CausalConvolution(size, 2 * dilation)
        self.second_norm = nn.LayerNorm(size, eps=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] of the same."""
        y = F.relu(self.first_norm(self.first(x)))
        return x + F.relu(self.second_norm(self.second(y)))


class CausalConvolution(nn.Conv1d):
    """A convolution of width 3 over slots [B, L, D] that sees no later slot."""

    def __init__(self, size: int, dilation: int) -> None:
        super().__init__(size, size, kernel_size=3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] of the same."""
        before = 2 * self.dilation[0]
        return super().forward(F.pad(x.transpose(1, 2), (before, 0))).transpose(1, 2)
