"""Encoders that read a text and a picture together: what ViLT, VisualBERT and FLAVA share.

Texts are cut into WordPiece as BERT does and padded to the longest of a batch, with a mask. Of a
sequence that mixes words and patches, tokens are given without the padding in between, so that
they do not tell what else was in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmbench.encoders.dual import PROCESSOR_FILES
from mmbench.encoders.loading import Weights, find_weights, hash_files, read_json, tokenizer_files
from mmbench.encoders.neural import Batch, Encoded, NeuralEncoder, Options, TokenIds
from mmbench.encoders.pretrained import load_tokenizer, load_transformer
from mmbench.encoders.tokenizing import MAX_CHARACTERS, padded, token_ids
from mmbench.errors import ConfigError, DataError

MIN_TOKENS = 3
"""A word between the two special ids."""


class PairEncoder(NeuralEncoder):
    """An encoder of pairs that is told by its data.

    Class attributes: `architecture`, the class of transformers; `max_tokens`, what texts are cut
    to, special ids included, unless the user asks for another number; `unused`, beginnings of the
    names of weights that play no part here and may be missing in the file.

    Attributes:
        weights: where the model came from; after `load`.
        limit: ids that a text is cut to.
    """

    modalities: ClassVar[tuple[str, ...]] = ("joint",)
    is_joint = True
    variants: ClassVar[tuple[str, ...]]
    takes = frozenset({"tokens", "max_tokens", "preprocess"})
    architecture: ClassVar[str]
    max_tokens: ClassVar[int]
    unused: ClassVar[tuple[str, ...]] = ()
    weights: Weights
    tokenizer: Any
    limit: int

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        asked = self.options.max_tokens
        if asked is not None and asked < MIN_TOKENS:
            raise ConfigError(
                f"max-tokens {asked} does not suit {type(self).__name__}: a word and the two "
                f"special ones are at least {MIN_TOKENS} tokens"
            )

    def load(self) -> None:
        """Read the weights and the tokenizer."""
        self._load_model()
        self._load_tokenizer(self.weights)

    def _load_model(self) -> None:
        import transformers

        self.weights = find_weights(self.hub, self.options)
        architecture = getattr(transformers, self.architecture)
        self.module = load_transformer(architecture, self.weights, may_miss=self.unused)

    def _load_tokenizer(self, place: Weights) -> None:
        """Take the tokenizer of a folder, which is checked to fit the model."""
        self.tokenizer = load_tokenizer(place)
        self._tokenizer_sha256 = hash_files(tokenizer_files(place.folder))
        config = self._text_config()
        if len(self.tokenizer) > config.vocab_size:
            raise DataError(
                f"E406 {place.folder}: the tokenizer knows {len(self.tokenizer)} ids and the model "
                f"{config.vocab_size}; they are of two models"
            )
        known, asked = int(config.max_position_embeddings), self.options.max_tokens
        if asked is not None and asked > known:
            raise ConfigError(
                f"max-tokens {asked} is more than the {known} positions of {self.weights.name}"
            )
        self.limit = min(asked or self.max_tokens, known)

    def _config(self) -> Any:
        """The configuration of the model that reads the text."""
        return self.module.config

    def _text_config(self) -> Any:
        return self._config().get_text_config()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        return {
            "version": 1,
            **self.weights.facts,
            "architecture": self.architecture,
            "attention": self._config()._attn_implementation,
            "variant": self.variant,
            "l2_normalised": False,
            "max_tokens": self.limit,
            "max_characters": MAX_CHARACTERS,
            "tokenizer": type(self.tokenizer).__name__,
            "tokenizer_sha256": self._tokenizer_sha256,
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as ids, cut to the limit; any text is fine, the empty one included."""
        return token_ids(self.tokenizer, texts, self.limit)

    def text_batch(self, texts: Sequence[TokenIds]) -> Batch:
        """Tokenised texts as one batch, padded to the longest, on the CPU."""
        return padded(texts, self.tokenizer.pad_token_id or 0)

    def _encoded(self, pooled: Tensor, hidden: Tensor, mask: Tensor) -> Encoded:
        """Pooled vectors [B, D] and, where asked for, the tokens behind a mask [B, N]."""
        if not self.options.tokens:
            return Encoded(pooled.float())
        return Encoded(pooled.float(), *packed(hidden, mask))


def packed(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that there are, moved to the front in their order.

    Args:
        hidden: vectors of tokens [B, N, D].
        mask: which of them there are [B, N].

    Returns:
        float32 [B, n, D], zero behind the last, and bool [B, n]; n is the most of any row.
    """
    mask = mask.bool()
    n = int(mask.sum(dim=1).max())
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :n]
    kept = mask.gather(1, order)
    found = hidden.float().gather(1, order.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
    return found.masked_fill(~kept.unsqueeze(2), 0.0), kept


def read_processor(folder: Path) -> tuple[Mapping[str, Any], str]:
    """What a model's files say of its pictures, and which file; nothing where none does.

    Raises:
        DataError: E404 a file is broken.
    """
    for name, key in PROCESSOR_FILES:
        if (folder / name).is_file():
            content = read_json(folder / name)
            part = content if key is None else content.get(key)
            if isinstance(part, dict):
                return part, name
    return {}, "documented"
