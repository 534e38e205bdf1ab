"""Masks, candidates, truncation and truth of the cold parts, against loops over the rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.data.prepare import prepare
from mmbench.data.prepared import load_dataset
from mmbench.engine import cold_start as cold
from mmbench.engine.device import choose
from mmbench.engine.inputs import load_inputs
from mmbench.engine.train import train_run
from mmbench.engine.trained import load_trained
from mmbench.errors import ConfigError, DataError
from mmbench.models.base import Recommender
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run

CPU = choose("cpu")
WARM = "cold-items.warm-random-per-user"
COMPLETE = "cold-sequences.positions-all"
N_USERS, N_ITEMS = 30, 25


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Thirty users with ten of 25 items each, in the order of time."""
    root = tmp_path_factory.mktemp("cold")
    rng = np.random.default_rng(2)
    lines = ["user_id,item_id,timestamp"]
    for user in range(N_USERS):
        chosen = rng.permutation(N_ITEMS)[:10]
        lines += [f"u{user:02d},i{item:02d},{time}" for time, item in enumerate(chosen, 10**9)]
    (root / "raw").mkdir()
    (root / "raw" / "interactions.csv").write_text("\n".join(lines) + "\n")
    splits = [
        "leave-one-out", "random-per-user", "cold-items:warm=random-per-user",
        "cold-sequences", "cold-sequences:positions=all",
    ]  # fmt: skip
    prepare("small", source=root / "raw", data_dir=root / "data", splits=splits)
    return root / "data"


def plan(model: str, split: str, **settings) -> RunRecipe:
    raw = {
        "dataset": "small",
        "protocol": {"split": split},
        "model": {"name": model, **settings},
        "training": {"epochs": 2, "patience": None, "batch_size": 64, "select_by": "recall@5"},
        "evaluation": {"metrics": ["recall@5"], "depth": 10},
    }
    (recipe,) = Recipe(raw, "test").expand()
    return recipe


def lists_of(ragged) -> list[list[int]]:
    return [
        ragged.items[a:b].tolist()
        for a, b in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)
    ]


def rows_of(data: Path, split: str) -> dict[int, list[tuple[int, int]]]:
    """Item and label of each user's rows in the order of time."""
    dataset = load_dataset("small", data)
    rows: dict[int, list[tuple[int, int]]] = {user: [] for user in range(dataset.n_users)}
    labels = dataset.split(split).label
    for user, item, label in zip(dataset.user, dataset.item, labels, strict=True):
        rows[int(user)].append((int(item), int(label)))
    return rows


@pytest.mark.parametrize("among_cold", [False, True])
def test_unseen_items_are_asked_for_among_all_or_among_themselves(data, among_cold):
    dataset = load_dataset("small", data)
    items = dataset.cold(WARM)["cold_items"]
    inputs = load_inputs(plan("popularity", WARM), data)
    found = cold.unseen_items(inputs, items, among_cold=among_cold)
    users, relevant, masked, candidates = [], [], [], []
    is_cold = set(items.tolist())
    assert len(is_cold) == 5
    for user, rows in rows_of(data, WARM).items():
        asked = {i for i, label in rows if label == 2 and (not among_cold or i in is_cold)}
        known = {i for i, label in rows if label in (0, 1)}
        if not asked or not any(label == 0 for _, label in rows):
            continue
        users.append(user)
        relevant.append(sorted(asked))
        masked.append(sorted(known))
        pool = is_cold if among_cold else set(range(dataset.n_items))
        candidates.append(len(pool - known))
    assert len(users) > 10
    assert found.target.users.tolist() == users
    assert lists_of(found.target.relevant) == relevant
    assert lists_of(found.target.masked) == masked
    assert found.n_candidates.tolist() == candidates
    assert found.target.histories is None
    trained = {int(i) for i in inputs.train.items}
    assert not trained & is_cold  # no row of a cold item trains


