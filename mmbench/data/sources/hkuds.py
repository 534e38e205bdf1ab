"""MMSSL and DiffMM: a split of indices as JSON or pickled matrices, and features.

{train,val,test}.json   MMSSL: "user index" -> list of item indices
train_mat               MMSSL: the training part once more, a pickled SciPy matrix
{trn,val,tst}Mat.pkl    DiffMM: each part as a pickled SciPy matrix, users x items
*_feat.npy              row k belongs to item k; DiffMM packs Baby's as image_feat.npy.zip

Where JSON and pickles are both there, JSON is read. No pickle is ever executed, see
`mmbench.data.unpickling`.

DiffMM's validation and test parts of Baby are those of MMRec's Baby exchanged: LATTICE, where they
come from, gives the odd held-out row to validation, MMRec to test. Results on the two are not
results on the same test set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.positional import (
    PARTS,
    Pairs,
    beginning,
    find_features,
    has_json_parts,
    is_core_folder,
    labelled,
    numbered,
    read_json_lists,
)
from mmbench.data.unpickling import read_sparse
from mmbench.errors import DataError

_PICKLES = ("trnMat.pkl", "valMat.pkl", "tstMat.pkl")
_BABY = ((19_445, 7_050), (118_551, 21_682, 20_559))


@register_dataset("hkuds")
class HKUDSFolder(Source):
    """Any dataset in the layout of MMSSL or DiffMM; indices and labels are taken as they are."""

    title = "a folder of MMSSL (train.json, ...) or DiffMM (trnMat.pkl, ...)"
    layout = True
    expects = "train.json, val.json, test.json, or trnMat.pkl, valMat.pkl, tstMat.pkl; *_feat.npy"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether the three pickles are there, or the three JSON files and no list of LATTICE's."""
        if all(beginning(folder / name).startswith(b"\x80") for name in _PICKLES):
            return True
        return has_json_parts(folder) and not is_core_folder(folder)

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        files: list[Path] = []
        warnings: list[str] = []
        shape: tuple[int, int] | None
        is_json = [(source / f"{part}.json").is_file() for part in PARTS]
        is_pickle = [(source / name).is_file() for name in _PICKLES]
        if all(is_json) or sum(is_json) > sum(is_pickle):
            layout = "MMSSL: train.json, val.json, test.json"
            parts = [read_json_lists(source / f"{part}.json") for part in PARTS]
            files += [source / f"{part}.json" for part in PARTS]
            shape = _read_shape(source / "train_mat", parts, files, warnings)
        else:
            layout = f"DiffMM: {', '.join(_PICKLES)}"
            shape, parts = _read_matrices(source)
            files += [source / name for name in _PICKLES]
        facts: dict[str, object] = {"source_layout": layout}
        if (shape, tuple(part[0].size for part in parts)) == _BABY:
            facts["validation_and_test"] = "exchanged against MMRec's Baby"
        interactions = labelled(parts, source)
        features = find_features(source, scratch, files)
        return RawDataset(
            interactions=interactions,
            positional=True,
            features=features,
            files=tuple(files),
            facts=facts,
            item_ids=numbered(shape[1], interactions["item"], features) if shape else None,
            warnings=warnings,
        )


def _read_matrices(source: Path) -> tuple[tuple[int, int], list[Pairs]]:
    matrices = [read_sparse(source / name) for name in _PICKLES]
    for name, matrix in zip(_PICKLES, matrices, strict=True):
        if matrix.shape != matrices[0].shape:
            shapes = "{} x {}, {} x {}".format(*matrices[0].shape, *matrix.shape)
            raise DataError(
                f"E213 {source}: {_PICKLES[0]} and {name} differ in shape ({shapes}); they belong "
                "to different copies of the dataset"
            )
    return matrices[0].shape, [matrix.positions() for matrix in matrices]


def _read_shape(
    path: Path, parts: list[Pairs], files: list[Path], warnings: list[str]
) -> tuple[int, int] | None:
    """Users and items as MMSSL's matrix of the training part tells them, where it is there.

    Everything else is in the JSON too, so a matrix that contradicts it is left out and warned of.
    """
    if not path.is_file():
        return None
    try:
        matrix = read_sparse(path)
    except DataError as error:
        warnings.append(f"W116 train_mat left out, train.json is read instead: {error}")
        return None
    largest = [
        max((int(part[k].max()) for part in parts if part[k].size), default=-1) for k in (0, 1)
    ]
    if largest[0] >= matrix.shape[0] or largest[1] >= matrix.shape[1]:
        warnings.append(
            f"W213 train_mat left out: it has {matrix.shape[0]} users and {matrix.shape[1]} items, "
            f"the JSON files go up to user {largest[0]} and item {largest[1]}"
        )
        return None
    differing = np.setxor1d(_keys(matrix.positions()), _keys(parts[0])).size
    if differing:
        warnings.append(
            f"W231 {differing} pairs are in one of train_mat and train.json only; the JSON is read"
        )
    files.append(path)
    return matrix.shape


def _keys(pairs: Pairs) -> NDArray[np.int64]:
    return pairs[0] << 32 | pairs[1]
