"""What a neural encoder is: weights from a hub or a folder, batches in, vectors out.

An encoder knows its model, its tokenizer and its preprocessing; the engine owns devices, batches,
precision, threads, resumption and what is stored. Every method is deterministic in evaluation:
no dropout, no augmentation, and a vector that does not depend on what else is in the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from mmbench.encoders.base import Encoder
from mmbench.encoders.preprocessing import Preprocessing
from mmbench.errors import ConfigError, UnknownNameError

Batch = Mapping[str, Tensor]
"""Tensors by the name under which the model takes them; the first dimension is the batch."""


@dataclass(frozen=True)
class Hub:
    """Where the published weights of an encoder are.

    Attributes:
        id: repository on the hub ("openai/clip-vit-base-patch16"), or a name of timm.
        revision: commit, tag or branch of the repository.
        licence: under which the weights are published, as far as known.
        address: a file elsewhere, for weights that are on no hub.
    """

    id: str
    revision: str = "main"
    licence: str = ""
    address: str = ""


@dataclass(frozen=True)
class Options:
    """What a user may change about an encoder.

    Attributes:
        weights: a local folder (or file) with the weights, in place of the hub.
        revision: of the hub's repository, in place of the encoder's own.
        variant: which vectors, for example "proj" or "hidden"; None for the encoder's default.
        tokens: give token, patch, grid or region vectors too.
        max_tokens: cut texts after so many tokens, special ones included.
        mask_ratio: share of the patches that a masked autoencoder does not see.
        preprocess: "own" (what the model was published with), "pad" (letterbox on white instead
            of a crop) or "mmsr" (squash to 224 x 224, mean and deviation 0.5).
        model: id of the model, for the encoders that take any ("timm:ID", "hf:ID").
    """

    weights: Path | None = None
    revision: str | None = None
    variant: str | None = None
    tokens: bool = False
    max_tokens: int | None = None
    mask_ratio: float = 0.0
    preprocess: str = "own"
    model: str | None = None


@dataclass(frozen=True)
class TokenIds:
    """A tokenised text: its ids with the special ones, and whether it was cut."""

    ids: tuple[int, ...]
    cut: bool = False


@dataclass(frozen=True)
class Encoded:
    """What became of a batch of B items.

    Attributes:
        pooled: float [B, D].
        tokens: float [B, N, E], where they were asked for; zero where `mask` is false.
        mask: which tokens there are, bool [B, N]; None where all are.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class NeuralEncoder(Encoder):
    """An encoder with weights.

    Class attributes: `hub`; `modalities`, those it gives sets for; `variants` (the default one
    first), `takes` (names of the `Options` that mean something to it beside weights, revision
    and variant), `citation`. A single-stream encoder has `is_joint` set: it reads text and picture
    of an item together. Constructing one checks the options and reads no file.

    Attributes:
        module: the model on the CPU, in float32 and in evaluation mode; after `load`.
    """

    hub: ClassVar[Hub]
    modalities: ClassVar[tuple[str, ...]]
    variants: ClassVar[tuple[str, ...]] = ("default",)
    takes: ClassVar[frozenset[str]] = frozenset()
    is_joint: ClassVar[bool] = False
    is_one_stream: ClassVar[bool] = False
    """Whether texts and pictures go through the same weights, so that they are one network."""
    fixed_length: ClassVar[bool] = False
    """Whether texts are padded to one length because the padding is read."""
    learns: ClassVar[bool] = True
    """Whether it can learn inside a recommender."""
    constants: ClassVar[frozenset[str]] = frozenset()
    """Parameters of the module that are no weights, and never learn."""
    new: frozenset[str] = frozenset()
    """Parameters of the module that no published weights hold: drawn at random, they must learn."""
    citation: ClassVar[str] = ""
    module: nn.Module

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.variant = self.options.variant or self.variants[0]
        name = type(self).__name__
        if self.variant not in self.variants:
            raise UnknownNameError(f"variant of {name}", self.variant, self.variants)
        usual = Options()
        for option in ("tokens", "max_tokens", "mask_ratio", "preprocess", "model"):
            given = getattr(self.options, option)
            if given != getattr(usual, option) and option not in self.takes:
                raise ConfigError(
                    f"{name} takes no {option.replace('_', '-')}; it takes "
                    f"{', '.join(sorted(self.takes)) or 'no options'}"
                )

    @abstractmethod
    def load(self) -> None:
        """Read weights, tokenizer and preprocessing, and set `module`.

        Raises:
            DataError: they are not here and may not or cannot be fetched (the message names the
                model and how to place it by hand), incomplete, unsafe, or of another architecture.
        """

    def draw(self, seed: int) -> None:
        """Draw what is `new` anew; the same seed gives the same."""
        if self.new:
            raise TypeError(f"{type(self).__name__} does not say how its new weights are drawn")

    @property
    def parts(self) -> Mapping[str, NeuralEncoder]:
        """The encoders that this one is made of, by modality; none where it is one model."""
        return {}

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`: JSON values.

        The hub id and revision, the SHA-256 of the weights, variant, pooling, normalisation,
        preprocessing with its constants, tokenizer and its limits; not the device.
        """

    @property
    def framing(self) -> Preprocessing | None:
        """How pictures are prepared, where all become squares of one size; after `load`."""
        return None

    @property
    def masking(self) -> tuple[int, int] | None:
        """Patches of a picture and how many of them are seen, where some are hidden."""
        return None

    def read(self, texts: Batch, pictures: Batch, modality: str) -> Encoded:
        """Vectors of items with the states of all their tokens, for an encoder that learns.

        Needs the option `tokens` where it is taken. Class tokens are among the tokens.
        """
        if self.is_joint:
            return self.encode_joint(texts, pictures)[modality]
        return self.encode_text(texts) if modality == "textual" else self.encode_picture(pictures)

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as ids, cut to the limit; any text is fine, the empty one included."""
        raise TypeError(f"{type(self).__name__} reads no texts")

    def text_batch(self, texts: Sequence[TokenIds]) -> Batch:
        """Tokenised texts as one padded batch, on the CPU."""
        raise TypeError(f"{type(self).__name__} reads no texts")

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """An upright RGB picture as the model takes it, [C, H, W]; called from several threads.

        `item` is the raw item id, for what is drawn per item (masks).
        """
        raise TypeError(f"{type(self).__name__} reads no pictures")

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures as one batch, on the CPU."""
        raise TypeError(f"{type(self).__name__} reads no pictures")

    def encode_text(self, texts: Batch) -> Encoded:
        """Vectors of a batch that is on the module's device."""
        raise TypeError(f"{type(self).__name__} reads no texts")

    def encode_picture(self, pictures: Batch) -> Encoded:
        """Vectors of a batch that is on the module's device."""
        raise TypeError(f"{type(self).__name__} reads no pictures")

    def encode_joint(self, texts: Batch, pictures: Batch) -> Mapping[str, Encoded]:
        """Vectors of items with both, by modality: "joint", and by [CLS] position others."""
        raise TypeError(f"{type(self).__name__} reads no texts and pictures together")
