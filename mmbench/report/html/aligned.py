"""How well the vectors of an item's modalities agree in each system."""

from __future__ import annotations

from mmbench.metrics.alignment import KS
from mmbench.report.aligning import TITLE, Aligned, alignment_beside, cells, names, notes
from mmbench.report.html.content import Cell, Column, Section, Table, Text
from mmbench.report.html.evidence import Evidence
from mmbench.report.paradigms import encoding_of, name_of


def alignment(evidence: Evidence) -> Section | None:
    """Retrieval, cosines, modality gap and uniformity; None where no system has two modalities."""
    systems = evidence.main.systems
    if all(len(encoding_of(system.runs[0]).encoders) < 2 for system in systems):
        return None
    found = alignment_beside(systems, evidence.request.data_dir)
    said = tuple(notes(found))
    if not found.rows:
        return Section("alignment", TITLE, (Text(said),))
    data_dir = evidence.request.data_dir
    encodings = {system.label: encoding_of(system.runs[0], data_dir) for system in systems}
    rows = []
    for name, row in zip(names(found), found.rows, strict=True):
        e = encodings[row.label]
        texts = [*cells(row)[:-1], f"{row.uniformity_first:.2f}", f"{row.uniformity_second:.2f}"]
        rows.append(
            (
                Cell(name, name),
                Cell(e.encoder, e.encoder),
                Cell(name_of(e.paradigm), name_of(e.paradigm)),
                *(Cell(text, value) for text, value in zip(texts, _values(row), strict=True)),
            )
        )
    table = Table(
        "alignment",
        "How well the vectors of an item's modalities agree",
        (
            *(Column(head, numeric=False) for head in ("System", "encoder", "paradigm")),
            *(Column(f"R@{k}") for k in KS),
            *(Column(head) for head in ("paired", "others", "gap")),
            *(Column(head, group="uniformity") for head in ("first", "second")),
        ),
        tuple(rows),
        said,
    )
    return Section("alignment", TITLE, (table,))


def _values(row: Aligned) -> list[float]:
    measures = [row.paired, row.unpaired, row.gap, row.uniformity_first, row.uniformity_second]
    return [*(row.recall[k] for k in KS), *measures]
