"""The tables of published numbers: what compares, apart from what does not, in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest

from mmbench.report.beside import published_beside, sections
from mmbench.report.comparison import compare
from mmbench.report.leaderboard import render

BABY = {"name": "amazon-baby", "fingerprint": "f" * 64, "users": 19445, "items": 7050,
        "train_interactions": 118551}  # fmt: skip
FACTS = {
    "dataset": BABY,
    "split": {"name": "random-per-user", "fingerprint": "5" * 64},
    "protocol": {"name": "mmrec", "mask_validation_at_test": False},
}


def model(name, *modalities):
    return {"name": name, "modalities": list(modalities)}


@pytest.fixture
def comparison(lab):
    runs = [
        lab.run("lightgcn", quality=1.5, model=model("lightgcn"), **FACTS),
        lab.run("my vbpr", model=model("vbpr", "visual", "textual"), **FACTS),
        lab.run("userknn", quality=0.5, model=model("userknn"), **FACTS),
    ]
    return compare(runs, metrics=["recall@20", "ndcg@20"])


def test_the_terminal_keeps_apart_what_does_not_compare(comparison):
    text = render(comparison, "table", published=published_beside(comparison))
    assert max(map(len, text.splitlines())) <= 80
    assert text.rstrip().endswith("No published number in these columns: userknn.")
    comparable, apart = text.split("\nPublished\n")[1].split("\nPublished, not comparable\n")
    assert "lightgcn: MMRec page" in comparable
    assert "0.0754" in comparable
    assert "ours" in comparable
    apart_table = apart.split("publ.: as printed")[0]
    assert "lightgcn: MMSSL README" in apart_table
    assert "0.0319" in apart_table
    assert "ours" not in apart_table  # never silently beside
    assert "another NDCG" in apart
    assert "arXiv 2302.03497" in apart


def test_every_note_is_borne_and_every_mark_explained(comparison):
    found = sections(published_beside(comparison))
    assert [section.comparable for section in found] == [True, False]
    for section in found:
        borne = {number for line in section.lines for number in line.notes}
        assert borne == set(range(1, len(section.notes) + 1))


def test_one_table_that_came_by_two_ways_is_one_line(comparison):
    (section, _) = sections(published_beside(comparison))
    labels = [line.label for line in section.lines]
    assert labels.count("lightgcn: FREEDOM paper") == 1
    (line,) = [line for line in section.lines if line.label == "lightgcn: FREEDOM paper"]
    assert {metric: row.published for metric, row in line.numbers.items()} == {
        "recall@20": 0.0754,
        "ndcg@20": 0.0328,
    }


def test_machine_formats_say_what_compares(comparison):
    beside = published_beside(comparison)
    document = json.loads(render(comparison, "json", published=beside))
    rows = document["published"]["rows"]
    assert {row["comparable"] for row in rows} == {True, False}
    assert all(row["relative"] is None for row in rows if not row["comparable"])
    assert "published" not in json.loads(render(comparison, "json"))
    lines = list(csv.DictReader(io.StringIO(render(comparison, "csv", published=beside))))
    printed = [line for line in lines if line["published_source"]]
    assert len(lines) == len(printed) + 6  # three systems, two metrics
    assert {line["comparable"] for line in printed} == {"True", "False"}
    assert all(line["differs"] for line in printed)
    for form in ("github", "latex"):
        text = render(comparison, form, published=beside)
        assert "Published, not comparable" in text
        assert text.count("MMRec page") >= 2


def test_data_that_no_paper_has(lab):
    compared = compare([lab.run("lightgcn", model=model("lightgcn"))], metrics=["recall@20"])
    beside = published_beside(compared)
    assert not sections(beside)
    text = " ".join(render(compared, "table", published=beside).split())
    assert "No published table holds toy; they hold baby, sports" in text
    assert "No published table holds toy" in render(compared, "github", published=beside)
