"""Writing a prepared dataset in the layout of another toolbox, to check a result there.

A folder is written beside its place and renamed when it is complete. It tells in
`mmbench-export.json` what it was made from; only such folders are ever replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.data.exports import mmrec, recbole
from mmbench.data.exports.job import ExportJob, Written
from mmbench.data.features import FeatureSet, load_features
from mmbench.data.hashing import sha256_file
from mmbench.data.prepared import EXCLUDED, TEST, TRAIN, VALID, PreparedDataset
from mmbench.data.store import writing
from mmbench.errors import ConfigError, DataError, UnknownNameError
from mmbench.modality import MODALITIES
from mmbench.runs import write_json

MARK = "mmbench-export.json"
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Layout:
    """A layout to write.

    Attributes:
        toolbox: what its toolbox is called.
        write: writes it into a folder.
        modalities: those it has a place for.
        one_each: whether it holds at most one feature set of a modality.
    """

    toolbox: str
    write: Callable[[ExportJob, Path], Written]
    modalities: frozenset[str]
    one_each: bool


LAYOUTS = {
    "mmrec": Layout("MMRec", mmrec.write, frozenset(mmrec.PREFIXES), one_each=True),
    "recbole": Layout("RecBole", recbole.write, frozenset(MODALITIES), one_each=False),
}


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        folder, files: where it is; the files are in it, by name.
        split: name of the split that was written.
        rows: interactions of train, valid and test, and those that the split excludes, which
            are left out.
        features: keys of the feature sets that were written.
        warnings: what will differ in the other toolbox.
        usage: how the other toolbox is pointed at the files.
    """

    folder: Path
    files: tuple[Path, ...]
    split: str
    rows: tuple[int, int, int, int]
    features: tuple[str, ...]
    warnings: tuple[str, ...]
    usage: tuple[str, ...]


