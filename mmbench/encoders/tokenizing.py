"""Texts to ids: cleaned of what tokenizers stumble over, cut to a limit, padded to a batch.

A vector must not depend on what else is in the batch, so texts are tokenised without padding and
padded to the longest only when a batch is made; the mask keeps the padding out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmbench.encoders.neural import TokenIds

MAX_CHARACTERS = 20_000
"""Longer texts are cut before they are tokenised: no model reads so much, and some take minutes."""
NO_LIMIT = 1_000_000
"""Tokenizers that know no limit state an enormous one."""
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def plain_text(text: str) -> str:
    """A text in NFC without control characters and lone surrogates, white space collapsed.

    Entities and tags are gone since the dataset was prepared; a second time could take away what
    a title says. At most `MAX_CHARACTERS` are left.
    """
    cleaned = unicodedata.normalize("NFC", _NO_TEXT.sub(" ", text))
    return _SPACE.sub(" ", cleaned).strip()[:MAX_CHARACTERS]


def token_ids(tokenizer: Any, texts: Sequence[str], limit: int) -> list[TokenIds]:
    """Texts as ids with the special ones, at most `limit` in all; cut texts are marked.

    A text of which nothing is left, where the tokenizer adds no special ids, becomes one id, so
    that every text has a position to pool.
    """
    if not texts:
        return []
    plain = [plain_text(text) for text in texts]
    encoded = tokenizer(
        plain,
        truncation=True,
        max_length=limit,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    ).encodings
    return [
        TokenIds(
            tuple(encoding.ids) or (_some_id(tokenizer),),
            cut=bool(encoding.overflowing) or len(text) == MAX_CHARACTERS,
        )
        for text, encoding in zip(plain, encoded, strict=True)
    ]


def padded(texts: Sequence[TokenIds], pad: int, length: int | None = None) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 [B, N], padded on the right.

    N is `length`, or the number of ids of the longest text.
    """
    width = max(len(text.ids) for text in texts) if length is None else length
    ids = torch.full((len(texts), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(texts), width), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        mask[row, : len(text.ids)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _some_id(tokenizer: Any) -> int:
    for name in ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id"):
        found = getattr(tokenizer, name)
        if found is not None:
            return int(found)
    return 0
