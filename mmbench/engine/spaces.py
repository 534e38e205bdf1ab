"""Whether the vectors of two datasets lie in one space, column by column.

They do where one encoder with fixed weights made both: then the same text or picture has the same
vector in either. They do not where a set is fitted to its own items: TF-IDF and its singular
vectors, whitening, principal axes. Of imported matrices nobody knows, and the user has to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmbench.data.features import read_feature_manifest
from mmbench.encoders.base import ENCODERS
from mmbench.engine.inputs import Inputs
from mmbench.errors import ConfigError, DataError

Manifest = Mapping[str, Any]
FITTED: Literal["fitted"] = "fitted"
_CURE = "extract both datasets with one encoder of fixed weights, or leave the modality out"


def check_spaces(facts: Manifest, inputs: Inputs, said_same: Sequence[str] = ()) -> None:
    """Check that what a model reads means the same as in the run whose weights it starts from.

    Args:
        facts: of that run; its dataset is looked for beside the new one.
        inputs: of the new run.
        said_same: modalities of which the user says it, where nothing shows it.

    Raises:
        ConfigError: it does not, or they share no modality.
        DataError: what shows it is missing.
    """
    name = str(facts["dataset"]["name"])
    stored = {str(f["modality"]): f for f in facts.get("features") or []}
    live = {str(f["modality"]): f for f in facts.get("encoders") or []}
    check_shared(name, [*stored, *live], inputs.dataset.name, inputs.modalities)
    for ours in inputs.stored:
        where = f"{ours.modality} of {name} and of {inputs.dataset.name}"
        if ours.modality in live:
            raise ConfigError(
                f"{where}: an encoder that learns there, the stored set {ours.key} here; take the "
                "same in both"
            )
        if (
            ours.modality not in stored
            or stored[ours.modality]["sha256"] == ours.manifest["sha256"]
        ):
            continue
        key = str(stored[ours.modality]["key"])
        root = inputs.dataset.root.with_name(name)
        check_space(where, root, key, inputs.dataset.root, ours.key, said_same)
    for source in inputs.live:
        where = f"{source.modality} of {name} and of {inputs.dataset.name}"
        if source.modality in stored:
            raise ConfigError(
                f"{where}: the stored set {stored[source.modality]['key']} there, an encoder that "
                "learns here; take the same in both"
            )
        theirs, own = live.get(source.modality), source.facts()
        fixed = ("encoder", "weights_sha256", "settings_sha256")
        if theirs is not None and any(theirs.get(key) != own[key] for key in fixed):
            raise ConfigError(
                f"{where}: the encoders differ ({theirs.get('encoder')} and {own['encoder']}, or "
                "their weights or settings); take the same in both"
            )


def check_shared(name: str, theirs: Sequence[str], other: str, ours: Sequence[str]) -> None:
    """Refuse two datasets of which a model reads no modality in common.

    Raises:
        ConfigError: there is none.
    """
    if ours and not set(ours) & set(theirs):
        raise ConfigError(
            f"{name} and {other} share no modality: the model reads "
            f"{', '.join(theirs) or 'none'} of {name} and {', '.join(ours)} of {other}, so "
            "nothing that it learns of content there holds here; give both a set of one modality"
        )


def check_space(
    where: str, root: Path, key: str, own_root: Path, own_key: str, said_same: Sequence[str] = ()
) -> None:
    """Check two stored sets of one modality.

    Args:
        where: begins messages.
        root: folder of the one dataset.
        key: of its set.
        own_root: folder of the other dataset.
        own_key: of its set.
        said_same: modalities of which the user says that they are of one space.

    Raises:
        ConfigError: they do not lie in one space, or nothing shows that they do.
        DataError: a manifest is missing.
    """
    theirs, ours = _manifest(root, key), _manifest(own_root, own_key)
    for manifest, place in ((theirs, root), (ours, own_root)):
        if _space(place, manifest) == FITTED:
            raise ConfigError(
                f"{where}: {manifest['encoder']} is fitted to the items of {place.name}, so its "
                f"columns mean something else in every dataset; {_CURE}"
            )
    widths = [_widths(manifest) for manifest in (theirs, ours)]
    if widths[0] != widths[1]:
        raise ConfigError(
            f"{where}: {key} has {widths[0]} columns there, {own_key} {widths[1]} here; {_CURE}"
        )
    one, two = _space(root, theirs), _space(own_root, ours)
    if one is None or two is None:
        modality = str(ours["modality"])
        if modality in said_same:
            return
        unknown = key if one is None else own_key
        raise ConfigError(
            f"{where}: nothing shows what made {unknown}, an imported or renamed set; if one "
            f"encoder made both, say so with --same-space {modality} (in a recipe "
            f"training.start_from.same_space: [{modality}])"
        )
    if one != two:
        raise ConfigError(
            f"{where}: {key} and {own_key} were made by different encoders, weights or settings "
            f"({_difference(one, two)}); {_CURE}"
        )


def _space(root: Path, manifest: Manifest) -> Any:
    """What determines the space of a set: plain values, "fitted", or None where it is unknown."""
    settings = manifest.get("settings") or {}
    steps = settings.get("steps")
    if isinstance(steps, list):
        if any(step.get("step") == "whiten" or step.get("kind") == "pca" for step in steps):
            return FITTED
        source = read_feature_manifest(root, str(settings.get("source")))
        inner = None if source is None else _space(root, source)
        return inner if inner in (None, FITTED) else {"of": inner, "steps": steps}
    encoder = settings.get("encoder")
    if not isinstance(encoder, Mapping):
        return None
    if "weights_sha256" in encoder:
        return dict(encoder)
    # Without weights: one of the built-in encoders, if the set still has its name.
    name = str(manifest.get("encoder"))
    if name not in ENCODERS.names():
        return None
    return FITTED if ENCODERS.get(name).obj.fitted else {"name": name, **encoder}


def _widths(manifest: Manifest) -> str:
    tokens = manifest.get("tokens")
    wide = f" ({tokens['shape'][2]} of tokens)" if isinstance(tokens, Mapping) else ""
    return f"{manifest['shape'][1]}{wide}"


def _manifest(root: Path, key: str) -> Manifest:
    manifest = read_feature_manifest(root, key)
    if manifest is None:
        raise DataError(
            f"{root / 'features' / key} is needed, to see that its vectors are comparable, and "
            f"is not there; extract it, or name the right --data-dir"
        )
    return manifest


def _difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    shown = [f"{key}: {str(one.get(key))[:16]} and {str(two.get(key))[:16]}" for key in keys[:3]]
    return "; ".join(shown)