@pytest.mark.parametrize("length", [None, 3])
def test_histories_end_before_the_item_to_be_found(data, length):
    dataset = load_dataset("small", data)
    cases = dataset.cold(COMPLETE)["cold_cases"]
    inputs = load_inputs(plan("popularity", "leave-one-out"), data)
    shuffled = np.random.default_rng(0).permutation(cases)
    found = cold.truncated_histories(inputs, shuffled, "x", {}, length)
    counts = np.bincount(inputs.train.items.numpy(), minlength=N_ITEMS)
    expected = []
    for user, rows in rows_of(data, "leave-one-out").items():
        for place in range(1, len(rows)):
            if counts[rows[place][0]] < 10:
                before = [item for item, _ in rows[:place]]
                expected.append((user, rows[place][0], before))
    assert len(expected) > N_USERS  # several of a user
    assert found.target.users.tolist() == [user for user, _, _ in expected]
    assert lists_of(found.target.relevant) == [[item] for _, item, _ in expected]
    assert lists_of(found.target.masked) == [sorted(before) for _, _, before in expected]
    assert found.n_candidates.tolist() == [dataset.n_items - len(b) for _, _, b in expected]
    if length is None:
        assert found.target.histories is None
    else:
        assert lists_of(found.target.histories) == [before[-3:] for _, _, before in expected]


@pytest.fixture(scope="module")
def trained_run(data, tmp_path_factory) -> Callable[..., Run]:
    runs = tmp_path_factory.mktemp("runs")

    def train(model: str, split: str, **settings) -> Run:
        return train_run(plan(model, split, **settings), data_dir=data, runs_dir=runs, compute=CPU)

    return train


def ranked_by_hand(scores: np.ndarray, allowed: list[int], depth: int) -> list[int]:
    best = sorted(allowed, key=lambda item: -scores[item])[:depth]
    return best + [-1] * (depth - len(best))


@pytest.mark.parametrize("among_cold", [False, True])
def test_the_lists_are_those_of_the_scores(data, trained_run, among_cold):
    run = trained_run("bpr-mf", WARM)
    loaded = load_trained(run, data, CPU)
    items = loaded.inputs.dataset.cold(WARM)["cold_items"]
    judged = cold.unseen_items(loaded.inputs, items, among_cold=among_cold)
    lists = cold.judge(loaded, judged, CPU)
    scores = loaded.model.scores(torch.arange(N_USERS)).detach().numpy()
    pool = set(items.tolist()) if among_cold else set(range(N_ITEMS))
    for row, user in enumerate(judged.target.users):
        allowed = sorted(pool - set(lists_of(judged.target.masked)[row]))
        assert lists.items[row].tolist() == ranked_by_hand(scores[user], allowed, 10)
        wanted = lists_of(judged.target.relevant)[row]
        assert lists.hits[row].tolist() == [item in wanted for item in lists.items[row].tolist()]


def test_a_sequential_model_reads_what_stands_before_the_case(data, trained_run):
    run = trained_run("sasrec", "leave-one-out", embedding_size=8, max_length=4)
    loaded = load_trained(run, data, CPU)
    cases = loaded.inputs.dataset.cold(COMPLETE)["cold_cases"]
    judged = cold.truncated_histories(loaded.inputs, cases, "complete", {}, 4)
    lists = cold.judge(loaded, judged, CPU)
    rows = rows_of(data, "leave-one-out")
    with torch.no_grad():
        for row, (user, place) in enumerate(cases.tolist()):
            before = [item for item, _ in rows[user][:place]]
            sequence = ([N_ITEMS] * 4 + before)[-4:]
            scores = loaded.model.score(loaded.model.catalogue(), torch.tensor([sequence]))[0]
            allowed = [item for item in range(N_ITEMS) if item not in before]
            assert lists.items[row].tolist() == ranked_by_hand(scores.numpy(), allowed, 10)


