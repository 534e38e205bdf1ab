"""Cold items on the page: the numbers of the table, intervals that are drawn, and chance."""

from __future__ import annotations

import numpy as np
import pytest

from mmbench.report.cold_start import Scope, compare_cold
from mmbench.report.html.cold_start import cold_start
from mmbench.report.html.content import figures_of, tables_of


@pytest.fixture
def table(lab):
    everyone = np.full(lab.n_users, lab.n_items)
    cold = np.arange(lab.n_items) >= 90
    scopes = [
        Scope("overall", "test", None, everyone),
        Scope("cold", "test", cold, everyone, is_cold=True),
    ]
    runs = [lab.run("ids", quality=0.0), lab.run("content", quality=2.0)]
    return compare_cold(runs, scopes, ["recall@10", "ndcg@10"], definition="items")


def test_every_cell_stands_beside_chance_with_its_interval(table):
    section = cold_start(table)
    (shown,) = tables_of(section.parts)
    heads = [column.head for column in shown.columns]
    assert heads == ["System", "Items", "Metric", "mean", "low", "high", "adj. p", "users"]
    assert [row[0].text for row in shown.rows] == ["ids", "content", "chance"] * 4
    rows = {(r[0].text, r[1].text, r[2].text): r for r in shown.rows}
    best = rows["content", "cold", "Recall@10"]
    assert best[3].value == table.cells[1][1].mean
    assert (best[4].value, best[5].value) == (table.cells[1][1].low, table.cells[1][1].high)
    assert best[6].text == "best"
    worse = rows["ids", "overall", "Recall@10"]
    assert worse[6].tone == "worse"
    assert worse[6].text.endswith("*")  # never by colour alone
    assert rows["chance", "cold", "Recall@10"][4].text == ""


def test_figures_say_and_draw_intervals_and_chance(table):
    figures = figures_of(cold_start(table, "mine").parts)
    assert [figure.name for figure in figures] == ["mine-recall-10", "mine-ndcg-10"]
    chance = table.chance[1].mean
    assert f"chance {chance:.4f}" in figures[0].description
    (axes,) = figures[0].draw().axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [c.mean for c in table.chance[:2]]
    arms = [bar.get_segments() for bar in axes.collections]
    for number, segments in enumerate(arms):
        for at, segment in enumerate(segments):
            cell = table.cells[number][at]
            np.testing.assert_allclose(sorted(segment[:, 1]), [cell.low, cell.high], atol=1e-12)
