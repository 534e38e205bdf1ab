"""The picture of a fine-tuning shows its history, and is whole or not there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from mmbench.errors import DataError
from mmbench.report.html import drawing
from mmbench.report.tuning_curves import draw_curves, figure_of


def record(epoch: int) -> dict[str, Any]:
    judged = {
        "losses": {"itc": 3.0 - epoch, "mlm": 2.0},
        "recall": 0.1 * (epoch + 1),
        "recall_first": {"1": 0.1, "5": 0.2, "10": 0.25 + epoch / 10},
        "recall_second": {"1": 0.1, "5": 0.2, "10": 0.35 + epoch / 10},
        "paired": 0.2,
        "unpaired": 0.0,
        "gap": 0.5,
        "n_items": 40,
    }
    made: dict[str, Any] = {"epoch": epoch, "step": 3 * epoch, "held_out": judged}
    if epoch:
        learnt = {"itc": 2.5 - epoch, "mlm": 2.0, "gradient": 10.0**epoch, "rate": 1e-3 / epoch}
        made["train"] = {**learnt, "gradient_largest": 2 * 10.0**epoch}
    return made


def facts(history: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "objective": {"itc": 1.0, "mlm": 0.25},
        "chosen_epoch": 2,
        "before": history[0]["held_out"],
        "after": history[-1]["held_out"],
    }


def test_both_files_hold_the_curves(tmp_path: Path) -> None:
    history = [record(epoch) for epoch in range(4)]
    files = draw_curves(history, facts(history), tmp_path)
    assert [file.name for file in files] == ["curves.svg", "curves.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "curves.svg"]
    texts = "".join(ElementTree.parse(files[0]).getroot().itertext())
    for label in ("itc, held out", "mlm, training", "Recall@10", "gradient norm", "learning rate"):
        assert label in texts
    with Image.open(files[1]) as picture:
        assert picture.width > 600
    before = files[0].read_bytes()
    draw_curves(history, facts(history), tmp_path)
    assert files[0].read_bytes() == before


def test_what_is_drawn_is_the_history() -> None:
    history = [record(epoch) for epoch in range(4)]
    figure = figure_of(history, facts(history))
    assert "epoch 2 was kept" in figure.description
    with drawing.style():
        loss, found, _, gradient, rate = figure.draw().axes
    lines = {line.get_label(): list(line.get_ydata()) for line in found.get_lines()}
    assert lines["Recall@10"] == pytest.approx([0.3, 0.4, 0.5, 0.6])  # mean of both ways
    levels = [line.get_ydata()[0] for line in found.get_lines() if line.get_linestyle() == ":"]
    assert levels == pytest.approx([1 / 40, 5 / 40, 10 / 40])
    lines = {line.get_label(): list(line.get_ydata()) for line in loss.get_lines()}
    assert lines["itc, held out"] == [3.0, 2.0, 1.0, 0.0]
    assert lines["itc, training"] == [1.5, 0.5, -0.5]
    assert gradient.get_yscale() == "log"
    assert rate.get_yscale() == "linear"


def test_a_history_of_another_version_or_of_no_epoch(tmp_path: Path) -> None:
    history = [record(epoch) for epoch in range(3)]
    for one in history[1:]:
        del one["train"]["rate"], one["train"]["gradient_largest"]
    draw_curves(history, facts(history), tmp_path)
    draw_curves(history[:1], facts(history[:1]), tmp_path)
    history[1]["train"]["gradient"] = math.inf
    draw_curves(history, facts(history), tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    history = [record(epoch) for epoch in range(2)]
    (tmp_path / "curves.svg").mkdir()
    with pytest.raises(DataError, match=r"E108 .*curves\.svg cannot be written"):
        draw_curves(history, facts(history), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.svg"]
