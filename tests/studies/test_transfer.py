"""The study of transfer: what it plans, what it finds, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mmbench.data.prepared import load_dataset
from mmbench.engine.device import choose
from mmbench.errors import ConfigError, DataError, UnknownNameError
from mmbench.recipe import Recipe
from mmbench.report.comparison import Comparison
from mmbench.report.convergence import Convergence
from mmbench.report.html.content import figures_of, tables_of
from mmbench.studies.training import Events, Workplace
from mmbench.studies.transfer import Asked, Done, Plan, design, transfer
from mmbench.studies.transferred import findings

ASKED = Asked("shop-a", "shop-b", target_users=(6, 36))


@pytest.fixture(scope="module")
def place(two_shops: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(two_shops, tmp_path_factory.mktemp("runs"), choose("cpu"), 0.0)


@pytest.fixture(scope="module")
def plan_of(shops: ModuleType, place: Workplace) -> Callable[..., Plan]:
    def make(
        *models: str, asked: Asked = ASKED, at: Workplace = place, baselines: Any = None,
        **changes: Any,
    ) -> Plan:  # fmt: skip
        recipes = [Recipe(shops.recipe(model, **changes), model) for model in models or ("mmsr",)]
        if baselines is None:
            baselines = {
                "sequential": Recipe(shops.recipe("sasrec"), "sasrec"),
                "general": Recipe(shops.recipe("bpr-mf"), "bpr-mf"),
            }
        return design(recipes, baselines, asked, at)

    return make


@pytest.fixture(scope="module")
def done(plan_of: Callable[..., Plan], place: Workplace) -> list[Done]:
    """The default study with two seeds."""
    return transfer(plan_of(seeds=[0, 1]), place)


def test_a_plan_holds_each_model_as_it_is_from_scratch_transferred_and_untrained(
    plan_of: Callable[..., Plan],
) -> None:
    plan = plan_of(asked=replace(ASKED, source_users=(20, 60)))
    assert [v.label for v in plan.sources] == ["mmsr, 20 users", "mmsr, 60 users"]
    assert [(v.role, v.target_users, v.source_users, v.label) for v in plan.systems] == [
        ("scratch", 6, None, "mmsr, 6 users"),
        ("zero-shot", 6, 20, "mmsr zero-shot from shop-a (20 users)"),
        ("transfer", 6, 20, "mmsr from shop-a (20 users), 6 users"),
        ("zero-shot", 6, 60, "mmsr zero-shot from shop-a (60 users)"),
        ("transfer", 6, 60, "mmsr from shop-a (60 users), 6 users"),
        ("scratch", 36, None, "mmsr, 36 users"),
        ("transfer", 36, 20, "mmsr from shop-a (20 users), 36 users"),
        ("transfer", 36, 60, "mmsr from shop-a (60 users), 36 users"),
        ("baseline", 6, None, "sasrec, 6 users"),
        ("baseline", 36, None, "sasrec, 36 users"),
    ]
    subsets = {v.recipe.shape.subset.test for v in plan.systems if v.recipe.shape.subset}
    assert subsets == {"all"}
    assert {v.recipe.shape.dataset for v in plan.sources} == {"shop-a"}
    # Without a ladder the model from scratch is the ordinary one, whose run may be there already.
    plain = plan_of(asked=Asked("shop-a", "shop-b"), baselines={})
    assert [v.label for v in plain.systems] == [
        "mmsr", "mmsr zero-shot from shop-a", "mmsr from shop-a",
    ]  # fmt: skip
    assert plain.systems[0].recipe.expand()[0].identity() == (
        plan_of(asked=Asked("shop-a", "shop-b")).systems[0].recipe.expand()[0].identity()
    )
    longer = Asked("shop-a", "shop-b", source_settings=("training.epochs=9",))
    changed = plan_of(asked=longer, baselines={})
    assert [v.recipe.shape.training.epochs for v in changed.sources] == [9]
    assert {v.recipe.shape.training.epochs for v in changed.systems} == {6}
    (note,) = plain.notes
    assert note.startswith("mmsr: ")
    assert note.endswith("weights move to shop-b")


def test_a_model_with_user_tables_is_fine_tuned_but_never_zero_shot(
    plan_of: Callable[..., Plan],
) -> None:
    plan = plan_of("vbpr")
    assert [v.role for v in plan.systems] == [
        "scratch", "transfer", "scratch", "transfer", "baseline", "baseline",
    ]  # fmt: skip
    assert "items, users begin anew, so there is no zero-shot" in plan.notes[0]
    # Who never trained is unknown to a general model: the smallest rung is tested on every rung.
    assert {v.recipe.shape.subset.test for v in plan.systems} == {6}


def test_planted_transfer_is_found_where_data_are_few(done: list[Done]) -> None:
    found = findings(done, ASKED)
    assert [f.title for f in found] == [
        "Convergence on the target",
        "The same systems against IDs alone",
        "What transfer gains over training from scratch",
    ]
    convergence, over_ids, over_scratch = (f.shown for f in found)
    assert isinstance(over_scratch, Comparison)
    assert isinstance(over_ids, Comparison)
    assert isinstance(convergence, Convergence)
    few = over_scratch.cell("mmsr from shop-a, 6 users", 1).contrast
    zero = over_scratch.cell("mmsr zero-shot from shop-a", 1).contrast
    assert few is not None
    assert zero is not None
    assert few.reference == zero.reference == "mmsr, 6 users"
    assert few.n_users == 36  # whoever trains, all are tested
    assert few.difference > 0.1
    assert few.adjusted < 0.05
    assert zero.adjusted < 0.05
    # With all users nothing is left to gain that these numbers could show.
    every = over_scratch.cell("mmsr from shop-a, 36 users", 1).contrast
    assert every is not None
    assert abs(every.difference) < few.difference / 2
    (family,) = over_scratch.families
    assert (family.name, family.over_users) == ("table", 6)  # 3 systems in 2 columns
    against = over_ids.cell("mmsr from shop-a, 36 users", 1).contrast
    assert against is not None
    assert against.reference == "sasrec, 36 users"
    # The weights of the source are beyond what few users teach before the first step.
    (row,) = [
        r for r, t in zip(convergence.rows, convergence.traces, strict=True)
        if t.label == "mmsr from shop-a, 6 users"
    ]  # fmt: skip
    assert [each.epochs for each in row if each.share <= 0.8] == [0, 0]
    files = found[0].section, found[2].section
    assert [len(figures_of(section.parts)) for section in files] == [4, 2]
    assert all(tables_of(section.parts) for section in files)


def test_users_are_tested_alike_on_every_rung(done: list[Done]) -> None:
    lists = [run.lists("test") for each in done for run in each.runs]
    for other in lists[1:]:
        np.testing.assert_array_equal(other.users, lists[0].users)
        np.testing.assert_array_equal(other.relevant_items, lists[0].relevant_items)
    taught = {
        each.variant.target_users: set(np.flatnonzero(each.runs[0].lists("valid").users >= 0))
        for each in done
    }
    assert {n: len(users) for n, users in taught.items()} == {6: 6, 36: 36}


def test_each_seed_starts_from_its_own_and_all_are_one_system(done: list[Done]) -> None:
    for each in done:
        assert len({run.system for run in each.runs}) == 1
        assert [run.seed for run in each.runs] == [0, 1]
        if each.variant.role in ("transfer", "zero-shot"):
            starts = [run.manifest["start"] for run in each.runs]
            assert [start["seed"] for start in starts] == [0, 1]
            assert starts[0]["weights_sha256"] != starts[1]["weights_sha256"]


def test_killed_and_started_again_it_repeats_nothing(
    plan_of: Callable[..., Plan], place: Workplace, tmp_path: Path
) -> None:
    own = replace(place, runs_dir=tmp_path)
    asked = Asked("shop-a", "shop-b")
    trained: list[tuple[str, int]] = []

    def kill(plan: Any, record: dict[str, Any], progress: Any) -> None:
        trained.append((plan.label, record["epoch"]))
        if plan.label == "mmsr from shop-a" and record["epoch"] == 3:
            raise KeyboardInterrupt

    plan = plan_of(asked=asked, at=own)
    with pytest.raises(KeyboardInterrupt):
        transfer(plan, own, Events(epoch=kill))
    before, finished = list(trained), []
    trained.clear()

    def told(plan: Any, run: Any, was_finished: bool) -> None:
        finished.append((plan.label, was_finished))

    events = Events(epoch=lambda p, r, _: trained.append((p.label, r["epoch"])), done=told)
    again = transfer(plan_of(asked=asked, at=own), own, events)
    # An epoch that was stored is not trained again; the one that was killed while it was told is.
    assert not set(before) & set(trained) - {("mmsr from shop-a", 3)}
    assert finished == [
        ("mmsr", True), ("mmsr", True), ("mmsr zero-shot from shop-a", True),
        ("mmsr from shop-a", False), ("sasrec", False),
    ]  # fmt: skip
    whole = transfer(plan_of(asked=asked), place)
    assert [each.runs[0].manifest["metrics"] for each in again] == [
        each.runs[0].manifest["metrics"] for each in whole
    ]


def test_modalities_that_the_source_lacks_are_left_out_and_said(
    shops: ModuleType, tmp_path: Path, plan_of: Callable[..., Plan]
) -> None:
    data = shops.write_shops(tmp_path)
    rng = np.random.default_rng(0)
    shops.add(
        data,
        "shop-b",
        "textual",
        "words",
        rng.random((28, 4)),
        {"encoder": {"weights_sha256": "w"}},
    )
    place = Workplace(data, tmp_path / "runs", choose("cpu"))
    asked = Asked("shop-a", "shop-b")
    both = {"visual": "eye", "textual": "words"}
    plan = plan_of(features=both, at=place, asked=asked)
    assert plan.notes[0] == "mmsr: pre-trained without textual, as shop-a has no set words"
    # What joins two modalities was not there, so the weights cannot rank untrained.
    assert "zero-shot" in plan.notes[1]
    assert not [v for v in plan.systems if v.role == "zero-shot"]
    with pytest.raises(ConfigError, match="share no modality that mmsr reads: it names textual wo"):
        plan_of(features={"textual": "words"}, at=place, asked=asked)
    for name in ("shop-a", "shop-b"):
        n = load_dataset(name, data).n_items
        shops.add(data, name, "textual", "tfidf-svd", rng.random((n, 4)), {"encoder": {"dim": 4}})
        shops.add(data, name, "visual", "imported", rng.random((n, 4)), {"file": "x.npy"})
    with pytest.raises(ConfigError, match="tfidf-svd is fitted to the items of shop-a"):
        plan_of(features={"textual": "tfidf-svd"}, at=place, asked=asked)
    with pytest.raises(ConfigError, match="--same-space visual"):
        plan_of(features={"visual": "imported"}, at=place, asked=asked)
    said = replace(asked, same_space=("visual",))
    assert plan_of(features={"visual": "imported"}, at=place, asked=said).systems
    assert not list((tmp_path / "runs").glob("*"))


def test_what_cannot_be_transferred_is_refused(
    plan_of: Callable[..., Plan], shops: ModuleType, place: Workplace
) -> None:
    def refused(words: str, *models: str, kind: type[Exception] = ConfigError, **how: Any) -> None:
        with pytest.raises(kind, match=words):
            plan_of(*models, **how)

    refused("source and target are both shop-b", asked=Asked("shop-b", "shop-b"))
    refused("has 36 users", kind=DataError, asked=replace(ASKED, target_users=(6, 37)))
    refused("has 60 users", kind=DataError, asked=replace(ASKED, source_users=(61,)))
    refused("no weight of bpr-mf can move", "bpr-mf")
    refused("remove training.start_from and subset", subset={"train": 3})
    refused("a grid has one best point", grid={"training.learning_rate": [0.1, 0.2]})
    refused("shop-x", kind=UnknownNameError, asked=Asked("shop-x", "shop-b"))
    knn = Recipe(shops.recipe("bpr-mf") | {"model": {"name": "itemknn"}}, "knn")
    with pytest.raises(ConfigError, match="itemknn is not trained by gradient"):
        design([knn], {}, ASKED, place)
