"""Feature sets made of stored ones: whitening, projection, rows of length 1.

    mu, C       mean [D] and covariance [D, D] (divided by n - 1) of the n rows that are present
    C           = U diag(l) U^T, l descending; the sign of each column of U makes its entry of
                largest magnitude positive, so that the result is the same everywhere
    PCA         (x - mu) U_d diag(l_d + e)^-1/2                      the first d columns
    ZCA         (x - mu) U diag(l + e)^-1/2 U^T                      as near to x as can be
    projection  (x - mu) U_d, or x R with R ~ N(0, 1/d) [D, d]

Kessy, Lewin and Strimmer, The American Statistician 2018 (PCA and ZCA whitening); Su et al.,
https://arxiv.org/abs/2103.15316 (of sentence vectors). Everything is fitted and computed in
float64. Directions without variance (l < 1e-10 l_1) are left out: fewer columns under PCA, no
variance under ZCA. Items without the modality take no part, and stay without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench import seeding
from mmbench.data.features import feature_key, load_features, write_features
from mmbench.data.prepared import load_dataset
from mmbench.engine.extraction import Extraction
from mmbench.engine.identity import is_same, load_stored, refuse_other
from mmbench.errors import ConfigError, DataError

EPSILON = 1e-12  # e, times the largest eigenvalue
NO_VARIANCE = 1e-10
SEED = 0
BLOCK = 4096
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """What is done, in this order: projection, whitening, length 1.

    Attributes:
        whiten: "zca" or "pca".
        project: "pca" or "random".
        dim: columns of the projection, or of PCA whitening.
        l2: whether rows are scaled to length 1.
    """

    whiten: str | None = None
    project: str | None = None
    dim: int | None = None
    l2: bool = False

    def __post_init__(self) -> None:
        if not (self.whiten or self.project or self.l2):
            raise ConfigError("no step is named; take --whiten, --project or --l2")
        if self.project is not None and self.dim is None:
            raise ConfigError("--project needs --dim, the number of columns")
        if self.dim is not None and self.project is None and self.whiten != "pca":
            raise ConfigError(
                "--dim goes with --project or --whiten pca; ZCA whitening keeps all columns"
            )

    @property
    def suffix(self) -> str:
        """What the new set is called after the old one's name."""
        parts = [f"{self.project}{self.dim}"] if self.project else []
        if self.whiten:
            width = self.dim if self.dim is not None and not self.project else ""
            parts.append(f"{self.whiten}{'white' if self.whiten == 'pca' else ''}{width}")
        return "-".join([*parts, *(["l2"] if self.l2 else [])])


def post_process(
    name: str,
    source: str,
    steps: Steps,
    data_dir: Path,
    new_name: str | None = None,
    *,
    force: bool = False,
) -> Extraction:
    """Make a feature set of the stored one `source` of the dataset `name`.

    Raises:
        DataError: there is no such set, or its rows have too little variance.
        ConfigError: more columns are asked for than there are, or another set has the name.
    """
    dataset = load_dataset(name, data_dir)
    stored = load_features(dataset.root, source, dataset.fingerprint, dataset.n_items)
    made = new_name or f"{stored.encoder}-{steps.suffix}"
    key = feature_key(stored.modality, made)
    if key == source:
        raise ConfigError(f"the new set cannot be called like its source, {made}; see --name")
    done = _described(steps)
    settings = {
        "source": source,
        "source_sha256": stored.manifest["sha256"],
        "source_mask_sha256": stored.manifest["mask_sha256"],
        "steps": done,
    }
    if not force:
        if is_same(dataset, key, settings):
            return Extraction(load_stored(dataset, key), is_new=False)
        refuse_other(dataset, key, settings)
    matrix = transformed(stored.matrix, stored.mask, steps, key)
    written = write_features(
        dataset.root, dataset.fingerprint, stored.modality, made, matrix, stored.mask, settings
    )
    return Extraction(written, is_new=True)


