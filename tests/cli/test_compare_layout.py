"""`mmbench compare --layout` and `--alignment` over real runs of every paradigm."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from mmbench.cli.main import cli
from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.engine.device import choose
from mmbench.engine.extract import extract_builtin
from mmbench.engine.inputs import load_inputs
from mmbench.engine.trained import load_trained
from mmbench.models.fusion import FeatureTables
from mmbench.recipe import Recipe
from mmbench.runs import find_runs

N_ITEMS, N_USERS, NO_TEXT = 14, 24, 3
WORDS = ("sail harbour tide", "oven dough flour", "guitar piano drum")
CLIP = "clip-vit-b32"
COMMON = {
    "dataset": "mine",
    "protocol": {"split": "leave-one-out"},
    "model": {"name": "vbpr", "embedding_size": 4},
    "training": {"epochs": 1, "batch_size": 64, "learning_rate": 0.05, "select_by": "ndcg@5"},
    "evaluation": {"metrics": ["recall@5", "ndcg@5"], "depth": 10},
}
BOTH = [{"visual": name, "textual": name} for name in (CLIP, f"{CLIP}-ft")]


def write_data(root: Path) -> None:
    source = root / "raw"
    (source / "images").mkdir(parents=True)
    rows = [
        f"u{user:02d},i{(user + step) % N_ITEMS:02d},{1_600_000_000 + step}"
        for user in range(N_USERS)
        for step in range(5 + user % 3)
    ]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    titles = ["" if i == NO_TEXT else f"{WORDS[i % 3]} {i}" for i in range(N_ITEMS)]
    lines = [f"i{i:02d},{title}" for i, title in enumerate(titles)]
    (source / "items.csv").write_text("\n".join(["item_id,title", *lines]) + "\n")
    rng = np.random.default_rng(2)
    for i in range(N_ITEMS):
        noise = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 50)).save(source / "images" / f"i{i:02d}.png")
    config = PrepareConfig(text_fields=("title",))
    prepare("mine", source=source, data_dir=root / "data", config=config, splits=["leave-one-out"])


def call(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def place(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recommenders with hand-made, pre-trained, fine-tuned and end-to-end vectors."""
    root = tmp_path_factory.mktemp("layouts")
    models.save(CLIP, root / CLIP)
    write_data(root)
    extract_builtin("mine", root / "data")
    extract = ("extract", "mine", "--encoder", CLIP, "--weights", root / CLIP)
    call(*extract, "--data-dir", root / "data")
    few = ("--epochs", 1, "--batch-size", 4, "--held-out", 0.3)
    call(*extract, "--data-dir", root / "data", "--finetune", *few)
    by_hand = {"visual": "colour-edge", "textual": "tfidf-svd"}
    recipes = {
        # One recipe: two recommenders by three kinds of stored vectors.
        "stored": {
            "features": by_hand,
            "grid": {"model.name": ["vbpr", "lattice"], "features": [by_hand, *BOTH]},
        },
        "learns": {
            "encoders": {m: {"name": CLIP, "weights": str(root / CLIP)} for m in BOTH[0]},
            "training": {**COMMON["training"], "encoder": "end_to_end"},
            "grid": {"model.name": ["vbpr", "lattice"]},
        },
        "table": {
            "features": BOTH[0],
            "training": {**COMMON["training"], "encoder": {"mode": "table"}},
        },
    }
    for name, values in recipes.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump({**COMMON, **values}))
    files = [root / f"{name}.yaml" for name in recipes]
    call("train", *files, "--data-dir", root / "data", "--runs-dir", root / "runs")
    return root


def compared(place: Path, *options: object) -> str:
    return call("compare", place / "runs", *options, "--data-dir", place / "data")


def manifests(place: Path) -> dict[tuple[str, str], dict]:
    """Manifests by recommender and paradigm of its pictures."""
    found = {}
    for run in find_runs([place / "runs"]):
        first = run.manifest["encoding"][0]
        assert first["modality"] == "visual"
        found[run.manifest["model"]["name"], first["paradigm"]] = dict(run.manifest)
    return found


