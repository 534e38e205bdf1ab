"""Making splits: for a dataset that is being written, and for one that stands already."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from mmbench.data.cleaning import PrepareConfig, Report
from mmbench.data.prepared import TEST, TRAIN, VALID, PreparedDataset, write_manifest
from mmbench.data.split_requests import SplitRequest
from mmbench.data.splits import TEMPORAL, Labels, MadeSplit, Rows, make_split
from mmbench.data.statistics import tied_users
from mmbench.data.store import not_writable, write_split
from mmbench.errors import DataError


def make_splits(
    requests: Sequence[SplitRequest], rows: Rows, config: PrepareConfig, report: Report
) -> dict[str, MadeSplit]:
    """Each split by its name; what is odd about them goes into `report`."""
    made = {}
    for request in requests:
        split = make_split(request, rows, config.seed)
        _warn(request, rows, split, config, report)
        made[request.name] = split
    return made


def add_splits(
    dataset: PreparedDataset, requests: Sequence[SplitRequest], report: Report, strict: bool
) -> None:
    """Store further splits of a prepared dataset: all of them, or none.

    Raises:
        DataError: a rule does not fit the dataset, or the folder cannot be written to.
    """
    labels: Labels | None = None
    if "imported" in dataset.split_names:
        labels = np.asarray(dataset.split("imported").label)
    rows = Rows(
        dataset.user, dataset.item, dataset.timestamp, dataset.user_ids, dataset.item_ids,
        labels, dataset.name, bool(dataset.manifest["facts"].get("has_order")),
    )  # fmt: skip
    config = PrepareConfig.model_validate(dataset.manifest["config"])
    made = make_splits(requests, rows, config, report)
    if strict:
        refuse_warnings(report.warnings)
    root = dataset.root
    try:
        added = {
            name: write_split(root, name, split, dataset.fingerprint)
            for name, split in made.items()
        }
        manifest = {
            **dataset.manifest,
            "splits": {**dataset.manifest["splits"], **added},
            "split_names": [*dataset.split_names, *added],
        }
        write_manifest(root, manifest)
    except BaseException as error:
        # The manifest still is the old one; what it does not name must not lie about.
        for name in made:
            shutil.rmtree(root / "splits" / name, ignore_errors=True)
        with suppress(OSError):  # in a read-only folder even this fails; there is nothing to do
            (root / "manifest.json.partial").unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_writable(root, error) from error
        raise


def refuse_warnings(warnings: Sequence[str]) -> None:
    """What `--strict` does.

    Raises:
        DataError: there are warnings; it names them all.
    """
    if warnings:
        raise DataError("with --strict warnings are errors: " + "; ".join(warnings))


def _warn(
    request: SplitRequest, rows: Rows, split: MadeSplit, config: PrepareConfig, report: Report
) -> None:
    users = split.facts["users_without_train"]
    if request.rule == "cold-items":
        if users:  # that items have no training row is what was asked for
            trained = np.zeros(len(rows.user_ids), dtype=bool)
            trained[rows.user[split.label == TRAIN]] = True
            untrained = split.label[~trained[rows.user]]
            valid, test = (int((untrained == part).sum()) for part in (VALID, TEST))
            report.warnings.append(
                f"W273 split {request.name}: {users} users have no training row; {valid} valid "
                f"and {test} test rows affected"
            )
        return
    valid, test = split.facts["rows_without_train"]
    items = len(rows.item_ids) - split.facts["items_train"]
    if users or items:
        report.warnings.append(
            f"W273 split {request.name}: {users} users and {items} items have no training row; "
            f"{valid} valid and {test} test rows affected"
        )
    if request.rule in TEMPORAL and rows.has_timestamps:
        tied, _ = tied_users(rows.user, rows.timestamp)
        if tied:
            report.warnings.append(
                f"W272 split {request.name}: for {tied} of {len(rows.user_ids)} users the last two "
                f"interactions share a timestamp; order decided by --ties {config.ties}"
            )
