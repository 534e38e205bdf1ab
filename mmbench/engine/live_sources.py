"""Encoders that a recipe has learn with a recommender: found, their weights and contents read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmbench.data.prepared import PreparedDataset
from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import NeuralEncoder, Options
from mmbench.encoders.pair import bare_name
from mmbench.engine.contents import Contents, read_contents
from mmbench.engine.extraction import WHENCE
from mmbench.engine.shards import canonical_hash
from mmbench.errors import ConfigError, DataError, MMBenchError
from mmbench.recipe_keys import LiveEncoder

_NEEDS = {"textual": ("textual",), "visual": ("visual",), "joint": ("textual", "visual")}
_WHAT = {"textual": "text", "visual": "picture"}
_LEARNT_ALIKE = ("tune", "blocks", "frozen_eval")
"""Keys that two modalities of one network must have alike; else each has a network of its own."""


@dataclass(frozen=True)
class LiveSource:
    """An encoder of a recipe, with its weights read, and what it is to encode.

    Attributes:
        encoder: as published; each run learns on a copy.
        contents: of all items.
        network: the modality whose source has the model that this one learns on too; None where
            it has one of its own.
    """

    modality: str
    how: LiveEncoder
    encoder: NeuralEncoder
    contents: Contents
    dataset: PreparedDataset
    network: str | None = None

    def facts(self) -> dict[str, Any]:
        """What it is, for the run's manifest and for its identity."""
        settings = self.settings()
        return {
            "modality": self.modality,
            "encoder": bare_name(self.how.name),
            "weights_sha256": settings.get("weights_sha256", ""),
            "settings_sha256": canonical_hash(settings),
            "contents_sha256": canonical_hash([self.contents.sha256, self.contents.template]),
            # Left out elsewhere, so that the hashes of such runs stay what they were.
            **({} if self.network is None else {"network": self.network}),
        }

    def settings(self) -> dict[str, Any]:
        """What determines the encoder's vectors, as JSON values."""
        given = {key: value for key, value in self.encoder.settings.items() if key not in WHENCE}
        plain: dict[str, Any] = json.loads(json.dumps(given))
        return plain


def find_sources(dataset: PreparedDataset, encoders: Mapping[str, LiveEncoder]) -> list[LiveSource]:
    """The encoders of a recipe by modality; those of one network in several have it once.

    Raises:
        ConfigError: as `find_live`.
        DataError: as `find_live`.
    """
    found: list[LiveSource] = []
    for modality, how in encoders.items():
        source = find_live(dataset, modality, how)
        for other in found:
            if other.network is None and _is_one_network(other, source):
                source.encoder.module = other.encoder.module  # read twice, kept once
                source = replace(source, network=other.modality)
                break
        found.append(source)
    return found


def _is_one_network(one: LiveSource, other: LiveSource) -> bool:
    """Whether what two modalities go through is one model (VLMo, arXiv 2111.02358).

    The weights must be the same, and as much of them must learn. Encoders with a tower for each
    modality have nothing to share.
    """
    if type(one.encoder) is not type(other.encoder) or not one.encoder.is_one_stream:
        return False
    if one.how.tune == "none" or any(
        getattr(one.how, key) != getattr(other.how, key) for key in _LEARNT_ALIKE
    ):
        return False
    hashes = {source.encoder.settings["weights_sha256"] for source in (one, other)}
    shapes = [
        [(name, weight.shape) for name, weight in source.encoder.module.named_parameters()]
        for source in (one, other)
    ]
    return len(hashes) == 1 and shapes[0] == shapes[1]


def find_live(dataset: PreparedDataset, modality: str, how: LiveEncoder) -> LiveSource:
    """Read the weights of a recipe's encoder and the contents of the items.

    Raises:
        ConfigError: there is no such encoder, it cannot learn, reads no such content, or does not
            take an option.
        DataError: the weights are not here or unfit, or the items have no such content.
    """
    try:
        return _find_live(dataset, modality, how)
    except MMBenchError as problem:
        hint = ""
        if isinstance(problem, DataError) and str(problem).startswith("E40"):
            hint = f". In a recipe the folder is named by encoders.{modality}.weights"
        kind = DataError if isinstance(problem, DataError) else ConfigError
        raise kind(f"encoders.{modality}: {problem}{hint}") from problem


def _find_live(dataset: PreparedDataset, modality: str, how: LiveEncoder) -> LiveSource:
    key, _, model = how.name.partition(":")
    entry = ENCODERS.get(key)
    if not issubclass(entry.obj, NeuralEncoder) or not entry.obj.learns:
        raise ConfigError(
            f"{entry.name} cannot learn with a recommender; extract its vectors with `mmbench "
            f"extract {dataset.name} --encoder {entry.name}` and name them under features:"
        )
    encoder = entry.obj(_options(entry.obj, modality, how, model))
    if modality not in encoder.modalities or encoder.is_joint != (modality == "joint"):
        reads = ", ".join(encoder.modalities)
        raise ConfigError(
            f"{entry.name} makes no {modality} vectors (it makes: {reads}); name it under one of "
            "these, or choose another variant"
        )
    if encoder.new and how.tune == "none":
        raise ConfigError(
            f"{entry.name} with the variant {encoder.variant} has a projection that no published "
            "weights hold, so something must learn; take tune: top or full"
        )
    contents = read_contents(dataset, _NEEDS[modality])
    for need, texts in (("textual", contents.texts), ("visual", contents.pictures)):
        if texts is not None and not any(texts):
            raise DataError(
                f"no item of {dataset.name} has a {_WHAT[need]}, so {entry.name} has nothing to "
                "read; prepare it with an item table that names them"
            )
    if how.preprocess == "mmsr" and contents.texts is not None:
        # The public code of MMSR lower-cases texts whatever the encoder.
        lower = [text.lower() for text in contents.texts]
        template = {**(contents.template or {}), "lower_case": True}
        contents = replace(contents, texts=lower, template=template)
    encoder.load()
    return LiveSource(modality, how, encoder, contents, dataset)


def _options(kind: type[NeuralEncoder], modality: str, how: LiveEncoder, model: str) -> Options:
    variant = how.variant
    if variant is None and modality == "joint" and "joint" in kind.variants:
        variant = "joint"
    is_text = modality == "textual" and "preprocess" not in kind.takes
    return Options(
        weights=Path(how.weights).expanduser() if how.weights else None,
        revision=how.revision,
        variant=variant,
        tokens="tokens" in kind.takes,
        max_tokens=how.max_tokens,
        mask_ratio=how.mask_ratio,
        preprocess="own" if is_text else how.preprocess,
        model=model or None,
    )
