from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml


@pytest.fixture
def recipe(shops: ModuleType, tmp_path: Path) -> Path:
    file = tmp_path / "mmsr.yaml"
    file.write_text(yaml.safe_dump(shops.recipe()), encoding="utf-8")
    return file


def test_from_one_shop_to_another(
    mmbench: Callable, recipe: Path, two_shops: Path, tmp_path: Path
) -> None:
    how = (
        recipe, "--from", "shop-a", "--data-dir", two_shops, "--target-users", "6,36",
        "--set", "training.epochs=4", "--set", "model.embedding_size=4",
    )  # fmt: skip
    done = mmbench("transfer", *how, "--out", "found", "--html", "found.html")
    assert done.status == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    text = " ".join(done.out.split())
    for words in (
        "What transfer gains over training from scratch", "the same model from scratch, with as",
        "Holm-Bonferroni over all 6 comparisons", "mmsr zero-shot from shop-a", "sasrec, 36 users",
        "Epochs until validation", "The same systems against IDs alone",
    ):  # fmt: skip
        assert words in text
    assert "weights move to shop-b" in done.err
    files = sorted(path.name for path in Path("found").rglob("*.*"))
    for name in ("convergence-1-steps.svg", "transfer-target-users-ndcg-5.png", "transfer.tex",
                 "convergence-2.csv", "transfer-ids.csv"):  # fmt: skip
        assert name in files
    assert "Transfer from shop-a to shop-b" in Path("found.html").read_text(encoding="utf-8")
    # --set of the model is not for the baseline, that of training is.
    baseline = next(Path("runs").glob("*sasrec-6-users*/recipe.yaml"))
    resolved = yaml.safe_load(baseline.read_text())
    assert resolved["training"]["epochs"] == 4
    assert resolved["model"]["embedding_size"] != 4
    # Finished runs are taken as they are; machines are told one document.
    again = mmbench("transfer", *how, "--format", "json")
    assert again.err.count("finished before") == 8
    convergence, over_ids, over_scratch = json.loads(again.out)
    assert convergence["metric"] == "ndcg@5"
    assert {cell["label"] for cell in over_scratch["cells"]} >= {"mmsr, 6 users", "sasrec, 6 users"}
    assert over_ids["family"] == "table"
    rows = mmbench("transfer", *how, "--baseline", "none", "--format", "csv")
    assert rows.status == 0
    assert csv.DictReader(io.StringIO(rows.out)).fieldnames
    # Ordinary runs: compare takes them.
    runs = list(Path("runs").glob("shop-b-*36-users*"))
    compared = mmbench("compare", *runs, "--metric", "ndcg@5")
    assert compared.status == 0, compared.err
    assert "mmsr from shop-a, 36 users" in " ".join(compared.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RECIPE",), "name the dataset to pre-train on, to go to shop-b: --from NAME"),
        (("RECIPE", "--from", "shop-b"), "source and target are both shop-b"),
        (("RECIPE", "--from", "shop-c"), "shop-c"),
        (("RECIPE", "--from", "shop-a", "--target-users", "6,x"), "'x' is no count"),
        (("RECIPE", "--from", "shop-a", "--target-users", "99"), "has 36 users"),
        (("RECIPE", "--from", "shop-a", "--source-users", "1K"), "has 60 users"),
        (("RECIPE", "--from", "shop-a", "--same-space", "visul"), 'Did you mean "visual"'),
        (("RECIPE", "--from", "shop-a", "--baseline", "sasrek"), 'Did you mean "sasrec"'),
        (("RECIPE", "--from", "shop-a", "--force"), "--force belongs to --html and --out"),
        (("RECIPE", "--from", "shop-a", "--out", "."), "is not empty and no earlier report"),
        (("RECIPE", "--from", "shop-a", "--set", "model.dims=3"), "model.dims is not a setting"),
        (("RECIPE", "--from", "shop-a", "--set", "training.start_from=x"), "start_from and subset"),
        (("RECIPE", "--from", "shop-a", "--source-set", "model.dim=3"), "(source): model.dim is"),
        (("RECIPE", "demo/mmsr", "--from", "shop-a"), "several datasets (shop-b, demo)"),
        (("demo/itemknn", "--from", "demo-source", "--to", "shop-b"), "not trained by gradient"),
        (("bpr-mf", "--from", "shop-a", "--to", "shop-b"), "no weight of bpr-mf can move"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    mmbench: Callable, recipe: Path, two_shops: Path, arguments: tuple[str, ...], message: str
) -> None:
    own = [recipe if argument == "RECIPE" else argument for argument in arguments]
    done = mmbench("transfer", *own, "--data-dir", two_shops)
    assert done.status == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not list(Path("runs").glob("*"))
