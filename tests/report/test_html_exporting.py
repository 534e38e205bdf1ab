"""Figures and tables as files; what is there already is never lost."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from mmbench.errors import DataError
from mmbench.report.html import exporting
from mmbench.report.html.content import (
    Cell,
    Column,
    Details,
    Figure,
    Gallery,
    Listing,
    Section,
    Table,
    Text,
)
from mmbench.report.html.drawing import canvas
from mmbench.report.html.evidence import Request, gather, read_history
from mmbench.report.html.naming import slug

TABLE = Table(
    "numbers",
    "A caption",
    (Column("System", numeric=False), Column("mean", group="Recall@20"), Column("p")),
    (
        (Cell("a_b & c\nd", "a_b & c\nd"), Cell("0.12", 0.123456789012345), Cell("<0.001*", 1e-9)),
        (Cell("other", "other"), Cell("-", float("nan")), Cell("ref.", None)),
    ),
    ("A note with 5 %.",),
)


def draw():
    sheet, axes = canvas()
    axes.plot([0, 1], [0, 1])
    return sheet


SECTIONS = (
    Section(
        "one",
        "One",
        (
            Text(("x",)),
            Gallery((Figure("curve", "Curve", "A line that rises.", draw),)),
            Details("More", (TABLE, Listing("y"), Details("Inner", (replace(TABLE, name="n2"),)))),
        ),
    ),
)


@pytest.fixture(scope="module")
def evidence(laboratory, tmp_path_factory):
    lab = laboratory(tmp_path_factory.mktemp("out"), n_users=40, n_items=40, depth=20)
    return gather(Request([lab.run("a")], metrics=("recall@10",), command="mmbench compare a"))


def test_csv_is_at_full_precision():
    rows = list(csv.reader(io.StringIO(exporting.table_csv(TABLE))))
    assert rows[0] == ["System", "Recall@20 mean", "p"]
    assert rows[1] == ["a_b & c\nd", "0.123456789012345", "1e-09"]
    assert rows[2] == ["other", "", "ref."]


def test_latex_is_escaped_and_commented():
    text = exporting.table_latex(TABLE)
    assert text.startswith("% A caption\n% A note with 5 %.\n\\begin{tabular}{lrr}\n\\toprule")
    assert "a\\_b \\& c d" in text


def test_writes_every_figure_and_table(evidence, tmp_path):
    target = tmp_path / "new" / "report"
    assert exporting.write_folder(evidence, SECTIONS, target) == 6
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert files == {
        "figures/curve.svg",
        "figures/curve.png",
        *(f"tables/{name}.{kind}" for name in ("numbers", "n2") for kind in ("csv", "tex")),
        "mmbench-report.json",
    }
    mark = json.loads((target / "mmbench-report.json").read_text(encoding="utf-8"))
    assert set(mark["files"]) == files - {"mmbench-report.json"}
    assert mark["command"] == "mmbench compare a"
    assert [path.name for path in target.parent.iterdir()] == ["report"]


def test_an_earlier_report_is_replaced_as_a_whole(evidence, tmp_path):
    target = tmp_path / "report"
    exporting.write_folder(evidence, SECTIONS, target)
    (target / "figures" / "stale.svg").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="holds an earlier report"):
        exporting.check_targets(None, target, force=False)
    exporting.check_targets(None, target, force=True)
    exporting.write_folder(evidence, SECTIONS, target)
    assert not (target / "figures" / "stale.svg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_other_folders_are_never_replaced(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    exporting.check_targets(None, folder, force=False)  # empty
    (folder / "chapter.tex").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="not empty and no earlier report"):
        exporting.check_targets(None, folder, force=True)
    with pytest.raises(DataError, match="is a file; name a folder"):
        exporting.check_targets(None, folder / "chapter.tex", force=True)


def test_pages_are_refused_where_something_is(tmp_path):
    file = tmp_path / "report.html"
    exporting.check_targets(file, None, force=False)
    file.write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match=r"exists; choose another file or pass --force"):
        exporting.check_targets(file, None, force=False)
    exporting.check_targets(file, None, force=True)
    with pytest.raises(DataError, match="is a folder; name a file"):
        exporting.check_targets(tmp_path, None, force=True)
    with pytest.raises(DataError, match="put the page beside it"):
        exporting.check_targets(tmp_path / "out" / "index.html", tmp_path / "out", force=False)


def test_a_failure_leaves_what_was_there(evidence, tmp_path):
    def fails():
        raise DataError("no data for this figure")

    broken = (Section("x", "X", (Gallery((Figure("f", "F", "Fails.", fails),)),)),)
    page, folder = tmp_path / "report.html", tmp_path / "report"
    page.write_text("old", encoding="utf-8")
    exporting.write_folder(evidence, SECTIONS, folder)
    before = sorted(path.name for path in folder.rglob("*"))
    for write, place in ((exporting.write_page, page), (exporting.write_folder, folder)):
        with pytest.raises(DataError, match="no data for this figure"):
            write(evidence, broken, place)
    assert page.read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report.html"]


def test_places_that_cannot_be_written(evidence, tmp_path):
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"--html .* cannot be written: .*nothing was kept"):
        exporting.write_page(evidence, (), file / "report.html")
    with pytest.raises(DataError, match=r"--out .* cannot be written"):
        exporting.write_folder(evidence, (), file / "report")


def test_names_of_files():
    names = [slug(text) for text in ("ndcg@20", "../../x", "R\u00e9call!", "@")]
    assert names == ["ndcg-20", "x", "r-call", "x"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"epoch": "x", "valid": {"a": 1}}', '{"valid": {"a": 1}}', "null"]
)
def test_a_damaged_history_names_its_line(line, lab):
    run = lab.run("a", folder="damaged")
    good = '{"epoch": 1, "train_s": 1.0, "valid": {"recall@10": 0.5}}\n'
    (run.path / "history.jsonl").write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"history\.jsonl, line 2 is no record of an epoch"):
        read_history(run)


def test_history_adds_up_seconds(lab):
    run = lab.run("a", folder="history")
    assert read_history(run) == ()
    lines = [
        {"epoch": 1, "train_s": 1.0},
        {"epoch": 2, "train_s": 2.0, "evaluate_s": 0.5, "valid": {"recall@10": 0.25}},
    ]
    text = "\n".join(map(json.dumps, lines))
    (run.path / "history.jsonl").write_text(text, encoding="utf-8")
    (epoch,) = read_history(run)
    assert (epoch.number, epoch.seconds, epoch.valid) == (2, 3.5, {"recall@10": 0.25})
