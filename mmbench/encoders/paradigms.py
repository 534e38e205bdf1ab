"""How an encoder came to the vectors that a recommender reads, told from stored facts.

    pt       as published: frozen, its weights read from a hub or a folder
    ft       fine-tuned on the items' pictures and texts, then frozen
    ete      end to end: it learns with the recommender
    table    its vectors are where the rows of a table began, which learn with the recommender
    fixed    no weights that learnt: made of the data alone, or imported as they are
    ids      there is none, the recommender knows items by their number

The first three are those of arXiv 2310.20343; `table` is its Algorithm 1 taken word by word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import NeuralEncoder
from mmbench.encoders.pair import names_of

PAIR = "pair"
TUNED_SUFFIX = "-ft"
"""At the end of the name of a fine-tuned encoder's sets, where none was asked for."""
KEPT = ("objective", "chosen_epoch", "chosen_step", "steps", "helped", "weights_sha256")
"""What is told of a fine-tuning; its own file holds all."""


def of_stored(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder and paradigm of a feature set, from its manifest; plain values.

    The encoder of a fine-tuned set is the one that it was fine-tuned from, so that both are found
    under one name. A pair goes by its two encoders, as it has no vectors before it learnt: what
    it is compared with are theirs.
    """
    name = str(manifest.get("encoder", ""))
    origin = manifest.get("origin")
    if not isinstance(origin, Mapping):
        return {"encoder": name, "paradigm": "fixed"}
    tuned = origin.get("finetuned")
    if not isinstance(tuned, Mapping):
        return {"encoder": name, "paradigm": "pt"}
    base = tuned.get("base")
    if isinstance(base, Mapping) and base.get("kind") == "Pair":
        name = _of_pair(str(base.get("model", "")))  # what a set's settings do not tell
    else:
        name = _base_name(name, manifest)
    return {"encoder": name, "paradigm": "ft", "finetuned": told(tuned)}


def of_live(
    name: str, variant: str | None, tune: str, tuned: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Encoder and paradigm of one that a recipe names under `encoders:`; plain values.

    Args:
        name: as the recipe has it, for example "clip-vit-b16" or "hf:ID".
        variant: that the recipe asks for.
        tune: "none" where nothing of it learns.
        tuned: how its first weights were fine-tuned, where they were.
    """
    key, _, model = name.partition(":")
    if key == PAIR and tuned is not None and not model:
        called = _of_pair(str((tuned.get("base") or {}).get("model", "")))
    elif key == PAIR and model:
        called = _of_pair("+".join(names_of(model)))
    else:
        called = _joined(key, model, variant)
    paradigm = "ete" if tune != "none" else "pt" if tuned is None else "ft"
    began = {} if tuned is None else {"finetuned": told(tuned)}
    return {"encoder": called, "paradigm": paradigm, **began}


def told(tuned: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth telling of a fine-tuning: its base, its objective, how long, on what."""
    base, dataset = tuned.get("base"), tuned.get("dataset")
    return {
        "base": dict(base) if isinstance(base, Mapping) else {},
        "dataset": dict(dataset) if isinstance(dataset, Mapping) else {},
        **{key: tuned[key] for key in KEPT if key in tuned},
    }


def _joined(*parts: str | None) -> str:
    """Names as one, in the letters that names of sets have."""
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts if part)


def _of_pair(model: str) -> str:
    """TEXT+VISION as stored vectors of the two are called where a model is given both."""
    text, plus, vision = model.partition("+")
    return f"{_joined(*vision.split(':', 1))}+{_joined(*text.split(':', 1))}" if plus else PAIR


def _base_name(name: str, manifest: Mapping[str, Any]) -> str:
    """What the set would be called had its encoder not been fine-tuned."""
    settings = manifest.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    known = _kinds().get(str(settings.get("kind")))
    if known is None:
        return name.removesuffix(TUNED_SUFFIX)
    registered, usual = known
    encoder = settings.get("encoder")
    variant = encoder.get("variant") if isinstance(encoder, Mapping) else None
    return registered if variant in (None, usual) else f"{registered}-{variant}"


@cache
def _kinds() -> Mapping[str, tuple[str, str]]:
    """Registered name and first variant of each neural encoder, by the name of its class."""
    found = {}
    for name in ENCODERS.names():
        kind = ENCODERS.get(name).obj
        if issubclass(kind, NeuralEncoder):
            found[kind.__qualname__] = (name, kind.variants[0])
    return found
