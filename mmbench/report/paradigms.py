"""Encoder and paradigm of a run: pre-trained, fine-tuned, end to end, or none.

A run's manifest tells them. Runs of before it did name their feature sets, whose own manifests
tell the same where the prepared dataset is at hand; otherwise the paradigm stays open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.data.features import read_feature_manifest
from mmbench.errors import ConfigError, DataError
from mmbench.modality import MODALITIES
from mmbench.report.systems import resolved_recipe
from mmbench.runs import Run

NAMES = {
    "pt": "PT",
    "ft": "FT",
    "ete": "ETE",
    "table": "table",
    "fixed": "fixed",
    "ids": "IDs",
    "open": "?",
}
"""What tables call a paradigm; see `mmbench.encoders.paradigms`."""
LETTERS = {"visual": "V", "textual": "T", "acoustic": "A", "joint": "J"}


@dataclass(frozen=True)
class Encoding:
    """What a run reads its items' content with.

    Attributes:
        encoders: by modality, in the order of `MODALITIES`; empty for a run of IDs alone.
        paradigms: by modality likewise.
        rows_learn: whether the rows of stored vectors are weights of the model.
    """

    encoders: tuple[tuple[str, str], ...]
    paradigms: tuple[tuple[str, str], ...]
    rows_learn: bool = False

    @property
    def encoder(self) -> str:
        """One name, or several joined: that of each modality."""
        return "+".join(dict.fromkeys(name for _, name in self.encoders)) or "none"

    @property
    def paradigm(self) -> str:
        """Key of `NAMES`, or several joined where modalities differ."""
        return "+".join(dict.fromkeys(kind for _, kind in self.paradigms)) or "ids"

    @property
    def letters(self) -> str:
        """The modalities as a paper writes them, for example "V&T"."""
        return "&".join(LETTERS[modality] for modality, _ in self.encoders) or "IDs"

    @property
    def is_shared(self) -> bool:
        """Whether one encoder made all vectors; imported ones are of nobody knows how many."""
        return len({name for _, name in self.encoders}) == 1 and "fixed" not in self.paradigm


def name_of(paradigm: str) -> str:
    """A paradigm as tables call it, for example "PT" or "FT+PT"."""
    return "+".join(NAMES.get(part, part) for part in paradigm.split("+"))


def encoding_of(run: Run, data_dir: Path | None = None) -> Encoding:
    """Encoder and paradigm of a run.

    Args:
        run: a complete run.
        data_dir: where its dataset lies prepared, for a run whose manifest does not tell.

    Raises:
        DataError: the run's recipe is missing or broken.
    """
    records = run.manifest.get("encoding")
    if not isinstance(records, list):
        records = _found(run, data_dir)
    by_modality = {str(record.get("modality")): record for record in records}
    known = [modality for modality in MODALITIES if modality in by_modality]
    settings = resolved_recipe(run).get("model")
    rows_learn = isinstance(settings, Mapping) and settings.get("freeze_features") is False
    return Encoding(
        tuple((m, str(by_modality[m].get("encoder"))) for m in known),
        tuple((m, str(by_modality[m].get("paradigm", "open"))) for m in known),
        rows_learn and bool(run.manifest.get("features")),
    )


def _found(run: Run, data_dir: Path | None) -> list[dict[str, Any]]:
    """The records of a manifest of before it held them."""
    records = []
    for given in run.manifest.get("features") or ():
        modality, key = str(given.get("modality")), str(given.get("key"))
        record = {"modality": modality, "encoder": str(given.get("encoder")), "paradigm": "open"}
        stored = _stored(run, data_dir, key) if data_dir is not None else None
        if stored is not None and stored.get("sha256") == given.get("sha256"):
            from mmbench.encoders.paradigms import of_stored  # torch, which few runs need

            record |= of_stored(stored)
        records.append(record)
    recipe = resolved_recipe(run).get("encoders") if run.manifest.get("encoders") else None
    for given in run.manifest.get("encoders") or ():
        modality = str(given.get("modality"))
        how = recipe.get(modality) if isinstance(recipe, Mapping) else None
        learns = not isinstance(how, Mapping) or how.get("tune") != "none"
        records.append(
            {
                "modality": modality,
                "encoder": str(given.get("encoder")),
                "paradigm": "ete" if learns else "open",
            }
        )
    return records


def _stored(run: Run, data_dir: Path, key: str) -> Mapping[str, Any] | None:
    name = str((run.manifest.get("dataset") or {}).get("name"))
    try:
        return read_feature_manifest(data_dir / name, key)
    except (ConfigError, DataError, OSError):
        return None
