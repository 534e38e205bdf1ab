from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

SHORT = ("--seeds", "0", "--set", "training.epochs=12", "--set", "training.batch_size=2048")


@pytest.mark.slow
def test_ids_alone_score_as_chance_on_unseen_items_and_content_clearly_above(
    mmbench: Callable,
) -> None:
    done = mmbench("cold-start", "bpr-mf", "itemknn-cbf", *SHORT, "--format", "json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    cells = {(c["label"], c["scope"], c["metric"]): c for c in told["cells"]}
    ids, content = (
        cells[name, "cold among cold", "recall@20"] for name in ("bpr-mf", "itemknn-cbf")
    )
    # 128 of 640 items are cold; 20 of them, less those that a user is shown, are found by chance.
    assert 20 / 128 <= ids["chance"] < 20 / 110
    assert ids["low"] <= ids["chance"] <= ids["high"]
    assert content["low"] > ids["high"]
    assert ids["adjusted"] < 0.001
    assert {c["scope"] for c in told["cells"]} == {"overall", "warm", "cold", "cold among cold"}
    # Finished runs and lists are taken as they are; nothing is wider than the terminal.
    again = mmbench("cold-start", "bpr-mf", "itemknn-cbf", *SHORT)
    assert again.err.count("finished before") == 2
    assert max(map(len, again.out.splitlines())) <= 80
    assert "chance" in again.out
    for form in ("github", "latex", "csv"):
        text = mmbench("cold-start", "bpr-mf", "itemknn-cbf", *SHORT, "--format", form)
        assert text.status == 0, text.err
        assert "itemknn-cbf" in text.out
    rows = list(csv.DictReader(io.StringIO(text.out)))
    assert len(rows) == 3 * 8
    parts = sorted(path.name for path in Path("runs").glob("*bpr-mf*/lists/*"))
    assert parts == ["cold-items", "cold-items-among-cold", "test", "valid"]


@pytest.mark.slow
def test_histories_that_end_in_a_rare_item(mmbench: Callable) -> None:
    done = mmbench(
        "cold-start", "itemknn-cbf", "popularity", "--definition", "sequences", "--seeds", "0",
        "--below", "12", "--baseline", "popularity",
    )  # fmt: skip
    assert done.status == 0, done.err
    for words in ("cold, complete", "mean over cases", "scope heldout", "popularity; Holm"):
        assert words in " ".join(done.out.split())


def test_searches_every_model_with_equal_budgets_and_writes_a_page(
    mmbench: Callable, tiny_data: Path
) -> None:
    data = Path("data")
    shutil.copytree(tiny_data, data)  # the study adds a split
    names = []
    for model, searched in (("vbpr", "model.regularization"), ("itemknn-cbf", "model.k")):
        recipe = {
            "dataset": "tiny",
            "features": {"visual": "imported"},
            "model": {"name": model},
            "training": {"epochs": 2, "batch_size": 256},
            "search": {searched: [2, 5]},
        }
        Path(f"{model}.yaml").write_text(yaml.safe_dump(recipe))
        names.append(f"{model}.yaml")
    line = ("cold-start", *names, "--tune", "grid", "--metric", "recall@10", "--html", "c.html")
    done = mmbench(*line, "--out", "out")
    assert done.status == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    assert "Equal budgets: 2 trials for each of 2 systems; grid" in " ".join(done.out.split())
    splits = set()
    for path in Path("runs").glob("*/manifest.json"):
        splits.add(json.loads(path.read_text())["split"]["name"])
    assert splits == {"cold-items.warm-random-per-user"}  # trials are of the study's own split
    page = Path("c.html").read_text(encoding="utf-8")
    for said in ("Cold start, definition items", "cold among cold", "chance", "--tune grid"):
        assert said in page
    rows = list(csv.DictReader(io.StringIO(Path("out/tables/cold-start.csv").read_text())))
    assert {row["System"] for row in rows} >= {"chance"}
    assert len(rows) == 3 * 4
    assert all(row["high"] for row in rows if row["System"] != "chance")
    assert Path("out/figures/cold-start-recall-10.png").exists()
    again = mmbench(*line)
    assert again.status == 2
    assert "c.html exists" in again.err
    judged = [path.parents[1] for path in Path("runs").glob("*/lists/cold-items")]
    asked = ("--metric", "recall@10", "--html", "runs.html")
    compared = mmbench("compare", *judged, *asked)
    assert compared.status == 0, compared.err
    assert "Cold start, definition items" in Path("runs.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bpr-mf", "--trials", "3"), "--trials belongs to --tune"),
        (("bpr-mf", "--tune", "grid", "--set", "model.regularization=1"), "searches over"),
        (("bpr-mf", "--force"), "--force belongs to --html and --out"),
        (("bpr-mf", "--scope", "heldout"), "belong to --definition sequences"),
        (("bpr-mf", "--definition", "sequences", "--split-seed", "1"), "--definition items"),
        (("bpr-mf", "--definition", "rows"), "is not one of"),
        (("bpr-mf", "--metric", "recall@500"), "evaluation.depth=500"),
        (("bpr-mf", "--baseline", "vbpr"), "baseline"),
        (("bpr-mff",), 'Did you mean "bpr-mf"'),
        (("bpr-mf", "--dataset", "tiny", "--definition", "sequences"), "lacks the splits"),
        (("tiktok/bpr-mf", "amazon-baby/bpr-mf"), "of several datasets"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    mmbench: Callable, tiny_data: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = mmbench("cold-start", *arguments, "--data-dir", tiny_data)
    assert done.status == 2
    assert message in done.err
    assert not Path("runs").exists()
