from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import parse_metric
from mmbench.report.across import rank_over_datasets, ranking_tables, ranking_text
from mmbench.runs import Run

SYSTEMS = {"good": 2.0, "fair": 1.2, "poor": 0.4}


@pytest.fixture
def runs(make_lab: Callable[..., Any]) -> list[Run]:
    """Three systems on four datasets, two seeds each."""
    found = []
    for n, name in enumerate(("books", "films", "games", "songs")):
        lab = make_lab(name, n_users=80 + n)
        facts = {"name": name, "fingerprint": name * 9, "users": lab.n_users, "items": lab.n_items}
        for label, quality in SYSTEMS.items():
            for seed in (0, 1):
                found.append(lab.run(label, seed, quality=quality, dataset=facts))
    return found


def test_ranks_and_tests_equal_scipy_and_statsmodels(runs: list[Run]) -> None:
    (ranked,) = rank_over_datasets(runs, ["recall@20"], baseline="poor")
    metric = parse_metric("recall@20")
    means = np.array(
        [
            [
                np.mean([
                    metric.values(run.lists("test")).mean()
                    for run in runs
                    if run.label == label and run.manifest["dataset"]["name"] == dataset
                ])
                for label in ranked.labels
            ]
            for dataset in ranked.datasets
        ]
    )  # fmt: skip
    np.testing.assert_allclose(ranked.means, means, rtol=1e-12)
    ranks = stats.rankdata(-means, axis=1).mean(axis=0)
    np.testing.assert_allclose(ranked.result.average_ranks, ranks, rtol=1e-12)
    assert ranked.result.p == pytest.approx(stats.friedmanchisquare(*means.T).pvalue, abs=1e-12)
    assert ranked.labels == ("good", "fair", "poor")
    z = (ranks[:2] - ranks[2]) / np.sqrt(3 * 4 / (6 * 4))
    expected = multipletests(2 * stats.norm.sf(np.abs(z)), method="holm")[1]
    np.testing.assert_allclose(ranked.adjusted[:2], expected, atol=1e-12)
    assert np.isnan(ranked.adjusted[2])
    assert ranked.comparisons == 2


def test_a_reference_that_the_data_choose_pays_for_all_pairs(runs: list[Run]) -> None:
    (named,) = rank_over_datasets(runs, ["recall@20"], baseline="good")
    (best,) = rank_over_datasets(runs, ["recall@20"])
    assert best.reference == "good"
    assert best.comparisons == 3
    assert (best.adjusted[1:] >= named.adjusted[1:]).all()


def test_output_fits_the_terminal_and_parses_back(runs: list[Run]) -> None:
    rankings = rank_over_datasets(runs, ["recall@20", "ndcg@10"])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ranking_tables(rankings))
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    # Demsar, JMLR 2006: q is 2.343 for three systems; four datasets.
    apart = 2.343 * np.sqrt(3 * 4 / (6 * 4))
    assert f"separates ranks {apart:.2f} apart" in " ".join(text.split())
    rows = json.loads(ranking_text(rankings, "json"))
    assert len(rows) == 6
    parsed = list(csv.DictReader(io.StringIO(ranking_text(rankings, "csv"))))
    assert [row["system"] for row in parsed] == [row["system"] for row in rows]
    assert float(parsed[1]["films"]) == rows[1]["films"]
    for form in ("github", "latex"):
        assert "average" in ranking_text(rankings, form)


def test_metrics_without_a_direction_are_left_out(runs: list[Run]) -> None:
    ranked = rank_over_datasets(runs, ["recall@20", "popularity@20"])
    assert [str(r.metric) for r in ranked] == ["recall@20"]


def test_gaps_and_unknown_names_are_refused(runs: list[Run]) -> None:
    with pytest.raises(ConfigError, match="two datasets"):
        rank_over_datasets(runs[:6])
    with pytest.raises(ConfigError, match="missing: poor on songs"):
        rank_over_datasets(runs[:-2])
    with pytest.raises(ConfigError, match="two systems"):
        rank_over_datasets([run for run in runs if run.label == "good"])
    with pytest.raises(ConfigError, match="no metric to rank by"):
        rank_over_datasets(runs, ["popularity@20"])
    with pytest.raises(UnknownNameError, match='Did you mean "good"'):
        rank_over_datasets(runs, baseline="goood")
