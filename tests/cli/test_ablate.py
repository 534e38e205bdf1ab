from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

RECIPE = {
    "dataset": "tiny",
    "features": {"visual": "imported", "acoustic": "imported"},
    "model": {"name": "vbpr", "embedding_size": 8},
    "training": {"epochs": 15, "batch_size": 64, "learning_rate": 0.05},
    "seeds": [0, 1, 2],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_each_drop_is_trained_without_the_branch_and_compared(
    mmbench: Callable, recipe: Path, tiny_data: Path
) -> None:
    quick = ("--set", "training.epochs=3")  # three seeds, so that systems are tested too
    done = mmbench("ablate", recipe, *quick, "--html", "a.html", "--data-dir", tiny_data)
    assert done.status == 0, done.err
    page = Path("a.html").read_text(encoding="utf-8")
    assert "What each condition costs" in page
    assert "3 systems" in page
    assert "9 runs" in page
    for label in ("vbpr", "vbpr -visual", "vbpr -acoustic"):
        assert label in done.out
    given = {}
    for path in Path("runs").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        given[manifest["label"]] = manifest["model"]["modalities"]
    assert given == {
        "vbpr": ["visual", "acoustic"],
        "vbpr -visual": ["acoustic"],
        "vbpr -acoustic": ["visual"],
    }


def test_modalities_joined_by_commas_are_dropped_together(
    mmbench: Callable, recipe: Path, tiny_data: Path
) -> None:
    done = mmbench(
        "ablate", recipe, "--drop", "acoustic,visual", "--seeds", "0", "--data-dir", tiny_data
    )
    assert done.status == 0, done.err
    assert "vbpr -visual -acoustic" in done.out
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--drop", "visuel"), 'Did you mean "visual"'),
        (("--drop", "textual"), "does not use 'textual'"),
        (("--set", "features={}"), "has no modality to drop"),
        (("--set", "grid={model.embedding_size: [2, 4]}"), "remove grid"),
        (("--ladder", "missin"), 'Did you mean "missing"'),
        (("--ladder", "noise:textual"), "cannot be spoilt"),
        (("--ladder", "noise", "--shares", "0,1"), "no list of shares"),
        (("--ladder", "noise", "--shares", "half"), "no list of shares"),
        (("--shares", "0.5"), "--shares belongs to --ladder"),
        (("--cutoff", "5"), "--cutoff belongs to --stages"),
        (("--depth", "50"), "--depth belongs to --stages"),
        (("--stages", "--cutoff", "50", "--depth", "40"), "needs --depth 50 or more"),
        (("--force",), "--force belongs to --html and --out"),
        (("--integration", "ensemble"), "no choice of a form of integration"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    mmbench: Callable, recipe: Path, tiny_data: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = mmbench("ablate", recipe, *arguments, "--data-dir", tiny_data)
    assert done.status == 2
    assert message in done.err
    assert not Path("runs").exists()


def test_several_models_stand_in_one_table_of_one_family(
    mmbench: Callable, recipe: Path, tiny_data: Path
) -> None:
    other = recipe.with_name("other.yaml")
    other.write_text(yaml.safe_dump({**RECIPE, "label": "small", "seeds": [0, 1, 2]}))
    done = mmbench(
        "ablate", recipe, other, "--set", "training.epochs=2", "--drop", "visual", "--noise",
        "visual", "--id-only", "--seeds", "0", "--format", "json", "--data-dir", tiny_data,
        "--set", "model.embedding_size=4",
    )  # fmt: skip
    assert done.status == 0, done.err
    # Both recipes are one and the same system now, so everything is trained once.
    told = json.loads(done.out)
    assert len(told["systems"]) == 4
    assert "one system: trained once" in done.err
    assert [family["over_users"] for family in told["families"]] == [3 * 4]
    assert told["family"] == "table"


def test_ladder_stages_and_sparsity_are_printed_and_written(
    mmbench: Callable, recipe: Path, tiny_data: Path
) -> None:
    done = mmbench(
        "ablate", recipe, "--drop", "visual", "--ladder", "missing:visual", "--shares", "0.5,1",
        "--stages", "--cutoff", "10", "--sparsity", "--seeds", "0", "--out", "out",
        "--set", "training.epochs=2", "--data-dir", tiny_data,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    for said in ("Corruption ladder", "Stage analysis", "Sparsity analysis", "40 items deep"):
        assert said in done.out
    assert done.out.count("Holm-Bonferroni") == 6  # conditions, 2 stages, 2 groups, ladder
    figures = {path.stem for path in Path("out/figures").glob("*.svg")}
    assert {"ladder-recall-20", "stages-conditions-recall"} <= figures
    again = mmbench("ablate", recipe, "--out", "out", "--data-dir", tiny_data)
    assert again.status == 2
    assert "earlier report" in again.err


def test_sizes_alone_are_compared_with_the_first(
    mmbench: Callable, recipe: Path, tiny_data: Path
) -> None:
    done = mmbench(
        "ablate", recipe, "--sizes", "2,4", "--seeds", "0", "--set", "training.epochs=2",
        "--out", "out", "--data-dir", tiny_data,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "the same model with embedding_size=2" in " ".join(done.out.split())
    assert Path("out/figures/size-recall-20.png").exists()
    assert len(list(Path("runs").iterdir())) == 2


def test_forms_of_integration_are_crossed_with_drops(
    mmbench: Callable, recipe: Path, tiny_data: Path
) -> None:
    given = {**RECIPE, "model": {"name": "mgcn", "embedding_size": 4}, "seeds": [0]}
    recipe.write_text(yaml.safe_dump(given))
    done = mmbench(
        "ablate", recipe, "--integration", "fusion,ensemble", "--drop", "visual",
        "--set", "training.epochs=1", "--format", "json", "--data-dir", tiny_data,
    )  # fmt: skip
    assert done.status == 0, done.err
    conditions, forms = json.loads(done.out)
    references = {c["label"]: c["reference"] for c in conditions["cells"] if c["reference"]}
    assert references == {
        "mgcn fusion -visual": "mgcn fusion",
        "mgcn ensemble -visual": "mgcn ensemble",
    }
    tested = {c["label"]: c["reference"] for c in forms["cells"] if c["reference"]}
    assert tested == {"mgcn ensemble": "mgcn fusion"}


@pytest.mark.slow
def test_the_demo_finds_what_was_planted(mmbench: Callable) -> None:
    """Pictures matter in the demo and its acoustic features are noise; see data/demo.py."""
    done = mmbench(
        "ablate", "--drop", "visual", "--drop", "acoustic", "--format", "json",
        "--set", "training.epochs=24", "--set", "training.evaluate_every=4",
    )  # fmt: skip
    assert done.status == 0, done.err
    cells = {(cell["label"], cell["metric"]): cell for cell in json.loads(done.out)["cells"]}
    assert {label for label, _ in cells} == {"vbpr", "vbpr -visual", "vbpr -acoustic"}
    for metric in ("recall@20", "ndcg@20"):
        planted, noise = cells["vbpr -visual", metric], cells["vbpr -acoustic", metric]
        assert planted["adjusted"] < 0.001
        assert planted["system_adjusted"] < 0.05
        assert planted["relative"] < -0.1
        assert noise["adjusted"] > 0.05
