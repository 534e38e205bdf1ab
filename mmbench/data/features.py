"""Feature sets on disk: one matrix of item features, from one encoder, for one dataset.

    <dataset>/features/<modality>__<encoder>/
        matrix.npy     float32 or float16 [n_items, dim], in item order
        mask.npy       bool [n_items], false where the item lacks the modality (its row is zero)
        tokens.npy, token_mask.npy   where token vectors were asked for: see `token_features`
        problems.jsonl the items without a row, and why, where the encoder told
        feature.json   encoder settings, hashes, the dataset's fingerprint; written last

The folder appears by one rename, so it is either whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from mmbench.data.token_features import JoinedRows, read_tokens, write_tokens
from mmbench.errors import ConfigError, DataError, UnknownNameError
from mmbench.modality import MODALITIES
from mmbench.runs import write_json

SCHEMA = 1
BLOCK_BYTES = 32 * 2**20
"""How much of a matrix is held in memory at a time while it is checked and written."""
IMAGE_RECORD = np.dtype([("item", "S10"), ("vector", "<f4", (4096,))])
"""One record of an `image_features_*.b` file: a product number and its vector, 16,394 bytes."""
_ENCODER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(_[A-Za-z0-9.-]+)*")


@dataclass(frozen=True)
class FeatureSet:
    """A feature set of a prepared dataset.

    Attributes:
        key: folder name, `<modality>__<encoder>`.
        modality: "visual", "textual", "acoustic" or "joint".
        encoder: what recipes write, for example "tfidf-svd".
        matrix: float32 or float16 [n_items, dim], memory-mapped, in item order; zero rows
            where `mask` is false.
        mask: which items truly have the modality, bool [n_items].
        manifest: encoder settings, sha256 of the matrix, dataset fingerprint.
        tokens: float16 [n_items, N, E], memory-mapped, zero where `token_mask` is false; None
            for a set of pooled vectors alone.
        token_mask: which tokens there are, bool [n_items, N], where `tokens` is given.
    """

    key: str
    modality: str
    encoder: str
    matrix: NDArray[Any]
    mask: NDArray[np.bool_]
    manifest: Mapping[str, Any]
    tokens: NDArray[np.float16] | None = None
    token_mask: NDArray[np.bool_] | None = None


def feature_key(modality: str, encoder: str) -> str:
    """Folder name of a feature set.

    Raises:
        UnknownNameError: there is no such modality.
        ConfigError: the encoder's name cannot be a folder's.
    """
    if modality not in MODALITIES:
        raise UnknownNameError("modality", modality, MODALITIES)
    if not _ENCODER_NAME.fullmatch(encoder):
        raise ConfigError(
            f"{encoder!r} cannot name a feature set; use letters, digits, dots and hyphens"
        )
    return f"{modality}__{encoder}"


def stored_keys(root: Path) -> list[str]:
    """Keys of the complete feature sets below the dataset folder `root`, sorted."""
    found = (file.parent.name for file in (root / "features").glob("*/feature.json"))
    return sorted(key for key in found if not key.startswith("."))


def read_feature_manifest(root: Path, key: str) -> dict[str, Any] | None:
    """The manifest of a stored feature set, None where there is no readable one."""
    try:
        manifest = json.loads((root / "features" / key / "feature.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def import_matrix(path: Path) -> NDArray[Any]:
    """Open the feature matrix in a .npy or .b file, memory-mapped where its type can stay.

    float16 and float32 are kept; float64 and integers become float32. Objects are refused and
    never unpickled, since that would run code from the file.

    Returns:
        float16 or float32 [rows, dim]; finite, where it is not a .b file.

    Raises:
        DataError: the file is missing, no .npy, damaged, or holds no finite numeric matrix.
    """
    matrix = _open_records(path) if path.suffix == ".b" else _open_array(path)
    _check_kind(matrix, str(path))
    _check_rank(matrix, str(path))
    narrow = matrix.dtype.newbyteorder("=") if matrix.dtype.itemsize <= 4 else np.dtype("f4")
    dtype = narrow if matrix.dtype.kind == "f" else np.dtype(np.float32)
    # Of the many records of a .b file few are wanted; those are checked when they are stored.
    for start, block in _blocks(matrix, dtype) if path.suffix != ".b" else ():
        _check_finite(matrix, start, block, str(path))
    return matrix if matrix.dtype == dtype else matrix.astype(dtype)


def _open_array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            magic = file.read(len(npy_format.MAGIC_PREFIX))
        if magic != npy_format.MAGIC_PREFIX:
            raise ValueError("it is empty" if not magic else "it does not start like a .npy file")
        matrix: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"E101 {path} not found; name a .npy file with one row per item") from None
    except (ValueError, EOFError, OSError) as problem:
        reason = str(problem)
        if "object" in reason.lower() or "pickle" in reason.lower():
            reason = "it holds Python objects, which are never unpickled"
        raise DataError(
            f"E118 {path}: {reason}; save a numeric matrix with numpy.save(..., allow_pickle=False)"
        ) from None
    return matrix


def _open_records(path: Path) -> NDArray[Any]:
    """The vectors of an image feature file of Amazon 2014, memory-mapped, [records, 4096]."""
    return open_image_records(path)["vector"]


def open_image_records(path: Path) -> NDArray[Any]:
    """The records of an image feature file of Amazon 2014: `item` (10 bytes) and `vector`.

    Raises:
        DataError: the file is missing or not a whole number of records long.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"E101 {path} cannot be read ({error.strerror})") from error
    if not size or size % IMAGE_RECORD.itemsize:
        raise DataError(
            f"E117 {path}: {size} bytes is not a multiple of {IMAGE_RECORD.itemsize}; truncated? "
            "Fetch it again"
        )
    return np.memmap(path, dtype=IMAGE_RECORD, mode="r")


