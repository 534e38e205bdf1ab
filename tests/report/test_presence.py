"""Groups by what items and histories have, against counts over rows."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from mmbench.data.features import write_features
from mmbench.data.prepared import TEST, TRAIN, load_dataset
from mmbench.engine.device import choose
from mmbench.engine.train import train_run
from mmbench.errors import ConfigError, DataError, UnknownNameError
from mmbench.metrics.base import parse_metric
from mmbench.recipe import Recipe
from mmbench.report.breakdown import columns_of, restrict_items
from mmbench.report.comparison import compare
from mmbench.report.presence import Presence, presence_of

WITHOUT_TEXT, WITHOUT_PICTURE = (0, 1, 2, 3, 4), (3, 4, 5, 6)


def recipe(model, seed=0, features=None, **training):
    raw = {
        "dataset": "tiny",
        "model": {"name": model, "embedding_size": 4},
        "features": features or {},
        "training": {"epochs": 1, "batch_size": 256, **training},
        "evaluation": {"metrics": ["recall@10"]},
        "seeds": [seed],
    }
    return Recipe(raw, "test").expand()[0]


@pytest.fixture(scope="module")
def world(tiny_data, tmp_path_factory):
    """The tiny dataset with features that some items lack, and three runs on it."""
    folder = tmp_path_factory.mktemp("presence")
    shutil.copytree(tiny_data, folder / "data")
    dataset = load_dataset("tiny", folder / "data")
    random = np.random.default_rng(0)
    for modality, lacking in (("textual", WITHOUT_TEXT), ("visual", WITHOUT_PICTURE)):
        mask = np.ones(dataset.n_items, dtype=bool)
        mask[list(lacking)] = False
        matrix = random.standard_normal((dataset.n_items, 3)).astype(np.float32)
        write_features(dataset.root, dataset.fingerprint, modality, "made", matrix, mask, {})
    both = {"textual": "made", "visual": "made"}
    plans = [recipe("bpr-mf"), recipe("vbpr", features=both), recipe("vbpr", 1, features=both)]
    runs = [
        train_run(plan, data_dir=folder / "data", runs_dir=folder / "runs", compute=choose("cpu"))
        for plan in plans
    ]
    return dataset, runs, folder


def test_items_fall_into_one_group_each(world):
    dataset, runs, folder = world
    found = presence_of(runs, folder / "data")
    groups = {group.name: np.flatnonzero(group.items).tolist() for group in found.item_groups()}
    assert list(found.items) == ["visual", "textual"]
    assert groups["items without textual"] == [0, 1, 2]
    assert groups["items without visual"] == [5, 6]
    assert groups["items without visual, textual"] == [3, 4]
    assert groups["items with all"] == list(range(7, dataset.n_items))


def test_users_are_grouped_by_their_training_items(world):
    dataset, runs, folder = world
    found = presence_of(runs, folder / "data")
    lacking = set(WITHOUT_TEXT) | set(WITHOUT_PICTURE)
    label = dataset.split().label
    expected = {"history complete": [], "mostly complete": [], "mostly incomplete": []}
    for user in range(dataset.n_users):
        items = [
            int(i)
            for u, i, part in zip(dataset.user, dataset.item, label, strict=True)
            if u == user and part == TRAIN
        ]
        share = sum(item not in lacking for item in items) / len(items)
        name = "history complete" if share == 1 else "mostly complete"
        expected["mostly incomplete" if share < 0.5 else name].append(user)
    groups = found.user_groups(np.arange(dataset.n_users))
    assert {g.name: np.flatnonzero(g.users).tolist() for g in groups} == expected
    assert len(expected["history complete"]) > 5
    assert len(expected["mostly complete"]) > 5


def test_all_groups_and_metrics_are_one_family(world):
    _, runs, folder = world
    found = presence_of(runs, folder / "data")
    for by, n_groups in (("modality-presence", 4), ("history-presence", 3)):
        compared = compare(runs, by=by, presence=found, baseline="bpr-mf", family="table")
        assert len(compared.columns) == n_groups
        (family,) = compared.families
        # A group of one user is shown, and cannot be tested.
        testable = sum(compared.cell("vbpr", i).n_users > 1 for i in range(n_groups))
        assert family.over_users == testable >= 2
    lists = runs[0].lists("test")
    columns = columns_of([parse_metric("recall@10")], "modality-presence", lists, presence=found)
    parts = [restrict_items(lists, column.group.items) for column in columns]
    assert (np.sum([part.n_relevant for part in parts], axis=0) == lists.n_relevant).all()


def test_groups_that_hold_nothing_are_left_out(world):
    dataset, runs, _ = world
    lists = runs[0].lists("test")
    held_out = np.zeros(dataset.n_items, dtype=bool)
    held_out[dataset.item[dataset.split().label == TEST]] = True
    everywhere = np.ones(dataset.n_items, dtype=bool)
    nobody = Presence({"visual": ~held_out}, np.zeros(dataset.n_users))
    names = [c.group.name for c in columns_of([parse_metric("recall@5")], "modality-presence",
                                              lists, presence=nobody)]  # fmt: skip
    assert names == ["items without visual"]
    somebody = Presence({"visual": everywhere}, np.ones(dataset.n_users))
    columns = columns_of([parse_metric("recall@5")], "history-presence", lists, presence=somebody)
    assert [column.group.name for column in columns] == ["history complete"]


def test_runs_on_ids_alone_look_at_all_stored_sets(world):
    _, runs, folder = world
    assert list(presence_of(runs[:1], folder / "data").items) == ["visual", "textual", "acoustic"]


def test_without_the_dataset_it_is_refused(world):
    _, runs, folder = world
    with pytest.raises(ConfigError, match="needs the prepared dataset"):
        compare(runs, by="modality-presence")
    with pytest.raises(UnknownNameError, match="unknown dataset 'tiny'"):
        presence_of(runs, folder / "nowhere")


def test_another_dataset_of_the_name_is_refused(world):
    _, runs, folder = world
    others = {**runs[0].manifest["dataset"], "fingerprint": "0" * 64}
    other = replace(runs[0], manifest={**runs[0].manifest, "dataset": others})
    with pytest.raises(DataError, match="not the one that was trained on"):
        presence_of([other], folder / "data")


def test_where_every_item_has_all_there_is_nothing_to_break_down(world, tiny_data, tmp_path):
    plan = recipe("vbpr", features={"visual": "imported"})
    done = train_run(plan, data_dir=tiny_data, runs_dir=tmp_path, compute=choose("cpu"))
    with pytest.raises(ConfigError, match="every item of tiny has visual"):
        presence_of([done], tiny_data)
