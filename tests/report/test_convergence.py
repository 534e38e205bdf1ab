"""When a run gets how far, against numbers written down by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmbench.errors import UnknownNameError
from mmbench.report.convergence import Convergence, Trace, curves, reached, section
from mmbench.report.html.content import figures_of, tables_of
from mmbench.report.html.drawing import png, standalone_svg
from mmbench.report.html.exporting import table_csv
from mmbench.runs import Run


def run(folder: Path, label: str, seed: int, values: dict[int, float], start: float = 0.0) -> Run:
    """A folder with the history of a run; `values` by epoch, `start` what it ranks untrained."""
    path = folder / f"{label}-{seed}"
    path.mkdir()
    lines = []
    for epoch in range(1, max(values, default=0) + 1):
        record: dict[str, Any] = {"epoch": epoch, "losses": {}, "train_s": 1.0}
        if epoch in values:
            record |= {"valid": {"ndcg@5": values[epoch]}, "evaluate_s": 0.5}
        lines.append(json.dumps(record) + "\n")
    (path / "history.jsonl").write_text("".join(lines))
    manifest = {
        "label": label, "seed": seed, "training": {"steps_per_epoch": 3},
        "metrics": {"valid": {"ndcg@5": start}},
    }  # fmt: skip
    return Run(path, manifest)


@pytest.fixture
def table(tmp_path: Path) -> Convergence:
    # Best from scratch: 0.4 for seed 0, 0.2 for seed 1.
    scratch = (
        run(tmp_path, "scratch", 0, {2: 0.1, 4: 0.4, 6: 0.3}),
        run(tmp_path, "scratch", 1, {2: 0.2, 4: 0.1, 6: 0.15}),
    )
    moved = (
        run(tmp_path, "moved", 0, {2: 0.36, 4: 0.5}),
        run(tmp_path, "moved", 1, {2: 0.191, 4: 0.18}),
    )
    untrained = (run(tmp_path, "zero", 0, {}, 0.2), run(tmp_path, "zero", 1, {}, 0.05))
    traces = (
        Trace("scratch", scratch, scratch),
        Trace("from elsewhere", moved, scratch, untrained),
        Trace("closed form", (run(tmp_path, "closed", 0, {}),), scratch),
    )
    return Convergence("a to b", "ndcg@5", traces, "the best from scratch")


def test_the_first_validated_epoch_that_gets_there_seed_by_seed(table: Convergence) -> None:
    rows = {trace.label: row for trace, row in zip(table.traces, table.rows, strict=True)}
    found = {
        name: [(each.share, each.reached, each.epochs, each.steps) for each in row]
        for name, row in rows.items()
    }
    # Seed 0: goals 0.2, 0.32, 0.36, 0.38, 0.4 reached at 4; seed 1: 0.1 to 0.2, all at epoch 2.
    assert found["scratch"] == [(share, 2, 3.0, 9.0) for share in (0.5, 0.8, 0.9, 0.95, 1.0)]
    assert found["from elsewhere"][:3] == [
        (0.5, 2, 1.0, 3.0),  # 0 for seed 0, whose weights rank 0.2 untrained; 2 for seed 1
        (0.8, 2, 2.0, 6.0),
        (0.9, 2, 2.0, 6.0),
    ]
    assert found["from elsewhere"][3] == (0.95, 2, 3.0, 9.0)  # 4 for seed 0, 2 for seed 1 (0.191)
    assert found["from elsewhere"][4] == (1.0, 1, 4.0, 12.0)  # seed 1 never has its 0.2
    assert all(n == 0 and math.isnan(epochs) for _, n, epochs, _ in found["closed form"])


def test_a_curve_begins_at_0_where_the_weights_can_rank(table: Convergence) -> None:
    one, two = curves(table.traces[1], "ndcg@5")
    assert (one.epochs, one.values) == ((0, 2, 4), (0.2, 0.36, 0.5))
    assert two.best == 0.191  # of what was trained
    assert curves(table.traces[0], "ndcg@5")[0].epochs == (2, 4, 6)
    assert math.isnan(curves(table.traces[2], "ndcg@5")[0].best)
    assert [each.share for each in reached(table.traces[0], "ndcg@5", (0.3, 0.6))] == [0.3, 0.6]


def test_it_is_told_in_every_form(table: Convergence) -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["from elsewhere"][2:] == ["0.3455", "3", "1", "2", "2", "3", "4", "1/2"]
    told = json.loads(table.text("json"))
    assert told["metric"] == "ndcg@5"
    assert told["reached"][-1]["epochs"] is None
    rows = list(csv.DictReader(io.StringIO(table.text("csv"))))
    assert len(rows) == 15
    assert rows[9]["epochs"] == "4.0"
    assert "from elsewhere" in table.text("github")
    assert "tabular" in table.text("latex")
    with pytest.raises(UnknownNameError, match='Did you mean "json"'):
        table.text("jso")


def test_its_files_hold_figures_over_epochs_and_steps(table: Convergence) -> None:
    made = section("convergence", [table])
    figures = figures_of(made.parts)
    assert [figure.name for figure in figures] == ["convergence-epochs", "convergence-steps"]
    assert "from elsewhere, seed 0: 0.2000 at epoch 0, best 0.5000" in figures[0].description
    for figure in figures:
        assert "from elsewhere" in standalone_svg(figure)
        assert png(figure).startswith(b"\x89PNG")
    (stored,) = tables_of(made.parts)
    assert len(table_csv(stored).splitlines()) == 16
    names = [figure.name for figure in figures_of(section("convergence", [table, table]).parts)]
    assert names == [f"convergence-{n}-{kind}" for n in (1, 2) for kind in ("epochs", "steps")]
