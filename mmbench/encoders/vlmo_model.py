"""VLMo: one transformer for pictures, texts and pairs, with an expert per modality in each block.

Bao et al., NeurIPS 2022. https://arxiv.org/abs/2111.02358

    picture   H_0  = [i_cls, V v_1, .., V v_P] + V_pos + V_type
    text      H_0  = LN([w_cls, w_1, .., w_sep] + T_pos + T_seg) + T_type
    pair      H_0  = [text; picture]
    block l   H'_l = MSA(LN(H_{l-1})) + H_{l-1}
              H_l  = FFN_m(LN_m(H'_l)) + H'_l,   m the expert of the modality
    output    LN(H_L)

Attention is shared by all modalities. The expert of a text is the text's in all blocks, that of a
picture likewise. A pair goes through the experts of its two parts up to block F, and through the
vision-language expert from block F on; a single modality may go by the latter too ("VL-top").

Shapes: B batch, T text positions, P patches, N = 1 + P, S any sequence, D = width, H heads.
Names of parameters are those of the published checkpoints of VLMo-Base-Plus, which has absolute
positions, no relative position bias and no layer scale (the other sizes have the opposite).
Departures: nothing is dropped, as this is the model in evaluation; a pair is cut where its text
ends, in place of at a fixed position, so that padding changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.errors import ConfigError

TEMPERATURE = 0.07  # of the contrastive losses, at the beginning of training


@dataclass(frozen=True)
class VlmoShape:
    """Sizes of a VLMo without relative positions; the published Base-Plus by default.

    Attributes:
        width: D.
        blocks: of the transformer; those from `vl_from` on, counted from 0, have a VL expert.
        heads: of the attention, a divisor of `width`.
        hidden: of an expert, in widths.
        image_size: side of a picture in pixels, a multiple of `patch_size`.
        vocabulary: ids of tokens.
        text_length: positions of a text, the two special tokens included.
    """

    width: int = 544
    blocks: int = 24
    heads: int = 16
    hidden: int = 4
    vl_from: int = 21
    image_size: int = 224
    patch_size: int = 16
    vocabulary: int = 30_522
    text_length: int = 40

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < (name != "vl_from"):
                raise ConfigError(f"{name} of a VLMo must be a positive whole number, not {value}")
        if self.width % self.heads:
            raise ConfigError(f"a width of {self.width} does not split into {self.heads} heads")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"pictures of {self.image_size} pixels do not split into patches of "
                f"{self.patch_size}"
            )
        if self.vl_from > self.blocks:
            raise ConfigError(f"vl_from {self.vl_from} is behind the last of {self.blocks} blocks")

    @property
    def grid(self) -> int:
        """Patches on a side of a picture."""
        return self.image_size // self.patch_size


class Vlmo(nn.Module):
    """The encoder with the heads of its pre-training; the routes give vectors after the last norm.

    Args:
        has_heads: whether there are heads beside the pooler.
    """

    def __init__(self, shape: VlmoShape, *, has_heads: bool = True) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.transformer = MultiwayTransformer(shape)
        self.text_embeddings = TextEmbeddings(shape)
        self.token_type_embeddings = nn.Embedding(2, width)  # T_type, V_type
        self.pooler = Pooler(width)
        if has_heads:
            self.itm_score = Head(width, 2, bias=True)  # class 1: they belong together
            self.itc_text_proj = Head(width, width)
            self.itc_image_proj = Head(width, width)
            self.itc_vl_text_proj = Head(width, width)
            self.itc_vl_image_proj = Head(width, width)
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
            self.logit_vl_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
            self.mlm_score = MaskedLanguageHead(width, shape.vocabulary)

    def text(self, ids: Tensor, mask: Tensor, *, vl_top: bool = False) -> Tensor:
        """Vectors of texts alone, [B, T, D]; [T_CLS] is at position 0.

        Args:
            ids: of tokens [B, T], the special ones included.
            mask: true where there is a token [B, T], at least once in each row.
            vl_top: go through the VL experts at the top.
        """
        hidden = self._embed_text(ids)
        for block in self.transformer.blocks:
            hidden = block(hidden, mask.bool(), n_text=hidden.shape[1], vl=vl_top)
        return self._norm(hidden)

    def image(self, pixels: Tensor, *, vl_top: bool = False) -> Tensor:
        """Vectors of pictures [B, 3, side, side] alone, [B, N, D]; [I_CLS] is at position 0.

        Args:
            vl_top: go through the VL experts at the top.
        """
        hidden = self._embed_image(pixels)
        for block in self.transformer.blocks:
            hidden = block(hidden, None, n_text=0, vl=vl_top)
        return self._norm(hidden)

    def text_routes(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[T_CLS] of texts alone [B, D]: by the text experts, and by the VL experts at the top."""
        hidden = self._embed_text(ids)
        return self._both_routes(hidden, mask.bool(), n_text=hidden.shape[1])

    def image_routes(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[I_CLS] of pictures alone [B, D]: by the image experts, and by the VL experts."""
        return self._both_routes(self._embed_image(pixels), None, n_text=0)

    def _both_routes(
        self, hidden: Tensor, there: Tensor | None, n_text: int
    ) -> tuple[Tensor, Tensor]:
        """Both routes, whose blocks below the first VL expert are the same."""
        top = hidden
        parted = False
        for block in self.transformer.stack():
            if parted or block.has_vl:
                top = block(top if parted else hidden, there, n_text=n_text, vl=True)
                parted = True
            hidden = block(hidden, there, n_text=n_text, vl=False)
        return self._norm(hidden)[:, 0], self._norm(top if parted else hidden)[:, 0]

    def joint(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        """Vectors of pairs, [B, T + N, D]: [T_CLS] at position 0, [I_CLS] at T."""
        n_text = ids.shape[1]
        hidden = torch.cat([self._embed_text(ids), self._embed_image(pixels)], dim=1)
        n_image = hidden.shape[1] - n_text
        there = F.pad(mask.bool(), (0, n_image), value=True)
        for block in self.transformer.blocks:
            hidden = block(hidden, there, n_text=n_text, vl=True)
        return self._norm(hidden)

    def _norm(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.transformer.norm(hidden)
        return normed

    def _embed_text(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.text_embeddings(ids)
        return embedded + self.token_type_embeddings.weight[0]

    def _embed_image(self, pixels: Tensor) -> Tensor:
        embedded: Tensor = self.transformer.embed(pixels)
        return embedded + self.token_type_embeddings.weight[1]


class MultiwayTransformer(nn.Module):
    """Pictures to sequences, the blocks, and the last norm."""

    def __init__(self, shape: VlmoShape) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape.grid**2, shape.width))
        self.patch_embed = PatchEmbedding(shape.width, shape.patch_size)
        self.blocks = nn.ModuleList(
            Block(shape, has_vl=number >= shape.vl_from) for number in range(shape.blocks)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def stack(self) -> Iterator[Block]:
        """The blocks in order."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def embed(self, pixels: Tensor) -> Tensor:
        """[CLS] and the patches of pictures [B, 3, side, side], row by row, [B, N, D]."""
        patches: Tensor = self.patch_embed(pixels)
        cls = self.cls_token.expand(len(pixels), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embed


class PatchEmbedding(nn.Module):
    """A linear map V of square patches."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patches [B, P, D] of pictures [B, 3, side, side], row by row."""
        patches: Tensor = self.proj(pixels)  # [B, D, rows, columns]
        return patches.flatten(2).transpose(1, 2)


class TextEmbeddings(nn.Module):
    """Words, positions and the first segment of BERT, normed."""

    def __init__(self, shape: VlmoShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.width)
        self.position_embeddings = nn.Embedding(shape.text_length, shape.width)
        self.token_type_embeddings = nn.Embedding(2, shape.width)  # T_seg; the second is not used
        self.LayerNorm = nn.LayerNorm(shape.width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [B, T, D] of tokens [B, T]."""
        words: Tensor = self.word_embeddings(ids)
        positions = self.position_embeddings.weight[: ids.shape[1]]
        normed: Tensor = self.LayerNorm(words + positions + self.token_type_embeddings.weight[0])
        return normed


class Block(nn.Module):
    """Attention, and a norm with a feed-forward network for each modality.

    Attributes:
        has_vl: whether there is a vision-language expert.
    """

    def __init__(self, shape: VlmoShape, *, has_vl: bool) -> None:
        super().__init__()
        width, hidden = shape.width, shape.hidden * shape.width
        self.has_vl = has_vl
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, shape.heads)
        self.norm2_text = nn.LayerNorm(width, eps=1e-6)
        self.norm2_imag = nn.LayerNorm(width, eps=1e-6)
        self.mlp_text = FeedForward(width, hidden)
        self.mlp_imag = FeedForward(width, hidden)
        if has_vl:
            self.norm2_vl = nn.LayerNorm(width, eps=1e-6)
            self.mlp_vl = FeedForward(width, hidden)

    def forward(self, hidden: Tensor, there: Tensor | None, n_text: int, vl: bool) -> Tensor:
        """The next H of H [B, S, D], of which the first `n_text` positions are a text's.

        Args:
            there: true where attention may look [B, S].
            vl: go through the VL expert where there is one.
        """
        hidden = self.attend(hidden, there)
        if vl and self.has_vl:
            return self.vl(hidden)
        if n_text in (0, hidden.shape[1]):
            return self.text(hidden) if n_text else self.image(hidden)
        return torch.cat([self.text(hidden[:, :n_text]), self.image(hidden[:, n_text:])], dim=1)

    def attend(self, hidden: Tensor, there: Tensor | None) -> Tensor:
        """H' of H [B, S, D]; `there` [B, S] is true where attention may look."""
        attended: Tensor = self.attn(self.norm1(hidden), there)
        return hidden + attended

    def text(self, hidden: Tensor) -> Tensor:
        """H of H' by the text expert."""
        changed: Tensor = self.mlp_text(self.norm2_text(hidden))
        return hidden + changed

    def image(self, hidden: Tensor) -> Tensor:
        """H of H' by the vision expert."""
        changed: Tensor = self.mlp_imag(self.norm2_imag(hidden))
        return hidden + changed

    def vl(self, hidden: Tensor) -> Tensor:
        """H of H' by the vision-language expert."""
        changed: Tensor = self.mlp_vl(self.norm2_vl(hidden))
        return hidden + changed


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D / H)) v for each head, then a linear map; keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, there: Tensor | None) -> Tensor:
        """Mixed vectors [B, S, D]; `there` [B, S] is true where keys may be looked at."""
        n, length, width = hidden.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(hidden, self.qkv.weight, bias)
        q, k, v = qkv.view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        keys = None if there is None else there[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)  # [B, H, S, D / H]
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, length, width))
        return projected


