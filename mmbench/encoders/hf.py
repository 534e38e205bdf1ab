"""Any text model of transformers, by its id on the hub or by its folder.

    hf:intfloat/e5-base-v2         an encoder: mean of the token vectors
    hf:Qwen/Qwen3-Embedding-0.6B   a causal model: the last token, which alone has seen all

Of an encoder-decoder the encoder is taken. Where the folder is one of sentence-transformers, what
its modules.json states is done: pooling, length, lower case, prompt, scaling to length 1. A
variant that the user names takes the place of the pooling. Whatever the model, padding must not
change a vector; that is tried out when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmbench.encoders.base import register_encoder
from mmbench.encoders.loading import find_weights, read_config, read_json, read_list
from mmbench.encoders.neural import Hub, Options, TokenIds
from mmbench.encoders.pretrained import load_tokenizer, quiet
from mmbench.encoders.tokenizing import NO_LIMIT
from mmbench.encoders.transformer_text import MIN_TOKENS, TransformerText, positions
from mmbench.errors import ConfigError, DataError

USUAL_LIMIT = 512
"""Ids that a text is cut to where neither tokenizer nor model states a limit, or a larger one."""
SENTENCES = (
    "modules.json",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "config_sentence_transformers.json",
)
"""Files of sentence-transformers beside a model."""
_TOLERANCE = 1e-3
_OTHERS = "Take another model of texts; mmbench extract --list names those that are known to work"
_POOLINGS = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
}
_POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Sentences:
    """What a folder of sentence-transformers states beside the model.

    Attributes:
        pooling: names of `pool`, joined by "+" where vectors are put side by side.
        max_tokens: ids that a text is cut to; None where it is not stated.
        prompt: stands in front of every text.
    """

    pooling: str
    normalise: bool = False
    max_tokens: int | None = None
    lowercase: bool = False
    prompt: str = ""


@register_encoder("hf")
class HuggingFace(TransformerText):
    """Token vectors of any text model, pooled as it was published with [D]."""

    hub = Hub("")
    variants = ("default", "mean", "cls", "last")
    takes = frozenset({"tokens", "max_tokens", "model"})
    max_tokens = NO_LIMIT

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        model, place = self.options.model, self.options.weights
        if not model and place is None:
            raise ConfigError(
                "hf needs a model: --encoder hf:ID with an id of the hub or a folder, or --weights"
            )
        if model and place is None and Path(model).is_dir():
            place = Path(model)
            self.options = replace(self.options, weights=place)
        name = place.resolve().name if place is not None and model in {None, str(place)} else model
        self.hub = Hub(name or "")  # type: ignore[misc]  # of this one, not of the class
        self._sentences = Sentences("mean")

    def load(self) -> None:
        """Read the weights, the tokenizer, and what a folder of sentence-transformers states.

        Raises:
            DataError: beside what all encoders raise, E407: it is no text model, or one whose
                vectors cannot be had in this way.
        """
        self.weights = find_weights(self.hub, self.options)
        config = read_config(self.weights)
        architecture, is_causal = _architecture(config, self.weights.name)
        self.tokenizer = load_tokenizer(self.weights)
        folder = self.weights.folder
        self._sentences = Sentences("last" if is_causal else "mean")
        if (folder / "modules.json").is_file():
            self._sentences = read_sentences(folder)
        self.normalise = self._sentences.normalise  # type: ignore[misc]
        self._take(architecture)
        model: Any = self.module
        if model.config.is_encoder_decoder:
            self.module = model.get_encoder()
        self._try_out()

    def _default_limit(self) -> int:
        stated = [
            limit
            for limit in (
                self._sentences.max_tokens,
                getattr(self.tokenizer, "model_max_length", None),
                positions(self.module.config),
            )
            if isinstance(limit, int) and MIN_TOKENS <= limit < NO_LIMIT
        ]
        if self._sentences.max_tokens is not None:
            return min(stated)
        return min([*stated, USUAL_LIMIT])

    @property
    def pooling(self) -> str:
        """The variant, or what the model was published with."""
        return self._sentences.pooling if self.variant == "default" else self.variant

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        return {
            **super().settings,
            # A folder's name says nothing about its content; the hash does.
            "model": self.hub.id if self.options.weights is None else "",
            "lowercase": self._sentences.lowercase,
            "prompt": self._sentences.prompt,
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as ids, behind the model's prompt and in lower case where it wants that."""
        own = self._sentences
        texts = [text.lower() for text in texts] if own.lowercase else texts
        return super().tokenize([own.prompt + text for text in texts] if own.prompt else texts)

    def _try_out(self) -> None:
        """Check that the model gives a vector per token, which padding does not change."""
        short, long = self.tokenize(["a", "a a a a a a a a"])
        try:
            with torch.inference_mode(), quiet():
                alone = self.encode_text(self.text_batch([short])).pooled[0]
                beside = self.encode_text(self.text_batch([short, long])).pooled[0]
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as problem:
            raise DataError(
                f"E407 {self.weights.name} ({type(self.module).__name__}) gives no vectors for the "
                f"tokens of a text alone ({problem}); it is not a text encoder. {_OTHERS}"
            ) from problem
        if not torch.isfinite(alone).all():
            raise DataError(
                f"E407 {self.weights.name} gives vectors that are not finite: its weights are "
                "broken; fetch them again"
            )
        if (alone - beside).abs().max() > _TOLERANCE * alone.abs().max().clamp(min=1e-6):
            raise DataError(
                f"E407 vectors of {self.weights.name} ({type(self.module).__name__}) change with "
                "the padding of a batch, so features would depend on the order of the items. "
                f"{_OTHERS}"
            )


