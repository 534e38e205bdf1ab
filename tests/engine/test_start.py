"""Starting from the weights of another run: what moves, what it is called, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmbench.engine.building import build_model
from mmbench.engine.device import choose
from mmbench.engine.folder import run_path
from mmbench.engine.inputs import load_inputs
from mmbench.engine.start import find_start, what_moves
from mmbench.engine.train import train_run
from mmbench.engine.trained import load_trained
from mmbench.errors import ConfigError, DataError
from mmbench.models.base import MODELS, Interactions, ItemFeatures
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run, open_run

CPU = choose("cpu")
Train = Callable[..., Run]


def plan(raw: dict[str, Any], seed: int = 0) -> RunRecipe:
    (found,) = Recipe({**raw, "seeds": [seed]}, "test").expand()
    return found


@pytest.fixture(scope="module")
def train(two_shops: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    runs = tmp_path_factory.mktemp("runs")

    def run(raw: dict[str, Any], seed: int = 0, into: Path = runs) -> Run:
        return train_run(plan(raw, seed), data_dir=two_shops, runs_dir=into, compute=CPU)

    return run


@pytest.fixture(scope="module")
def sources(train: Train, shops: ModuleType) -> dict[str, Run]:
    """A pre-trained run of each model on shop-a."""
    return {
        name: train(shops.recipe(name, dataset="shop-a"))
        for name in ("mmsr", "sasrec", "bpr-mf", "vbpr")
    }


def starting(shops: ModuleType, run: Run, model: str = "mmsr", **how: Any) -> dict[str, Any]:
    raw: dict[str, Any] = shops.recipe(model)
    raw["training"] = {**raw["training"], "start_from": {"run": str(run.path), **how}}
    return raw


# ------------------------------------------------------------------------- zero-shot by hand


def test_zero_shot_is_scoring_with_the_weights_of_the_source(
    train: Train, shops: ModuleType, sources: dict[str, Run], two_shops: Path
) -> None:
    zero = train(starting(shops, sources["mmsr"], train=False))
    # By hand: a fresh model of the target, the source's file, the histories one by one.
    inputs = load_inputs(plan(shops.recipe()), two_shops)
    model = build_model(plan(shops.recipe()), inputs, CPU)
    model.load_state_dict(load_file(sources["mmsr"].path / "weights.safetensors"))
    model.eval()
    lists = zero.lists("test")
    target = inputs.test
    assert target.histories is not None
    with torch.no_grad():
        items = model.items(torch.arange(28))
        for row, user in enumerate(lists.users):
            history = target.histories.items[
                target.histories.offsets[row] : target.histories.offsets[row + 1]
            ]
            slots = torch.full((1, 5), 28)
            slots[0, -len(history[-5:]) :] = torch.from_numpy(history[-5:])
            real = slots != 28
            inside = torch.where(real[:, :, None], items[slots.clamp(max=27)], 0.0)
            scores = (model.encode(inside, real)[0, -1] @ items.T).numpy()
            hidden = target.masked.items[
                target.masked.offsets[row] : target.masked.offsets[row + 1]
            ]
            scores[hidden] = -np.inf
            best = np.sort(scores)[::-1][:10]
            np.testing.assert_allclose(scores[lists.items[row]], best, rtol=1e-4, atol=1e-6)
            assert target.users[row] == user
    assert zero.manifest["training"]["epochs"] == 0
    assert zero.manifest["training"]["stopped_by"] == "not trained here"
    same = load_file(zero.path / "weights.safetensors")
    for name, tensor in load_file(sources["mmsr"].path / "weights.safetensors").items():
        assert torch.equal(same[name], tensor)
    assert load_trained(zero, two_shops, CPU).agreement == 1.0


# ------------------------------------------------------------------------- what moves


def test_all_of_a_content_model_moves_and_training_goes_on_from_there(
    train: Train, shops: ModuleType, sources: dict[str, Run]
) -> None:
    raw = starting(shops, sources["mmsr"])
    # At a rate of nothing the weights are those of the start.
    raw["training"] = {**raw["training"], "epochs": 1, "learning_rate": 1e-12}
    run = train(raw)
    stored = load_file(run.path / "weights.safetensors")
    source = load_file(sources["mmsr"].path / "weights.safetensors")
    assert set(stored) == set(source)
    for name in source:
        torch.testing.assert_close(stored[name], source[name], rtol=0, atol=1e-9)
    facts = run.manifest["start"]
    assert facts["own"] == []
    assert set(facts["taken"]) == set(source)
    assert (facts["dataset"], facts["seed"], facts["trained"]) == ("shop-a", 0, True)
    assert run.manifest["training"]["steps_per_epoch"] == 3  # 36 users, 16 at once


def test_an_item_table_stays_behind_and_the_sequence_encoder_moves(
    train: Train, shops: ModuleType, sources: dict[str, Run]
) -> None:
    facts = train(starting(shops, sources["sasrec"], "sasrec")).manifest["start"]
    assert facts["own"] == ["table.weight"]
    assert any("positions" in name for name in facts["taken"])
    assert not any("table" in name for name in facts["taken"])
    facts = train(starting(shops, sources["vbpr"], "vbpr")).manifest["start"]
    assert facts["taken"]
    assert {"users", "items"} <= set(facts["own"])


CONTENT = ("mmsr", "morec", "morec-pp", "unisrec", "vqrec")
GENERAL = [
    name
    for name in MODELS.names()
    if MODELS.get(name).obj.fitting == "gradient" and MODELS.get(name).obj.family == "general"
]
SEQUENTIAL = [name for name in MODELS.names() if MODELS.get(name).obj.family == "sequential"]


def made_up(n_users: int, n_items: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Users and items of training rows, and item vectors [I, 9]."""
    rng = np.random.default_rng(seed)
    pairs = {(u, int(i)) for u in range(n_users) for i in rng.permutation(n_items)[:6]}
    pairs |= {(i % n_users, i) for i in range(n_items)}
    users, items = torch.tensor(sorted(pairs)).T.contiguous()
    return users, items, torch.from_numpy(rng.standard_normal((n_items, 9)).astype(np.float32))