class Untrained(Recommender):
    """IDs alone: vectors that were drawn and never trained."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.u = torch.randn(N_USERS, 8, generator=generator)
        self.v = torch.randn(N_ITEMS, 8, generator=generator)

    def vectors(self):
        return self.u, self.v


def test_vectors_that_were_never_trained_score_as_chance(data, trained_run):
    """The share of found items is K / C over many draws, which the formula says beforehand."""
    from dataclasses import replace

    from mmbench.metrics.base import Metric
    from mmbench.stats.chance import chance

    loaded = load_trained(trained_run("popularity", WARM), data, CPU)
    items = loaded.inputs.dataset.cold(WARM)["cold_items"]
    for among_cold, k in ((True, 2), (False, 5)):
        judged = cold.unseen_items(loaded.inputs, items, among_cold=among_cold)
        means = []
        for seed in range(200):
            lists = cold.rank(replace(loaded, model=Untrained(seed)), judged, CPU)
            means.append(Metric("recall", k).values(lists).mean())
        level = chance("recall", k, judged.n_candidates, judged.target.relevant.counts).mean()
        expected = np.mean([k / c if k < c else 1.0 for c in judged.n_candidates])
        assert level == pytest.approx(expected)
        error = np.std(means, ddof=1) / 200**0.5
        assert abs(np.mean(means) - level) < 4 * error
        assert error < 0.02


def test_lists_are_kept_with_the_run_and_known_again(data, trained_run, tmp_path):
    source = trained_run("popularity", WARM)
    shutil.copytree(source.path, tmp_path / "run")
    loaded = load_trained(Run(tmp_path / "run", source.manifest), data, CPU)
    items = loaded.inputs.dataset.cold(WARM)["cold_items"]
    shutil.rmtree(loaded.run.path / "lists" / "cold-items", ignore_errors=True)
    judged = cold.unseen_items(loaded.inputs, items, among_cold=False)
    assert not cold.is_judged(loaded.run, judged)
    lists = cold.judge(loaded, judged, CPU)
    assert cold.is_judged(loaded.run, judged)
    stored = loaded.run.lists("cold-items")
    np.testing.assert_array_equal(stored.items, lists.items)
    np.testing.assert_array_equal(stored.relevant_items, lists.relevant_items)
    card = loaded.run.path / "lists" / "cold-items" / "cold.json"
    facts = json.loads(card.read_text())
    assert facts["candidates"] == "all"
    card.write_text(json.dumps({**facts, "split": "another"}))
    assert not cold.is_judged(loaded.run, judged)
    card.write_text("{")
    assert not cold.is_judged(loaded.run, judged)
    assert not list((loaded.run.path / "lists").glob(".*"))


def test_a_folder_that_cannot_be_written_is_one_message(data, trained_run, tmp_path):
    source = trained_run("popularity", WARM)
    shutil.copytree(source.path, tmp_path / "run")
    loaded = load_trained(Run(tmp_path / "run", source.manifest), data, CPU)
    items = loaded.inputs.dataset.cold(WARM)["cold_items"]
    judged = cold.unseen_items(loaded.inputs, items, among_cold=True)
    shutil.rmtree(tmp_path / "run" / "lists")
    (tmp_path / "run" / "lists").write_text("no folder")
    with pytest.raises(DataError, match=r"cannot be written .*; free space or choose another"):
        cold.judge(loaded, judged, CPU)


def test_no_case_and_other_labels_are_refused(data):
    inputs = load_inputs(plan("popularity", "random-per-user"), data)
    with pytest.raises(DataError, match="no case of cold-x; a larger --below"):
        cold.truncated_histories(inputs, np.zeros((0, 2), dtype=np.int32), "cold-x", {})
    with pytest.raises(ConfigError, match="holds other rows out than 'cold-sequences'"):
        cold.check_same_labels(inputs, "cold-sequences")
    with pytest.raises(DataError, match="no user with training rows and a cold item"):
        cold.unseen_items(inputs, np.array([], dtype=np.int32), among_cold=True)
