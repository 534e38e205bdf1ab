from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmbench.errors import ConfigError
from mmbench.report.comparison import compare
from mmbench.report.regression import regressions


@pytest.fixture
def sides(make_lab):
    """A system that lost some quality, one that did not, and their predecessors."""
    new, main = make_lab("new"), make_lab("main")
    lists = main.lists(1.0, 1)
    worse = replace(lists, hits=lists.hits & (np.arange(main.n_users)[:, None] >= 30))
    ours = [new.run("worse", lists=worse), new.run("same", lists=lists)]
    theirs = [main.run("worse", lists=lists), main.run("same", lists=lists)]
    return ours, theirs


def test_a_significant_loss_is_named(sides):
    found = regressions(compare(sides[0], against=sides[1], metrics=["recall@10"]))
    assert [(r.label, r.reference, r.column) for r in found] == [
        ("worse", "worse (against)", "Recall@10")
    ]
    assert "worse is worse than worse (against) in Recall@10: -" in str(found[0])
    assert found[0].adjusted < 0.001


def test_a_gain_is_none(sides):
    assert regressions(compare(sides[1], against=sides[0], metrics=["recall@10"])) == []


def test_the_margin_is_relative_to_the_reference(sides):
    compared = compare(sides[0], against=sides[1], metrics=["recall@10"])
    loss = -compared.cell("worse").contrast.relative
    assert 0.01 < loss < 0.5
    assert regressions(compared, margin=loss * 0.99)
    assert not regressions(compared, margin=loss * 1.01)


def test_an_insignificant_loss_is_none(lab):
    lists = lab.lists(1.0, 1)
    hits = lists.hits.copy()
    hits[np.flatnonzero(hits[:, :10].any(axis=1))[0]] = False  # one user of 300
    runs = [lab.run("old", lists=lists), lab.run("new", lists=replace(lists, hits=hits))]
    compared = compare(runs, metrics=["recall@10"], baseline="old")
    assert compared.cell("new").contrast.difference < 0
    assert regressions(compared) == []


def test_a_named_baseline_serves_as_reference(lab):
    runs = [
        lab.run("old", quality=2.0),
        lab.run("new", quality=0.5),
        lab.run("better", quality=4.0),
    ]
    found = regressions(compare(runs, baseline="old", metrics=["recall@10", "popularity@10"]))
    assert [(r.label, r.column) for r in found] == [("new", "Recall@10")]


def test_systems_are_judged_with_their_seeds_on_request(lab):
    # One lucky run out of three carries "old"; over users the loss of "new" is certain.
    old = [lab.run("old", seed, quality=q) for seed, q in enumerate((0.6, 0.6, 2.4))]
    new = [lab.run("new", seed, quality=0.6) for seed in range(3)]
    compared = compare([*old, *new], baseline="old", metrics=["recall@10"])
    assert len(regressions(compared)) == 1
    assert regressions(compared, level="systems") == []


def test_systems_need_three_seeds(sides):
    compared = compare(sides[0], against=sides[1], metrics=["recall@10"])
    with pytest.raises(
        ConfigError, match=r"worse against worse \(against\).*at least 3 seeds on both sides"
    ):
        regressions(compared, level="systems")


def test_the_best_of_each_column_is_no_reference(lab):
    with pytest.raises(ConfigError, match="a regression needs a fixed reference"):
        regressions(compare([lab.run("a"), lab.run("b")]))


def test_metrics_that_cannot_be_tested_do_not_pass_silently(lab):
    compared = compare([lab.run("a"), lab.run("b")], metrics=["coverage@10"], baseline="a")
    with pytest.raises(ConfigError, match="nothing could be tested for a regression"):
        regressions(compared)