def test_a_run_tells_encoder_and_paradigm_of_each_modality(place):
    found = manifests(place)
    kinds = {"fixed", "pt", "ft", "ete"}
    assert set(found) == {(m, kind) for m in ("vbpr", "lattice") for kind in kinds} | {
        ("vbpr", "table")
    }
    for (_, paradigm), manifest in found.items():
        visual, textual = manifest["encoding"]
        assert textual["paradigm"] == paradigm
        assert visual["encoder"] == ("colour-edge" if paradigm == "fixed" else CLIP)
    tuned = found["vbpr", "ft"]["encoding"][0]
    assert tuned["set"] == f"visual__{CLIP}-ft"
    assert tuned["finetuned"]["base"]["kind"] == "CLIPViTB32"
    assert tuned["finetuned"]["objective"] == {"itc": 1.0}
    assert tuned["finetuned"]["dataset"]["name"] == "mine"
    assert found["vbpr", "table"]["encoding"][0]["began"] == "pt"


def test_none_of_it_is_part_of_what_a_run_is(place):
    recipe = Recipe({**COMMON, "features": BOTH[1]}, "test").expand()[0]
    facts = load_inputs(recipe, place / "data").facts()
    assert set(facts) == {"dataset", "split", "features"}
    assert all(set(one) == {"key", "modality", "encoder", "sha256"} for one in facts["features"])


def test_pretrained_finetuned_and_end_to_end_are_one_tested_table(place):
    text = compared(place, "--layout", "paradigms")
    assert max(map(len, text.splitlines())) <= 80
    for model in ("vbpr", "lattice"):
        for paradigm in ("PT", "FT", "ETE"):
            assert f"{model} {CLIP} {paradigm} " in text
    document = json.loads(compared(place, "--layout", "paradigms", "--format", "json"))
    # Of VBPR four paradigms, of LATTICE three: 6 + 3 pairs for each metric.
    families = document["datasets"][0]["families"]
    assert {family["over_users"] for family in families} == {9}
    tested = [cell for cell in document["cells"] if cell["adjusted"] is not None]
    assert len(tested) == 2 * (3 + 2)
    assert {cell["paradigm"] for cell in document["cells"]} == {"fixed", "PT", "FT", "ETE", "table"}


def test_encoders_are_tested_against_the_ones_of_one_modality(place):
    document = json.loads(compared(place, "--layout", "encoders", "--format", "json"))
    assert document["reference"] == "colour-edge+tfidf-svd in its group"
    labels = dict.fromkeys(cell["label"] for cell in document["cells"])
    assert list(labels) == [
        f"{model} {name}"
        for model in ("vbpr", "lattice")
        for name in ("colour-edge+tfidf-svd", CLIP)
    ]


def test_alignment_is_that_of_the_vectors_that_were_read(place):
    document = json.loads(
        compared(place, "--layout", "paradigms", "--alignment", "--format", "json")
    )
    beside = document["datasets"][0]["alignment"]
    rows = {row["label"]: row for row in beside["rows"]}
    assert {row["n_items"] for row in rows.values()} == {N_ITEMS - 1}
    for run in find_runs([place / "runs"]):
        model, paradigm = run.manifest["model"]["name"], run.manifest["encoding"][0]["paradigm"]
        if paradigm == "fixed":
            continue
        # Of the model as its weights make it, not of what was written down.
        trained = load_trained(run, place / "data", choose("cpu"))
        name = {"pt": "PT", "ft": "FT", "ete": "ETE"}.get(paradigm, paradigm)
        row = rows[f"{model} {CLIP} {name}"]
        assert row["learnt"] == (paradigm in ("ete", "table"))
        if paradigm in ("ete", "table"):
            tables = next(m for m in trained.model.modules() if isinstance(m, FeatureTables))
            vectors = [tables.table(m).detach().numpy() for m in ("visual", "textual")]
        else:
            vectors = [f.matrix for f in trained.inputs.stored]
        has = np.arange(N_ITEMS) != NO_TEXT
        one, other = (
            rows_ / np.linalg.norm(rows_, axis=1, keepdims=True)
            for rows_ in (np.asarray(v, dtype=np.float64)[has] for v in vectors)
        )
        cosines = one @ other.T
        n = len(cosines)
        assert row["paired"] == pytest.approx(np.trace(cosines) / n, abs=1e-5)
        others = (cosines.sum() - np.trace(cosines)) / (n * (n - 1))
        assert row["unpaired"] == pytest.approx(others, abs=1e-5)
        gap = np.linalg.norm(one.mean(0) - other.mean(0))
        assert row["gap"] == pytest.approx(gap, abs=1e-5)
    lacking = {one["label"]: one["reason"] for one in beside["lacking"]}
    assert lacking["vbpr colour-edge+tfidf-svd fixed"].startswith("no common space, ")


