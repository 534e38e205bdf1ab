"""What makes a stored feature set the one that is wanted, and what stands in the way of another."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mmbench.data.features import FeatureSet, load_features, read_feature_manifest
from mmbench.data.prepared import PreparedDataset
from mmbench.errors import ConfigError

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "pillow", "numpy")
# Where these alone differ, a set is out of date: its contents or its source were made anew.
_CONTENTS = ("inputs_sha256", "source_sha256")


def is_same(dataset: PreparedDataset, key: str, settings: Mapping[str, Any]) -> bool:
    """Whether the stored set `key` was made with these settings, of this dataset."""
    stored = read_feature_manifest(dataset.root, key) or {}
    return stored.get("dataset") == dataset.fingerprint and stored.get("settings") == settings


def refuse_other(dataset: PreparedDataset, key: str, settings: Mapping[str, Any]) -> None:
    """Refuse to overwrite a set that was made otherwise; one of older contents is made anew.

    Raises:
        ConfigError: it was.
    """
    stored = read_feature_manifest(dataset.root, key)
    if stored is None:
        return
    there = stored.get("settings", {})
    differing = [
        f"{name}: {_short(old)} there, {_short(new)} now"
        for name, old, new in _differences(there, settings)
        if name not in _CONTENTS
    ]
    if not differing:
        return
    listed = "; ".join(differing[:4]) + ("; ..." if len(differing) > 4 else "")
    raise ConfigError(
        f"E411 {dataset.name} has a feature set {key} that was made otherwise ({listed}). Call the "
        "new one by another name with --name, or replace it with --force"
    )


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append((f"{prefix}{name}", before, after))
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def load_stored(dataset: PreparedDataset, key: str) -> FeatureSet:
    """The stored set `key`."""
    return load_features(dataset.root, key, dataset.fingerprint, dataset.n_items)


def versions() -> dict[str, str]:
    """Versions of what computes a vector; those of packages that are not here are left out."""
    found = {name: package_version(name) for name in _PACKAGES}
    python = {"python": platform.python_version(), "mmbench": package_version("mmbench")}
    return {**python, **{name: text for name, text in found.items() if text}}


def package_version(package: str) -> str:
    """Version of an installed package, "" where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