def rows_with_content(matrix: NDArray[Any] | JoinedRows) -> NDArray[np.bool_]:
    """Which rows are not all zeros, bool [rows]; zeros stand for a missing modality."""
    if not len(matrix):
        return np.zeros(0, dtype=np.bool_)
    return np.concatenate([block.any(axis=1) for _, block in _blocks(matrix, matrix.dtype)])


def rows_in_item_order(
    matrix: NDArray[Any], ids: Sequence[str], items: Sequence[str], file: Path
) -> NDArray[Any]:
    """Rows brought into item order; items that are not named get zeros, other ids are left out.

    Args:
        matrix: [len(ids), dim].
        ids: item id of each row.
        items: item ids of the dataset, in order.
        file: what messages name.

    Raises:
        DataError: rows and ids differ in number, an id is listed twice, or none is an item.
    """
    if len(ids) != len(matrix):
        raise DataError(
            f"E251 {file}: {len(matrix)} rows, but {len(ids)} item ids were given for them; both "
            "must come from one run"
        )
    row_of = {name: row for row, name in enumerate(ids)}
    if len(row_of) < len(ids):
        twice = next(name for row, name in enumerate(ids) if row_of[name] != row)
        raise DataError(
            f"E261 {file}: item {twice!r} is listed more than once in its ids; keep one row of it"
        )
    rows = np.array([row_of.get(item, -1) for item in items])
    if (rows < 0).all():
        raise DataError(
            f"E251 {file}: none of its item ids is in the dataset, e.g. {ids[0]!r} against "
            f"{items[0]!r}; the matrix belongs to another dataset"
        )
    ordered = np.zeros((len(rows), matrix.shape[1]), dtype=matrix.dtype)
    ordered[rows >= 0] = matrix[rows[rows >= 0]]
    return ordered


