"""From raw files to a prepared dataset: read, clean, split, write, open again.

`prepare` is the one entrance: the command line, studies and tests all call it. It either makes a
complete folder, or adds splits to one, or finds it up to date, or leaves everything as it was.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.data.adding import add_splits
from mmbench.data.cleaning import PrepareConfig, Report
from mmbench.data.content import ItemContent
from mmbench.data.fetch.pictures import FetchedPictures, fetch_pictures
from mmbench.data.finding import RAW, Found, find_source
from mmbench.data.identity import (
    effective_config,
    refuse_changes,
    refuse_explicit_changes,
    source_identity,
)
from mmbench.data.job import Job
from mmbench.data.obtaining import PICTURES, Fetching, obtain
from mmbench.data.prepared import (
    PreparedDataset,
    open_dataset,
    read_manifest,
)
from mmbench.data.source import RawDataset
from mmbench.data.split_requests import SplitRequest, with_seeds
from mmbench.data.store import (
    writing,
)
from mmbench.errors import ConfigError, DataError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare` did.

    Attributes:
        name, root: the dataset and its folder.
        status: "prepared", "split-added" or "up-to-date".
        dataset: the prepared dataset, opened.
        notes, warnings: sentences for the user.
        report: counts per step, as in report.json; empty when nothing was cleaned.
    """

    name: str
    root: Path
    status: str
    dataset: PreparedDataset
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    report: Mapping[str, Any]


def prepare(
    name: str,
    *,
    source: Path | None = None,
    format: str = "auto",
    config: PrepareConfig | None = None,
    splits: Sequence[str] = (),
    split_seeds: Sequence[int] = (),
    known_as: str | None = None,
    data_dir: Path = Path("data"),
    force: bool = False,
    strict: bool = False,
    fetching: Fetching | None = None,
) -> PrepareResult:
    """Prepare the dataset `name` below `data_dir`.

    Args:
        name: what the dataset is called, and the name of its folder.
        source: folder of the raw files; None for a dataset known by name, whose files are looked
            for below `data_dir/_raw`, and for one that is generated.
        format: name of the source that reads the folder, or "auto" to recognise it.
        config: settings; those not set explicitly are the source's own defaults.
        splits: rules such as "leave-one-out" or "random-per-user:odd_to=valid"; the first is the
            default split. An existing dataset of the same settings gets those it lacks.
        split_seeds: make each random split once per seed.
        known_as: the dataset's known name, where `name` is another one for it.
        data_dir: folder of the prepared datasets.
        force: replace an existing dataset of other settings, its feature sets included.
        strict: treat warnings as errors.
        fetching: whether and how missing files may be fetched; by default nothing is.

    Raises:
        DataError: the files are missing, broken or contradict each other, or cannot be written.
        ConfigError: a setting is impossible; UnknownNameError: a name is not known.
    """
    if not _NAME.fullmatch(name) or ".partial-" in name:
        raise ConfigError(
            f"{name!r} cannot name a dataset; use letters, digits, dots, hyphens and underscores, "
            "beginning with a letter or a digit"
        )
    requests = list({r.name: r for r in map(SplitRequest.parse, splits)}.values())
    if split_seeds:
        requests = with_seeds(requests or [SplitRequest("random-per-user", {})], split_seeds)
    given = config or PrepareConfig()
    root = data_dir / name
    exists = (root / "manifest.json").exists()
    fetching = fetching or Fetching()
    # Not even --force replaces what mmbench did not make.
    if root.exists() and not exists:
        raise DataError(
            f"E301 {root} exists and is no prepared dataset (it has no manifest.json); choose "
            "another name, or remove it yourself"
        )
    if exists and not force and source is None and format == "auto" and not fetching.parts:
        refuse_explicit_changes(root, given)
        return _extend(root, requests, strict)
    found = find_source(known_as or name, source, format, data_dir)
    obtain(found, fetching)
    with _scratch(data_dir) as scratch:
        # Files are read before anything is created.
        raw = _read(found, scratch)
        effective = effective_config(found, given, raw)
        content = _content(found, raw, effective, name, data_dir, fetching)
        if exists and not force:
            _refuse_missing_pictures(root, fetching)
            refuse_changes(root, effective, source_identity(found, raw, content))
            return _extend(root, requests, strict, notes=found.notes)
        with writing(root) as partial:
            job = Job(name, found, raw, effective, content, requests, strict)
            job.write(partial)
            open_dataset(partial)
    return PrepareResult(
        name=name,
        root=root,
        status="prepared",
        dataset=open_dataset(root),
        notes=(*found.notes, *job.report.notes),
        warnings=tuple(job.report.warnings),
        report=job.summary(),
    )


@contextmanager
def _scratch(data_dir: Path) -> Iterator[Path]:
    """A folder for files that a source creates; they are gone when the block ends."""
    # Matrices can be large and the system's own place for such files small.
    usable = data_dir.is_dir() and os.access(data_dir, os.W_OK)
    place = data_dir if usable else None
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=place) as folder:
        yield Path(folder)


def _content(
    found: Found,
    raw: RawDataset,
    config: PrepareConfig,
    name: str,
    data_dir: Path,
    fetching: Fetching,
) -> ItemContent:
    """The items of `raw`; pictures known by address lie, or are fetched, below the raw folder."""
    folder = data_dir / RAW / (found.card.name if found.card is not None else name) / "images"

    def fetch(addresses: Mapping[str, Sequence[str]], folder: Path) -> FetchedPictures:
        return fetch_pictures(addresses, folder, fetching.web, fetching.watch)

    wanted = PICTURES in fetching.parts
    return ItemContent(raw, config.text_fields, found.origin, folder, fetch if wanted else None)


def _refuse_missing_pictures(root: Path, fetching: Fetching) -> None:
    lacking = int(read_manifest(root)["images"].get("not_fetched", 0))
    if PICTURES in fetching.parts and lacking:
        raise DataError(
            f"E301 {root} was prepared without {lacking} pictures that have an address; pass "
            "--force to prepare it anew with them"
        )


def _extend(
    root: Path, requests: list[SplitRequest], strict: bool, notes: tuple[str, ...] = ()
) -> PrepareResult:
    """Add the splits that an existing dataset lacks."""
    dataset = open_dataset(root)
    report = Report()
    missing = [request for request in requests if request.name not in dataset.split_names]
    if missing:
        add_splits(dataset, missing, report, strict)
        dataset = open_dataset(root)
    return PrepareResult(
        name=dataset.name,
        root=root,
        status="split-added" if missing else "up-to-date",
        dataset=dataset,
        notes=notes,
        warnings=tuple(report.warnings),
        report={},
    )


def _read(found: Found, scratch: Path) -> RawDataset:
    try:
        return found.source.read(found.folder, scratch)
    except OSError as error:
        raise DataError(
            f"E101 {error.filename or found.folder} cannot be read: {error.strerror or error}; "
            "check the files given by --source"
        ) from error
