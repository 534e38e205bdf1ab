from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmbench.engine.building import build_model, make_ranker
from mmbench.engine.device import choose
from mmbench.engine.folder import run_path
from mmbench.engine.inputs import load_inputs
from mmbench.engine.optimisation import learning_rate_factor
from mmbench.engine.train import train_run
from mmbench.errors import ConfigError, DataError, TrainingError, UnknownNameError
from mmbench.metrics.base import parse_metric
from mmbench.recipe import Recipe, RunRecipe
from mmbench.recipe_keys import Schedule
from mmbench.runs import Run, open_run, read_manifest

CPU = choose("cpu")


def plan(model: str = "bpr-mf", seed: int = 0, **changes: Any) -> RunRecipe:
    settings: dict[str, Any] = {}
    if model in ("bpr-mf", "lightgcn", "vbpr"):
        settings = {"embedding_size": 8}
    elif model == "slim-bpr":  # several batches an epoch, and the most state to be resumed
        settings = {"optimizer": "adam", "batch_size": 16, "learning_rate": 0.05}
    raw = {
        "dataset": "tiny",
        "model": {"name": model, **settings},
        "training": {"epochs": 12, "batch_size": 64, "learning_rate": 0.05},
        "seeds": [seed],
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) else value
    return Recipe(raw, "test").expand()[0]


def run(recipe: RunRecipe, data: Path, runs: Path, **options: Any) -> Run:
    return train_run(recipe, data_dir=data, runs_dir=runs, compute=CPU, **options)


