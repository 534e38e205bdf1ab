"""The scripts about encoders that learn run on tiny models, within eighty columns."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


def test_end_to_end_is_foreseen_and_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    main = script(monkeypatch, "end_to_end").main
    file = tmp_path / "figures.json"
    given = ["--tiny", "--device", "cpu", "--steps", "1", "--batch-size", "4", "--json", str(file)]
    whole = CliRunner().invoke(main, given)
    assert whole.exit_code == 0, whole.output
    assert max(map(len, whole.stdout.splitlines())) <= 80
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["unique"] == 8
    assert figures["measured"]["seconds_per_step"] > 0
    parts = CliRunner().invoke(main, [*given, "--at-once", "3", "--tune", "top", "--checkpointing"])
    assert parts.exit_code == 0, parts.output
    cut = json.loads(file.read_text(encoding="utf-8"))
    (one,) = cut["cost"]["encoders"]
    assert one["at_once"] == 3
    assert cut["flops_per_step"] == pytest.approx(
        cut["unique"] * (one["training_flops"] + one["forward_flops"]), rel=0.01
    )


def test_the_judgement_of_fine_tunings_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    finetuning = script(monkeypatch, "finetuning")
    # Four items, two of which were tested under both seeds; rows are Recall@1, 5, 10 and place.
    before = np.zeros((2, 4, 3))
    before[:, 3] = 0.5
    after = before.copy()
    after[:, 2] = [1, 0, 1]
    after[0, 3], after[1, 3] = [0.1, 0.2, 0.3], [0.3, 0.4, 0.5]
    runs = [
        {"items": items, "before": before.tolist(), "after": after.tolist()}
        for items in ([0, 1, 2], [2, 3, 0])
    ]
    found = finetuning.judge(runs)
    assert found["n_items"] == 4
    assert found["chance"] == pytest.approx([1 / 3, 1, 1, 0.5])
    # Item 0: places 0.2 and 0.4; 1: 0.3; 2: 0.4 and 0.2; 3: 0.3. So 0.3 each, 0.2 better.
    assert found["place"]["difference"] == pytest.approx(-0.2)
    # Of sixteen patterns of signs two are as far off.
    assert found["place"]["p"] == pytest.approx(2 / 16)
    assert found["recall@10"]["difference"] == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_the_table_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    finetuning = script(monkeypatch, "finetuning")
    ways = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    figures = {"before": ways, "after": ways, "chance": [1.0, 1.0, 1.0, 0.5], "place": {"p": 0.5}}
    out = StringIO()
    Console(file=out, width=80).print(finetuning.shown(dict.fromkeys(finetuning.NAMES, figures)))
    assert "…" not in out.getvalue()


def test_places_count_ties_as_half(monkeypatch: pytest.MonkeyPatch) -> None:
    finetuning = script(monkeypatch, "finetuning")
    rows = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    others = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    # Item 0 shares the first two places; 1 shares the last two; 2 is last.
    assert finetuning._judged(rows, others)[3].tolist() == [0.25, 0.75, 1.0]


def test_the_scripts_refuse_what_they_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    main = script(monkeypatch, "finetuning").main
    for given, says in (
        (["--systems", "clap"], "known are clip, vlmo, pair"),
        (["--systems", "pair"], "the pair needs --minilm"),
    ):
        done = CliRunner().invoke(main, given)
        assert done.exit_code == 2
        assert says in done.output
