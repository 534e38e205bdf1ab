"""Text encoders of transformers that give one vector per token, pooled into one per text.

    h        last hidden states [B, N, D]; m  mask [B, N], 1 where there is a token
    mean     sum_n m_n h_n / max(sum_n m_n, 1e-9), special tokens included, in float32
    cls      h_1
    last     h at the last token (of causal models, where it alone has seen the whole text)

Reimers and Gurevych, EMNLP 2019 (https://arxiv.org/abs/1908.10084) compare the poolings. The
tanh pooler of BERT is never used: it was trained to tell pairs of sentences apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbench.encoders.loading import Weights, find_weights, hash_files, tokenizer_files
from mmbench.encoders.neural import Batch, Encoded, NeuralEncoder, Options, TokenIds
from mmbench.encoders.pretrained import load_tokenizer, load_transformer
from mmbench.encoders.tokenizing import MAX_CHARACTERS, NO_LIMIT, padded, token_ids
from mmbench.errors import ConfigError, DataError

MIN_TOKENS = 3
"""A word between the two special ids; with less, every text has the same vector."""
# These number positions from the id of the padding on, so that many rows hold no token.
_OFFSET_POSITIONS = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "mpnet",
        "longformer",
        "data2vec-text",
    }
)


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """One vector per text, float32 [B, D], of the vectors of its tokens [B, N, D].

    Args:
        mask: 1 where there is a token [B, N]; padding is on the right.
        how: "mean", "cls", "last", "max" or "mean_sqrt_length".
    """
    hidden = hidden.float()
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    kept = mask.bool().unsqueeze(2)
    if how == "max":
        return hidden.masked_fill(~kept, -torch.inf).amax(dim=1)
    # Filled, not multiplied: 0 times a padding that is not finite is not 0.
    total = hidden.masked_fill(~kept, 0.0).sum(dim=1)
    n_tokens = mask.sum(dim=1, keepdim=True).float().clamp(min=1e-9)
    return total / (n_tokens.sqrt() if how == "mean_sqrt_length" else n_tokens)


class TransformerText(NeuralEncoder):
    """A text encoder that is told by its data.

    Class attributes: `architecture`, the class of transformers; `normalise`, whether pooled
    vectors are scaled to length 1; `max_tokens`, special ids included.

    Attributes:
        weights: where the model came from; after `load`.
        limit: ids that a text is cut to: `max_tokens`, or what the user or the weights limit.
    """

    modalities = ("textual",)
    variants: ClassVar[tuple[str, ...]] = ("mean", "cls")
    takes = frozenset({"tokens", "max_tokens"})
    architecture: ClassVar[str]
    normalise: ClassVar[bool] = False
    max_tokens: ClassVar[int]
    weights: Weights
    tokenizer: Any
    limit: int

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        asked = self.options.max_tokens
        if asked is not None and not MIN_TOKENS <= asked <= self.max_tokens:
            raise ConfigError(
                f"max-tokens {asked} does not suit {type(self).__name__}: it takes {MIN_TOKENS} "
                f"to {self.max_tokens} tokens, the two special ones included"
            )

    def load(self) -> None:
        """Read the weights and the tokenizer."""
        import transformers

        self.weights = find_weights(self.hub, self.options)
        self.tokenizer = load_tokenizer(self.weights)
        self._take(getattr(transformers, self.architecture))

    def _take(self, architecture: Any) -> None:
        """Load the weights into a class of transformers, without the pooler where it has one."""
        has_pooler = "add_pooling_layer" in inspect.signature(architecture.__init__).parameters
        settings: dict[str, Any] = {"add_pooling_layer": False} if has_pooler else {}
        model = load_transformer(architecture, self.weights, **settings)
        rows = model.get_input_embeddings().num_embeddings
        if len(self.tokenizer) > rows:
            raise DataError(
                f"E406 {self.weights.folder}: the tokenizer knows {len(self.tokenizer)} ids and "
                f"the model {rows}; they are of two models"
            )
        known = positions(model.config)
        asked = self.options.max_tokens
        if asked is not None and known is not None and asked > known:
            raise ConfigError(
                f"max-tokens {asked} is more than the {known} positions of {self.weights.name}"
            )
        self.module = model
        self.limit = min(asked or self._default_limit(), known or NO_LIMIT)

    def _default_limit(self) -> int:
        return self.max_tokens

    @property
    def pooling(self) -> str:
        """How token vectors become one: the variant, unless a model brings its own."""
        return self.variant

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        config: Any = self.module.config
        return {
            "version": 1,
            **self.weights.facts,
            "architecture": type(self.module).__name__,
            "attention": config._attn_implementation,
            "variant": self.variant,
            "pooling": self.pooling,
            "l2_normalised": self.normalise,
            "max_tokens": self.limit,
            "max_characters": MAX_CHARACTERS,
            "tokenizer": type(self.tokenizer).__name__,
            "tokenizer_sha256": hash_files(tokenizer_files(self.weights.folder)),
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as ids, cut to the limit; any text is fine, the empty one included."""
        return token_ids(self.tokenizer, texts, self.limit)

    def text_batch(self, texts: Sequence[TokenIds]) -> Batch:
        """Tokenised texts as one batch, padded to the longest, on the CPU."""
        return padded(texts, self.tokenizer.pad_token_id or 0)

    def encode_text(self, texts: Batch) -> Encoded:
        """Pooled vectors [B, D] and, where asked for, those of the tokens [B, N, D]."""
        mask = texts["attention_mask"]
        hidden = self.module(**texts).last_hidden_state
        pooled = torch.cat([pool(hidden, mask, how) for how in self.pooling.split("+")], dim=1)
        if self.normalise:
            pooled = F.normalize(pooled, dim=1)
        if not self.options.tokens:
            return Encoded(pooled)
        kept = mask.bool()
        return Encoded(pooled, hidden.float().masked_fill(~kept.unsqueeze(2), 0.0), kept)


def positions(config: Any) -> int | None:
    """Tokens that a model has positions for; None where it knows no limit."""
    rows = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(rows, int) or rows < 1:
        return None
    if config.model_type in _OFFSET_POSITIONS:
        return rows - (config.pad_token_id or 0) - 1
    return rows