def history(done: Run) -> list[dict[str, Any]]:
    lines = (done.path / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def assert_same_numbers(first: Run, second: Run) -> None:
    assert first.manifest["metrics"] == second.manifest["metrics"]
    assert history(first) == history(second)
    for part in ("valid", "test"):
        np.testing.assert_array_equal(first.lists(part).items, second.lists(part).items)
    one, two = (load_file(done.path / "weights.safetensors") for done in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_learns_the_planted_structure_and_its_folder_is_complete(
    tiny_data: Path, tmp_path: Path
) -> None:
    done = run(plan("vbpr", features={"visual": "imported"}), tiny_data, tmp_path)
    # Twenty of the 40 items are of the user's kind and seven are known: 13 candidates, so lists
    # of that kind alone reach a Recall@10 of about 10/13; lists by chance about 10/33.
    assert done.manifest["metrics"]["test"]["recall@10"] > 0.6
    written = "recipe.yaml manifest.json history.jsonl weights.safetensors popularity.npy lists"
    assert {path.name for path in done.path.iterdir()} == set(written.split())
    assert done.manifest["features"][0]["modality"] == "visual"
    for part in ("valid", "test"):
        for name, value in done.manifest["metrics"][part].items():
            assert value == pytest.approx(done.values(parse_metric(name), part).mean(), abs=1e-15)


def test_the_stored_weights_give_the_stored_lists(tiny_data: Path, tmp_path: Path) -> None:
    recipe = plan("lightgcn")
    done = run(recipe, tiny_data, tmp_path)
    inputs = load_inputs(recipe, tiny_data)
    model = build_model(recipe, inputs, CPU)
    model.load_state(load_file(done.path / "weights.safetensors"))
    lists = make_ranker(recipe, inputs, inputs.test, CPU).rank(model, 100)
    np.testing.assert_array_equal(lists.items, done.lists("test").items)


def test_the_test_part_is_that_of_the_best_validation_epoch(
    tiny_data: Path, tmp_path: Path
) -> None:
    done = run(plan(training={"epochs": 30, "patience": 3}), tiny_data, tmp_path)
    values = [record["valid"]["recall@20"] for record in history(done)]
    best = 1 + int(np.argmax(values))
    facts = done.manifest["training"]
    assert facts["best_epoch"] == best
    assert facts["stopped_by"] == "patience"
    assert facts["epochs"] == best + 3
    longer = run(plan(training={"epochs": best, "patience": 3}), tiny_data, tmp_path / "cut")
    np.testing.assert_array_equal(longer.lists("test").items, done.lists("test").items)


@pytest.mark.parametrize("name", ["standard", "mmrec"])
def test_masking_follows_the_protocol(tiny_data: Path, tmp_path: Path, name: str) -> None:
    done = run(plan("popularity", protocol=name), tiny_data, tmp_path)
    inputs = load_inputs(plan("popularity"), tiny_data)
    label = np.asarray(inputs.split.label)
    pairs = {
        part: {(int(u), int(i)) for u, i in zip(
            np.asarray(inputs.dataset.user)[label == part],
            np.asarray(inputs.dataset.item)[label == part], strict=True)}
        for part in (0, 1, 2)
    }  # fmt: skip
    shown = {
        part: {(int(u), int(i)) for u, row in zip(ranked.users, ranked.items, strict=True)
               for i in row if i >= 0}
        for part, ranked in ((p, done.lists(p)) for p in ("valid", "test"))
    }  # fmt: skip
    assert not shown["valid"] & pairs[0]
    assert not shown["test"] & pairs[0]
    assert bool(shown["test"] & pairs[1]) == (name == "mmrec")
    # Lists of 100 hold all of the 40 items that are not masked.
    assert len(shown["valid"] | pairs[0]) == 60 * 40


@pytest.mark.parametrize("model", ["bpr-mf", "lightgcn", "vbpr"])
def test_equal_recipe_and_seed_give_equal_bits(tiny_data: Path, tmp_path: Path, model: str) -> None:
    features = {"visual": "imported", "acoustic": "imported"} if model == "vbpr" else {}
    recipe = plan(model, seed=3, features=features)
    torch.manual_seed(1)
    first = run(recipe, tiny_data, tmp_path / "a")
    torch.manual_seed(2)
    assert_same_numbers(first, run(recipe, tiny_data, tmp_path / "b"))
    other = run(plan(model, seed=4, features=features), tiny_data, tmp_path / "b")
    assert other.system == first.system
    assert history(other) != history(first)


@pytest.mark.parametrize("stop_at", [1, 4, 11])
@pytest.mark.parametrize(
    "recipe",
    [
        plan("lightgcn", training={"schedule": {"name": "cosine"}, "optimizer": "adamw"}),
        plan("slim-bpr"),
    ],
    ids=lambda recipe: recipe.model,
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    tiny_data: Path, tmp_path: Path, recipe: RunRecipe, stop_at: int
) -> None:
    whole = run(recipe, tiny_data, tmp_path / "whole")

    def interrupt(recipe: RunRecipe, record: dict[str, Any], progress: Any) -> None:
        if record["epoch"] == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tiny_data, tmp_path / "cut", on_epoch=interrupt, checkpoint_every_s=0.0)
    folder, _ = run_path(recipe, load_inputs(recipe, tiny_data), tmp_path / "cut")
    assert read_manifest(folder)["status"] == "unfinished"
    with pytest.raises(DataError, match="is unfinished"):
        open_run(folder)
    resumed = run(recipe, tiny_data, tmp_path / "cut")
    assert_same_numbers(whole, resumed)
    assert not (folder / "checkpoint.pt").exists()


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mmbench.engine.device import choose
from mmbench.engine.train import train_run
from mmbench.recipe import Recipe
import json
recipe = Recipe(json.loads(sys.argv[1]), "killed").expand()[0]
print("begun", flush=True)
train_run(recipe, data_dir=Path(sys.argv[2]), runs_dir=Path(sys.argv[3]), compute=choose("cpu"),
          checkpoint_every_s=0.0)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tiny_data: Path, tmp_path: Path) -> None:
    recipe = plan(training={"epochs": 400, "patience": 400})
    whole = run(recipe, tiny_data, tmp_path / "whole")
    draw = random.Random(5)
    killed = 0
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, json.dumps(recipe.as_dict())]
        process = subprocess.Popen(
            [*command, str(tiny_data), str(tmp_path / "cut")], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0.1, 1.0))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert killed > 0
    assert_same_numbers(whole, run(recipe, tiny_data, tmp_path / "cut"))


def test_a_finished_run_is_taken_as_it_is(tiny_data: Path, tmp_path: Path) -> None:
    first = run(plan(), tiny_data, tmp_path)
    before = (first.path / "manifest.json").stat().st_mtime_ns

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    again = run(plan(), tiny_data, tmp_path, on_epoch=never)
    assert (again.path / "manifest.json").stat().st_mtime_ns == before


def test_the_folder_depends_on_settings_and_data_not_on_the_label_alone(tiny_data: Path) -> None:
    names = {
        run_path(recipe, load_inputs(recipe, tiny_data), Path("runs"))[0].name
        for recipe in (
            plan(),
            plan(seed=1),
            plan(training={"learning_rate": 0.01}),
            plan("vbpr"),
            plan("vbpr", features={"visual": "imported"}),
            plan("vbpr", features={"acoustic": "imported"}),
        )
    }
    assert len(names) == 6


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(
    tiny_data: Path, tmp_path: Path
) -> None:
    recipe = plan("lightgcn", training={"learning_rate": 1e38, "optimizer": "sgd"})
    with pytest.raises(TrainingError, match=r"seed 0, epoch \d+: .*(loss term '\w+'|a score) is"):
        run(recipe, tiny_data, tmp_path)


