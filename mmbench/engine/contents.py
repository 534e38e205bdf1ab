"""What the items of a dataset offer an encoder: their texts, their pictures, and who lacks what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.prepared import PreparedDataset
from mmbench.data.texts import clean_text
from mmbench.errors import ConfigError, UnknownNameError

MAX_CHARACTERS = 20_000
"""Of a text; what is behind them no tokenizer gets to see."""
_LACKS = {"textual": "no text", "visual": "no picture"}


@dataclass(frozen=True)
class TextTemplate:
    """Which fields of an item make its text.

    Attributes:
        fields: in their order; None for the text that was composed at preparation.
        separator: stands between two fields.
        may_lack: whether fields that a dataset does not have are left out, as presets allow;
            otherwise they are refused.
    """

    fields: tuple[str, ...] | None = None
    separator: str = ". "
    may_lack: bool = False


_MMREC = ("title", "brand", "categories", "description")
PRESETS: Mapping[str, TextTemplate] = {
    "mmrec": TextTemplate(_MMREC, " ", may_lack=True),
    "arxiv-2310.20343": TextTemplate(
        ("title", "description", "brand", "categories"), " ", may_lack=True
    ),
}
"""How published work composes an item's text; the order matters, as encoders cut long texts."""


@dataclass(frozen=True)
class Contents:
    """Texts, pictures or both of all items.

    Attributes:
        texts: of each item, "" where it has none; None where they are not needed.
        pictures: file of each item, None where it has none; None where they are not needed.
        picture_hashes: SHA-256 of each picture when the dataset was prepared.
        has: items with all that is needed, bool [n_items].
        lacking: what the others lack, by item index.
        template: how texts were made, for the manifest; None where they are not needed.
        sha256: of texts and pictures.
    """

    texts: Sequence[str] | None
    pictures: Sequence[Path | None] | None
    picture_hashes: Sequence[str | None]
    has: NDArray[np.bool_]
    lacking: Mapping[int, str]
    template: Mapping[str, Any] | None
    sha256: str


def preset(name: str) -> TextTemplate:
    """A published way to compose texts.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownNameError("text preset", name, PRESETS)
    return PRESETS[name]


def read_contents(
    dataset: PreparedDataset, needs: Collection[str], template: TextTemplate | None = None
) -> Contents:
    """The contents of all items.

    Args:
        needs: "textual", "visual" or both; an item that lacks one of them has nothing to encode.

    Raises:
        UnknownNameError: `template` names a field that the items do not have.
        ConfigError: they have none of the fields of a preset.
    """
    if unknown := sorted(set(needs) - set(_LACKS)):
        raise ConfigError(f"datasets hold no raw {unknown[0]} content; import a matrix instead")
    texts = pictures = facts = None
    hashes: list[str | None] = [None] * dataset.n_items
    lacks: list[list[str]] = [[] for _ in range(dataset.n_items)]
    if "textual" in needs:
        texts, facts = compose_texts(dataset, template or TextTemplate())
        for item, text in enumerate(texts):
            if not text:
                lacks[item].append(_LACKS["textual"])
    if "visual" in needs:
        pictures = dataset.image_paths
        for item, (path, line) in enumerate(zip(pictures, dataset.items, strict=True)):
            if path is None:
                status = line["image_status"]
                lacks[item].append(f"{_LACKS['visual']} ({status})")
            else:
                hashes[item] = line["image_sha256"]
    known = {"texts": texts, "pictures": hashes if pictures is not None else None}
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    lacking = {item: " and ".join(what) for item, what in enumerate(lacks) if what}
    has = np.ones(dataset.n_items, dtype=np.bool_)
    has[list(lacking)] = False
    return Contents(texts, pictures, hashes, has, lacking, facts, digest)


def compose_texts(
    dataset: PreparedDataset, template: TextTemplate
) -> tuple[list[str], dict[str, Any]]:
    """The text of each item, "" where it has none, and what the manifest says of them.

    Raises:
        UnknownNameError: the items do not have a field.
        ConfigError: they have none of the fields of a preset.
    """
    facts: dict[str, Any] = {"fields": "as prepared", "max_characters": MAX_CHARACTERS}
    if template.fields is None:
        return [_bounded(text) for text in dataset.texts], facts
    lines = dataset.items
    known = {"title"} if any(line["title"] for line in lines) else set()
    for line in lines:
        known.update(line["fields"])
    fields = [name for name in template.fields if name in known]
    if not template.may_lack and len(fields) < len(template.fields):
        unknown = next(name for name in template.fields if name not in known)
        raise UnknownNameError(f"text field of {dataset.name}", unknown, known)
    if not fields:
        raise ConfigError(
            f"{dataset.name} has none of the fields {', '.join(template.fields)}; it has: "
            f"{', '.join(sorted(known)) or 'none'}. Choose some with --text-fields"
        )
    texts = []
    for line in lines:
        parts = [
            clean_text(str(line["fields"].get(name) or (line["title"] if name == "title" else "")))
            for name in fields
        ]
        texts.append(_bounded(template.separator.join(part for part in parts if part)))
    return texts, {**facts, "fields": fields, "separator": template.separator}


def _bounded(text: str) -> str:
    """A text that every tokenizer takes: half a character of UTF-16 alone is none."""
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS]
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