def tiny_model(name: str, n_users: int, n_items: int, seed: int = 0) -> Any:
    """A model on made-up data; no number of rows is one of the widths of its settings."""
    users, items, matrix = made_up(n_users, n_items, seed)
    kind = MODELS.get(name).obj
    modality = "textual" if "textual" in kind.modalities else "visual"
    given = [ItemFeatures(f"{modality}__x", modality, matrix, torch.ones(n_items).bool())]
    order = items if kind.family == "sequential" else None
    train = Interactions(n_users, n_items, users, items, order)
    settings = {"vqrec": {"n_parts": 3, "n_centroids": 4, "rotation_rounds": 1}}.get(name, {})
    torch.manual_seed(seed)
    return kind(
        MODELS.get(name).info["config"](**settings), train, given if kind.modalities else []
    )


@pytest.mark.parametrize("name", [*GENERAL, *SEQUENTIAL])
def test_what_grows_with_users_or_items_belongs_to_the_dataset(name: str) -> None:
    one, more = tiny_model(name, 41, 53), tiny_model(name, 44, 58)
    stored = one.state_dict()
    grows = {
        k for k, v in more.state_dict().items() if k not in stored or stored[k].shape != v.shape
    }
    grows = {k for k in grows if not k.startswith(one.fitted_tensors)}
    # The hard case: another dataset with as many users, items and rows, so that all shapes fit.
    rows = len(made_up(41, 53, 0)[0])
    moved = what_moves(one, dict(stored), (41, 53, rows), (41, 53, rows))
    stays = set(stored) - set(moved.taken)
    assert grows <= stays
    # A bias that does not grow stays with the rest of its network, which reads rows of all items.
    assert stays - grows <= {"discriminator.8.bias"}
    if name in CONTENT:
        assert moved.own == ()


def test_codes_follow_from_the_quantiser_that_moves(shops: ModuleType) -> None:
    one, two = tiny_model("vqrec", 41, 53, seed=1), tiny_model("vqrec", 44, 58, seed=2)
    matrix = made_up(44, 58, 2)[2]
    given = [ItemFeatures("textual__x", "textual", matrix, torch.ones(58).bool())]
    moved = what_moves(two, one.state_dict(), (41, 53, 1), (44, 58, 2))
    assert "codes" not in moved.taken
    two.start_from({key: one.state_dict()[key] for key in moved.taken}, given)
    # Of each part of a rotated vector the nearest centroid of the other dataset's.
    rotated = (matrix - one.quantiser.mean) @ one.quantiser.rotation
    for item in range(58):
        for part in range(3):
            away = (one.quantiser.centroids[part] - rotated[item, 3 * part : 3 * part + 3]).norm(
                dim=1
            )
            assert int(two.codes[item, part]) == int(away.argmin())


# ------------------------------------------------------------------------- identity