def export_dataset(
    dataset: PreparedDataset,
    layout: str,
    target: Path,
    *,
    split: str | None = None,
    features: Sequence[str] = (),
    force: bool = False,
) -> Exported:
    """Write `dataset` in a layout of another toolbox into the folder `target`.

    The files are called like the folder, since toolboxes look for a dataset in the folder of
    its name.

    Args:
        dataset: what to write.
        layout: "mmrec" or "recbole".
        target: folder to make; it may exist if it is empty.
        split: name of the split to write, the default one if None.
        features: feature sets to write, as "visual__clip", "visual=clip" or "visual"; "none" for
            none; left empty, all that the layout has a place for.
        force: replace the folder if it is an earlier export.

    Raises:
        UnknownNameError: the layout, the split or a feature set is not known.
        ConfigError: the choice of feature sets or the name of the folder does not fit.
        DataError: the folder is in use or cannot be written, or the dataset is damaged.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout to export", layout, LAYOUTS)
    chosen = LAYOUTS[layout]
    labels = dataset.split(split)
    stored, warnings = _choose_features(dataset, chosen, features)
    target = target.resolve()
    _check_target(target, force)
    counts = np.bincount(labels.label, minlength=EXCLUDED + 1)
    cases = labels.facts.get("cold_cases")
    if cases is not None and cases != {"valid": counts[VALID], "test": counts[TEST]}:
        warnings.append(
            f"{chosen.toolbox} judges every held-out row; which of them are the cold cases of "
            f"{labels.name} its layout does not tell"
        )
    if not counts[TRAIN]:
        raise DataError(
            f"E222 the split {labels.name} of {dataset.name} has no train rows; choose another "
            "--split"
        )
    job = ExportJob(dataset, labels, stored, target.name)
    try:
        with writing(target) as partial:
            written = chosen.write(job, partial)
            names = sorted(path.name for path in partial.iterdir())
            record = {
                "layout": layout,
                "dataset": dataset.name,
                "fingerprint": dataset.fingerprint,
                "split": {"name": labels.name, "fingerprint": labels.fingerprint},
                "features": {s.key: s.manifest["sha256"] for s in stored},
                "files": {name: sha256_file(partial / name) for name in names},
            }
            write_json(partial / MARK, record)
    except DataError as error:
        # The store speaks of the folder of prepared datasets; this one is named by --to.
        raise DataError(str(error).replace("--data-dir", "--to")) from error
    return Exported(
        folder=target,
        files=tuple(target / name for name in (*names, MARK)),
        split=labels.name,
        rows=(int(counts[TRAIN]), int(counts[VALID]), int(counts[TEST]), int(counts[EXCLUDED])),
        features=tuple(s.key for s in stored),
        warnings=(*warnings, *written.warnings),
        usage=written.usage,
    )


def _choose_features(
    dataset: PreparedDataset, layout: Layout, wanted: Sequence[str]
) -> tuple[tuple[FeatureSet, ...], list[str]]:
    """The feature sets to write, and what is said of those that are not."""
    warnings = []
    if list(wanted) == ["none"]:
        keys = []
    elif wanted:
        keys = list(dict.fromkeys(_find_key(dataset, name) for name in wanted))
        homeless = [key for key in keys if _modality(key) not in layout.modalities]
        if homeless:
            raise ConfigError(
                f"{layout.toolbox}'s layout has no place for {_modality(homeless[0])} features; "
                f"leave {homeless[0]} out"
            )
    else:
        keys = [key for key in dataset.feature_keys if _modality(key) in layout.modalities]
        left_out = [key for key in dataset.feature_keys if key not in keys]
        if left_out:
            warnings.append(
                f"{layout.toolbox}'s layout has no place for {', '.join(left_out)}; left out"
            )
    for modality in MODALITIES if layout.one_each else ():
        several = [key for key in keys if _modality(key) == modality]
        if len(several) > 1:
            names = [key.partition("__")[2] for key in several]
            raise ConfigError(
                f"{dataset.name} has several {modality} feature sets ({', '.join(names)}) and "
                f"{layout.toolbox}'s layout holds one of each modality; name it with --features "
                f"{modality}={names[0]}"
            )
    root, fingerprint, n_items = dataset.root, dataset.fingerprint, dataset.n_items
    return tuple(load_features(root, key, fingerprint, n_items) for key in keys), warnings


def _find_key(dataset: PreparedDataset, name: str) -> str:
    """Key of the feature set that is meant by "visual__clip", "visual=clip" or "visual"."""
    keys = dataset.feature_keys
    fitting = [key for key in keys if _modality(key) == name]
    if len(fitting) > 1:
        encoders = ", ".join(key.partition("__")[2] for key in fitting)
        raise ConfigError(
            f"{dataset.name} has several {name} feature sets: {encoders}. Name one, for example "
            f"--features {fitting[0].replace('__', '=', 1)}"
        )
    key = fitting[0] if fitting else name.replace("=", "__", 1)
    if key not in keys:
        raise UnknownNameError(f"feature set of {dataset.name}", name, keys)
    return key


def _modality(key: str) -> str:
    return key.partition("__")[0]


def _check_target(target: Path, force: bool) -> None:
    if not _NAME.fullmatch(target.name) or ".partial-" in target.name:
        raise ConfigError(
            f"--to {target}: the folder's name becomes the dataset's name in the other toolbox; "
            "use letters, digits, dots, hyphens and underscores"
        )
    if not target.exists():
        return
    if not target.is_dir():
        raise DataError(f"E301 --to {target} is a file; name a folder to make")
    if not any(target.iterdir()):
        return
    # Not even --force replaces what mmbench did not make.
    if not (target / MARK).is_file():
        raise DataError(
            f"E301 --to {target} is not empty and no earlier export; choose another folder, or "
            "empty it yourself"
        )
    if not force:
        raise DataError(
            f"E301 --to {target} holds an earlier export; choose another folder or pass --force"
        )
