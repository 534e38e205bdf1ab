"""The printed table under a simulated null: how often does it mark anything at all?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mmbench.report.comparison import compare
from mmbench.report.leaderboard import render

N_TABLES = 400


class Null:
    """Systems whose hits are independent draws with the same probability per user and rank."""

    def __init__(self, lab, n_systems):
        self.lab, self.rng = lab, np.random.default_rng(20)
        self.shape = (lab.n_users, lab.depth)
        # Users differ much in how easy they are; that is what pairing takes out.
        ease = self.rng.beta(1.0, 3.0, lab.n_users)
        self.chance = ease[:, None] / (1 + 0.3 * np.arange(lab.depth))
        self.lists = lab.lists(0.0, 1)
        self.runs = [
            lab.run(f"system-{number}", lists=self.lists, metrics=["recall@10"])
            for number in range(n_systems)
        ]

    def draw(self, **arguments):
        """A comparison of fresh draws, through the run folders."""
        for run in self.runs:
            hits = self.rng.random(self.shape) < self.chance
            # No more hits than relevant items.
            hits &= np.cumsum(hits, axis=1) <= self.lists.n_relevant[:, None]
            np.save(run.path / "lists" / "test" / "hits.npy", hits)
        return compare(self.runs, **arguments)


def rejecting_tables(null, n_tables, **arguments):
    """Tables with at least one difference marked significant."""
    count = 0
    for _ in range(n_tables):
        compared = null.draw(**arguments)
        contrasts = [cell.contrast for row in compared.cells for cell in row if cell.contrast]
        count += any(contrast.adjusted < compared.alpha for contrast in contrasts)
    return count


@pytest.mark.slow
def test_two_equal_systems_differ_significantly_in_five_percent_of_tables(make_lab):
    null = Null(make_lab(n_users=120, n_items=60, depth=10), 2)
    count = rejecting_tables(null, N_TABLES, metrics=["ndcg@10"])
    low, high = stats.binom.interval(0.999, N_TABLES, 0.05)
    assert low <= count <= high


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"metrics": ["ndcg@10"]},
        {"metrics": ["ndcg@10"], "baseline": "system-2"},
        {"metrics": ["ndcg@10", "recall@10"], "family": "table"},
    ],
    ids=["best of the column", "named baseline", "whole table"],
)
def test_the_family_wise_error_rate_of_five_equal_systems_is_held(make_lab, arguments):
    n_tables = N_TABLES // 2
    null = Null(make_lab(n_users=80, n_items=60, depth=10), 5)
    count = rejecting_tables(null, n_tables, **arguments)
    # Holm holds 5 % as an upper bound, and correlated tests stay below it; never far below.
    assert stats.binom.ppf(0.001, n_tables, 0.02) <= count <= stats.binom.ppf(0.999, n_tables, 0.05)


def test_counting_only_the_shown_pairs_of_the_best_would_break_the_level():
    # Why all pairs are in the family of "best": with five equal systems, Holm over the four
    # shown comparisons alone rejects somewhere in about twice as many tables as it should.
    rng = np.random.default_rng(3)
    n_tables, n_users = 2000, 80
    rejected = 0
    for _ in range(n_tables):
        values = rng.normal(size=(5, n_users))
        best = values.mean(axis=1).argmax()
        gaps = values[best] - np.delete(values, best, axis=0)
        smallest = stats.t.sf(
            np.abs(gaps.mean(1) / gaps.std(1, ddof=1)).max() * n_users**0.5, n_users - 1
        )
        rejected += 4 * 2 * smallest < 0.05
    assert rejected > stats.binom.ppf(0.9999, n_tables, 0.05)


def test_a_planted_difference_is_found_and_nothing_else(make_lab):
    lab = make_lab(n_users=400)
    good = lab.lists(1.3, 2)
    plain = lab.lists(1.0, 2)
    runs = [lab.run("planted", lists=good), lab.run("plain", lists=plain)]
    # Equal to "plain" but for a swap that moves no hit.
    turned = plain.items.copy()
    turned[:, [-1, -2]] = turned[:, [-2, -1]]
    twin = replace(plain, items=turned, hits=np.take_along_axis(lab.wanted, turned, axis=1))
    runs.append(lab.run("twin", lists=twin))
    compared = compare(runs, metrics=["recall@10"], baseline="plain")
    assert compared.cell("planted").contrast.adjusted < 0.001
    assert compared.cell("twin").contrast.adjusted == 1
    table = render(compared, "table")
    marked = [line for line in table.splitlines() if "*" in line and "adj. p <" not in line]
    assert [line.split()[0] for line in marked] == ["planted"]
