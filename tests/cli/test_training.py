from __future__ import annotations

from pathlib import Path

from mmbench.cli.training import ensure_demo
from mmbench.data.prepared import load_dataset


def test_the_demo_is_given_the_split_that_a_recipe_names(tmp_path: Path) -> None:
    """Its default split stays the first one, whoever asks first."""
    ensure_demo("demo", tmp_path, "leave-one-out")
    dataset = load_dataset("demo", tmp_path)
    assert dataset.split_names == ["random-per-user", "leave-one-out"]
    before = (dataset.root / "manifest.json").read_bytes()
    ensure_demo("demo", tmp_path, "leave-one-out")
    ensure_demo("another", tmp_path, "leave-one-out")
    assert (dataset.root / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["demo"]
