from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmbench.engine.device import choose
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.base import parse_metric
from mmbench.recipe import Recipe
from mmbench.report.gains import GainTable
from mmbench.runs import Run, find_runs
from mmbench.studies.pipelines import pipelines, stage_findings
from mmbench.studies.training import Workplace, train_recipes
from mmbench.studies.two_stage import TwoStages, against, ceilings, two_stages

N = 12


def recipe(model: str, seeds: tuple[int, ...] = (0, 1)) -> Recipe:
    settings = {"embedding_size": 4} if model == "bpr-mf" else {}
    raw = {
        "dataset": "tiny",
        "model": {"name": model, **settings},
        "training": {"epochs": 4, "batch_size": 64, "learning_rate": 0.05},
        "evaluation": {"metrics": ["recall@5", "ndcg@10", "recall@20"], "depth": 30},
        "seeds": list(seeds),
    }
    return Recipe(raw, "test.yaml")


@pytest.fixture(scope="module")
def place(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tiny_data, tmp_path_factory.mktemp("two") / "runs", choose("cpu"))


@pytest.fixture(scope="module")
def runs(place: Workplace) -> list[Run]:
    trained = train_recipes([recipe("bpr-mf"), recipe("itemknn")], place)
    return [run for each in trained for run in each.chosen.runs]


@pytest.fixture
def pair_up(runs: list[Run], place: Workplace, tmp_path: Path) -> Callable[..., list[TwoStages]]:
    def make(some: list[Run] = runs, sizes: tuple[int, ...] = (N,), **given: Any) -> Any:
        place_of = {
            "data_dir": place.data_dir,
            "folder": tmp_path / "two",
            "compute": choose("cpu"),
        }
        return two_stages(some, list(sizes), **{**place_of, **given})

    return make


def test_candidates_of_one_stand_in_the_order_of_the_others_scores(
    runs: list[Run], pair_up: Callable[..., list[TwoStages]]
) -> None:
    pairs = pair_up()
    assert [(p.candidates.label, p.reranker.label) for p in pairs] == [
        ("bpr-mf", "itemknn"),
        ("itemknn", "bpr-mf"),
    ]
    by_bpr = pairs[1]
    assert [run.seed for run in by_bpr.runs] == [0, 1]
    for run in by_bpr.runs:
        found = run.lists("test")
        first = next(r for r in runs if r.label == "itemknn" and r.seed == run.seed).lists("test")
        second = next(r for r in runs if r.label == "bpr-mf" and r.seed == run.seed)
        weights = load_file(second.path / "weights.safetensors")
        users, items = (weights[name].astype(np.float64) for name in ("users", "items"))
        for row, user in enumerate(found.users):
            candidates = [i for i in first.items[row, :N].tolist() if i >= 0]
            expected = sorted(candidates, key=lambda item: -float(users[user] @ items[item]))
            assert found.items[row].tolist() == expected + [-1] * (N - len(expected))
            relevant = found.relevant_items[
                found.relevant_offsets[row] : found.relevant_offsets[row + 1]
            ]
            assert found.hits[row].tolist() == [i in relevant for i in found.items[row].tolist()]


def test_the_same_candidates_hold_the_same_held_out_items(
    runs: list[Run], pair_up: Callable[..., list[TwoStages]]
) -> None:
    for pair in pair_up():
        metric = parse_metric(f"recall@{N}")
        for run, alone in zip(pair.runs, pair.candidates.runs, strict=True):
            assert np.array_equal(run.values(metric), alone.values(metric))
    shares = {label: share for label, _, share in ceilings(pair_up())}
    alone = [np.mean(r.values(parse_metric(f"recall@{N}"))) for r in runs if r.label == "bpr-mf"]
    assert shares["bpr-mf"] == pytest.approx(np.mean(alone))


def test_stored_lists_are_runs_and_are_not_made_again(
    pair_up: Callable[..., list[TwoStages]], tmp_path: Path
) -> None:
    told: list[bool] = []
    pairs = pair_up(done=lambda run, was_there: told.append(was_there))
    again = pair_up(done=lambda run, was_there: told.append(was_there))
    assert told == [False] * 4 + [True] * 4
    assert [r.path for p in pairs for r in p.runs] == [r.path for p in again for r in p.runs]
    opened = find_runs([tmp_path / "two"])
    assert {run.label for run in opened} == {"bpr-mf > itemknn @12", "itemknn > bpr-mf @12"}
    assert set(opened[0].manifest["metrics"]["test"]) == {"recall@5", "ndcg@10"}


def test_fewer_candidates_than_any_recorded_cut_off_are_measured_at_their_number(
    pair_up: Callable[..., list[TwoStages]],
) -> None:
    pairs = pair_up(sizes=(3,))
    assert set(pairs[0].runs[0].manifest["metrics"]["test"]) == {"recall@3", "ndcg@3"}
    columns = against(pairs, "candidates").columns
    assert {str(column.metric) for column in columns} == {"recall@3", "ndcg@3"}


def test_each_pair_is_tested_against_either_stage_in_one_family(
    pair_up: Callable[..., list[TwoStages]],
) -> None:
    pairs = pair_up()
    for which in ("candidates", "reranker"):
        c = against(pairs, which)
        assert [(f.name, f.over_users) for f in c.families] == [("table", 4)]
        for pair in pairs:
            contrast = c.cell(pair.runs[0].label).contrast
            assert contrast is not None
            reference = pair.candidates if which == "candidates" else pair.reranker
            assert contrast.reference == reference.label
    assert len(pipelines(pairs)) == 2
    with pytest.raises(ConfigError, match="recall@20 looks deeper than the 12 candidates"):
        against(pairs, "candidates", ["recall@20"])


def test_gains_over_k_say_how_deep_the_lists_are(runs: list[Run]) -> None:
    recall, ndcg = stage_findings(runs, baseline="itemknn", cutoffs=[7])
    assert isinstance(recall.shown, GainTable)
    assert recall.shown.notes[0].startswith("Lists are 30 items deep.")
    assert [row.x for row in recall.shown.rows] == [1, 2, 5, 7, 10, 20, 30]
    assert {row.series for row in recall.shown.rows} == {"bpr-mf"}
    assert ndcg.section.name == "stages-ndcg"


def test_what_cannot_be_two_stages_is_refused(
    runs: list[Run], place: Workplace, pair_up: Callable[..., list[TwoStages]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="two systems or more"):
        pair_up(runs[:2])
    with pytest.raises(ConfigError, match=r"stores 30 items per user.*at most 30.*depth=31"):
        pair_up(sizes=(31,))
    (other,) = train_recipes([recipe("itemknn", (7,))], place)
    with pytest.raises(ConfigError, match="no seed in common"):
        pair_up([*runs[:2], *other.chosen.runs])
    with pytest.raises(ConfigError, match="over another system"):
        stage_findings(runs[:2])
    with pytest.raises(ConfigError, match="30 items deep, so there is no cut-off 31"):
        stage_findings(runs, cutoffs=[31])
    with pytest.raises(ConfigError, match=r"coverage has no gain for each user; .*recall"):
        stage_findings(runs, metrics=["coverage"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        pair_up(folder=tmp_path / "file")
