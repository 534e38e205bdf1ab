"""The recipes of the tables of arXiv 2310.20343, and its paradigms in one recipe."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import NeuralEncoder, Options
from mmbench.encoders.pair import label
from mmbench.engine.extract import set_name
from mmbench.engine.inputs import check_modalities
from mmbench.engine.live_sources import _options
from mmbench.recipe import load_recipe
from mmbench.recipe_files import SHIPPED, shipped_recipes
from mmbench.report.layouts import LAYOUTS
from mmbench.report.publications import published_dataset

FOLDER = "arxiv-2310.20343"
NAMES = [name for name in shipped_recipes() if name.startswith(f"{FOLDER}/")]
RATES, BATCHES = {1e-5, 3e-5, 5e-5, 1e-4, 1e-3}, {32, 64, 128, 256, 1024}
FIVE = {"vbpr", "mmgcn", "mmgcl", "slmrec", "lattice"}
CLIP, VLMO = "clip-vit-b16", "vlmo-base-plus"


def cells_of(table: int) -> Counter[tuple[str, ...]]:
    """Recommender, vectors by modality and paradigm of all runs of a table's recipes."""
    cells: Counter[tuple[str, ...]] = Counter()
    for name in NAMES:
        if name.startswith(f"{FOLDER}/table-{table:02d}-"):
            for run in load_recipe(name).expand():
                given = {m: ("stored", set_name) for m, set_name in run.features.items()}
                given |= {m: ("learns", how.name) for m, how in run.encoders.items()}
                cells[run.model, str(sorted(given.items()))] += 1
    return cells


def vectors(kind: str, encoder: str, *modalities: str) -> str:
    return str(sorted((modality, (kind, encoder)) for modality in modalities))


def expected(kind: str, encoder: str) -> set[tuple[str, str]]:
    """One encoder in one paradigm in all five recommenders; VBPR reads pictures alone."""
    both = ("textual", "visual")
    return {
        (model, vectors(kind, encoder, *(both if model != "vbpr" else both[1:]))) for model in FIVE
    }


def test_table_3_has_five_recommenders_with_three_encoders():
    separate = str([("textual", ("stored", "minilm-l6")), ("visual", ("stored", "vgg19"))])
    cnn = {(model, separate) for model in FIVE - {"vbpr"}}
    cnn.add(("vbpr", vectors("stored", "vgg19", "visual")))
    cells = cells_of(3)
    assert set(cells) == cnn | expected("stored", CLIP) | expected("stored", VLMO)
    assert set(cells.values()) == {25}


def test_table_4_has_five_recommenders_two_encoders_and_three_paradigms():
    cells = cells_of(4)
    assert set(cells) == {
        cell
        for encoder in (CLIP, VLMO)
        for kind, name in (
            ("stored", encoder), ("stored", f"{encoder}-ft"), ("learns", encoder)
        )
        for cell in expected(kind, name)
    }  # fmt: skip
    assert set(cells.values()) == {25}


def test_table_5_has_two_recommenders_with_all_modalities_and_with_each():
    assert set(cells_of(5)) == {
        (model, vectors("learns", CLIP, *modalities))
        for model in ("mmgcl", "lattice")
        for modalities in (("textual", "visual"), ("textual",), ("visual",))
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_with_the_papers_training(name):
    recipe = load_recipe(name, settings=["training.epochs=2"])
    runs = recipe.expand()
    assert {run.training.learning_rate for run in runs} == RATES
    assert {run.training.batch_size for run in runs} == BATCHES
    for run in runs[::25]:
        check_modalities(run)
        training = run.training
        assert (training.optimizer, training.patience) == ("adam", 50)
        assert run.settings.embedding_size == 64
        assert run.protocol.name == "mmrec"
        assert (training.encoder is not None) == bool(run.encoders)
        for modality, how in run.encoders.items():
            kind = ENCODERS.get(how.name).obj
            assert issubclass(kind, NeuralEncoder)
            assert modality in kind(_options(kind, modality, how, "")).modalities
            assert how.tune == "full"
        for made in run.features.values():
            assert made.removesuffix("-ft") in ENCODERS.names()
    # A trial is known by what the grid varies, in words that fit a line.
    assert max(len(run.label) for run in runs) < 100


@pytest.mark.parametrize("name", [name for name in NAMES if "end-to-end" in name or "-05-" in name])
def test_weights_can_be_local_and_do_not_change_what_it_is(name):
    plain = load_recipe(name).expand()
    modality = next(iter(plain[0].encoders))
    local = load_recipe(name, settings=[f"encoders.{modality}.weights=here"]).expand()
    assert {run.encoders[modality].weights for run in local} == {"here"}
    assert [run.identity() for run in local] == [run.identity() for run in plain]


@pytest.mark.parametrize("dataset", ["amazon-sports", "amazon-clothing"])
def test_the_papers_other_datasets_are_named_on_the_command_line(dataset):
    assert published_dataset(dataset) is not None
    runs = load_recipe(NAMES[0], dataset=dataset).expand()
    assert {run.dataset for run in runs} == {dataset}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_to_expect_and_how_it_is_run_and_shown(name):
    head = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    number = int(re.search(r"table-(\d+)-", name)[1])
    assert re.match(rf"# Table {number}: ", head[0])
    for word in ("Settings:", "Expect:", "Data:"):
        assert any(line.startswith(f"# {word}") for line in head), word
    layout = next(kind for kind, table in LAYOUTS.items() if table == number)
    assert f"# Table:    mmbench compare runs/* --layout {layout} --published" in head
    assert f"# Run:      mmbench train {name}" in head
    assert max(map(len, head)) <= 100


def test_one_recipe_holds_two_models_and_three_encoders_in_all_three_paradigms():
    name = "movielens-100k/paradigms"
    runs = [run for run in load_recipe(name).expand() if run.seed == 0]
    stored = [
        *((f"{one}{how}",) * 2 for one in (CLIP, VLMO) for how in ("", "-ft")),
        ("minilm-l6", "resnet50"),
        ("pair-minilm-l6-resnet50-ft",) * 2,
    ]
    live = [(one,) * 2 for one in (CLIP, VLMO, "pair:minilm-l6+resnet50")]
    found = Counter()
    for run in runs:
        check_modalities(run)
        given = run.features or {m: how.name for m, how in run.encoders.items()}
        found[run.model, given["textual"], given["visual"], bool(run.encoders)] += 1
        assert (run.training.encoder is not None) == bool(run.encoders)
        for modality, how in run.encoders.items():
            key, _, model = how.name.partition(":")
            kind = ENCODERS.get(key).obj
            assert modality in kind(_options(kind, modality, how, model)).modalities
    cells = [(*one, False) for one in stored] + [(*one, True) for one in live]
    assert found == Counter((model, *cell) for model in ("vbpr", "lattice") for cell in cells)
    assert len({run.label for run in runs}) == len(runs) == 18
    # What is compared differs in nothing else.
    assert len({(run.training.epochs, run.training.batch_size) for run in runs}) == 1
    head = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"# Run:      mmbench train {name}\n" in head
    pair = "pair:minilm-l6+resnet50"
    assert f"--encoder {pair} " in head
    called = set_name("pair", Options(model=label(pair.partition(":")[2])))
    assert f"{called}-ft" == stored[-1][0]