def write_features(
    root: Path,
    fingerprint: str,
    modality: str,
    encoder: str,
    matrix: NDArray[Any] | JoinedRows,
    mask: NDArray[np.bool_],
    settings: Mapping[str, Any],
    *,
    tokens: tuple[NDArray[Any] | JoinedRows, NDArray[np.bool_] | JoinedRows] | None = None,
    origin: Mapping[str, Any] | None = None,
    problems: Sequence[Mapping[str, Any]] = (),
) -> FeatureSet:
    """Check a matrix and store it atomically below the dataset folder `root`.

    float16 and float32 are kept, other numbers become float32. Rows where `mask` is false are
    stored as zeros, whatever they held. A feature set of the same key is replaced. The
    dataset's `fingerprint` is stored, so that features never serve another dataset.

    Args:
        tokens: token vectors [n_items, N, E] and their mask [n_items, N].
        settings: everything that determines the result; `origin` tells what else there is to
            know of how it was made.
        problems: one record for each item without a row.

    Raises:
        DataError: NaN or infinity, a wrong number of rows, a row of zeros counted as present,
            or the folder cannot be written.
    """
    key = feature_key(modality, encoder)
    where = f"features {key}"
    matrix = matrix if isinstance(matrix, JoinedRows) else np.asanyarray(matrix)
    mask = np.asarray(mask)
    _check_kind(matrix, where)
    _check_rank(matrix, where)
    if mask.ndim != 1 or mask.dtype != np.bool_:
        raise DataError(f"E118 {where}: the mask is {mask.dtype} {list(mask.shape)}, not bool [n]")
    check_rows(len(matrix), len(mask), where)
    if not mask.any():
        raise DataError(f"E118 {where}: no item has this modality; there is nothing to store")

    folder = root / "features" / key
    partial = folder.with_name(f".{key}.partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "modality": modality,
            "encoder": encoder,
            "dataset": fingerprint,
            "present": int(mask.sum()),
            "settings": dict(settings),
            **_write_matrix(partial / "matrix.npy", matrix, mask, where),
            "mask_sha256": hashlib.sha256(mask.tobytes()).hexdigest(),
        }
        np.save(partial / "mask.npy", mask)
        if tokens is not None:
            manifest["tokens"] = write_tokens(partial, *tokens, mask, where)
        if origin is not None:
            manifest["origin"] = dict(origin)
        if problems:
            lines = (json.dumps(record, sort_keys=True) + "\n" for record in problems)
            (partial / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
        write_json(partial / "feature.json", manifest)
        _replace_folder(partial, folder)
    except OSError as problem:
        raise DataError(
            f"E108 {folder} cannot be written ({problem.strerror or problem}); "
            "free some disk space or choose a folder you may write to"
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_features(root, key, fingerprint, len(mask))


def load_features(root: Path, key: str, fingerprint: str, n_items: int) -> FeatureSet:
    """Open the feature set `key`, memory-mapped.

    The matrix is hashed once and compared with its manifest, as results cite that hash.

    Raises:
        DataError: it is missing, damaged, or belongs to another dataset.
    """
    folder = root / "features" / key
    if not (folder / "feature.json").exists():
        known = ", ".join(stored_keys(root)) or "none"
        raise DataError(
            f"E101 {root.name} has no feature set {key}; stored are: {known}. "
            f"Make it with: mmbench extract {root.name} --encoder {key.rpartition('__')[2]}"
        )
    manifest = read_feature_manifest(root, key)
    again = "delete that folder and extract or import the features again"
    if manifest is None:
        raise DataError(f"E302 {folder / 'feature.json'} cannot be read; {again}")
    if manifest.get("schema") != SCHEMA:
        raise DataError(
            f"E302 {folder} was written by another version of mmbench (schema "
            f"{manifest.get('schema')}, this version reads {SCHEMA}); {again}"
        )
    if manifest.get("dataset") != fingerprint:
        raise DataError(
            f"E251 {folder} belongs to another dataset or another preparation of it (fingerprint "
            f"{str(manifest.get('dataset'))[:12]}, this one is {fingerprint[:12]}); {again}"
        )
    try:
        matrix: NDArray[Any] = np.load(folder / "matrix.npy", mmap_mode="r", allow_pickle=False)
        mask = np.load(folder / "mask.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"E302 {folder} is damaged ({problem}); {again}") from None
    if matrix.ndim != 2 or mask.ndim != 1:
        raise DataError(f"E302 {folder} is damaged (its arrays have a wrong rank); {again}")
    check_rows(len(matrix), n_items, str(folder / "matrix.npy"))
    check_rows(len(mask), n_items, str(folder / "mask.npy"))
    digest = hashlib.sha256()
    for _, block in _blocks(matrix, matrix.dtype):
        digest.update(np.ascontiguousarray(block).data)
    hashes = digest.hexdigest(), hashlib.sha256(mask.tobytes()).hexdigest()
    if hashes != (manifest.get("sha256"), manifest.get("mask_sha256")):
        raise DataError(f"E302 {folder}: the arrays do not match their recorded hashes; {again}")
    modality, _, encoder = key.partition("__")
    if "tokens" not in manifest:
        return FeatureSet(key, modality, encoder, matrix, mask, manifest)
    tokens, token_mask = read_tokens(folder, manifest["tokens"], n_items, again)
    return FeatureSet(key, modality, encoder, matrix, mask, manifest, tokens, token_mask)


def check_rows(rows: int, n_items: int, where: str) -> None:
    """Refuse a matrix whose rows cannot be the dataset's items.

    Raises:
        DataError: the numbers differ.
    """
    if rows != n_items:
        raise DataError(
            f"E251 {where}: {rows} rows, dataset has {n_items} items; the matrix belongs to "
            "another item order or filter"
        )


def _check_kind(matrix: NDArray[Any] | JoinedRows, where: str) -> None:
    if matrix.dtype.kind not in "fiu":
        raise DataError(f"E118 {where}: it holds {matrix.dtype}, not numbers; store floats")


def _check_rank(matrix: NDArray[Any] | JoinedRows, where: str) -> None:
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise DataError(
            f"E118 {where}: its shape is {list(matrix.shape)}; a matrix [items, dim] is needed"
        )


def _check_finite(
    matrix: NDArray[Any] | JoinedRows, start: int, block: NDArray[Any], where: str
) -> None:
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        row = start + int(bad.argmax())
        wide = matrix.dtype.kind == "f" and np.isfinite(matrix[row]).all()
        what = "too large for float32" if wide else "NaN or infinity"
        raise DataError(
            f"E118 {where}: {what} in row {row}; a missing item is a row of zeros, mend the others"
        )


def _blocks(
    matrix: NDArray[Any] | JoinedRows, dtype: np.dtype[Any]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """First row and converted rows of consecutive blocks of bounded size."""
    rows = max(1, BLOCK_BYTES // max(1, matrix.shape[1] * matrix.dtype.itemsize))
    for start in range(0, len(matrix), rows):
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result
            yield start, np.asarray(matrix[start : start + rows]).astype(dtype, copy=False)


def _write_matrix(
    path: Path, matrix: NDArray[Any] | JoinedRows, mask: NDArray[np.bool_], where: str
) -> dict[str, Any]:
    """Stream a matrix into a .npy file, checking and hashing it on the way.

    Plain writes rather than a memory map: on a full disk a map kills the process, a write raises.
    """
    dtype = np.dtype("<f2" if matrix.dtype.kind == "f" and matrix.dtype.itemsize == 2 else "<f4")
    digest = hashlib.sha256()
    rows_seen: set[int] = set()
    with path.open("wb") as file:
        npy_format.write_array_header_1_0(
            file,
            {"descr": dtype.str, "fortran_order": False, "shape": matrix.shape},
        )
        for start, converted in _blocks(matrix, dtype):
            present = mask[start : start + len(converted)]
            block = np.where(present[:, None], converted, dtype.type(0))
            _check_finite(matrix, start, block, where)
            empty = present & ~block.any(axis=1)
            if empty.any():
                raise DataError(
                    f"E118 {where}: row {start + int(empty.argmax())} is all zeros but counted as "
                    "present; an item without the modality must be masked"
                )
            data = block.tobytes()
            digest.update(data)
            file.write(data)
            rows_seen.update(hash(row.tobytes()) for row in block[present])
        file.flush()
        os.fsync(file.fileno())
    return {
        "shape": list(matrix.shape),
        "dtype": dtype.name,
        "sha256": digest.hexdigest(),
        "repeated_rows": int(mask.sum()) - len(rows_seen),
    }


def _replace_folder(new: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one; readers see one of the two."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.replace(old)
    try:
        new.replace(folder)
    except OSError:
        if old.exists():
            old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