class FeedForward(nn.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Each vector of [B, S, D] by itself."""
        changed: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return changed


class Pooler(nn.Module):
    """tanh of a linear map, of the vector at [T_CLS] of a pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, cls: Tensor) -> Tensor:
        """Vectors [B, D] of vectors [B, D]."""
        return torch.tanh(self.dense(cls))


class Head(nn.Module):
    """One linear map, called `fc` in the checkpoints."""

    def __init__(self, width: int, n_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(width, n_out, bias=bias)

    def forward(self, cls: Tensor) -> Tensor:
        """Vectors [B, n_out] of vectors [B, D]."""
        scores: Tensor = self.fc(cls)
        return scores


class MaskedLanguageHead(nn.Module):
    """Logits of the words at text positions; the decoder is not tied to the word embeddings."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = MaskedLanguageTransform(width)
        self.decoder = nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [.., vocabulary] of vectors [.., D]."""
        logits: Tensor = self.decoder(self.transform(hidden)) + self.bias
        return logits


class MaskedLanguageTransform(nn.Module):
    """A linear map, GELU and a norm, as in BERT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: Tensor) -> Tensor:
        """Each vector of [.., D] by itself."""
        normed: Tensor = self.LayerNorm(F.gelu(self.dense(hidden)))
        return normed