def transformed(
    matrix: NDArray[Any], mask: NDArray[np.bool_], steps: Steps, where: str
) -> NDArray[np.float32]:
    """Rows after all steps, float32 [n, d]; zero where `mask` is false.

    Raises:
        DataError, ConfigError: as `post_process`.
    """
    rows = np.flatnonzero(mask)
    maps: list[Callable[[Matrix], Matrix]] = []

    def mapped(block: NDArray[np.int64]) -> Matrix:
        values: Matrix = np.asarray(matrix[block], dtype=np.float64)
        for step in maps:
            values = step(values)
        return values

    if steps.project is not None:
        assert steps.dim is not None
        maps.append(_projection(rows, mapped, matrix.shape[1], steps, where))
    if steps.whiten is not None:
        dim = None if steps.project is not None else steps.dim
        maps.append(_whitening(rows, mapped, steps.whiten, dim, where))
    if steps.l2:
        maps.append(_scaled)
    width = mapped(rows[:1]).shape[1]
    result = np.zeros((len(matrix), width), dtype=np.float32)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        result[block] = mapped(block)
    return result


def _projection(
    rows: NDArray[np.int64],
    values: Callable[[NDArray[np.int64]], Matrix],
    width: int,
    steps: Steps,
    where: str,
) -> Callable[[Matrix], Matrix]:
    dim = steps.dim or width
    if dim > width:
        raise ConfigError(f"{where}: --dim {dim} is more than the {width} columns there are")
    if steps.project == "random":
        rng = seeding.stream(SEED, "project", str(width), str(dim))
        drawn: Matrix = rng.standard_normal((width, dim)) / np.sqrt(dim)
        return lambda x: x @ drawn
    mean, _, vectors = _spectrum(rows, values, where)
    _check_dim(dim, vectors.shape[1], where)
    kept = vectors[:, :dim]
    return lambda x: (x - mean) @ kept


def _whitening(
    rows: NDArray[np.int64],
    values: Callable[[NDArray[np.int64]], Matrix],
    kind: str,
    dim: int | None,
    where: str,
) -> Callable[[Matrix], Matrix]:
    mean, variances, vectors = _spectrum(rows, values, where)
    scaled: Matrix = vectors / np.sqrt(variances + EPSILON * variances[0])
    if kind == "zca":
        whole: Matrix = scaled @ vectors.T
        return lambda x: (x - mean) @ whole
    if dim is not None:
        _check_dim(dim, vectors.shape[1], where)
    kept = scaled[:, :dim]
    return lambda x: (x - mean) @ kept


def _spectrum(
    rows: NDArray[np.int64], values: Callable[[NDArray[np.int64]], Matrix], where: str
) -> tuple[Matrix, Matrix, Matrix]:
    """Mean [D], the r variances that are not zero, descending, and their directions [D, r]."""
    if len(rows) < 2:
        raise DataError(f"{where}: {len(rows)} items have a row; at least two are needed")
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    mean: Matrix = np.sum([values(block).sum(axis=0) for block in blocks], axis=0) / len(rows)
    covariance: Matrix = np.zeros((len(mean), len(mean)))
    for block in blocks:
        centred = values(block) - mean
        covariance += centred.T @ centred
    variances, vectors = np.linalg.eigh(covariance / (len(rows) - 1))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    kept = variances > NO_VARIANCE * max(variances[0], 0.0)
    if not variances[0] > 0:
        raise DataError(f"{where}: all rows of the source are alike, so nothing can be whitened")
    variances, vectors = variances[kept], vectors[:, kept]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return mean, variances, vectors * signs


def _check_dim(dim: int, rank: int, where: str) -> None:
    if dim > rank:
        raise ConfigError(
            f"{where}: --dim {dim} is more than the {rank} directions in which the rows differ"
        )


def _scaled(x: Matrix) -> Matrix:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    scaled: Matrix = x / np.where(lengths > 0, lengths, 1.0)
    return scaled


def _described(steps: Steps) -> list[dict[str, Any]]:
    """The steps with their constants, for the manifest."""
    done: list[dict[str, Any]] = []
    if steps.project is not None:
        step: dict[str, Any] = {"step": "project", "kind": steps.project, "dim": steps.dim}
        done.append({**step, "seed": SEED} if steps.project == "random" else step)
    if steps.whiten is not None:
        whiten: dict[str, Any] = {"step": "whiten", "kind": steps.whiten, "epsilon": EPSILON}
        if steps.project is None and steps.dim is not None:
            whiten["dim"] = steps.dim
        done.append({**whiten, "no_variance": NO_VARIANCE})
    if steps.l2:
        done.append({"step": "l2"})
    return done
