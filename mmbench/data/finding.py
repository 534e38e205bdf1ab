"""Which source reads a dataset: by its name, by `--format`, or by looking at the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmbench.data.cards import Card
from mmbench.data.source import DATASETS, Source
from mmbench.errors import ConfigError, DataError, UnknownNameError

RAW = "_raw"
"""Folder of raw files below the data folder; no dataset can have this name."""


@dataclass(frozen=True)
class Found:
    """The source of a dataset.

    Attributes:
        format: registered name of the source.
        folder: where the raw files are, None for sources that generate theirs.
        notes: how it was found, for the user.
        origin: how messages call the dataset's raw form.
        card: what is known of the dataset, where its name is a known one.
        fetched: whether `folder` is mmbench's own, to be filled by downloading or by hand.
    """

    format: str
    source: Source
    folder: Path | None
    notes: tuple[str, ...]
    origin: str
    card: Card | None = None
    fetched: bool = False


@dataclass(frozen=True)
class Known:
    """A dataset known by name: the name of its source, the source, and the card if it has one."""

    format: str
    source: type[Source]
    card: Card | None


def sources() -> dict[str, type[Source]]:
    """Every registered source by name."""
    return {name: DATASETS.get(name).obj for name in DATASETS.names()}


def known_names() -> list[str]:
    """Names of the datasets that need no `--source`, aliases left out, sorted."""
    names = {card.name for source in sources().values() for card in source.cards()}
    generated = {name for name, source in sources().items() if not source.needs_source}
    return sorted(names | generated)


def find_known(name: str) -> Known | None:
    """The dataset that `name` means, or None.

    Raises:
        DataError: there is no such dataset in a family that people expect to have it.
    """
    key = name.lower().replace("_", "-")
    for format, source in sources().items():
        card = source.find_card(key)
        if card is not None:
            return Known(format, source, card)
        if format == key and not source.needs_source:
            return Known(format, source, None)
    return None


def find_source(name: str, folder: Path | None, format: str, data_dir: Path) -> Found:
    """The source that makes the dataset `name`, from `folder` if one is given.

    Raises:
        UnknownNameError: the format, or without a folder the name, is not known.
        DataError: the folder is missing, or fits no layout or several.
        ConfigError: a folder is given to a source that generates its data.
    """
    formats = sources()
    try:
        known = find_known(name)
    except DataError:
        if folder is None:
            raise
        known = None  # a folder says more than a name that no dataset has
    if format != "auto":
        chosen = format.replace("_", "-")
        if chosen not in formats:
            raise UnknownNameError(
                "format", format, [n for n in formats if formats[n].needs_source]
            )
        if known is None or known.format != chosen:
            known = Known(chosen, formats[chosen], None)
    elif folder is not None and (known is None or known.source.needs_source):
        return _look(folder, formats, known)
    if known is None:
        raise _unknown(name, formats)
    if not known.source.needs_source:
        if folder is not None:
            raise ConfigError(f"{known.format} is generated and takes no --source; leave it out")
        return Found(known.format, known.source(known.card), None, (), known.format)
    if folder is None:
        if known.card is None:
            raise DataError(
                f"E104 {known.format} reads files you provide: pass --source DIR. Expected: "
                f"{known.source.expects}"
            )
        return _raw_folder(known, known.card, name, data_dir)
    _check_folder(folder)
    return Found(known.format, known.source(known.card), folder, (), str(folder), known.card)


def _raw_folder(known: Known, card: Card, name: str, data_dir: Path) -> Found:
    """A known dataset in mmbench's own raw folder."""
    notes = () if name.lower() == card.name else (f"{name} is {card.name}: {card.title}",)
    folder = data_dir / RAW / card.name
    return Found(
        known.format, known.source(card), folder, notes, str(folder), card=card, fetched=True
    )


def _look(folder: Path, formats: dict[str, type[Source]], known: Known | None) -> Found:
    """Recognise the layout of a folder; that of the dataset's own source comes first."""
    _check_folder(folder)
    if known is not None and known.source.recognises(folder):
        fitting = [known.format]
    else:
        # Under a known name, the raw form of another known dataset would be a mix-up.
        fitting = [
            name
            for name, source in formats.items()
            if source.needs_source
            and (known is None or source.layout)
            and source.recognises(folder)
        ]
    card = known.card if known is not None else None
    if len(fitting) > 1:
        raise DataError(f"E103 {folder} fits {' and '.join(fitting)}; pass --format {fitting[0]}")
    if not fitting:
        if known is not None:  # its own source says best what is missing
            return Found(known.format, known.source(card), folder, (), str(folder), card)
        layouts = ", ".join(n for n in formats if formats[n].layout)
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"E103 no known layout recognised in {folder} (it holds {held}). Data of your own fit "
            f"best as plain tables: {formats['plain'].expects}. Known are {layouts}: `mmbench "
            "prepare LAYOUT --about` tells what such a folder holds"
        )
    found = fitting[0]
    own = known is not None and known.format == found
    kind = "layout" if formats[found].layout else "raw form"
    note = f"recognised {kind} {found} in {folder}"
    return Found(found, formats[found](card if own else None), folder, (note,), str(folder), card)


def _unknown(name: str, formats: dict[str, type[Source]]) -> DataError | UnknownNameError:
    if name.replace("_", "-") in formats:
        return DataError(f"E101 '{name}' is a layout of files; pass the folder with --source DIR")
    return UnknownNameError(
        "dataset",
        name,
        known_names(),
        hint=f"To prepare your own: mmbench prepare {name} --source DIR",
        listing="mmbench prepare --list",
    )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"E101 --source {folder} {what}; pass the folder that holds the raw files")