def read_sentences(folder: Path) -> Sentences:
    """What the files of sentence-transformers in a folder state.

    Raises:
        DataError: E404 a file is broken; E407 it has a step that is not known here.
    """
    pooling, normalise = "mean", False
    for step in read_list(folder / "modules.json"):
        kind = str(step.get("type", "")).rpartition(".")[2] if isinstance(step, dict) else ""
        path = str(step.get("path", "")) if isinstance(step, dict) else ""
        if kind == "Transformer" and path in {"", "."}:
            continue
        if kind == "Pooling" and Path(path).name == path:
            pooling = _pooling(folder / path / "config.json")
        elif kind == "Normalize":
            normalise = True
        else:
            raise DataError(
                f"E407 {folder / 'modules.json'}: the step {kind or step!r} in {path or '.'!r} is "
                "not known here; known are Transformer (in the folder itself), Pooling, Normalize. "
                "Take the file away, and --variant names the pooling"
            )
    own: Mapping[str, Any] = {}
    for name in SENTENCES[1:3]:
        if (folder / name).is_file():
            own = read_json(folder / name)
            break
    prompt = ""
    if (folder / "config_sentence_transformers.json").is_file():
        texts = read_json(folder / "config_sentence_transformers.json")
        prompt = (texts.get("prompts") or {}).get(texts.get("default_prompt_name")) or ""
    length = own.get("max_seq_length")
    return Sentences(
        pooling,
        normalise,
        length if isinstance(length, int) and length >= MIN_TOKENS else None,
        bool(own.get("do_lower_case")),
        prompt,
    )


def _pooling(path: Path) -> str:
    config = read_json(path)
    named = config.get("pooling_mode")
    found = [named] if isinstance(named, str) else list(named or [])
    found += [name for switch, name in _POOLING_SWITCHES.items() if config.get(switch)]
    unknown = [name for name in found if name not in _POOLINGS]
    if unknown or not found:
        raise DataError(
            f"E407 {path}: pooling {', '.join(map(str, unknown)) or 'is not stated'}; known are "
            f"{', '.join(_POOLINGS)}. Name one with --variant and take modules.json away"
        )
    if config.get("include_prompt") is False:
        raise DataError(
            f"E407 {path}: pooling without the prompt (include_prompt) is not known here. Take "
            "modules.json away, and --variant names a pooling of all tokens"
        )
    return "+".join(_POOLINGS[name] for name in found)


def _architecture(config: Mapping[str, Any], name: str) -> tuple[Any, bool]:
    """The class of a model without a head, and whether it is causal.

    Raises:
        DataError: E407 it reads no texts, or not only texts.
    """
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise DataError(
            f"E407 {name}: transformers {version('transformers')} knows no model type {kind!r}; a "
            "newer release may (pip install -U transformers), else take another model"
        )
    if "vision_config" in config or "audio_config" in config:
        raise DataError(
            f"E407 {name} ({kind}) reads more than text; CLIP, SigLIP, BLIP, FLAVA and their like "
            "are encoders of their own: see mmbench extract --list"
        )
    known = CONFIG_MAPPING[kind]
    text = auto.MODEL_FOR_TEXT_ENCODING_MAPPING
    whole = auto.MODEL_MAPPING
    if "vocab_size" not in config and not hasattr(known(), "vocab_size"):
        raise DataError(
            f"E407 {name} ({kind}) reads no texts; a model of pictures is taken by its name in "
            "timm, as in --encoder timm:resnet50.a1_in1k"
        )
    is_causal = known in auto.MODEL_FOR_CAUSAL_LM_MAPPING and not (
        known in auto.MODEL_FOR_MASKED_LM_MAPPING or config.get("is_encoder_decoder")
    )
    found = text if known in text else whole
    if known not in found:
        raise DataError(
            f"E407 {name} ({kind}) has no model without a head in transformers. {_OTHERS}"
        )
    model = found[known]
    return (model[0] if isinstance(model, tuple) else model), is_causal
