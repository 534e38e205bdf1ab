from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import parse_metric
from mmbench.report.comparison import compare
from mmbench.report.gains import GainTable, Place, gains
from mmbench.report.html.exporting import check_targets, table_csv, write_sections
from mmbench.report.html.gains import section
from mmbench.report.pairing import References


@pytest.fixture
def runs(lab):
    return [lab.run("full", quality=2.0), lab.run("a", quality=1.0), lab.run("b", quality=2.0)]


@pytest.fixture
def of(runs):
    return References({run.system: runs[0].system for run in runs[1:]}, "full")


def table(c, **changes):
    given = {"heading": "Gains", "series": "Gain of", "axis": "K", "comparison": c}
    return GainTable(**{**given, "rows": tuple(gains(c)), **changes})


def printed(table, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_a_gain_is_the_mean_difference_and_turns_round_with_the_reference(runs, of):
    c = compare(runs, metrics=["recall@20"], references=of, family="table")
    values = [run.values(parse_metric("recall@20")) for run in runs]
    for row, turned, other in zip(gains(c), gains(c, of_reference=True), values[1:], strict=True):
        difference = np.nanmean(other - values[0])
        assert row.gain == pytest.approx(difference, abs=1e-12)
        assert row.relative == pytest.approx(difference / np.nanmean(values[0]))
        assert turned.gain == pytest.approx(-difference, abs=1e-12)
        assert turned.relative == pytest.approx(-difference / np.nanmean(other))
        assert (turned.low, turned.high) == (-row.high, -row.low)
        assert turned.adjusted == row.adjusted


def test_declared_references_make_one_family_and_keep_the_order(runs, of):
    c = compare(runs, metrics=["recall@20", "ndcg@10"], references=of, family="table")
    assert [system.label for system in c.systems] == ["full", "a", "b"]
    assert [(f.name, f.over_users) for f in c.families] == [("table", 4)]
    assert c.baseline is None
    assert not any(cell.contrast for cell in c.cells[0])
    smallest = min(row.p for row in gains(c))
    assert min(row.adjusted for row in gains(c)) == pytest.approx(min(1, 4 * smallest))


def test_a_declared_reference_must_be_there(runs):
    with pytest.raises(ConfigError, match="reference of 'a' is not among the compared systems"):
        compare(runs, references=References({runs[1].system: "gone"}, "gone"))


@pytest.mark.parametrize("by", ["k", "user-activity", "item-popularity"])
@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_and_tell_their_family(runs, of, by, width):
    long = compare(
        runs,
        metrics=["recall@20", "ndcg@20"],
        references=of,
        family="table",
        by=by,
        cutoffs=(5, 20),
    )
    shown = printed(table(long), width)
    assert max(map(len, shown.splitlines())) <= width
    text = " ".join(shown.split())
    assert f"Holm-Bonferroni over all {long.families[0].over_users} comparisons" in text
    assert "each system against full" in text
    if by == "k":
        assert "Recall " in shown
        assert "Recall@" not in shown


def test_only_chosen_places_are_printed_and_files_hold_all(runs, of):
    c = compare(
        runs, metrics=["recall@20"], references=of, family="table", by="k", cutoffs=(1, 5, 20)
    )
    some = table(c, shown=("5",))
    assert len([line for line in printed(some).splitlines() if " [" in line]) == 2
    records = list(csv.DictReader(io.StringIO(some.text("csv"))))
    assert [row["at"] for row in records] == ["1", "5", "20"] * 2
    assert len(json.loads(some.text("json"))["gains"]) == 6
    assert "tabular" in some.text("latex")
    assert some.text("github").startswith("| Gain of")
    with pytest.raises(UnknownNameError):
        some.text("html")


def test_places_can_be_given_by_system(runs, of):
    c = compare(runs, metrics=["recall@20"], references=of)
    places = {runs[1].system: Place("noise", "50%", 0.5), runs[2].system: Place("noise", "100%", 1)}
    assert [(row.series, row.at, row.x) for row in gains(c, places=places)] == [
        ("noise", "50%", 0.5),
        ("noise", "100%", 1),
    ]


@pytest.mark.parametrize(("by", "kind"), [("k", "k"), ("user-activity", "groups"), (None, "share")])
def test_figures_and_tables_are_written(runs, of, tmp_path, by, kind):
    c = compare(runs, metrics=["recall@20"], references=of, by=by, cutoffs=(1, 20))
    places = {run.system: Place(run.label, "50%", 0.5) for run in runs} if by is None else None
    made = table(c, rows=tuple(gains(c, places=places)))
    folder = tmp_path / "out"
    check_targets(None, folder, force=False)
    assert write_sections([section("mine", made, "axis", kind=kind)], folder, "now", "cmd") == 4
    (figure,) = (folder / "figures").glob("*.svg")
    assert "axis" in figure.read_text()
    assert figure.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "tables" / "mine.csv").read_text().splitlines()
    assert len(lines) == 1 + len(made.rows)


def test_a_section_without_a_figure_holds_the_table(runs, of):
    c = compare(runs, metrics=["recall@20"], references=of)
    (only,) = section("mine", table(c), "", kind="none").parts
    assert table_csv(only).count("\n") == 3
