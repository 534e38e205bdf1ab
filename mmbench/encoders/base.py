"""What an encoder is: item texts or pictures in, one row per item out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmbench.registry import Registry

ENCODERS: Registry[type[Encoder]]


class Encoder:
    """What every encoder tells of itself.

    `modalities` are those it makes feature sets of; `builtin` is true where it needs no weights,
    `fitted` where it learns from the items that it encodes, so that a column means something else
    in every dataset.
    """

    modalities: ClassVar[tuple[str, ...]]
    builtin: ClassVar[bool] = False
    fitted: ClassVar[bool] = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, for the manifest."""
        return {}


class CorpusEncoder(Encoder):
    """An encoder of one modality that reads all items at once and needs no weights."""

    builtin = True

    def encode_texts(self, texts: Sequence[str], seed: int) -> NDArray[np.float32]:
        """Vectors of non-empty texts [len(texts), dim]."""
        raise TypeError(f"{type(self).__name__} encodes no texts")

    def encode_images(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """Vectors of readable pictures [len(paths), dim].

        Raises:
            DataError: a picture is corrupt or truncated; the message names the file.
        """
        raise TypeError(f"{type(self).__name__} encodes no pictures")


ENCODERS = Registry(
    "encoder", "mmbench.encoders", "register_encoder", listing="mmbench extract --list"
)


def register_encoder(name: str) -> Callable[[type[Encoder]], type[Encoder]]:
    """Register an `Encoder` class under the name of its file."""
    return ENCODERS.register(name)
