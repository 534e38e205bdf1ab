"""For the record: the data, the runs, and everything that somebody needs to make them again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml

from mmbench.report.html.content import Cell, Column, Details, Listing, Part, Section, Table, Text
from mmbench.report.html.evidence import Evidence
from mmbench.report.numbers import count
from mmbench.report.systems import System, resolved_recipe

SHORT_HASH = 12


def dataset_card(evidence: Evidence) -> Section:
    """The dataset: what the runs say of it, and more where it is at hand."""
    run = evidence.main.systems[0].runs[0]
    dataset, split = run.manifest["dataset"], run.manifest["split"]
    facts: list[tuple[str, Any]] = [
        ("dataset", evidence.main.dataset),
        ("users", dataset.get("users")),
        ("items", dataset.get("items")),
        ("training interactions", dataset.get("train_interactions")),
        ("evaluated users", evidence.main.n_users),
        ("split", evidence.main.split),
        ("protocol", evidence.main.protocol),
        ("fingerprint of the dataset", dataset.get("fingerprint")),
        ("fingerprint of the split", split.get("fingerprint")),
    ]
    parts: list[Part] = []
    if evidence.dataset is not None:
        facts[4:4] = _prepared(evidence.dataset)
    parts.append(_facts("dataset", "The data behind every number of this page", facts))
    if evidence.dataset is None:
        parts.append(Text((evidence.no_dataset,)))
        return Section("dataset", "Dataset", tuple(parts))
    parts.append(_distributions(evidence.dataset["counts"]))
    features = evidence.dataset["features"]
    if features:
        parts.append(_features(features))
    settings = {key: evidence.dataset[key] for key in ("config", "facts", "splits")}
    parts.append(Details("How it was prepared", (Listing(_yaml(settings)),)))
    return Section("dataset", "Dataset", tuple(parts))


def provenance(evidence: Evidence) -> Section:
    """The command, every run with its versions, and every resolved recipe."""
    return provenance_of(evidence.main.systems, evidence.created, evidence.request.command)


def provenance_of(systems: Sequence[System], created: str, command: str) -> Section:
    """As `provenance`, for a page that is no comparison."""
    parts: list[Part] = [
        Text((f"Written by mmbench {version('mmbench')} on {created} with:",)),
        Listing(command or "not known"),
        _runs(systems),
    ]
    for system in systems:
        run = system.runs[0]
        manifest = {key: value for key, value in run.manifest.items() if key != "metrics"}
        inside: tuple[Part, ...] = (
            Text((f"Resolved recipe of seed {run.seed}; hash of the system: {system.hash}",)),
            Listing(_yaml(resolved_recipe(run))),
            Details(
                "Manifest: versions, hashes of the features, cost", (Listing(_json(manifest)),)
            ),
        )
        parts.append(Details(system.label, inside))
    return Section("provenance", "Provenance", tuple(parts))


def facts_of(systems: Sequence[System]) -> tuple[str, ...]:
    """A few words on a study's runs: the data of each of its datasets, and how many there are."""
    runs = [run for system in systems for run in system.runs]
    places = {
        f"{m['dataset']['name']}, split {m['split']['name']}, protocol {m['protocol']['name']}": m
        for m in (run.manifest for run in runs)
    }
    said = [f"{count(len(systems))} systems", f"{count(len(runs))} runs"]
    return (*places, *(text.removesuffix("s") if text[:2] == "1 " else text for text in said))


def _prepared(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    counts, time, text, images = (facts[key] for key in ("counts", "time", "text", "images"))
    return [
        ("interactions", counts["interactions"]),
        ("density", f"{counts['density']:.4%}"),
        ("timestamps", "yes" if time["has_timestamps"] else "no"),
        ("items with text", text.get("ok")),
        ("items with an image", images.get("ok")),
        ("source format", facts["source"]["format"]),
        ("terms", facts["source"].get("licence_note") or "not stated"),
    ]


def _facts(name: str, caption: str, facts: Iterable[tuple[str, Any]]) -> Table:
    rows = []
    for what, value in facts:
        if value is None:
            continue
        text = count(value) if isinstance(value, int) else str(value)
        rows.append((Cell(what, what), Cell(text, value)))
    columns = (Column("Fact", numeric=False), Column("Value", numeric=False))
    return Table(name, caption, columns, tuple(rows), sortable=False)


def _distributions(counts: Mapping[str, Any]) -> Table:
    heads = ("min", "q25", "median", "mean", "q75", "max")
    rows = tuple(
        (
            Cell(what, what),
            *(Cell(f"{counts[key].get(h, 0):,.4g}", counts[key].get(h)) for h in heads),
        )
        for what, key in (("per user", "per_user"), ("per item", "per_item"))
    )
    columns = (Column("Interactions", numeric=False), *(Column(head) for head in heads))
    caption = "Interactions of users and items that have any"
    return Table("interactions", caption, columns, tuple(rows), sortable=False)


def _features(features: Iterable[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            Cell(str(f["key"]), str(f["key"])),
            Cell(" x ".join(map(str, f["shape"] or ())), " x ".join(map(str, f["shape"] or ()))),
            Cell(str(f["dtype"]), str(f["dtype"])),
            Cell("-" if f["present"] is None else count(f["present"]), f["present"]),
        )
        for f in features
    )
    columns = (
        Column("Feature set", numeric=False),
        Column("shape", numeric=False),
        Column("type", numeric=False),
        Column("items that have it"),
    )
    return Table("features", "Features at hand; recipes say which were used", columns, rows)


def _runs(systems: Sequence[System]) -> Table:
    heads = ("finished", "mmbench", "torch", "numpy", "python", "device", "dataset", "split")
    rows = []
    for system in systems:
        for run in system.runs:
            m = run.manifest
            environment = m.get("environment") or {}
            tool = m.get("tool") or {}
            texts = (
                m.get("created"),
                tool.get("version"),
                environment.get("torch"),
                environment.get("numpy"),
                environment.get("python"),
                environment.get("gpu") or environment.get("device"),
                str(m["dataset"].get("fingerprint", ""))[:SHORT_HASH],
                str(m["split"].get("fingerprint", ""))[:SHORT_HASH],
            )
            rows.append(
                (
                    Cell(system.label, system.label),
                    Cell(str(run.seed), run.seed),
                    *(Cell(str(text or "-"), text) for text in texts),
                    Cell(run.path.name, str(run.path)),
                )
            )
    columns = (
        Column("System", numeric=False),
        Column("seed"),
        *(Column(head, numeric=False) for head in heads),
        Column("run", numeric=False),
    )
    return Table("runs", "Every run; hashes are cut to 12 signs", columns, tuple(rows))


def _yaml(values: Any) -> str:
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True).rstrip()


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False)


def _plain(values: Any) -> Any:
    """The same of plain dictionaries and lists, as YAML wants them."""
    return json.loads(json.dumps(values, default=str))
