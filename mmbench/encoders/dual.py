"""Dual encoders of transformers: pictures and texts apart, into one shared space.

What becomes of a picture and of a text, by variant:

    variant     picture [D]                                       text [D]
    proj        pooled, projected into the shared space, L2       the same; the default
    hidden      pooled, after the final norm, not projected       the same
    patch-vit   mean of the patches after the last block and norm as hidden
    patch-emb   mean of the patches before the first block        as hidden

A mean leaves the class token out. With `tokens` a picture keeps its patches too (the class token
first, where there is one): those before the first block with "patch-emb", else those after the
last block and the final norm; a text keeps the states of its tokens after the final norm. Tokens
are never projected. "patch-vit" and "patch-emb" with tokens are two of the four visual
representations of MMSR (https://arxiv.org/abs/2403.17372, Table 7).

Pictures are prepared as the preprocessor_config.json beside the weights says, or else as the
model was published.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmbench.encoders.loading import Weights, find_weights, hash_files, read_json, tokenizer_files
from mmbench.encoders.neural import Batch, Encoded, NeuralEncoder, Options, TokenIds
from mmbench.encoders.preprocessing import CHOICES, Preprocessing, from_processor
from mmbench.encoders.pretrained import load_tokenizer, load_transformer
from mmbench.encoders.tokenizing import MAX_CHARACTERS, padded, token_ids
from mmbench.encoders.transformer_text import MIN_TOKENS
from mmbench.errors import ConfigError, DataError, UnknownNameError

PROCESSOR_FILES = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))
"""Where transformers writes how pictures are prepared: older releases, newer ones."""


class DualEncoder(NeuralEncoder):
    """One model that reads pictures and texts apart; told by its data and four short methods.

    Class attributes: `architecture`, the class of transformers; `max_tokens`, ids of a text with
    the special ones; `processor`, how pictures are prepared where no file says it, and `square`,
    as `preprocessing.from_processor` takes them; `has_class_token`, whether the first vector of a
    picture is no patch; `patches`, what the vectors of a picture after the last block are;
    `pooling`, in words, by modality.

    Attributes:
        weights: where the model came from; after `load`.
        limit: ids that a text is cut to: `max_tokens`, or what the user or the weights limit.
        preprocessing: how pictures are prepared.
        prepared_by: the file that says so, or "documented".
    """

    modalities = ("visual", "textual")
    variants: ClassVar[tuple[str, ...]] = ("proj", "hidden", "patch-vit", "patch-emb")
    takes = frozenset({"tokens", "max_tokens", "preprocess"})
    architecture: ClassVar[str]
    max_tokens: ClassVar[int]
    processor: ClassVar[Mapping[str, Any]]
    square: ClassVar[bool] = False
    has_class_token: ClassVar[bool] = True
    patches: ClassVar[str] = "patch-vit"
    pooling: ClassVar[Mapping[str, str]]
    weights: Weights
    tokenizer: Any
    limit: int
    preprocessing: Preprocessing
    prepared_by: str

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        if self.options.preprocess not in CHOICES:
            raise UnknownNameError("preprocessing", self.options.preprocess, CHOICES)
        asked = self.options.max_tokens
        if asked is not None and not MIN_TOKENS <= asked <= self.max_tokens:
            raise ConfigError(
                f"max-tokens {asked} does not suit {type(self).__name__}: it takes {MIN_TOKENS} "
                f"to {self.max_tokens} tokens, the two special ones included"
            )

    @abstractmethod
    def picture_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of a picture after the final norm [B, N, E], and the pooled one [B, E]."""

    @abstractmethod
    def patch_embeddings(self, pixels: Tensor) -> Tensor:
        """Vectors of a picture as they enter the first block [B, N, E]."""

    @abstractmethod
    def text_states(self, texts: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of a text's tokens after the final norm [B, N, E], and the pooled one [B, E]."""

    @abstractmethod
    def projected(self, pooled: Tensor, modality: str) -> Tensor:
        """Pooled vectors in the shared space [B, D], not normalised."""

    def load(self) -> None:
        """Read the weights, the tokenizer and how pictures are prepared."""
        import transformers

        self.weights = find_weights(self.hub, self.options)
        self.module = load_transformer(getattr(transformers, self.architecture), self.weights)
        self.tokenizer = self.read_tokenizer()
        self._check_tokenizer()
        config: Any = self.module.config
        known = int(config.text_config.max_position_embeddings)
        asked = self.options.max_tokens
        if asked is not None and asked > known:
            raise ConfigError(
                f"max-tokens {asked} is more than the {known} positions of {self.weights.name}"
            )
        self.limit = min(asked or self.max_tokens, known)
        own, self.prepared_by = picture_preprocessing(
            self.weights, self.processor, config.vision_config.image_size, square=self.square
        )
        self.preprocessing = own.chosen(self.options.preprocess)

    def read_tokenizer(self) -> Any:
        """The tokenizer beside the weights."""
        return load_tokenizer(self.weights)

    def _check_tokenizer(self) -> None:
        config: Any = self.module.config
        rows = config.text_config.vocab_size
        if len(self.tokenizer) > rows:
            raise DataError(
                f"E406 {self.weights.folder}: the tokenizer knows {len(self.tokenizer)} ids and "
                f"the model {rows}; they are of two models"
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        config: Any = self.module.config
        before = self.variant == "patch-emb"
        pooling = dict(self.pooling)
        if self.variant.startswith("patch-"):
            pooling["visual"] = f"mean of {self.variant}, without the class token"
        return {
            "version": 1,
            **self.weights.facts,
            "architecture": type(self.module).__name__,
            "attention": config._attn_implementation,
            "variant": self.variant,
            "pooling": pooling,
            "projected": self.variant == "proj",
            "l2_normalised": self.variant == "proj",
            "picture_tokens": "patch-emb" if before else self.patches,
            "class_token_first": self.has_class_token,
            "preprocess": self.options.preprocess,
            "preprocessing": dict(self.preprocessing.settings),
            "preprocessing_from": self.prepared_by,
            "max_tokens": self.limit,
            "max_characters": MAX_CHARACTERS,
            "padding": "longest, right",
            "tokenizer": type(self.tokenizer).__name__,
            "tokenizer_sha256": hash_files(tokenizer_files(self.weights.folder)),
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as ids, cut to the limit; any text is fine, the empty one included."""
        return token_ids(self.tokenizer, texts, self.limit)

    def text_batch(self, texts: Sequence[TokenIds]) -> Batch:
        """Tokenised texts as one batch, padded to the longest, on the CPU."""
        return padded(texts, self.tokenizer.pad_token_id or 0)

    @property
    def framing(self) -> Preprocessing:
        """How pictures are prepared."""
        return self.preprocessing

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """An upright RGB picture as the model takes it, [3, H, W]."""
        return self.preprocessing.apply(picture)

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures as one batch, on the CPU."""
        return {"pixel_values": torch.stack(list(pictures))}

    def encode_picture(self, pictures: Batch) -> Encoded:
        """Pooled vectors [B, D] and, where asked for, those of the patches [B, N, E]."""
        pixels = pictures["pixel_values"]
        if self.variant == "patch-emb":
            states = self.patch_embeddings(pixels).float()
            pooled = self._mean_patch(states)
        else:
            given, hidden = self.picture_states(pixels)
            states = given.float()
            pooled = (
                self._mean_patch(states)
                if self.variant == "patch-vit"
                else self._pooled(hidden, "visual")
            )
        return Encoded(pooled, states if self.options.tokens else None)

    def encode_text(self, texts: Batch) -> Encoded:
        """Pooled vectors [B, D] and, where asked for, those of the tokens [B, N, E]."""
        states, hidden = self.text_states(texts)
        pooled = self._pooled(hidden, "textual")
        if not self.options.tokens:
            return Encoded(pooled)
        kept = texts["attention_mask"].bool()
        return Encoded(pooled, states.float().masked_fill(~kept.unsqueeze(2), 0.0), kept)

    def _pooled(self, hidden: Tensor, modality: str) -> Tensor:
        if self.variant != "proj":
            return hidden.float()
        return F.normalize(self.projected(hidden, modality).float(), dim=1)

    def _mean_patch(self, states: Tensor) -> Tensor:
        return states[:, 1 if self.has_class_token else 0 :].mean(dim=1)


def picture_preprocessing(
    weights: Weights, defaults: Mapping[str, Any], size: int, *, square: bool = False
) -> tuple[Preprocessing, str]:
    """How the pictures of a model are prepared, and which file says so ("documented": none does).

    Args:
        defaults: keys of the processor's class where the file is silent, or absent.
        size: side of the pictures that the model takes.
        square: whether a size that is one number means both sides, not the short one.

    Raises:
        DataError: E404 the file is broken; E406 it describes pictures that cannot be made, or
            pictures of another size than the model takes.
    """
    for name, key in PROCESSOR_FILES:
        path = weights.folder / name
        config: Any = read_json(path) if path.is_file() else None
        if key is not None and config is not None:
            config = config.get(key)
        if not isinstance(config, dict):
            continue
        found = from_processor(config, defaults, square=square)
        if found.size != size:
            raise DataError(
                f"E406 {path} makes pictures of {found.size} x {found.size} pixels and the model "
                f"takes {size} x {size}; they are of two models"
            )
        return found, name
    documented = from_processor({}, defaults, square=square)
    return replace(documented, size=size, scaled=size), "documented"
