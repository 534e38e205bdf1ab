"""One preparation: from what a source read to a complete folder, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmbench.data.adding import make_splits, refuse_warnings
from mmbench.data.cleaning import Cleaned, PrepareConfig, Report, clean
from mmbench.data.content import ItemContent, describe_content
from mmbench.data.features import (
    check_rows,
    import_matrix,
    rows_in_item_order,
    rows_with_content,
    write_features,
)
from mmbench.data.finding import Found
from mmbench.data.identity import source_identity
from mmbench.data.prepared import SCHEMA, TEST, TRAIN, VALID, dataset_fingerprint, write_manifest
from mmbench.data.source import RawDataset, RawFeatures
from mmbench.data.split_requests import SplitRequest
from mmbench.data.splits import Rows
from mmbench.data.statistics import count_rows, index_leak, tied_users
from mmbench.data.store import copy_pictures, sha256_ids, write_array, write_lines, write_split
from mmbench.errors import DataError
from mmbench.runs import write_json

_SIZE_SETTINGS = (
    "min_rating", "dedup", "require", "when", "user_min", "item_min", "sample_users",
)  # fmt: skip


class Job:
    """One preparation: what is known so far, and the steps that still need it."""

    def __init__(
        self,
        name: str,
        found: Found,
        raw: RawDataset,
        config: PrepareConfig,
        content: ItemContent,
        requests: list[SplitRequest],
        strict: bool,
    ) -> None:
        self.name, self.found, self.raw, self.config = name, found, raw, config
        self.content, self.requests, self.strict, self.report = content, requests, strict, Report()

    def write(self, folder: Path) -> None:
        """Clean, split and write everything below `folder`, the manifest last."""
        raw, report = self.raw, self.report
        n_items = self._positional_items()
        data = clean(
            raw.interactions,
            self.config,
            report,
            origin=self.found.origin,
            has_content=lambda ids: self.content.fulfils(ids, self.config.require),
            positional_items=n_items,
            user_names=raw.user_ids,
            item_names=raw.item_ids,
            has_order=bool(raw.facts.get("has_order")),
        )
        self._warn_of_imported_labels(data)
        keys = data.item_ids if n_items is None else [str(i) for i in range(n_items)]
        lines = self.content.records(keys, data.item_ids)
        pictures = self.content.pictures(keys)
        texts, images, warnings, lists = describe_content(lines, pictures)
        # What reading the items told is complete only now.
        report.warnings[:0] = [*raw.warnings, *self.content.warnings]
        report.warnings += warnings
        report.samples |= lists

        arrays = {
            f"interactions/{column}.npy": write_array(
                folder / "interactions" / f"{column}.npy", getattr(data, column)
            )
            for column in ("user", "item", "timestamp", "rating", "source_row")
        }
        ids = {"users": sha256_ids(data.user_ids), "items": sha256_ids(data.item_ids)}
        fingerprint = dataset_fingerprint(arrays, ids)
        write_lines(
            folder / "users.jsonl",
            ({"user": k, "id": user} for k, user in enumerate(data.user_ids)),
        )
        write_lines(folder / "items.jsonl", lines)
        mode, places = self._keep_pictures(lines, folder)
        rows = Rows(
            data.user, data.item, data.timestamp, data.user_ids, data.item_ids, data.label,
            self.found.origin, bool(raw.facts.get("has_order")),
        )  # fmt: skip
        requests = self._requests(data)
        splits = {
            key: write_split(folder, key, split, fingerprint)
            for key, split in make_splits(requests, rows, self.config, report).items()
        }
        for stored in raw.features:
            self._import_features(stored, folder, fingerprint, keys)
        counts = count_rows(data.user, data.item, len(data.user_ids), len(data.item_ids))
        self._compare_with_published(counts)
        if self.strict:
            refuse_warnings(report.warnings)
        manifest = {
            "schema": SCHEMA,
            "name": self.name,
            "source": source_identity(self.found, raw, self.content),
            "config": self.config.model_dump(mode="json"),
            "counts": counts,
            "time": _time_facts(data),
            "text": texts,
            "images": {"mode": mode, **images},
            "arrays": arrays,
            "ids": ids,
            "fingerprint": fingerprint,
            "splits": splits,
            "split_names": list(splits),
            "facts": dict(raw.facts),
        }
        folder_given = self.found.folder
        provenance = {
            "tool": {"name": "mmbench", "version": _version()},
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "source": str(folder_given.resolve()) if folder_given is not None else None,
            "pictures": places,
        }
        write_json(folder / "report.json", self.summary())
        write_json(folder / "provenance.json", provenance)
        write_manifest(folder, manifest)

    def summary(self) -> dict[str, Any]:
        """The content of report.json."""
        report = self.report
        return {
            "steps": report.steps,
            "warnings": report.warnings,
            "notes": report.notes,
            "samples": report.samples,
        }

    def _positional_items(self) -> int | None:
        """Number of items of a positional layout: as its id mapping or its largest index says."""
        raw = self.raw
        if not raw.positional:
            return None
        used = np.unique(raw.interactions["item"].cast(pl.Int64).to_numpy())
        n_items = len(raw.item_ids) if raw.item_ids is not None else int(used[-1]) + 1
        n_gaps = n_items - used.size
        if n_gaps:
            in_place = used == np.arange(used.size)
            first = used.size if in_place.all() else int(in_place.argmin())
            what = f"item indices 0..{n_items - 1} have {n_gaps} gaps, first {first}"
            for stored in raw.features:
                by_position = stored.item_ids is None
                if by_position and import_matrix(stored.path).shape[0] != n_items:
                    raise DataError(f"E213 {what}; positional features cannot be matched")
            if n_gaps > used.size and raw.item_ids is None and not raw.features:
                raise DataError(f"E213 {what}; number the items 0, 1, 2, ... without gaps")
            self.report.warnings.append(f"W213 {what}; these items have no interactions")
        users = np.unique(raw.interactions["user"].cast(pl.Int64).to_numpy())
        lacking = int(users[-1]) + 1 - users.size
        if lacking:
            self.report.warnings.append(
                f"W213 {lacking} user indices have no interactions; users are renumbered"
            )
        return n_items

    def _requests(self, data: Cleaned) -> list[SplitRequest]:
        """The splits to make; labels that came along are always kept as a split too."""
        requests = list(self.requests)
        own = SplitRequest("imported", {})
        if data.label is not None:
            complete = all((data.label == part).any() for part in (TRAIN, VALID, TEST))
            if not requests or (complete and own not in requests):
                requests.append(own)
        return requests or [SplitRequest("random-per-user", {})]

    def _warn_of_imported_labels(self, data: Cleaned) -> None:
        if data.label is None:
            return
        leak = index_leak(data.user, data.item, data.label != TRAIN)
        if leak > 0.9:
            self.report.warnings.append(
                f"W275 in {100 * leak:.0f} % of users the held-out item has the largest item "
                "index; do not break ties by index"
            )

    def _keep_pictures(
        self, lines: list[dict[str, Any]], folder: Path
    ) -> tuple[str, dict[str, str]]:
        """Copy pictures that the source made; of others only their places are remembered."""
        root, fetched = self.raw.image_root, self.content.fetched
        if self.found.folder is None and root is not None:
            held = [line["image"] for line in lines if line["image_status"] not in ("missing",)]
            copy_pictures(root, held, folder / "images")
            return "copied", {"source": "images"}
        places = {"source": str(root.resolve())} if root is not None else {}
        if fetched is not None and any(line.get("image_from") == "fetched" for line in lines):
            places["fetched"] = str(fetched.resolve())
        return "referenced" if places else "none", places

    def _compare_with_published(self, counts: Mapping[str, Any]) -> None:
        """Tell whether the dataset has the size that others printed for it."""
        card = self.found.card
        if card is None:
            return
        now = self.config.model_dump(include=set(_SIZE_SETTINGS))
        for published in card.published:
            settings = {**self.found.source.defaults, **published.settings}
            if (
                PrepareConfig.model_validate(settings).model_dump(include=set(_SIZE_SETTINGS))
                != now
            ):
                continue
            printed = {key: getattr(published, key) for key in ("users", "items", "interactions")}
            told = ", ".join(f"{number:,} {what}" for what, number in printed.items())
            if all(counts[what] == number for what, number in printed.items()):
                self.report.notes.append(f"the size is as published: {told} ({published.where})")
            else:
                self.report.warnings.append(
                    f"W276 the size differs from the published {told} ({published.where}); the "
                    "raw files may be of another version"
                )
            return

    def _import_features(
        self, stored: RawFeatures, folder: Path, fingerprint: str, keys: list[str]
    ) -> None:
        matrix = import_matrix(stored.path)
        if stored.item_ids is None:
            check_rows(matrix.shape[0], len(keys), str(stored.path))
        else:
            matrix = rows_in_item_order(matrix, stored.item_ids, keys, stored.path)
        mask = rows_with_content(matrix)
        written = write_features(
            folder, fingerprint, stored.modality, stored.encoder, matrix, mask,
            {"source": stored.path.name},
        )  # fmt: skip
        zero, repeated = int((~mask).sum()), int(written.manifest.get("repeated_rows", 0))
        if zero or repeated:
            self.report.warnings.append(
                f"W252 {stored.path.name}: {zero} zero rows (counted as missing), "
                f"{repeated} repeated rows"
            )


def _time_facts(data: Cleaned) -> dict[str, Any]:
    if data.time_unit is None:
        return {"has_timestamps": False, "unit_in": None, "min": None, "max": None, "tied_rows": 0}
    return {
        "has_timestamps": True,
        "unit_in": data.time_unit,
        "min": int(data.timestamp.min()),
        "max": int(data.timestamp.max()),
        "tied_rows": tied_users(data.user, data.timestamp)[1],
    }


def _version() -> str:
    try:
        return version("mmbench")
    except PackageNotFoundError:
        return "unknown"
