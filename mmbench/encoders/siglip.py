"""SigLIP: contrastive pre-training with a sigmoid loss; what both generations share.

Zhai et al., ICCV 2023. https://arxiv.org/abs/2303.15343

    picture  hidden = a learned query attending to all patches; proj = hidden
    text     hidden = LayerNorm(last state of the last position); proj = W hidden + b

Both are scaled to length 1 in the shared space. There is no class token, and no mask: a text is
always padded to all positions (64), and the last one is pooled, which is padding for most texts.
So its length cannot be chosen: `max_tokens` is not taken. Pictures are squashed to 224 x 224.

The tokenizer is read from tokenizer.json as it was published; one that has only spiece.model
would need the package sentencepiece and is refused. The side of the padding is the one that
tokenizer_config.json states, or the right.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmbench.encoders.dual import DualEncoder
from mmbench.encoders.hub import first_line
from mmbench.encoders.loading import read_json
from mmbench.encoders.neural import Batch, TokenIds
from mmbench.encoders.preprocessing import HALF
from mmbench.encoders.pretrained import quiet
from mmbench.encoders.tokenizing import padded, token_ids
from mmbench.errors import DataError

SIGLIP_PROCESSOR: Mapping[str, Any] = {
    "size": {"height": 224, "width": 224},
    "resample": 3,  # bicubic
    "image_mean": HALF,
    "image_std": HALF,
}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SigLIP(DualEncoder):
    """A model of the SigLIP architecture.

    `keeps_punctuation` tells what the texts of its training had; all were lower-cased.
    """

    takes = frozenset({"tokens", "preprocess"})
    architecture = "SiglipModel"
    max_tokens = 64
    processor: ClassVar[Mapping[str, Any]] = SIGLIP_PROCESSOR
    has_class_token = False
    fixed_length = True
    pooling: ClassVar[Mapping[str, str]] = {"visual": "attention", "textual": "last position"}
    keeps_punctuation: ClassVar[bool]
    padding_side: str

    def read_tokenizer(self) -> Any:
        """The tokenizer of tokenizer.json, without what a class of transformers changes in it."""
        from transformers import PreTrainedTokenizerFast

        folder = self.weights.folder
        if not (folder / "tokenizer.json").is_file():
            found = sorted(path.name for path in folder.iterdir() if path.is_file())
            raise DataError(
                f"E403 {folder} holds no tokenizer: tokenizer.json belongs there. It holds "
                f"{', '.join(found[:8])}"
            )
        stated = folder / "tokenizer_config.json"
        side = read_json(stated).get("padding_side", "right") if stated.is_file() else "right"
        if side not in ("left", "right"):
            raise DataError(f"E404 {stated} is broken (padding_side {side!r}); fetch it again")
        self.padding_side = side
        with quiet():
            try:
                return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            except Exception as problem:  # the tokenizers library raises bare Exceptions
                raise DataError(
                    f"E404 the tokenizer in {folder} does not load: {first_line(problem)}"
                ) from problem

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        return {
            **super().settings,
            "padding": f"{self.limit}, {self.padding_side}",
            "lower_case": True,
            "keeps_punctuation": self.keeps_punctuation,
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as ids, in lower case, cut to the limit; the empty text is fine."""
        lower = [text.lower() for text in texts]
        if not self.keeps_punctuation:
            lower = [text.translate(_NO_PUNCTUATION) for text in lower]
        return token_ids(self.tokenizer, lower, self.limit)

    def text_batch(self, texts: Sequence[TokenIds]) -> Batch:
        """Tokenised texts as one batch, padded to all positions of the model, on the CPU."""
        batch = padded(texts, self.tokenizer.pad_token_id or 0, self.limit)
        if self.padding_side == "right":
            return batch
        shifts = [self.limit - len(text.ids) for text in texts]
        return {
            name: torch.stack([row.roll(by) for row, by in zip(rows, shifts, strict=True)])
            for name, rows in batch.items()
        }

    def picture_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the patches after the final norm, and what attention makes of them."""
        model: Any = self.module
        output = model.vision_model(pixel_values=pixels)
        return output.last_hidden_state, output.pooler_output

    def patch_embeddings(self, pixels: Tensor) -> Tensor:
        """Patches with their positions, as the first block has them."""
        model: Any = self.module
        embedded: Tensor = model.vision_model.embeddings(pixels)
        return embedded

    def text_states(self, texts: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of the tokens after the final norm, and that of the last position."""
        model: Any = self.module
        # No mask: the model was trained to read the padding.
        output = model.text_model(input_ids=texts["input_ids"])
        return output.last_hidden_state, output.last_hidden_state[:, -1]

    def projected(self, pooled: Tensor, modality: str) -> Tensor:
        """Pooled vectors in the shared space, not normalised."""
        model: Any = self.module
        vectors: Tensor = pooled if modality == "visual" else model.text_model.head(pooled)
        return vectors
