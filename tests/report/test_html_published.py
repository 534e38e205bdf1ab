"""Published numbers on the page: beside ours where they compare, apart where they do not."""

from __future__ import annotations

import pytest

from mmbench.report.html.content import Text, tables_of
from mmbench.report.html.evidence import Request, gather
from mmbench.report.html.published import published

FACTS = {
    "dataset": {"name": "amazon-baby", "fingerprint": "f" * 64, "users": 19445, "items": 7050,
                "train_interactions": 118551},
    "split": {"name": "random-per-user", "fingerprint": "5" * 64},
    "protocol": {"name": "mmrec", "mask_validation_at_test": False},
}  # fmt: skip


@pytest.fixture
def runs(lab):
    model = {"name": "lightgcn", "modalities": []}
    return [lab.run("lightgcn", model=model, metrics=("recall@20", "ndcg@20"), **FACTS)]


def test_what_compares_stands_beside_ours_and_the_rest_apart(runs):
    section = published(gather(Request(runs, metrics=("recall@20", "ndcg@20"))))
    beside, apart = tables_of(section.parts)
    assert (beside.name, apart.name) == ("published", "published-not-comparable")
    assert [column.head for column in beside.columns[2:]] == ["ours", "publ.", "diff"] * 2
    assert [column.head for column in apart.columns[2:]] == ["publ."]  # never silently beside
    (row,) = [row for row in beside.rows if row[0].text == "lightgcn: FREEDOM paper"]
    ours, printed, difference = row[2:5]
    assert printed.value == 0.0754
    assert difference.value == pytest.approx(ours.value / 0.0754 - 1)
    assert all(row[2].value is not None for row in apart.rows)
    for table in (beside, apart):
        assert all(len(row) == len(table.columns) for row in table.rows)
        marks = {mark for row in table.rows for mark in row[1].text.split(",") if mark != "-"}
        assert len(marks) == len(table.notes) > 0
    assert isinstance(section.parts[-1], Text)


def test_other_data_and_the_validation_part_have_no_section(runs, lab):
    assert published(gather(Request(runs, part="valid", metrics=("recall@20",)))) is None
    assert published(gather(Request([lab.run("plain")]))) is None
