"""VLMo-Base-Plus: pictures, texts and pairs by one model with an expert per modality.

Bao et al., NeurIPS 2022. https://arxiv.org/abs/2111.02358

    variant        vectors [544], all after the last norm
    hidden         [I_CLS] of the picture alone, [T_CLS] of the text alone; the default
    proj           hidden through the contrastive head of its modality, L2
    vl             as hidden, but by the vision-language experts in the last three blocks
    vl-proj        vl through the contrastive head of that route, L2
    joint          [T_CLS] of text and picture read together
    joint-pooled   joint through the tanh pooler
    joint-cls      [I_CLS] and [T_CLS] of text and picture read together, a set for each

24 blocks, 166.9 M parameters without the heads of pre-training; WordPiece, at most 40 ids;
pictures squashed to 224 x 224 pixels. With `tokens`, the vectors of patches (after [I_CLS]) and
words, never projected; those of a pair are words, then patches, without padding in between.

The weights are one file on no hub but at an address, without a published hash. Beside it may stand
the tokenizer (else that of bert-base-uncased is taken from the cache of the hub), and a
vlmo_config.json with sizes other than the published ones (fields of `VlmoShape`; text positions
that the file lacks are interpolated with "extend_text": true).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmbench.encoders.addressed import find_addressed
from mmbench.encoders.base import register_encoder
from mmbench.encoders.hub import cached_snapshot, first_line
from mmbench.encoders.joint import packed
from mmbench.encoders.loading import Weights, hash_files, read_json, tokenizer_files
from mmbench.encoders.neural import Batch, Encoded, Hub, NeuralEncoder, Options, TokenIds
from mmbench.encoders.preprocessing import CHOICES, HALF, Preprocessing
from mmbench.encoders.pretrained import quiet
from mmbench.encoders.tokenizing import MAX_CHARACTERS, padded, token_ids
from mmbench.encoders.vlmo_checkpoint import Fit, load_vlmo
from mmbench.encoders.vlmo_model import Vlmo, VlmoShape
from mmbench.errors import ConfigError, DataError, UnknownNameError, did_you_mean

MIN_TOKENS = 3
"""A word between the two special ids."""
CONFIG = "vlmo_config.json"
VOCABULARY = Hub("google-bert/bert-base-uncased", licence="Apache-2.0")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_APART = ("visual", "textual")
_NEEDED = {
    "proj": ("itc_image_proj", "itc_text_proj"),
    "vl-proj": ("itc_vl_image_proj", "itc_vl_text_proj"),
    "joint-pooled": ("pooler",),
}


@register_encoder("vlmo-base-plus")
class VlmoBasePlus(NeuralEncoder):
    """Vectors [544] of pictures and texts, apart or read together.

    Attributes:
        weights: the checkpoint; after `load`.
        fit: how the checkpoint went into the model.
        tokenizer_folder: holds the tokenizer's files.
        limit: ids that a text is cut to.
    """

    hub = Hub(
        "vlmo_base_plus_patch16_224",
        revision="",
        licence="MIT (code)",
        address="https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/"
        "vlmo_base_plus_patch16_224.pt",
    )
    modalities = ("visual", "textual", "joint")
    variants = ("hidden", "proj", "vl", "vl-proj", "joint", "joint-pooled", "joint-cls")
    takes = frozenset({"tokens", "max_tokens", "preprocess"})
    is_one_stream = True
    citation = "Bao et al., NeurIPS 2022"
    module: Vlmo
    weights: Weights
    fit: Fit
    tokenizer: Any
    tokenizer_folder: Path
    limit: int

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        if self.options.preprocess not in CHOICES:
            raise UnknownNameError("preprocessing", self.options.preprocess, CHOICES)
        asked = self.options.max_tokens
        if asked is not None and asked < MIN_TOKENS:
            raise ConfigError(
                f"max-tokens {asked} does not suit VlmoBasePlus: a word and the two special ones "
                f"are at least {MIN_TOKENS} tokens"
            )
        if self.options.revision is not None:
            raise ConfigError(
                "the weights of VlmoBasePlus are a file and have no revisions; name another file "
                "with --weights"
            )
        # A class says what there is for any variant, one of its encoders what it gives.
        given = {"joint": ("joint",), "joint-pooled": ("joint",)}.get(self.variant, _APART)
        is_joint = self.variant.startswith("joint")
        vars(self).update(modalities=given, is_joint=is_joint)

    def load(self) -> None:
        """Read the checkpoint and the tokenizer."""
        self.weights = find_addressed(self.hub, self.options)
        if len(self.weights.files) > 1:
            raise DataError(
                f"E406 {self.weights.folder} holds a model in {len(self.weights.files)} files; a "
                "checkpoint of VLMo is one"
            )
        shape, extend_text = _read_shape(self.weights.folder / CONFIG)
        asked = self.options.max_tokens
        if asked is not None and asked > shape.text_length:
            raise ConfigError(
                f"max-tokens {asked} is more than the {shape.text_length} text positions of "
                "VLMo-Base-Plus"
            )
        self.limit = asked or shape.text_length
        own = Preprocessing(shape.image_size, "squash", mean=HALF, std=HALF)
        self._pictures = own.chosen(self.options.preprocess)
        self._load_tokenizer(shape)
        file = self.weights.files[0]
        self.module, self.fit = load_vlmo(file, shape, extend_text=extend_text)
        lacking = [head for head in _NEEDED.get(self.variant, ()) if head in self.fit.drawn]
        if lacking:
            raise DataError(
                f"E406 {file} lacks {' and '.join(lacking)}, which the variant {self.variant!r} "
                "needs; take another variant, or the checkpoint of the pre-training"
            )

    def _load_tokenizer(self, shape: VlmoShape) -> None:
        """Take the tokenizer beside the weights, or else BERT's from the cache of the hub."""
        from transformers import BertTokenizer

        folder: Path | None = self.weights.folder
        if not any(
            (self.weights.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")
        ):
            folder = cached_snapshot(VOCABULARY.id, VOCABULARY.revision)
        if folder is None:
            raise DataError(
                f"E401 the tokenizer of VLMo-Base-Plus is not here: neither {self.weights.folder} "
                f"nor the cache of the hub ({VOCABULARY.id}) has one. Put the tokenizer.json and "
                f"tokenizer_config.json of {VOCABULARY.id} beside the checkpoint, or run `hf "
                f"download {VOCABULARY.id}` where there is a network"
            )
        files = tokenizer_files(folder)
        self.tokenizer_folder = folder
        with quiet():
            try:
                # Named, as a vocab.txt alone does not say whose it is.
                self.tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
            except Exception as problem:  # the tokenizers library raises bare Exceptions
                raise DataError(
                    f"E404 the tokenizer in {folder} does not load: {first_line(problem)}"
                ) from problem
        self._tokenizer_sha256 = hash_files(files)
        # Without those added by transformers, which would be words that the model never saw.
        known = self.tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        absent = [word for word in _SPECIAL if word not in known]
        if absent:
            raise DataError(
                f"E406 {folder}: the tokenizer's vocabulary lacks {', '.join(absent)}; VLMo needs "
                f"that of {VOCABULARY.id}{_other_model(folder)}"
            )
        rows = 1 + max(self.tokenizer.get_vocab().values())
        if rows > shape.vocabulary:
            raise DataError(
                f"E406 {folder}: the tokenizer knows {rows} ids and the model {shape.vocabulary}; "
                "they are of two models"
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        fit = self.fit
        return {
            "version": 1,
            **self.weights.facts,
            "architecture": asdict(self.module.shape),
            "attention": "sdpa",
            "variant": self.variant,
            "pooling": "cls",
            "l2_normalised": self.variant.endswith("proj"),
            "checkpoint": {
                "matched": len(fit.matched),
                "share": fit.share,
                "random_heads": list(fit.drawn),
                "not_used": list(fit.unexpected),
                "changes": list(fit.changes),
                "sums": dict(fit.sums),
            },
            "preprocess": self.options.preprocess,
            "preprocessing": dict(self._pictures.settings),
            "max_tokens": self.limit,
            "max_characters": MAX_CHARACTERS,
            "padding": "longest, right",
            "tokenizer": type(self.tokenizer).__name__,
            "tokenizer_sha256": self._tokenizer_sha256,
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
        return self._pictures

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """An upright RGB picture as float32 [3, side, side]."""
        return self._pictures.apply(picture)

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures as one batch, on the CPU."""
        return {"pixel_values": torch.stack(list(pictures))}

    def encode_text(self, texts: Batch) -> Encoded:
        """[T_CLS] of texts alone [B, D] and, where asked for, the vectors of their tokens."""
        ids, mask = texts["input_ids"], texts["attention_mask"]
        hidden = self.module.text(ids, mask, vl_top=self.variant.startswith("vl"))
        pooled = hidden[:, 0]
        if self.variant == "proj":
            pooled = self.module.itc_text_proj(pooled)
        elif self.variant == "vl-proj":
            pooled = self.module.itc_vl_text_proj(pooled)
        return self._encoded(pooled, hidden, mask)

    def encode_picture(self, pictures: Batch) -> Encoded:
        """[I_CLS] of pictures alone [B, D] and, where asked for, it with the patches."""
        vl_top = self.variant.startswith("vl")
        hidden = self.module.image(pictures["pixel_values"], vl_top=vl_top)
        pooled = hidden[:, 0]
        if self.variant == "proj":
            pooled = self.module.itc_image_proj(pooled)
        elif self.variant == "vl-proj":
            pooled = self.module.itc_vl_image_proj(pooled)
        return self._encoded(pooled, hidden)

    def encode_joint(self, texts: Batch, pictures: Batch) -> Mapping[str, Encoded]:
        """Vectors of pairs: "joint", or those at the two [CLS] positions as two sets."""
        ids, mask = texts["input_ids"], texts["attention_mask"]
        hidden = self.module.joint(ids, mask, pictures["pixel_values"])
        n_text = ids.shape[1]
        if self.variant == "joint-cls":
            words, patches = hidden[:, :n_text], hidden[:, n_text:]
            return {
                "visual": self._encoded(patches[:, 0], patches),
                "textual": self._encoded(words[:, 0], words, mask),
            }
        pooled = hidden[:, 0]
        if self.variant == "joint-pooled":
            pooled = self.module.pooler(pooled)
        there = F.pad(mask, (0, hidden.shape[1] - n_text), value=1)
        return {"joint": self._encoded(pooled, hidden, there)}

    def _encoded(self, pooled: Tensor, hidden: Tensor, mask: Tensor | None = None) -> Encoded:
        pooled = pooled.float()
        if self.variant.endswith("proj"):
            pooled = F.normalize(pooled, dim=1)
        if not self.options.tokens:
            return Encoded(pooled)
        if mask is None:
            return Encoded(pooled, hidden.float())
        return Encoded(pooled, *packed(hidden, mask))


def _other_model(folder: Path) -> str:
    """Of which model a folder is, where it is one of another kind than a checkpoint of VLMo."""
    path = folder / "config.json"
    kind = read_json(path).get("model_type") if path.is_file() else None
    return f". The folder is that of a model of type {kind!r}" if isinstance(kind, str) else ""


def _read_shape(path: Path) -> tuple[VlmoShape, bool]:
    """Sizes and whether text positions are interpolated: the published ones where no file is.

    Raises:
        DataError: E404 the file is broken; E406 it describes no model.
    """
    if not path.is_file():
        return VlmoShape(), False
    given = read_json(path)
    extend_text = given.pop("extend_text", False)
    if not isinstance(extend_text, bool):
        raise DataError(f"E406 {path}: extend_text is true or false, not {extend_text!r}")
    known = [field.name for field in fields(VlmoShape)]
    for key in given:
        if key not in known:
            raise DataError(
                f"E406 {path}: {key} is no size of a VLMo.{did_you_mean(key, known)} Known: "
                f"{', '.join((*known, 'extend_text'))}"
            )
    try:
        return VlmoShape(**given), extend_text
    except ConfigError as problem:
        raise DataError(f"E406 {path}: {problem}") from None
