"""Making splits: for a dataset that is being written, and for one that stands already."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from mmbench.data.cleaning import PrepareConfig, Report
from mmbench.data.prepared import PreparedDataset
from mmbench.data.splits import Labels, Rows, SplitRequest, make_split
from mmbench.data.statistics import tied_users
from mmbench.data.store import not_writable, write_split
from mmbench.errors import DataError
from mmbench.runs import write_json

_TEMPORAL = ("leave-one-out", "user-temporal", "global-temporal")


def make_splits(
    requests: Sequence[SplitRequest], rows: Rows, config: PrepareConfig, report: Report
) -> dict[str, tuple[Labels, dict[str, Any]]]:
    """Labels and facts of each split by its name; what is odd about them goes into `report`."""
    made = {}
    for request in requests:
        label, facts = make_split(request, rows, config.seed)
        _warn(request, rows, facts, config, report)
        made[request.name] = (label, facts)
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
        labels, dataset.name,
    )  # fmt: skip
    config = PrepareConfig.model_validate(dataset.manifest["config"])
    made = make_splits(requests, rows, config, report)
    if strict:
        refuse_warnings(report.warnings)
    root = dataset.root
    try:
        added = {
            name: write_split(root, name, label, facts, dataset.fingerprint)
            for name, (label, facts) in made.items()
        }
        manifest = {
            **dataset.manifest,
            "splits": {**dataset.manifest["splits"], **added},
            "split_names": [*dataset.split_names, *added],
        }
        write_json(root / "manifest.json", manifest)
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
    request: SplitRequest,
    rows: Rows,
    facts: Mapping[str, Any],
    config: PrepareConfig,
    report: Report,
) -> None:
    users, (valid, test) = facts["users_without_train"], facts["rows_without_train"]
    items = len(rows.item_ids) - facts["items_train"]
    if users or items:
        report.warnings.append(
            f"W273 split {request.name}: {users} users and {items} items have no training row; "
            f"{valid} valid and {test} test rows affected"
        )
    if request.rule in _TEMPORAL:
        tied, _ = tied_users(rows.user, rows.timestamp)
        if tied:
            report.warnings.append(
                f"W272 split {request.name}: for {tied} of {len(rows.user_ids)} users the last two "
                f"interactions share a timestamp; order decided by --ties {config.ties}"
            )
