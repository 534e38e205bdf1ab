"""Pages of odd runs: hardly any users, no difference, no hit, many systems."""

from __future__ import annotations

import json
import re

import html5lib
import numpy as np
import pytest

from mmbench.errors import ConfigError
from mmbench.report.html.content import figures_of
from mmbench.report.html.drawing import inline_svg
from mmbench.report.html.evidence import Request, gather
from mmbench.report.html.page import head_of, make_sections, render


def page_of(runs, **settings):
    evidence = gather(Request(runs, metrics=("recall@10",), **settings))
    text = render(head_of(evidence), make_sections(evidence))
    parser = html5lib.HTMLParser()
    parser.parse(text)
    assert parser.errors == []
    return text


@pytest.mark.parametrize("n_users", [1, 2])
def test_hardly_any_users(make_lab, n_users):
    lab = make_lab(n_users=n_users, n_items=30, depth=20)
    text = page_of([lab.run("a"), lab.run("b", quality=3.0)])
    assert not re.search(r"\bnan\b", text, flags=re.IGNORECASE)


def test_equal_systems_and_no_hits(make_lab):
    lab = make_lab(n_users=20, n_items=30, depth=20)
    lists = lab.lists(1.0, 0)
    same = [lab.run("a", lists=lists), lab.run("b", lists=lists)]
    assert "0 of 1 others differ significantly" in page_of(same)


def test_lists_of_one_item(make_lab):
    lab = make_lab(n_users=20, n_items=30, depth=1)
    runs = [lab.run(label, metrics=("recall@1",)) for label in "ab"]
    evidence = gather(Request(runs))
    assert evidence.by_k is not None
    assert [column.metric.k for column in evidence.by_k.columns] == [1]
    for section in make_sections(evidence):
        for figure in figures_of(section.parts):
            assert "<svg" in inline_svg(figure)


def test_lists_of_different_depth_share_the_shorter(make_lab):
    lab = make_lab(n_users=30, n_items=40, depth=20)
    short = lab.run("short")
    lab.depth = 30
    long = lab.run("long")
    for runs in ([short, long], [long, short]):
        evidence = gather(Request(runs, metrics=("recall@10",)))
        assert max(column.metric.k for column in evidence.by_k.columns) == 20


def test_twelve_systems_over_validation_users(make_lab):
    lab = make_lab(n_users=30, n_items=40, depth=20)
    runs = [lab.run(f"system-{n}", quality=n / 4, metrics=("recall@10",)) for n in range(12)]
    text = page_of(runs, part="valid", baseline="system-3", correction="bh", family="table")
    assert "over all 66 pairs in all 1 metrics together" not in text
    assert "<span>validation</span>" in text


def test_histories_without_a_common_metric_have_no_curve(make_lab):
    lab = make_lab(n_users=20, n_items=30, depth=20)
    runs = [lab.run(label) for label in "ab"]
    for run, metric in zip(runs, ("recall@10", "ndcg@10"), strict=True):
        line = json.dumps({"epoch": 1, "valid": {metric: 0.5}})
        (run.path / "history.jsonl").write_text(line, encoding="utf-8")
    names = [s.name for s in make_sections(gather(Request(runs, metrics=("recall@10",))))]
    assert "convergence" not in names


def test_runs_that_are_not_comparable(make_lab):
    lab = make_lab(n_users=20, n_items=30, depth=20)
    other = {"name": "random", "fingerprint": "6" * 64}
    with pytest.raises(ConfigError, match="differ in the split"):
        gather(Request([lab.run("a"), lab.run("b", split=other)]))
    with pytest.raises(ConfigError, match="no complete run"):
        gather(Request([]))


def test_labels_that_are_empty_or_long(make_lab):
    lab = make_lab(n_users=20, n_items=30, depth=20)
    labels = ["", "x" * 300, "two\nlines \u6a21\u578b"]
    runs = [lab.run(label, folder=str(n), system=str(n)) for n, label in enumerate(labels)]
    assert "x" * 300 in page_of(runs)


def test_an_item_group_without_users(make_lab):
    lab = make_lab(n_users=20, n_items=30, depth=20)
    lab.popularity = np.ones_like(lab.popularity)
    page_of([lab.run("a"), lab.run("b")])
