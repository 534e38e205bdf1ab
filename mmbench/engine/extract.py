"""Extraction: an encoder reads a dataset's texts or pictures, and a feature set is stored.

What was already made from the same inputs with the same settings is not made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench import seeding
from mmbench.data.features import (
    FeatureSet,
    check_rows,
    feature_key,
    import_matrix,
    load_features,
    read_feature_manifest,
    rows_in_item_order,
    rows_with_content,
    write_features,
)
from mmbench.data.hashing import sha256_file
from mmbench.data.prepared import PreparedDataset, load_dataset
from mmbench.encoders.base import ENCODERS, CorpusEncoder
from mmbench.encoders.neural import NeuralEncoder, Options
from mmbench.engine.contents import TextTemplate, compose_texts
from mmbench.engine.extraction import Extraction, How, extract_neural
from mmbench.engine.ranks import joined_ranks
from mmbench.errors import ConfigError, DataError

SEED = 0
"""Seed of every encoder, so that two extractions of a dataset agree."""


def extract(name: str, encoder: str, data_dir: Path, *, force: bool = False) -> FeatureSet:
    """Encode the texts or pictures of the prepared dataset `name`; see `extract_once`."""
    return extract_once(name, encoder, data_dir, force=force).features


def extract_once(name: str, encoder: str, data_dir: Path, *, force: bool = False) -> Extraction:
    """Encode a dataset's texts or pictures, unless that was done with the same inputs.

    Items without content, and those in whose content the encoder finds nothing, are masked.

    Raises:
        UnknownNameError: there is no such encoder or dataset.
        DataError: no item has the modality, or a picture is broken or changed.
    """
    return extract_sets(name, encoder, data_dir, How(force=force))[0]


def extract_sets(name: str, encoder: str, data_dir: Path, how: How) -> list[Extraction]:
    """Make all feature sets of an encoder that are not there yet.

    Args:
        encoder: a registered name, or "timm:ID" and "hf:ID" for any model.

    Raises:
        UnknownNameError: there is no such encoder or dataset.
        ConfigError: the encoder does not take an option, or a stored set was made otherwise.
        DataError: no item has the modality, a picture is broken or changed, or the weights are
            not here.
    """
    key, _, model = encoder.partition(":")
    entry = ENCODERS.get(key)
    dataset = load_dataset(name, data_dir)
    if issubclass(entry.obj, NeuralEncoder):
        options = replace(how.options, model=model) if model else how.options
        return extract_neural(
            dataset, how.name or set_name(entry.name, options), entry.obj(options), how
        )
    made = entry.obj()
    assert isinstance(made, CorpusEncoder)
    if how.options != Options() or model:
        raise ConfigError(
            f"{entry.name} has no weights and takes none of the options of models; leave them out"
        )
    with joined_ranks() as ranks:
        found = ranks.together(lambda: _extract(dataset, entry.name, made, how), first_only=True)
        return [found or _extract(dataset, entry.name, made, replace(how, force=False))]


def set_name(encoder: str, options: Options) -> str:
    """What the sets of an encoder are called: after it, its model and a variant asked for."""
    model = options.model
    if model and Path(model).is_dir():
        model = Path(model).resolve().name
    parts = [encoder, model, options.variant]
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts if part)
    return re.sub(r"_{2,}", "_", name).strip("_")


def extract_builtin(name: str, data_dir: Path, *, force: bool = False) -> list[FeatureSet]:
    """Run every encoder that needs no download and whose modality the dataset has."""
    return [found.features for found in extract_builtin_once(name, data_dir, force=force)]


def extract_builtin_once(name: str, data_dir: Path, *, force: bool = False) -> list[Extraction]:
    """Like `extract_builtin`, telling which feature sets are new.

    Raises:
        DataError: the dataset has neither texts nor pictures, or a picture is broken.
    """
    dataset = load_dataset(name, data_dir)
    fitting = {
        key: encoder
        for key, encoder in _builtin().items()
        if _content(dataset, encoder.modalities[0])[0]
    }
    if not fitting:
        raise DataError(
            f"{name} has neither texts nor pictures, so there is nothing to encode; import a "
            "matrix with --from-file, or prepare it with an item table"
        )
    return [_extract(dataset, key, made, How(force=force)) for key, made in fitting.items()]


def _builtin() -> dict[str, CorpusEncoder]:
    known = {key: ENCODERS.get(key).obj for key in ENCODERS.names()}
    return {key: found() for key, found in known.items() if issubclass(found, CorpusEncoder)}


def import_features(
    name: str,
    file: Path,
    modality: str,
    encoder: str | None,
    data_dir: Path,
    *,
    ids: Path | None = None,
    force: bool = False,
) -> FeatureSet:
    """Store the matrix in a .npy file as a feature set; rows of zeros count as missing.

    Row k is item index k, unless `ids` names a text file with the raw item id of each row. The
    set is called `encoder`, by default like the file.

    Raises:
        DataError: the matrix is unusable or does not fit the items.
        ConfigError: another feature set of that name is stored already and `force` is not set.
    """
    encoder = encoder or re.sub(r"[^A-Za-z0-9.]+", "-", file.stem).strip("-.") or "imported"
    key = feature_key(modality, encoder)
    dataset = load_dataset(name, data_dir)
    matrix = import_matrix(file)
    settings: dict[str, Any] = {"file": file.name, "file_sha256": sha256_file(file)}
    if ids is None:
        check_rows(
            len(matrix),
            dataset.n_items,
            f"{file} (if its rows have another order, name their item ids with --ids)",
        )
    else:
        matrix = _in_item_order(matrix, ids, dataset, file)
        settings["ids_sha256"] = sha256_file(ids)
    stored = read_feature_manifest(dataset.root, key)
    if stored is not None and stored.get("settings") != settings and not force:
        raise ConfigError(
            f"{name} already has a feature set {key} of another origin; choose another name "
            "with --name, or replace it with --force"
        )
    mask = rows_with_content(matrix)
    return write_features(
        dataset.root, dataset.fingerprint, modality, encoder, matrix, mask, settings
    )


def _extract(
    dataset: PreparedDataset, encoder_name: str, encoder: CorpusEncoder, how: How
) -> Extraction:
    modality, name, force = encoder.modalities[0], how.name or encoder_name, how.force
    key = feature_key(modality, name)
    contents, inputs = _content(dataset, modality, how.texts)
    settings = {"encoder": dict(encoder.settings), "inputs_sha256": inputs, "seed": SEED}
    stored = read_feature_manifest(dataset.root, key)
    if stored is not None and not force:
        same = stored.get("settings") == json.loads(json.dumps(settings))
        if same and stored.get("dataset") == dataset.fingerprint:
            found = load_features(dataset.root, key, dataset.fingerprint, dataset.n_items)
            return Extraction(found, is_new=False)
    if not contents:
        what = "text" if modality == "textual" else "picture"
        raise DataError(
            f"no item of {dataset.name} has a {what}, so {name} has nothing to encode; prepare "
            "it with an item table that names them"
        )
    rows = np.fromiter(contents, dtype=np.int64, count=len(contents))
    if modality == "textual":
        seed = seeding.integer(SEED, "extract", encoder_name)
        encoded = encoder.encode_texts([str(text) for text in contents.values()], seed)
    else:
        paths = {row: path for row, path in contents.items() if isinstance(path, Path)}
        _refuse_changed(dataset, paths)
        encoded = encoder.encode_images(list(paths.values()))
    matrix: NDArray[Any] = np.zeros((dataset.n_items, encoded.shape[1]), dtype=encoded.dtype)
    matrix[rows] = encoded
    made = write_features(
        dataset.root,
        dataset.fingerprint,
        modality,
        name,
        matrix,
        rows_with_content(matrix),
        settings,
    )
    return Extraction(made, is_new=True)


def _content(
    dataset: PreparedDataset, modality: str, template: TextTemplate | None = None
) -> tuple[Mapping[int, str | Path], str]:
    """Text or picture of each item that has one, and a hash of them all."""
    found: dict[int, str | Path] = {}
    known: list[str | None]
    if modality == "textual":
        texts = compose_texts(dataset, template)[0] if template is not None else dataset.texts
        known = list(texts)
        found = {item: text for item, text in enumerate(texts) if text}
    elif modality == "visual":
        found = {item: path for item, path in enumerate(dataset.image_paths) if path is not None}
        items = dataset.items
        known = [items[k]["image_sha256"] if k in found else None for k in range(len(items))]
    else:
        raise ConfigError(f"datasets hold no raw {modality} content; import a matrix instead")
    return found, hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _refuse_changed(dataset: PreparedDataset, paths: Mapping[int, Path]) -> None:
    """Pictures stay where they were when the dataset was prepared, so they may have changed."""
    try:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            hashes = list(pool.map(sha256_file, paths.values()))
    except OSError as problem:
        raise DataError(
            f"picture {problem.filename} cannot be read ({problem.strerror}); put it back, or "
            f"prepare {dataset.name} again with --force"
        ) from problem
    recorded = dataset.items
    changed = [
        path
        for (item, path), found in zip(paths.items(), hashes, strict=True)
        if found != recorded[item]["image_sha256"]
    ]
    if changed:
        listed = ", ".join(str(path) for path in changed[:5])
        raise DataError(
            f"E105 {len(changed)} pictures changed since {dataset.name} was prepared: {listed}; "
            "put them back, or prepare it again with --force"
        )


def _in_item_order(
    matrix: NDArray[Any], ids: Path, dataset: PreparedDataset, file: Path
) -> NDArray[Any]:
    """Rows sorted by item index; items that are not named get zeros, unknown ids are left out."""
    try:
        names = ids.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as problem:
        raise DataError(f"{ids} cannot be read ({problem}); one item id per line") from None
    names = [name.strip() for name in (names[:-1] if names[-1] == "" else names)]
    return rows_in_item_order(matrix, names, dataset.item_ids, file)
