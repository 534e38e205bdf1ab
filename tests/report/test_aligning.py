"""Alignment beside systems, from what runs tell; real runs: tests/cli/test_compare_layout.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmbench.report.aligning import alignment_beside, cells, csv_fields, names, notes
from mmbench.report.systems import group_runs


def record(first, second, value):
    return {
        "first": first,
        "second": second,
        "n_items": 40,
        "recall_first": {"1": value, "5": value, "10": 1.0},
        "recall_second": {"1": 0.0, "5": value, "10": 1.0},
        **dict.fromkeys(("paired", "unpaired", "gap"), value),
        "uniformity_first": -1.0,
        "uniformity_second": -2.0,
    }


def learning(*modalities):
    return [{"modality": modality, "encoder": "clip-vit-b16"} for modality in modalities]


def test_what_learnt_is_the_mean_over_the_seeds(lab):
    both = learning("visual", "textual")
    runs = [
        lab.run("vbpr", seed, encoders=both, alignment=[record("visual", "textual", value)])
        for seed, value in ((0, 0.2), (1, 0.4))
    ]
    found = alignment_beside(group_runs(runs), Path("nowhere"))
    (row,) = found.rows
    assert (row.label, row.pair, row.learnt, row.one_encoder) == ("vbpr", "V-T", True, True)
    assert row.paired == pytest.approx(0.3)
    assert row.recall == pytest.approx({1: 0.15, 5: 0.3, 10: 1.0})
    assert cells(row) == ["0.150", "0.300", "1.000", "0.300", "0.300", "0.300", "-1.00 -2.00"]
    assert any("40 items" in note for note in notes(found))


def test_a_seed_that_was_not_measured_leaves_its_system_out(lab):
    both = learning("visual", "textual")
    runs = [
        lab.run("vbpr", 0, encoders=both, alignment=[record("visual", "textual", 0.2)]),
        lab.run("vbpr", 1, encoders=both),
    ]
    found = alignment_beside(group_runs(runs), Path("nowhere"))
    assert not found.rows
    assert found.lacking[0][1].startswith("its encoders learn and were not measured")


def test_three_modalities_have_three_rows(lab):
    pairs = [("visual", "textual"), ("visual", "acoustic"), ("textual", "acoustic")]
    run = lab.run(
        "mmgcn",
        encoders=learning("visual", "textual", "acoustic"),
        alignment=[record(*pair, 0.1 * number) for number, pair in enumerate(pairs)],
    )
    found = alignment_beside(group_runs([run]), Path("nowhere"))
    assert names(found) == ["mmgcn V-T", "mmgcn V-A", "mmgcn T-A"]
    assert csv_fields(found, "mmgcn")["alignment_pair"] == "V-T; V-A; T-A"
    assert csv_fields(found, "other")["alignment_pair"] == ""


def test_the_two_sides_are_those_of_the_pair_whatever_the_order_of_the_record(lab):
    run = lab.run(
        encoders=learning("visual", "textual"), alignment=[record("textual", "visual", 0.5)]
    )
    (row,) = alignment_beside(group_runs([run]), Path("nowhere")).rows
    assert (row.uniformity_first, row.uniformity_second) == (-2.0, -1.0)


def test_of_whom_there_is_nothing_is_said_with_the_reason(lab, tmp_path):
    sets = [
        {"key": f"{m}__x", "modality": m, "encoder": "x", "sha256": m}
        for m in ("visual", "textual")
    ]
    runs = [lab.run("bpr-mf"), lab.run("vbpr", features=sets)]
    found = alignment_beside(group_runs(runs), tmp_path)
    assert dict(found.lacking) == {
        "bpr-mf": "it reads one modality or none",
        "vbpr": "toy is not prepared under --data-dir",
    }
    assert "No alignment (it reads one modality or none): bpr-mf." in notes(found)