def test_alignment_stands_beside_an_ordinary_table_in_every_form(place):
    text = compared(place, "--alignment", "--metric", "ndcg@5")
    assert max(map(len, text.splitlines())) <= 80
    assert "R@1   R@5  R@10 paired others   gap" in text
    assert "Learnt with the recommender" in text
    options = ("--alignment", "--metric", "ndcg@5", "--format")
    lines = list(csv.DictReader(io.StringIO(compared(place, *options, "csv"))))
    rows = json.loads(compared(place, *options, "json"))["alignment"]["rows"]
    assert len(rows) == 7
    by_label = {line["label"]: line for line in lines}
    for row in rows:
        line = by_label[row["label"]]
        assert float(line["alignment_gap"]) == row["gap"]
        assert float(line["alignment_recall@5"]) == row["recall"]["5"]
        assert f"{row['gap']:.3f}" in text
    for form in ("github", "latex"):
        told = compared(place, *options, form)
        assert "Alignment" in told
        assert all(f"{row['gap']:.3f}" in told for row in rows)


def test_the_page_has_a_section_of_it(place, tmp_path):
    page = tmp_path / "report.html"
    learnt = next(r.path for r in find_runs([place / "runs"]) if r.manifest.get("alignment"))
    call("compare", learnt, "--html", page, "--metric", "ndcg@5", "--data-dir", place / "data")
    text = page.read_text(encoding="utf-8")
    assert 'id="alignment"' in text
    assert "How well the vectors of an item" in text
    assert "<td" in text.partition('id="alignment"')[2]


def test_runs_of_before_are_told_by_their_feature_sets(place, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(place / "runs", old)
    for file in old.rglob("manifest.json"):
        manifest = json.loads(file.read_text())
        del manifest["encoding"]
        file.write_text(json.dumps(manifest))
    given = ("compare", old, "--layout", "paradigms", "--format", "json", "--data-dir")
    with_data = json.loads(call(*given, place / "data"))
    labels = {cell["label"] for cell in with_data["cells"]}
    # A table's rows cannot be told from the set's own manifest.
    assert {f"vbpr {CLIP} {paradigm}" for paradigm in ("PT", "FT", "ETE")} <= labels
    without = json.loads(call(*given, tmp_path))
    labels = {cell["label"] for cell in without["cells"]}
    assert {f"vbpr {CLIP} ?", f"vbpr {CLIP}-ft ?", f"vbpr {CLIP} ETE"} <= labels
    assert any(note.startswith("? neither the run nor") for note in without["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layout", "paradigms", "--by", "k"), "--layout goes without --by"),
        (("--layout", "paradigms", "--cost"), "--layout goes without --cost"),
        (("--layout", "paradigms", "--baseline", "PTT"), "unknown row of the layout"),
        (("--layout", "tables"), "is not one of"),
        (("--layout", "modalities"), "no run belongs into the layout"),
        (("--over-datasets", "--alignment"), "--over-datasets goes with"),
    ],
)
def test_what_does_not_go_together_ends_in_one_message(mmbench, place, options, message):
    done = mmbench("compare", place / "runs", *options)
    assert done.status == 2
    assert message in " ".join(done.err.split())
    assert not done.out
