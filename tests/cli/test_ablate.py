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
    done = mmbench("ablate", recipe, "--data-dir", tiny_data)
    assert done.status == 0, done.err
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
    ],
)
def test_bad_input_is_one_message_and_status_2(
    mmbench: Callable, recipe: Path, tiny_data: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = mmbench("ablate", recipe, *arguments, "--data-dir", tiny_data)
    assert done.status == 2
    assert message in done.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_the_demo_finds_what_was_planted(mmbench: Callable) -> None:
    """Pictures matter in the demo and its acoustic features are noise; see data/demo.py."""
    done = mmbench("ablate", "--drop", "visual", "--drop", "acoustic", "--format", "json")
    assert done.status == 0, done.err
    cells = {(cell["label"], cell["metric"]): cell for cell in json.loads(done.out)["cells"]}
    assert {label for label, _ in cells} == {"vbpr", "vbpr -visual", "vbpr -acoustic"}
    for metric in ("recall@20", "ndcg@20"):
        planted, noise = cells["vbpr -visual", metric], cells["vbpr -acoustic", metric]
        assert planted["adjusted"] < 0.001
        assert planted["system_adjusted"] < 0.05
        assert planted["relative"] < -0.1
        assert noise["adjusted"] > 0.05