def test_models_refuse_modalities_they_cannot_use(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.visual: bpr-mf cannot use this modality"):
        run(plan(features={"visual": "imported"}), tiny_data, tmp_path)
    with pytest.raises(ConfigError, match="needs at least one feature set"):
        run(plan("itemknn-cbf"), tiny_data, tmp_path)
    with pytest.raises(DataError, match="textual"):
        run(plan("vbpr", features={"textual": "tfidf-svd"}), tiny_data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_dataset_that_is_not_prepared_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="mmbench prepare tiny"):
        run(plan(), tmp_path / "nothing", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_two_processes_cannot_train_one_run(tiny_data: Path, tmp_path: Path) -> None:
    recipe = plan()

    def second(*_: Any) -> None:
        with pytest.raises(ConfigError, match="another process is training"):
            run(recipe, tiny_data, tmp_path)

    run(recipe, tiny_data, tmp_path, on_epoch=second)


def test_a_run_of_another_version_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    done = run(plan("popularity"), tiny_data, tmp_path)
    manifest = json.loads((done.path / "manifest.json").read_text())
    (done.path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(DataError, match="another version of mmbench"):
        run(plan("popularity"), tiny_data, tmp_path)


LIMITED = """
import resource, signal, sys, json
from pathlib import Path
from mmbench.engine.device import choose
from mmbench.engine.inputs import load_inputs
from mmbench.engine.train import train_run
from mmbench.errors import DataError
from mmbench.recipe import Recipe
recipe = Recipe(json.loads(sys.argv[1]), "full").expand()[0]
inputs = load_inputs(recipe, Path(sys.argv[2]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), -1))
try:
    train_run(recipe, data_dir=Path(sys.argv[2]), runs_dir=Path(sys.argv[3]), compute=choose("cpu"),
              inputs=inputs)
except DataError as problem:
    print(problem)
"""


@pytest.mark.parametrize("limit", [10, 2000])
def test_a_full_disk_is_one_message_and_leaves_no_half_run(
    tiny_data: Path, tmp_path: Path, limit: int
) -> None:
    # A limit on file sizes fails writes as a full disk does, also for the superuser.
    recipe = json.dumps(plan().as_dict())
    command = [
        sys.executable,
        "-c",
        LIMITED,
        recipe,
        str(tiny_data),
        str(tmp_path / "runs"),
        str(limit),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert "cannot be written" in done.stdout, done.stderr
    assert not list((tmp_path / "runs").glob("*"))
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


def test_users_without_held_out_or_training_items_are_not_ranked(tiny_data: Path) -> None:
    inputs = load_inputs(plan(), tiny_data)
    known = np.flatnonzero(inputs.activity > 0)
    assert set(inputs.test.users) <= set(known)
    assert (inputs.test.relevant.counts > 0).all()


def test_missing_rows_are_imputed_by_the_mean_of_the_present_ones(tiny_data: Path) -> None:
    from mmbench.engine.inputs import _for_model

    stored = load_inputs(plan("vbpr", features={"visual": "imported"}), tiny_data).stored[0]
    mask = np.array(stored.mask)
    mask[3] = False
    holed = np.array(stored.matrix)
    holed[3] = 0
    given = _for_model(dataclasses.replace(stored, matrix=holed, mask=mask))
    np.testing.assert_allclose(given.matrix[3], np.delete(holed, 3, axis=0).mean(axis=0), rtol=1e-6)
    assert not given.present[3]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1.0, 1.0, 1.0]),
        (Schedule(name="exponential", gamma=0.5, period=2), [1.0, 0.5**0.5, 0.5]),
        (Schedule(name="cosine", floor=0.2), [1.0, 0.6, 0.2]),
        (Schedule(name="cosine", warmup_epochs=1), [0.5, 1.0, 0.0]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    assert [learning_rate_factor(schedule, e, 3) for e in range(3)] == pytest.approx(expected)


def test_clipping_bounds_the_step(tiny_data: Path, tmp_path: Path) -> None:
    def moved(clip: float) -> float:
        training = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1.0, "clip_norm": clip}
        recipe = plan(training=training, seed=2)
        before = build_model(recipe, load_inputs(recipe, tiny_data), CPU).state_dict()
        done = run(recipe, tiny_data, tmp_path / str(clip))
        after = load_file(done.path / "weights.safetensors")
        return float(sum(((after[n] - before[n]) ** 2).sum() for n in after)) ** 0.5

    n_steps = -(-60 * 7 // 64)
    assert moved(1e-4) <= n_steps * 1e-4 * 1.01
    assert moved(1e-3) > moved(1e-4)
