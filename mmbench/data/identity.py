"""What a prepared dataset was made of and with: settings in force, and the files by hash.

Two preparations are the same when both agree; then the existing folder is up to date.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.content import ItemContent
from mmbench.data.finding import Found
from mmbench.data.hashing import sha256_file
from mmbench.data.prepared import read_manifest
from mmbench.data.source import RawDataset
from mmbench.data.store import sha256_ids
from mmbench.errors import ConfigError, DataError, did_you_mean

_GENERATORS = Path(__file__).with_name("sources")


def effective_config(found: Found, given: PrepareConfig, raw: RawDataset) -> PrepareConfig:
    """The settings in force: explicit ones over the source's own over the general defaults."""
    explicit = given.model_dump(include=given.model_fields_set)
    labelled = raw.interactions["split"].null_count() < raw.interactions.height
    fixed: dict[str, Any] = {}
    if raw.positional or labelled:
        why = "has item indices of its own" if raw.positional else "brings its own split"
        for key in ("user_min", "item_min"):
            if explicit.get(key, 0) > 1:
                raise ConfigError(
                    f"E274 {key}={explicit[key]} must be 0: {found.origin} {why}, which a core "
                    "would tear apart; filter the raw data, or leave the option out"
                )
            fixed[key] = 0
        if raw.positional and explicit.get("sample_users") is not None:
            raise ConfigError(
                f"E274 sample_users must be left out: {found.origin} has indices of its own"
            )
    try:
        return PrepareConfig.model_validate({**found.source.defaults, **explicit, **fixed})
    except ValidationError as error:
        raise ConfigError(f"E274 {error}") from error


def parse_config(settings: Mapping[str, Any]) -> PrepareConfig:
    """Check settings by name, as the command line collects them.

    Raises:
        ConfigError: a name or a value is not allowed; every problem is told.
    """
    try:
        return PrepareConfig.model_validate(dict(settings))
    except ValidationError as error:
        told = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            near = did_you_mean(key, PrepareConfig.model_fields)
            hint = near if problem["type"] == "extra_forbidden" else ""
            told.append(f"{key}={problem['input']!r}: {problem['msg']}{hint}")
        raise ConfigError("E274 " + "; ".join(told)) from error


def source_identity(found: Found, raw: RawDataset, content: ItemContent) -> dict[str, Any]:
    """The `source` of a manifest: which files, by hash, the dataset was made from."""
    files = [*raw.files]
    if found.folder is None:
        # A generated dataset is a function of its generator's code.
        files = sorted(_GENERATORS.glob(f"{found.format.replace('-', '_')}*.py"))
    base = found.folder or _GENERATORS
    pictures = content.signature() if found.folder is not None else []
    return {
        "format": found.format,
        "generated": found.folder is None,
        "dataset": found.card.name if found.card is not None else None,
        "licence_note": (found.card.terms if found.card is not None else "") or found.source.terms,
        "citation": (found.card.citation if found.card is not None else "")
        or found.source.citation,
        "files": [
            {
                # Features may lie beside the folder that was given.
                "path": Path(os.path.relpath(path, base)).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
            for path in files
        ],
        "pictures": {
            "files": len(pictures),
            "sha256": sha256_ids([f"{path} {size}" for path, size in pictures]),
        },
    }


def refuse_explicit_changes(root: Path, given: PrepareConfig) -> None:
    """Refuse settings that differ from those an existing dataset was prepared with."""
    manifest = read_manifest(root)
    explicit = given.model_dump(mode="json", include=given.model_fields_set)
    stored = manifest["config"]
    differing = [
        f"{key} {_show(stored.get(key))} -> {_show(value)}"
        for key, value in explicit.items()
        if stored.get(key) != value
    ]
    if manifest["source"]["generated"]:
        for file in manifest["source"]["files"]:
            path = _GENERATORS / file["path"]
            if not path.is_file() or sha256_file(path) != file["sha256"]:
                differing.append(f"the generator {file['path']} has changed")
    _refuse(root, differing)


def refuse_changes(root: Path, config: PrepareConfig, identity: Mapping[str, Any]) -> None:
    """Refuse when an existing dataset has other settings or was made from other files."""
    manifest = read_manifest(root)
    stored, new = manifest["config"], config.model_dump(mode="json")
    differing = [
        f"{key} {_show(stored.get(key))} -> {_show(new.get(key))}"
        for key in sorted({*stored, *new})
        if stored.get(key) != new.get(key)
    ]
    source = manifest["source"]
    if source["format"] != identity["format"]:
        differing.append(f"format {source['format']} -> {identity['format']}")
    old = {file["path"]: file["sha256"] for file in source["files"]}
    now = {file["path"]: file["sha256"] for file in identity["files"]}
    for path in sorted({*old, *now}):
        if old.get(path) != now.get(path):
            change = (
                "is new" if path not in old else "is gone" if path not in now else "has changed"
            )
            differing.append(f"{path} {change}")
    if source["pictures"] != identity["pictures"]:
        differing.append("the pictures have changed")
    _refuse(root, differing)


def _refuse(root: Path, differing: list[str]) -> None:
    if differing:
        raise DataError(
            f"E301 {root} was prepared with different settings ({'; '.join(differing)}); choose "
            "another name or pass --force"
        )


def _show(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
