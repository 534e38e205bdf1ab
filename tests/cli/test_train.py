from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmbench.cli.training import ensure_demo, warn_of_the_future
from mmbench.recipe_files import shipped_recipes

RECIPE = {
    "dataset": "tiny",
    "features": {"visual": "imported"},
    "model": {"name": "vbpr", "embedding_size": 8},
    "training": {"epochs": 4, "batch_size": 64, "learning_rate": 0.05},
    "seeds": [0, 1],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def file(name: str = "recipe.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**RECIPE, **changes}))
        return path

    return file


def test_seeds_become_one_row_and_finished_runs_are_not_repeated(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    line = ("train", write(), "--data-dir", tiny_data, "--runs-dir", "runs")
    first = mmbench(*line)
    assert first.status == 0, first.err
    assert "vbpr" in first.out
    assert "Recall@20" in first.out
    assert len(list(Path("runs").iterdir())) == 2
    again = mmbench(*line)
    assert again.out == first.out
    assert again.err.count("finished before") == 2
    assert all(len(text) <= 80 for text in first.out.splitlines())


def test_several_recipes_share_a_table_and_json_is_json(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    other = write("other.yaml", model={"name": "popularity"}, features={}, seeds=[0])
    done = mmbench("train", write(), other, "--data-dir", tiny_data, "--format", "json")
    assert done.status == 0, done.err
    text = json.dumps(json.loads(done.out))
    assert '"vbpr"' in text
    assert '"popularity"' in text


def test_a_grid_is_chosen_on_validation_and_every_trial_is_reported(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    recipe = write(grid={"model.embedding_size": [2, 8], "training.learning_rate": [0.001, 0.05]})
    done = mmbench("train", recipe, "--data-dir", tiny_data, "--runs-dir", "runs")
    assert done.status == 0, done.err
    assert len(list(Path("runs").iterdir())) == 8
    assert "chosen by recall@20 on validation alone" in done.out
    table = mmbench(
        "train", recipe, "--data-dir", tiny_data, "--runs-dir", "runs", "--format", "csv"
    )
    rows = list(csv.DictReader(io.StringIO(table.out.partition("\n\n")[0])))[:4]
    document = json.loads(
        mmbench(
            "train", recipe, "--data-dir", tiny_data, "--runs-dir", "runs", "--format", "json"
        ).out
    )
    assert len(document[0]) == 4
    assert document[1]["systems"]
    best = max(rows, key=lambda row: float(row["valid recall@20"]))
    assert [row["chosen"] for row in rows].count("True") == 1
    assert best["chosen"] == "True"
    for row in rows:
        values = [
            json.loads(path.read_text())["metrics"]["valid"]["recall@20"]
            for path in Path("runs").glob("*/manifest.json")
            if json.loads(path.read_text())["label"] == row["trial"]
        ]
        assert len(values) == 2
        assert float(row["valid recall@20"]) == pytest.approx(sum(values) / 2, abs=1e-12)


def test_set_changes_a_setting(mmbench: Callable, write: Callable, tiny_data: Path) -> None:
    done = mmbench(
        "train", write(), "--set", "model.embedding_size=4", "--seeds", "5", "--data-dir", tiny_data
    )
    assert done.status == 0, done.err
    (manifest,) = (json.loads(path.read_text()) for path in Path("runs").glob("*/manifest.json"))
    assert manifest["seed"] == 5
    resolved = yaml.safe_load(next(Path("runs").glob("*/recipe.yaml")).read_text())
    assert resolved["model"]["embedding_size"] == 4


def test_a_multimodal_model_without_features_is_trained_with_a_warning(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    line = ("train", write(features={}, seeds=[0]), "--data-dir", tiny_data)
    done = mmbench(*line)
    assert done.status == 0
    assert "vbpr is given no feature set and learns from IDs alone" in done.err
    assert "learns from IDs alone" not in mmbench(*line, "--set", "features.visual=imported").err


def test_a_sequential_model_on_a_random_split_is_warned_of_the_future(
    mmbench: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--set", "training.epochs=1", "--set", "model.embedding_size=4", "--dataset", "demo")
    done = mmbench("train", "sasrec", *small, "--set", "protocol=standard")
    assert done.status == 0, done.err
    said = " ".join(done.err.split())
    assert "sasrec: in split random-per-user of demo the histories of " in said
    assert "mmbench prepare demo --split leave-one-out, and --set protocol=mmsr" in said

    # What the warning names is done, and there is nothing to warn of; nor of a general model.
    ensure_demo("demo", Path("data"), "leave-one-out")
    capsys.readouterr()
    warn_of_the_future(
        [("sasrec", "demo", "leave-one-out"), ("vbpr", "demo", "random-per-user")], Path("data")
    )
    assert capsys.readouterr().err == ""


def test_features_reach_the_models_that_read_some(mmbench: Callable, tiny_data: Path) -> None:
    short = ("--set", "training.epochs=1", "--set", "features.visual=imported")
    folders = ("--dataset", "tiny", "--data-dir", tiny_data, "--runs-dir", "both")
    done = mmbench("train", "vbpr", "bpr-mf", *folders, *short)
    assert done.status == 0, done.err
    assert "bpr-mf: no content is read, so --set of features is left out" in done.err
    found = [json.loads(path.read_text()) for path in Path("both").glob("*/manifest.json")]
    known = {each["model"]["name"]: each["model"]["modalities"] for each in found}
    assert known == {"vbpr": ["visual"], "bpr-mf": []}
    # Where no model has a use for them, they are a mistake.
    alone = mmbench("train", "bpr-mf", *folders, *short)
    assert alone.status == 2
    assert "remove the key" in " ".join(alone.err.split())


def test_list_names_models_and_recipes(mmbench: Callable) -> None:
    done = mmbench("train", "--list")
    assert done.status == 0
    for name in ("vbpr", "lightgcn", "slim-elasticnet", "amazon-baby"):
        assert name in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    listed = " ".join(done.out.split())
    # Recipes that repeat a paper's tables are of no dataset and no one model.
    assert "mmsr-paper/: recipes of that paper's tables" in listed
    assert "mmbench train mmsr-paper/table-02-pairs" in listed
    papers = [name for name in shipped_recipes() if name.startswith("mmsr-paper/")]
    assert papers
    shown = set(listed.replace(",", "").split())
    assert {name.partition("/")[2] for name in papers} <= shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vbprr",), 'Did you mean "vbpr"'),
        (("none.yaml",), "none.yaml does not exist"),
        (("amazon-baby/vbprr",), "unknown recipe"),
        (("vbpr", "--dataset", "dmeo"), 'Did you mean "demo"'),
        (("vbpr", "--set", "model.embeding_size=3"), 'Did you mean "embedding_size"'),
        (("vbpr", "--set", "evaluation.metrics=[recal@20]"), 'Did you mean "recall"'),
        (("vbpr", "--set", "features.visuel=x"), 'Did you mean "visual"'),
        (("vbpr", "--seeds", "a,b"), "is not a list of seeds"),
        (("vbpr", "--seeds", "5-1"), "counts down; write 1-5"),
        (("vbpr", "--seeds", "0-99999999999"), "more than 1000 seeds"),
        (("vbpr", "--checkpoint-every", "nan"), "not a finite number"),
        (("vbpr", "--device", "cuda:7", "--dataset", "tiny"), "is not here"),
        (("vbpr", "--device", "tpu", "--dataset", "tiny"), "unknown device"),
        ((), "name a model or a recipe"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    mmbench: Callable, tiny_data: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = mmbench("train", *arguments, "--data-dir", tiny_data)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not Path("runs").exists()


def test_a_wrong_second_recipe_stops_before_the_first_run(
    mmbench: Callable, write: Callable, tiny_data: Path
) -> None:
    wrong = write("wrong.yaml", features={"textual": "tfidf-svd"})
    done = mmbench("train", write(), wrong, "--data-dir", tiny_data)
    assert done.status == 2
    assert "textual" in done.err
    assert not Path("runs").exists()
