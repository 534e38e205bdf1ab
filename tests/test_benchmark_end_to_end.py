"""The scripts about encoders that learn run on tiny models, within eighty columns."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mmbench.errors import DataError
from mmbench.recipe import Recipe, load_recipe
from mmbench.runs import Run

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


def test_losses_at_equal_steps_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paradigms = script(monkeypatch, "paradigms")

    def write(kind: str, seed: int, losses: list[float], resting: int = 0) -> None:
        place = tmp_path / f"{kind}-{resting}-{seed}"
        place.mkdir()
        records = [
            {"epoch": at + 1, "losses": {"bpr": loss, "regularization": 9.0}}
            for at, loss in enumerate(losses)
        ]
        if kind == "ete":
            records[-1]["encoder"] = {"drift": {"visual": 0.5, "textual": 0.7}}
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (place / "history.jsonl").write_text(lines, encoding="utf-8")
        manifest = {
            "status": "complete",
            "model": {"name": "vbpr"},
            "seed": seed,
            "training": {"steps_per_epoch": 5},
            "encoding": [{"modality": "visual", "encoder": "clip", "paradigm": kind}],
        }
        (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        how = {"encoder": {"warmup_epochs": resting}} if kind == "ete" else {}
        recipe = {"model": {"name": "vbpr"}, "training": how}
        (place / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")

    write("pt", 0, [0.7, 0.5, 0.4])
    write("pt", 1, [0.7, 0.6, 0.5])
    write("pt", 2, [0.7, 0.6, 0.5])  # no end-to-end run of its seed
    write("ete", 0, [0.7, 0.4])
    write("ete", 1, [0.7, 0.7])
    write("ete", 0, [0.7, 0.45], resting=2)
    found = [
        paradigms.loss_of(Run(place, json.loads((place / "manifest.json").read_text())))
        for place in sorted(tmp_path.iterdir())
    ]
    pretrained, rested = paradigms.lines_of(found)
    assert (pretrained.against, pretrained.steps, pretrained.seeds) == ("PT", 10, (0, 1))
    assert (pretrained.frozen, pretrained.learnt) == pytest.approx((0.55, 0.55))
    assert pretrained.differences == pytest.approx((-0.1, 0.1))
    assert pretrained.drift == pytest.approx(0.6)
    assert pretrained.cells()[5:8] == ["+0.0000", "-0.1000 to +0.1000", "1 of 2"]
    assert (rested.against, rested.seeds) == ("at rest", (0,))
    assert rested.differences == pytest.approx((-0.05,))
    with pytest.raises(DataError, match="two runs are of one model"):
        list(paradigms.lines_of([*found, found[0]]))


def test_the_grid_with_small_networks_is_the_shipped_one(monkeypatch: pytest.MonkeyPatch) -> None:
    paradigms = script(monkeypatch, "paradigms")
    pair = "pair:minilm-l6=here+timm=there"
    small = Recipe(paradigms.copied(Path("small"), pair, resting=False), "small").expand()
    whole = load_recipe("movielens-100k/paradigms").expand()
    assert [(run.model, run.settings, run.seed) for run in small] == [
        (run.model, run.settings, run.seed) for run in whole
    ]
    assert [sorted(run.encoders) for run in small] == [sorted(run.encoders) for run in whole]
    for run, given in zip(small, whole, strict=True):
        ratios = [
            one.training.encoder_learning_rate / one.training.learning_rate for one in (run, given)
        ]
        assert ratios[0] == pytest.approx(ratios[1])
    still = Recipe(paradigms.copied(Path("small"), pair, resting=True), "rest").expand()
    assert {how.name for run in still for how in run.encoders.values()} == {pair}
    assert all(run.training.encoder.warmup_epochs == run.training.epochs for run in still)
    told = list(paradigms.commands(Path("small"), Path("mini"), pair))
    assert sum("--finetune" in command for command in told) == 3
