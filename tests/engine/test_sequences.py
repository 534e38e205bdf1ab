"""Sequences on their way through the engine: sampled, masked, ranked, resumed, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.engine.building import build_model, make_ranker
from mmbench.engine.device import choose
from mmbench.engine.inputs import Ragged, _masked, load_inputs
from mmbench.engine.sampling import SequenceSampler, TripleSampler, make_sampler
from mmbench.engine.training import TrainingLoop
from mmbench.errors import DataError
from mmbench.models.base import Interactions
from mmbench.recipe import Recipe, RunRecipe

CPU = choose("cpu")
HISTORIES = [[0, 3, 5, 1, 7, 2, 8], [4, 2], [], [6], [1, 2, 1, 3, 1], [8, 0, 4, 6], [9, 9]]


def interactions(histories: list[list[int]], n_items: int) -> Interactions:
    pairs = sorted((user, item) for user, items in enumerate(histories) for item in items)
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    in_order = torch.tensor([item for items in histories for item in items])
    return Interactions(len(histories), n_items, users, items, in_order)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("candidates", ["all", "seen"])
@pytest.mark.parametrize("size", [2, 100])
def test_an_epoch_holds_every_user_once_with_the_last_items(candidates: str, size: int) -> None:
    sampler = SequenceSampler(interactions(HISTORIES, 11), 4, candidates)
    assert len(sampler) == 5  # those with two items and more
    drawn = sampler.epoch(generator(0))
    parts = [drawn.batch(slice(start, start + size)) for start in range(0, len(drawn), size)]
    rows = {}
    for part in parts:
        assert torch.equal(part.inputs, part.sequences[:, :-1])
        assert torch.equal(part.targets, part.sequences[:, 1:])
        for user, items in zip(part.users.tolist(), part.sequences.tolist(), strict=True):
            assert user not in rows
            rows[user] = items
    assert rows == {
        user: ([11] * 5 + items)[-5:] for user, items in enumerate(HISTORIES) if len(items) > 1
    }


@pytest.mark.parametrize("candidates", ["all", "seen"])
def test_no_negative_is_an_item_of_the_kept_sequence(candidates: str) -> None:
    sampler = SequenceSampler(interactions(HISTORIES, 11), 4, candidates)
    allowed = set(range(11)) if candidates == "all" else set(range(10))  # nobody has item 10
    found = {user: set() for user in range(len(HISTORIES))}
    for seed in range(60):
        batch = sampler.epoch(generator(seed)).batch(slice(0, 10))
        padding = batch.sequences == 11
        assert torch.equal(batch.negatives == 11, padding)
        for user, items in zip(batch.users.tolist(), batch.negatives.tolist(), strict=True):
            found[user] |= set(items) - {11}
    for user, items in enumerate(HISTORIES):
        # The oldest items of user 0 are cut off, so they may be drawn again.
        assert found[user] == (allowed - set(items[-5:]) if len(items) > 1 else set())


def test_negatives_are_uniform_whatever_is_repeated() -> None:
    sampler = SequenceSampler(interactions([[1, 4, 1, 4, 1, 1]] * 2, 8), 5)
    counts = np.zeros(8)
    for seed in range(1000):
        batch = sampler.epoch(generator(seed)).batch(slice(0, 2))
        counts += np.bincount(batch.negatives.flatten().numpy(), minlength=8)
    assert counts[[1, 4]].sum() == 0
    expected = 1000 * 12 / 6
    chi_square = ((counts[[0, 2, 3, 5, 6, 7]] - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 99.9 % quantile of chi-square with 5 degrees of freedom


def test_a_user_with_every_item_has_no_negative_and_is_left_out() -> None:
    sampler = SequenceSampler(interactions([[0, 1, 2], [2, 1]], 3), 4)
    assert sampler.users.tolist() == [1]
    # ... but kept where the sequence that is kept leaves an item out.
    assert SequenceSampler(interactions([[0, 1, 2], [2, 1]], 3), 1).users.tolist() == [0, 1]


@pytest.mark.parametrize("histories", [[[0], [1]], [[0, 1], [1, 0]]])
def test_nothing_to_learn_is_an_error(histories: list[list[int]]) -> None:
    with pytest.raises(DataError, match="no user has two training items"):
        SequenceSampler(interactions(histories, 2), 3)


def test_equal_generators_draw_equal_epochs_and_others_other_ones() -> None:
    sampler = SequenceSampler(interactions(HISTORIES * 5, 11), 4)
    one, two, other = (sampler.epoch(generator(seed)).batch(slice(0, 20)) for seed in (3, 3, 4))
    assert torch.equal(one.users, two.users)
    assert torch.equal(one.negatives, two.negatives)
    assert not torch.equal(one.users, other.users)


# --------------------------------------------------------------------------- masking

RULES = ["all", "except-target", "public-code", "none"]


def hidden(rule: str, history: list[int], target: list[int], length: int) -> list[int]:
    """What is no candidate, one user at a time."""
    if rule == "none":
        return []
    if rule == "public-code":
        return sorted(history[-(length + 1) :])
    if rule == "except-target":
        return sorted(item for item in history if item not in target)
    return sorted(history)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_hides_what_it_says_even_of_what_is_repeated(rule: str) -> None:
    histories = [[5, 3, 5, 1, 2, 2, 4], [7], [], [0, 1, 0, 1]]
    targets = [[5], [3], [2], [1]]
    plan = recipe(protocol={"name": "mmsr", "history_mask": rule})  # L is 3
    found = _masked(plan, ragged(histories), ragged(targets))
    for user, (history, target) in enumerate(zip(histories, targets, strict=True)):
        expected = hidden(rule, history, target, 3)
        assert found.items[found.offsets[user] : found.offsets[user + 1]].tolist() == expected


def test_a_general_model_has_no_length_so_the_public_rule_hides_all() -> None:
    protocol = {"name": "mmsr", "history_mask": "public-code"}
    plan = recipe("bpr-mf", protocol=protocol)
    histories = ragged([list(range(30))])
    assert _masked(plan, histories, ragged([[40]])).items.tolist() == list(range(30))


def ragged(lists: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, lists)])
    return Ragged(offsets, np.array([item for items in lists for item in items], dtype=np.int64))


# --------------------------------------------------------------------------- a whole dataset


def recipe(model: str = "sasrec", **changes: Any) -> RunRecipe:
    settings = {"embedding_size": 8} | ({} if model == "bpr-mf" else {"max_length": 3})
    raw: dict[str, Any] = {
        "dataset": "seq",
        "protocol": "mmsr",
        "model": {"name": model, **settings},
        "training": {"epochs": 4, "batch_size": 7, "select_by": "ndcg@10"},
        "evaluation": {"metrics": ["ndcg@10"], "depth": 12},
        **changes,
    }
    return Recipe(raw, "test").expand()[0]


def rows_of(n_users: int = 15) -> dict[str, list[str]]:
    """Users with one to seven items of twelve; two in a row have the same time."""
    rng = np.random.default_rng(4)
    return {
        f"u{u:02d}": [f"i{i:02d}" for i in rng.permutation(12)[: 1 + u % 7]] for u in range(n_users)
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seq")
    (root / "raw").mkdir()
    lines = [
        f"{user},{item},{10**9 + 100 * (place // 2)}"
        for user, items in rows_of().items()
        for place, item in enumerate(items)
    ]
    text = "\n".join(["user_id,item_id,timestamp", *lines])
    (root / "raw" / "interactions.csv").write_text(text + "\n")
    config = PrepareConfig(user_min=0, item_min=0)
    for name, splits in (("seq", ["leave-one-out"]), ("random", ["random-per-user"])):
        prepare(name, source=root / "raw", data_dir=root / "data", splits=splits, config=config)
    return root / "data"


def test_histories_are_in_the_order_of_time_and_at_test_hold_the_validation_item(
    data: Path,
) -> None:
    for mask_validation in (True, False):
        plan = recipe(protocol={"name": "mmsr", "mask_validation_at_test": mask_validation})
        inputs = load_inputs(plan, data)
        name = dict(enumerate(inputs.dataset.item_ids))
        known = rows_of()
        shown = {}
        for part, cut in (("valid", 2), ("test", 1)):
            target = getattr(inputs, part)
            assert target.histories is not None
            for place, user in enumerate(target.users.tolist()):
                items = known[inputs.dataset.user_ids[user]]
                (start, end) = target.histories.offsets[place : place + 2]
                history = [name[i] for i in target.histories.items[start:end].tolist()]
                assert history == items[:-cut]  # equal times stay as the source has them
                (start, end) = target.masked.offsets[place : place + 2]
                gone = {name[i] for i in target.masked.items[start:end].tolist()}
                assert gone == set(items[: -cut if part == "valid" or mask_validation else -2])
                (relevant,) = target.relevant.take(np.array([place])).items.tolist()
                assert name[relevant] == items[-cut]
                shown[part, user] = history
        # Users of one or two items train and are not ranked.
        assert {len(items) > 2 for items in known.values()} == {True, False}
        assert len(shown) == 2 * sum(len(items) > 2 for items in known.values())


@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("rule", ["except-target", "public-code"])
def test_the_ranking_is_the_literal_one(model: str, rule: str, data: Path) -> None:
    plan = recipe(model, protocol={"name": "mmsr", "history_mask": rule})
    inputs = load_inputs(plan, data)
    built = build_model(plan, inputs, CPU).eval()
    lists = make_ranker(plan, inputs, inputs.test, CPU).rank(built, 12)
    target = inputs.test
    for place in range(len(target.users)):
        (start, end) = target.histories.offsets[place : place + 2]
        history = target.histories.items[start:end].tolist()
        (relevant,) = target.relevant.take(np.array([place])).items.tolist()
        row = torch.tensor([([12] * 3 + history)[-3:]])
        with torch.no_grad():
            scores = built.score(built.catalogue(), row)[0]
        gone = hidden(rule, history, [relevant], 3)
        expected = [i for i in scores.argsort(descending=True).tolist() if i not in gone]
        assert lists.items[place].tolist() == expected + [-1] * (12 - len(expected))
        assert np.flatnonzero(lists.hits[place]).tolist() == [expected.index(relevant)]


@pytest.mark.parametrize("model", ["sasrec", "grurec", "bert4rec"])
def test_training_resumes_to_the_same_bits(model: str, data: Path) -> None:
    plan = recipe(model)
    inputs = load_inputs(plan, data)

    def loop() -> TrainingLoop:
        built = build_model(plan, inputs, CPU)
        ranker = make_ranker(plan, inputs, inputs.valid, CPU)
        return TrainingLoop(plan, built, inputs.train, ranker, CPU)

    whole = loop()
    history, state = [], None
    for record in whole.run():
        history.append(record["losses"])
        if record["epoch"] == 2:
            state = {
                key: {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value
                for key, value in whole.state().items()
            }
    assert state is not None
    torch.rand(5)  # someone else draws
    second = loop()
    second.restore(state)
    assert [record["losses"] for record in second.run()] == history[2:]
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[key]), key


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value


def test_each_kind_of_model_has_its_sampler(data: Path) -> None:
    plan = recipe()
    inputs = load_inputs(plan, data)
    built = build_model(plan, inputs, CPU)
    sampler = make_sampler(built, inputs.train, plan.protocol.negatives)
    assert isinstance(sampler, SequenceSampler)
    assert sampler.sequences.shape == (15, 4)
    general = recipe("bpr-mf")
    inputs = load_inputs(general, data)
    assert inputs.train.chronological is None
    assert inputs.test.histories is None
    built = build_model(general, inputs, CPU)
    assert isinstance(make_sampler(built, inputs.train, "all"), TripleSampler)


def test_data_without_order_are_refused(tiny_data: Path) -> None:
    plan = recipe(dataset="tiny", protocol="standard")
    with pytest.raises(DataError, match="no timestamps and no ordered histories"):
        load_inputs(plan, tiny_data)


def test_a_dataset_with_times_but_another_split_is_told_what_to_prepare(data: Path) -> None:
    with pytest.raises(Exception, match="mmbench prepare random --split leave-one-out"):
        load_inputs(recipe(dataset="random"), data)


def test_the_protocol_of_the_paper() -> None:
    resolved = recipe().protocol
    assert (resolved.split, resolved.history_mask) == ("leave-one-out", "except-target")
    assert (resolved.negatives, resolved.mask_validation_at_test) == ("all", True)
    assert recipe(protocol={"name": "mmsr", "history_mask": "none"}).protocol.negatives == "all"