def test_identity_is_the_system_that_it_starts_from_and_the_weights_not_the_place(
    train: Train, shops: ModuleType, sources: dict[str, Run], two_shops: Path, tmp_path: Path
) -> None:
    inputs = load_inputs(plan(shops.recipe()), two_shops)

    def path(run: Path, seed: int = 0, **how: Any) -> tuple[str, str]:
        raw = shops.recipe()
        raw["training"] = {**raw["training"], "start_from": {"run": str(run), **how}}
        found, system = run_path(plan(raw, seed), inputs, tmp_path)
        return found.name, system

    source = sources["mmsr"].path
    moved = tmp_path / "elsewhere"
    shutil.copytree(source, moved)
    assert path(source) == path(moved)
    assert path(source, train=False)[1] != path(source)[1]
    assert path(source)[1] != run_path(plan(shops.recipe()), inputs, tmp_path)[1]
    # Runs of several seeds that start each from their own are one system.
    other = train(shops.recipe(dataset="shop-a"), seed=1)
    assert path(other.path, seed=1)[1] == path(source)[1]
    assert path(source, seed=1)[1] != path(source)[1]
    pattern = Path(str(source).removesuffix("-s0") + "-s{seed}")
    assert path(pattern, seed=1) == path(other.path, seed=1)
    # Other weights of the same system are another folder.
    weights = load_file(moved / "weights.safetensors")
    save_file({k: v + 1 if v.is_floating_point() else v for k, v in weights.items()},
              moved / "weights.safetensors")  # fmt: skip
    assert path(moved)[1] == path(source)[1]
    assert path(moved)[0] != path(source)[0]


def test_a_finished_run_is_taken_as_it_is_and_a_killed_one_resumed(
    train: Train, shops: ModuleType, sources: dict[str, Run], two_shops: Path, tmp_path: Path
) -> None:
    raw = starting(shops, sources["mmsr"])
    whole = train(raw)
    before = (whole.path / "weights.safetensors").stat().st_mtime_ns
    assert train(raw).path == whole.path
    assert (whole.path / "weights.safetensors").stat().st_mtime_ns == before

    def kill(recipe: RunRecipe, record: dict[str, Any], progress: Any) -> None:
        if record["epoch"] == 4:
            raise KeyboardInterrupt

    told: list[int] = []
    how = {"data_dir": two_shops, "runs_dir": tmp_path, "compute": CPU, "checkpoint_every_s": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train_run(plan(raw), on_epoch=kill, **how)
    again = train_run(plan(raw), on_epoch=lambda r, e, p: told.append(e["epoch"]), **how)
    assert told == [4, 5, 6]
    assert again.manifest["metrics"] == whole.manifest["metrics"]


# ------------------------------------------------------------------------- what is refused


def test_what_cannot_be_a_start_is_refused(
    train: Train, shops: ModuleType, sources: dict[str, Run], two_shops: Path, tmp_path: Path
) -> None:
    def refused(kind: type[Exception], words: str, raw: dict[str, Any]) -> None:
        with pytest.raises(kind, match=words):
            train(raw, into=tmp_path / "none")
        assert not list((tmp_path / "none").glob("*"))

    gone = open_run(sources["mmsr"].path)
    missing = starting(shops, gone)
    missing["training"]["start_from"]["run"] = str(tmp_path / "no-run-s{seed}")
    refused(DataError, r"training\.start_from, seed 0: .*no-run-s0 is not a run folder", missing)
    refused(ConfigError, "is a run of mmsr, this recipe trains sasrec",
            starting(shops, gone, "sasrec"))  # fmt: skip
    refused(ConfigError, "no weight of bpr-mf moves",
            starting(shops, sources["bpr-mf"], "bpr-mf"))  # fmt: skip
    refused(ConfigError, "sasrec cannot rank without training here: table.weight",
            starting(shops, sources["sasrec"], "sasrec", train=False))  # fmt: skip
    closed = shops.recipe("itemknn")
    closed |= {"model": {"name": "itemknn"}, "features": {}}
    closed["training"] = {**closed["training"], "start_from": str(gone.path)}
    refused(ConfigError, "itemknn is not trained by gradient", closed)
    wide = starting(shops, gone)
    wide["model"] = {**wide["model"], "embedding_size": 6}
    refused(ConfigError, "no weight of mmsr moves", wide)
    for file, words in (
        ("weights.safetensors", "holds no weights"),
        ("manifest.json", "unfinished"),
    ):
        copy = tmp_path / file
        shutil.copytree(gone.path, copy)
        if file == "manifest.json":
            facts = json.loads((copy / file).read_text())
            (copy / file).write_text(json.dumps({**facts, "status": "unfinished"}))
        else:
            (copy / file).unlink()
        raw = shops.recipe()
        raw["training"] = {**raw["training"], "start_from": str(copy)}
        refused(DataError, words, raw)
    broken = tmp_path / "broken"
    shutil.copytree(gone.path, broken)
    (broken / "weights.safetensors").write_bytes(b"no weights at all")
    raw = shops.recipe()
    raw["training"] = {**raw["training"], "start_from": str(broken)}
    refused(DataError, r"weights\.safetensors cannot be read", raw)


def test_a_recipe_without_a_start_has_none(shops: ModuleType) -> None:
    assert find_start(plan(shops.recipe())) is None
