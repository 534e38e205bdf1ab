"""What a table says about cost: means over seeds, by hand, in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest

from mmbench.errors import DataError
from mmbench.report.comparison import compare
from mmbench.report.cost import Cost, cells, costs, notes
from mmbench.report.leaderboard import render


def spent(train: float, total: float, epochs: int, memory: float, parameters: int, **where):
    return {
        "training": {
            "train_seconds": train,
            "seconds": total,
            "epochs": epochs,
            "seconds_per_epoch": train / max(1, epochs),
            "peak_memory_mib": memory,
        },
        "model": {"name": "any", "parameters": parameters},
        "environment": {"device": "cpu", "threads": 2, **where},
    }


@pytest.fixture
def comparison(lab):
    runs = [
        lab.run("vbpr", 0, quality=1.5, **spent(10.0, 12.0, 20, 500.0, 1_000_000)),
        lab.run("vbpr", 1, quality=1.5, **spent(30.0, 36.0, 31, 700.0, 1_000_000)),
        lab.run("ease", 0, quality=0.5, **spent(0.0123, 0.0123, 0, 300.4, 0)),
    ]
    return compare(runs, metrics=["recall@20"])


def test_costs_are_means_over_seeds(comparison):
    by_label = {cost.label: cost for cost in costs(comparison)}
    vbpr = by_label["vbpr"]
    assert vbpr.train_seconds == pytest.approx((10 + 30) / 2)
    assert vbpr.valid_seconds == pytest.approx((2 + 6) / 2)
    assert vbpr.epochs == pytest.approx((20 + 31) / 2)
    assert vbpr.seconds_per_epoch == pytest.approx((10 / 20 + 30 / 31) / 2)
    assert vbpr.peak_memory_mib == pytest.approx(600)
    assert vbpr.parameters == 1_000_000
    ease = by_label["ease"]
    assert ease.epochs is None
    assert ease.seconds_per_epoch is None


def test_cells_are_short_and_a_closed_form_has_no_epochs():
    cost = Cost("x", 1234.5, 0.0123, 25.5, 4.567, 1234.4, 1_000_000, ("CPU",))
    assert cells(cost) == ["1,234", "0.0123", "25.5", "4.57", "1,234", "1,000,000"]
    closed = Cost("x", 99.97, 0.0, None, None, 1.6, 0, ("CPU",))
    assert cells(closed) == ["100", "0", "-", "-", "2", "0"]
    assert cells(Cost("x", 1, 1, 48.0, 1, 1, 1, ()))[2] == "48"


def test_the_terminal_shows_a_second_table_within_eighty_columns(comparison):
    text = render(comparison, "table", cost=costs(comparison))
    assert max(map(len, text.splitlines())) <= 80
    assert "peak MiB" in text
    assert "1,000,000" in text
    assert "Device: CPU, 2 threads." in text
    assert "peak MiB" not in render(comparison, "table")


def test_a_long_label_leaves_every_figure_whole(lab):
    label = "a-model (features.textual=minilm-l6, features.visual=clip-vit-b16, training.epochs=9)"
    expensive = spent(123456.0, 234567.0, 2000, 141_000.0, 1_234_567_890)
    run = lab.run(label, folder="long", **expensive)
    comparison = compare([run], metrics=["recall@20"])
    text = render(comparison, "table", cost=costs(comparison))
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("123,456", "111,111", "2,000", "61.7", "141,000", "1,234,567,890"):
        assert figure in text


def test_every_machine_format_holds_the_cost(comparison):
    rows = costs(comparison)
    document = json.loads(render(comparison, "json", cost=rows))
    assert [each["label"] for each in document["cost"]] == ["vbpr", "ease"]
    assert document["cost"][0]["train_seconds"] == 20.0
    assert document["cost"][0]["devices"] == ["CPU, 2 threads"]
    assert "cost" not in json.loads(render(comparison, "json"))
    first, second = csv.DictReader(io.StringIO(render(comparison, "csv", cost=rows)))
    assert float(first["peak_memory_mib"]) == 600
    assert second["seconds_per_epoch"] == ""
    assert "peak_memory_mib" not in render(comparison, "csv")
    github = render(comparison, "github", cost=rows)
    assert "| vbpr" in github.split("**Cost**")[1]
    assert render(comparison, "latex", cost=rows).count("\\toprule") == 2


def test_differing_devices_are_named(lab):
    gpu = {"device": "cuda", "gpu": "NVIDIA H200", "threads": 8}
    runs = [
        lab.run("slow", 0, **spent(10.0, 12.0, 20, 500.0, 5)),
        lab.run("fast", 0, **spent(1.0, 1.2, 20, 90.0, 5, **gpu)),
        lab.run("fast", 1, **spent(1.0, 1.2, 20, 90.0, 5, threads=1)),
    ]
    said = " ".join(notes(costs(compare(runs, metrics=["recall@20"]))))
    assert "The devices differ, so seconds and memory do not compare." in said
    assert "CPU, 2 threads: slow" in said
    assert "NVIDIA H200: fast" in said
    assert "CPU, 1 thread: fast" in said


def test_a_run_without_figures_is_named(lab):
    run = lab.run("old", 0, training={"epochs": 3}, model={"name": "old", "parameters": 4})
    compared = compare([run], metrics=["recall@20"])
    with pytest.raises(DataError, match=r"old--s0.manifest.json lacks training.train_seconds"):
        costs(compared)
