"""A finished run's model, loaded in a new process as it were, ranks exactly as the run did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mmbench.data.prepare import prepare
from mmbench.engine.device import choose
from mmbench.engine.representations import representations
from mmbench.engine.train import train_run
from mmbench.engine.trained import load_trained
from mmbench.errors import ConfigError, DataError
from mmbench.recipe import Recipe
from mmbench.runs import Run, open_run

CPU = choose("cpu")


def train(data: Path, runs: Path, model: str, settings=(), **changes) -> Run:
    raw = {
        "dataset": "tiny",
        "model": {"name": model, **dict(settings)},
        "training": {"epochs": 2, "patience": None},
        **changes,
    }
    (recipe,) = Recipe(raw, "test").expand()
    return train_run(recipe, data_dir=data, runs_dir=runs, compute=CPU)


@pytest.fixture(scope="module")
def vbpr(tiny_data, tmp_path_factory) -> Run:
    runs = tmp_path_factory.mktemp("runs")
    return train(tiny_data, runs, "vbpr", features={"visual": "imported"})


@pytest.fixture
def copy(vbpr, tmp_path):
    shutil.copytree(vbpr.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("model", ["bpr-mf", "lightgcn", "freedom", "lattice", "ease", "itemknn"])
def test_the_loaded_model_ranks_the_stored_lists(model, tiny_data, tmp_path):
    features = {"visual": "imported"} if model in ("freedom", "lattice") else {}
    run = train(tiny_data, tmp_path, model, features=features)
    torch.manual_seed(99)  # whatever happened before plays no part
    loaded = load_trained(run, tiny_data, CPU)
    assert loaded.agreement == 1.0
    assert not loaded.model.training
    assert loaded.recipe.label == run.label


def test_scores_are_products_of_the_vectors(vbpr, tiny_data):
    loaded = load_trained(vbpr, tiny_data, CPU)
    found = representations(loaded)
    assert found.items.shape[0] == 40
    assert found.users.shape == (60, found.items.shape[1])
    scores = loaded.model.scores(torch.arange(60)).detach().numpy()
    np.testing.assert_allclose(found.users @ found.items.T, scores, atol=1e-5)
    assert found.owned.counts.tolist() == [10] * 60  # all parts of the split
    assert set(found.owned.items[:10] % 2) == {0}  # user 0 likes even items


def test_a_model_without_vectors_has_none_to_export(tiny_data, tmp_path):
    loaded = load_trained(train(tiny_data, tmp_path, "ease"), tiny_data, CPU)
    with pytest.raises(ConfigError, match="ease scores without vectors"):
        representations(loaded)


def change(path: Path, edit) -> Run:
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return open_run(path)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda m: m["dataset"].update(fingerprint="0" * 64), "the dataset"),
        (lambda m: m["split"].update(fingerprint="0" * 64), "the split"),
        (lambda m: m["features"][0].update(sha256="0" * 64), "feature set visual__imported"),
        (lambda m: m.update(features=[]), "feature set visual__imported"),
        (lambda m: m.update(dataset=None), "the dataset"),
        (lambda m: m.update(encoders=[{"modality": "textual"}]), "encoder of modality textual"),
    ],
)
def test_other_data_are_refused_by_name(copy, tiny_data, edit, named):
    with pytest.raises(DataError, match=rf"other data than lie in .*{named} changed since"):
        load_trained(change(copy, edit), tiny_data, CPU)


def test_missing_data_and_damaged_weights_are_one_message(copy, tiny_data, tmp_path):
    run = open_run(copy)
    with pytest.raises((DataError, ConfigError), match="tiny"):
        load_trained(run, tmp_path / "nowhere", CPU)
    whole = (copy / "weights.safetensors").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        (copy / "weights.safetensors").write_bytes(damaged)
        with pytest.raises(DataError, match=r"weights.safetensors cannot be read"):
            load_trained(run, tiny_data, CPU)
    (copy / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"weights.safetensors cannot be read"):
        load_trained(run, tiny_data, CPU)


def test_weights_of_other_settings_are_refused(copy, tiny_data):
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["model"]["embedding_size"] = 8
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(DataError, match="do not fit this VBPR"):
        load_trained(open_run(copy), tiny_data, CPU)
    recipe["model"]["from_the_future"] = 1
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(DataError, match="settings that this version does not know"):
        load_trained(open_run(copy), tiny_data, CPU)
    (copy / "recipe.yaml").write_text("[")
    with pytest.raises(DataError, match=r"recipe.yaml cannot be read"):
        load_trained(open_run(copy), tiny_data, CPU)


def test_weights_that_rank_otherwise_are_refused(copy, tiny_data):
    from safetensors.torch import load, save

    weights = load((copy / "weights.safetensors").read_bytes())
    weights["items"] = -weights["items"].flip(0)
    (copy / "weights.safetensors").write_bytes(save(weights))
    with pytest.raises(DataError, match="give other lists than the stored ones"):
        load_trained(open_run(copy), tiny_data, CPU)


@pytest.fixture(scope="module")
def ordered(tmp_path_factory) -> Path:
    """A data folder with "seq": 30 users walk round a ring of 12 items, each from his own."""
    root = tmp_path_factory.mktemp("ordered")
    source = root / "raw"
    source.mkdir()
    rows = [f"u{u},i{(u + t) % 12},{10**9 + t}" for u in range(30) for t in range(5 + u % 3)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    prepare("seq", source=source, data_dir=root / "data", splits=["leave-one-out"])
    return root / "data"


def test_a_sequential_user_is_the_vector_before_the_test_item(ordered, tmp_path):
    settings = {"max_length": 4}
    run = train(ordered, tmp_path, "sasrec", settings, dataset="seq", protocol="mmsr")
    loaded = load_trained(run, ordered, CPU)
    assert loaded.agreement == 1.0
    found = representations(loaded)
    dataset = loaded.inputs.dataset
    number = {name: item for item, name in enumerate(dataset.item_ids)}
    for row in (0, 7, 29):
        user = int(dataset.user_ids[found.user_rows[row]][1:])
        before_test = range(5 + user % 3 - 1)
        history = [number[f"i{(user + t) % 12}"] for t in before_test]
        slots = torch.tensor(history[-4:])[None]
        with torch.no_grad():
            expected = loaded.model.represent(loaded.model.catalogue(), slots)[0]
        np.testing.assert_allclose(found.users[row], expected.numpy(), atol=1e-5)
    assert "before the test item" in found.what
