"""The pages: what is generated is current, and what a tutorial shows can be done."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest

from mmbench.data.source import DATASETS
from mmbench.encoders.base import ENCODERS
from mmbench.metrics.base import METRICS
from mmbench.models.base import MODELS
from mmbench.registry import Registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILE = re.compile(r"<!-- file: (?P<path>\S+) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and inspect look their classes' module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    yield load(DOCS / "generate.py", "docs_generate")
    del sys.modules["docs_generate"]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Write the files that a page shows, import the Python ones, and forget them afterwards."""
    registries: list[Registry[Any]] = [MODELS, ENCODERS, DATASETS, METRICS]
    before = [dict(registry._entries) for registry in registries]
    loaded: list[str] = []

    def write(page: str) -> Path:
        shown = list(FILE.finditer((DOCS / page).read_text(encoding="utf-8")))
        assert shown, page
        for match in shown:
            path = tmp_path / "shown" / match["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(match["text"], encoding="utf-8")
            if path.suffix == ".py":
                loaded.append(path.stem)
                load(path, path.stem)
        return tmp_path / "shown"

    yield write
    for registry, entries in zip(registries, before, strict=True):
        for name in set(registry._entries) - set(entries):
            del registry._entries[name]
    for name in loaded:
        del sys.modules[name]


def test_generated_parts_are_current(generator: ModuleType) -> None:
    old = sorted(path.relative_to(ROOT).as_posix() for path in generator.outdated())
    assert old == [], "run: python docs/generate.py"


def test_every_command_and_protocol_has_a_page_and_no_other_has(generator: ModuleType) -> None:
    for folder, known in (
        ("commands", generator.commands()),
        ("protocols", generator.protocols()),
    ):
        pages = {path.stem for path in (DOCS / folder).glob("*.md")}
        assert pages == set(known) != set()


def test_every_key_of_a_recipe_says_what_it_means(generator: ModuleType) -> None:
    silent = [
        f"{name}.{key}"
        for name, section in generator.sections().items()
        for key, field in section.model_fields.items()
        if key not in generator.documentation(section) and len(get_args(field.annotation)) != 1
    ]
    # A key of one value needs no word, and the bounds of a search explain themselves.
    assert [key for key in silent if not key.startswith("Dimension.")] == []


def test_links_between_pages_lead_somewhere() -> None:
    for path in DOCS.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_a_changed_option_is_seen(generator: ModuleType) -> None:
    import click

    command = click.Command("x", params=[click.Option(["--new"], help="A | new one.")], help="Do.")
    part = generator.command_part(command)
    assert "| `--new TEXT` | A \\| new one. |" in part
    assert part.startswith("```\nmmbench x [OPTIONS]\n```\n")


def test_the_model_of_the_page_trains_and_loses_a_modality(
    written: Callable, mmbench: Callable, tiny_data: Path
) -> None:
    folder = written("adding/model.md")
    recipe = folder / "recipes" / "demo" / "feature-mf.yaml"
    line = [
        "train", recipe, "--dataset", "tiny", "--data-dir", tiny_data, "--seeds", "0",
        "--set", "training.epochs=30", "--set", "evaluation.metrics=[recall@5]",
    ]  # fmt: skip
    full = mmbench(*line, "--set", "features={visual: imported}", "--format", "json")
    assert full.status == 0, full.err
    # The picture tells a user's half of the items: ten of 40 are liked, so chance is 5 / 33.
    (cell,) = json.loads(full.out)["cells"]
    assert cell["mean"] > 5 / 33
    without = mmbench(*line, "--set", "features={}", "--set", "label=ids")
    assert without.status == 0, without.err


def test_the_encoder_of_the_page_encodes(written: Callable) -> None:
    written("adding/encoder.md")
    encoder = ENCODERS.get("word-hash").obj()
    assert encoder.builtin
    vectors = encoder.encode_texts(["red shoes", "shoes red red", "blue"], 0)  # type: ignore[attr-defined]
    assert vectors.shape == (3, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3))
    # Counts 1, 1 and 2, 1 of two words: (1 * 2 + 1 * 1) / sqrt(2 * 5).
    assert vectors[0] @ vectors[1] == pytest.approx(3 / np.sqrt(10))


def test_the_dataset_of_the_page_is_prepared(
    written: Callable, mmbench: Callable, tmp_path: Path
) -> None:
    written("adding/dataset.md")
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [
        {"user": f"u{u}", "item": f"i{i}", "time": 10**9 + u + i}
        for u in range(8)
        for i in range(8)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (raw / "likes.jsonl").write_text(lines, encoding="utf-8")
    line = ["prepare", "mine", "--source", raw, "--format", "likes", "--split", "leave-one-out"]
    done = mmbench(*line)
    assert done.status == 0, done.err
    assert "8 users" in done.out
    (raw / "likes.jsonl").write_text(lines + "{}\n", encoding="utf-8")
    broken = mmbench(*line, "--as", "other")
    assert broken.status == 2
    assert "likes.jsonl:65: expected" in broken.err


def test_the_metric_of_the_page_measures(written: Callable) -> None:
    from mmbench.metrics.base import parse_metric
    from mmbench.metrics.lists import RankedLists

    written("adding/metric.md")
    lists = RankedLists(
        users=np.array([0, 1]),
        items=np.array([[3, 1, 0], [2, 4, 0]]),
        hits=np.array([[True, False, True], [False, True, False]]),
        relevant_offsets=np.array([0, 3, 4]),
        relevant_items=np.array([0, 2, 3, 4]),
        popularity=np.ones(5, dtype=np.int64),
        activity=np.ones(2, dtype=np.int64),
    )
    # Of at most two findable of three, one was found; of one, one.
    assert parse_metric("capped-recall@2").values(lists) == pytest.approx([1 / 2, 1 / 1])
    assert parse_metric("capped-recall@3").values(lists) == pytest.approx([2 / 3, 1.0])
