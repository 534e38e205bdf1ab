"""Which source reads a dataset: by its name, by `--format`, or by looking at the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmbench.data.source import DATASETS, Source
from mmbench.errors import ConfigError, DataError, UnknownNameError


@dataclass(frozen=True)
class Found:
    """The source of a dataset.

    Attributes:
        format: registered name of the source.
        folder: where the raw files are, None for sources that generate theirs.
        notes: how it was found, for the user.
        origin: how messages call the dataset's raw form.
    """

    format: str
    source: Source
    folder: Path | None
    notes: tuple[str, ...]
    origin: str


def sources() -> dict[str, type[Source]]:
    """Every registered source by name."""
    return {name: DATASETS.get(name).obj for name in DATASETS.names()}


def find_source(name: str, folder: Path | None, format: str) -> Found:
    """The source that makes the dataset `name` from `folder`.

    Raises:
        UnknownNameError: the format, or without a folder the name, is not known.
        DataError: the folder is missing, or fits no layout or several.
        ConfigError: a folder is given to a source that generates its data.
    """
    known = sources()
    key = name.replace("_", "-")
    if format != "auto":
        chosen = format.replace("_", "-")
        if chosen not in known:
            raise UnknownNameError("format", format, [n for n in known if known[n].needs_source])
        return _found(chosen, known[chosen], folder, ())
    if key in known and not known[key].layout:
        return _found(key, known[key], folder, ())
    if folder is None:
        if key in known:
            raise DataError(
                f"E101 '{name}' is a layout of files; pass the folder with --source DIR"
            )
        raise UnknownNameError(
            "dataset",
            name,
            [n for n in known if not known[n].layout],
            hint=f"To prepare your own: mmbench prepare {name} --source DIR",
        )
    _check_folder(folder)
    fitting = [
        n for n, source in known.items() if source.needs_source and source.recognises(folder)
    ]
    if not fitting:
        layouts = [n for n in known if known[n].needs_source]
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"E103 no known layout recognised in {folder} (it holds {held}); expected is "
            + "; or ".join(f"{n}: {known[n].expects}" for n in layouts)
        )
    if len(fitting) > 1:
        raise DataError(f"E103 {folder} fits {' and '.join(fitting)}; pass --format {fitting[0]}")
    note = f"recognised layout {fitting[0]} in {folder}"
    return _found(fitting[0], known[fitting[0]], folder, (note,))


def _found(name: str, source: type[Source], folder: Path | None, notes: tuple[str, ...]) -> Found:
    if not source.needs_source:
        if folder is not None:
            raise ConfigError(f"{name} is generated and takes no --source; leave it out")
        return Found(name, source(), None, notes, name)
    if folder is None:
        raise DataError(
            f"E104 {name} is made from files you provide: pass --source DIR. Expected: "
            f"{source.expects}"
        )
    _check_folder(folder)
    return Found(name, source(), folder, notes, str(folder))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"E101 --source {folder} {what}; pass the folder that holds the raw files")
