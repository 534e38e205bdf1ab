from __future__ import annotations

import json

import pytest

from mmbench.errors import DataError
from mmbench.report.comparison import compare
from mmbench.report.leaderboard import render
from mmbench.report.learned import learned


def model(**values):
    facts = {"name": "gated", "integration": "ensemble", "modalities": [], "parameters": 1}
    return {**facts, "learned": values} if values else facts


@pytest.fixture
def runs(lab):
    return [
        lab.run("gated", 0, model=model(**{"gate.visual": 1.0, "gate.acoustic": 0.0})),
        lab.run("gated", 1, model=model(**{"gate.visual": 1.0, "gate.acoustic": 0.5})),
        lab.run("plain", 0, model=model()),
    ]


def test_means_and_ranges_over_seeds_stand_below_the_details(runs):
    c = compare(runs, metrics=["recall@10"])
    (found,) = learned(c.systems)
    assert found.label == "gated"
    assert found.values == {"gate.visual": (1.0, 1.0), "gate.acoustic": (0.0, 0.5)}
    text = render(c, "table", details=True)
    (line,) = [line for line in text.splitlines() if "0.25 (0.00-0.50)" in line]
    assert line.split() == ["gated", "0.25", "(0.00-0.50)", "1.00"]
    assert "0 is off" in text
    assert "gate.visual" not in render(c, "table")
    assert all(len(line) <= 80 for line in text.splitlines())


def test_json_holds_every_seed_and_nothing_where_nothing_is_learned(runs):
    c = compare(runs, metrics=["recall@10"])
    systems = {s["label"]: s for s in json.loads(render(c, "json"))["systems"]}
    assert systems["gated"]["learned"] == {"gate.visual": [1.0, 1.0], "gate.acoustic": [0.0, 0.5]}
    assert "learned" not in systems["plain"]


@pytest.mark.parametrize("broken", [{"gate.visual": "open"}, {"gate.visual": None}])
def test_a_damaged_manifest_is_told(lab, broken):
    c = compare([lab.run("gated", model=model(**broken))], metrics=["recall@10"])
    with pytest.raises(DataError, match=r"model\.learned is not a number"):
        learned(c.systems)
