"""What holds for every random table of interactions, under every split rule."""

import shutil
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmbench.data.adding import make_splits
from mmbench.data.cleaning import PrepareConfig, Report, clean
from mmbench.data.prepare import prepare
from mmbench.data.split_requests import SplitRequest
from mmbench.data.splits import RULES, Rows
from mmbench.data.statistics import count_rows
from mmbench.errors import DataError

TRAIN, VALID, TEST, EXCLUDED = range(4)
RULES_TO_TRY = [
    *(rule for rule in RULES if rule != "imported"),
    "random-per-user:odd_to=valid,seed=3",
    "user-temporal:odd_to=valid",
    "global-temporal:drop_new_users=false",
    "cold-items:seed=1",
    "cold-sequences:below=2",
    "cold-sequences:below=3,positions=all",
]
ODD_IDS = ["NA", "null", "nan", "None", "007", "7", "é", "e\u0301", "\U0001f600", "a b", "L" * 400]


def looks_at_no_user(request: SplitRequest) -> bool:
    """Whether the cut is through all rows, items or times, so that users may have none to train."""
    keeps_new = request.params.get("drop_new_users") is False
    return keeps_new or request.rule in ("random-global", "cold-items")


@st.composite
def tables(draw):
    """Rows (user, item, rating, time): a few busy users and many with one or two rows."""
    n_users, n_items = draw(st.integers(1, 25)), draw(st.integers(1, 30))
    seed, n_rows = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 300))
    rng = np.random.default_rng(seed)
    prefix = draw(st.sampled_from(["", "u", "0"]))  # numbers, names, numbers with leading zeros
    users = [*ODD_IDS, *(f"{prefix}{k}" for k in range(25))]
    items = [*ODD_IDS[::-1], *(f"{prefix}{k}" for k in range(30))]
    rng.shuffle(users)
    rng.shuffle(items)
    # Squares of uniform numbers: low indices come often, so pairs repeat.
    user = (rng.random(n_rows) ** 2 * n_users).astype(int)
    item = (rng.random(n_rows) ** 2 * n_items).astype(int)
    days = rng.integers(0, draw(st.sampled_from([1, 5, 4000])), n_rows)
    rating = rng.integers(1, 6, n_rows).astype(float)
    return [
        (users[u], items[i], r, 10**9 + 86_400 * d)
        for u, i, r, d in zip(user, item, rating.tolist(), days.tolist(), strict=True)
    ]


def cleaned(rows, **config):
    users, items, ratings, times = zip(*rows, strict=True)
    frame = pl.DataFrame(
        {
            "user": pl.Series(users, dtype=pl.String),
            "item": pl.Series(items, dtype=pl.String),
            "rating": pl.Series(ratings, dtype=pl.Float64),
            "timestamp": pl.Series(times, dtype=pl.Int64),
            "split": pl.Series([None] * len(rows), dtype=pl.Int8),
        }
    )
    settled = PrepareConfig(**{"user_min": 0, "item_min": 0, **config})
    return clean(frame, settled, Report(), origin="raw", has_content=list)


def splits_of(data, rules=RULES_TO_TRY):
    rows = Rows(data.user, data.item, data.timestamp, data.user_ids, data.item_ids)
    requests = [SplitRequest.parse(rule) for rule in rules]
    made = make_splits(requests, rows, PrepareConfig(), Report())
    return [(request, made[request.name]) for request in requests]


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from(["source", "hash", "item"]))
def test_a_cleaned_table_says_the_same_as_the_raw_one(rows, ties):
    data = cleaned(rows, ties=ties)
    # The id maps are bijections between indices and the ids that occur.
    for index, ids, raw in (
        (data.user, data.user_ids, {row[0] for row in rows}),
        (data.item, data.item_ids, {row[1] for row in rows}),
    ):
        assert len(set(ids)) == len(ids)
        assert set(ids) == raw
        assert sorted(set(index.tolist())) == list(range(len(ids)))
    pairs = [
        (data.user_ids[u], data.item_ids[i])
        for u, i in zip(data.user.tolist(), data.item.tolist(), strict=True)
    ]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == {row[:2] for row in rows}
    for (user, item), row, time, rating in zip(
        pairs, data.source_row.tolist(), data.timestamp.tolist(), data.rating.tolist(), strict=True
    ):
        assert rows[row] == (user, item, rating, time // 1000)
    # Ordered by user, then time, then the tie rule.
    keys = list(zip(data.user.tolist(), data.timestamp.tolist(), strict=True))
    assert keys == sorted(keys)
    if ties != "hash":
        last = data.source_row if ties == "source" else data.item
        keys = [(*key, value) for key, value in zip(keys, last.tolist(), strict=True)]
        assert keys == sorted(keys)
    counts = count_rows(data.user, data.item, len(data.user_ids), len(data.item_ids))
    assert (counts["users"], counts["items"]) == (len(data.user_ids), len(data.item_ids))
    assert counts["interactions"] == len(pairs)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_every_split_is_disjoint_complete_and_as_declared(rows):
    data = cleaned(rows)
    assert len(RULES_TO_TRY) > len(RULES)  # each rule is tried, some with parameters
    for request, made in splits_of(data):
        label, facts = made.label, made.facts
        # One label per row: the parts are disjoint. Each is one of four: nothing is left out.
        assert label.shape == data.user.shape
        assert label.dtype == np.int8
        parts = [set(np.flatnonzero(label == part).tolist()) for part in range(4)]
        assert set().union(*parts) == set(range(label.size))
        assert facts["rows"] == [len(part) for part in parts]
        assert not parts[EXCLUDED] or request.rule == "global-temporal"
        held_out = (label == VALID) | (label == TEST)
        untrained = set(data.user[held_out].tolist()) - set(data.user[label == TRAIN].tolist())
        assert facts["users_without_train"] == len(untrained)
        assert not untrained or looks_at_no_user(request)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_cold_items_are_kept_from_training(rows):
    data = cleaned(rows)
    for request, made in splits_of(data, [r for r in RULES_TO_TRY if r.startswith("cold")]):
        trained = Counter(data.item[made.label == TRAIN].tolist())
        cold = made.arrays["cold_items"].tolist()
        if request.rule == "cold-items":
            assert len(cold) == len(data.item_ids) // 5
            assert not set(cold) & set(trained)
            assert set(data.item[made.label != TRAIN].tolist()) == set(cold)
            for item in cold:  # in one half, not in both
                assert len(set(made.label[data.item == item].tolist())) == 1
            continue
        below = made.facts["params"]["below"]
        assert cold == [item for item in range(len(data.item_ids)) if trained[item] < below]
        # The cases by their definition, one user after the other.
        expected, row = [], 0
        for user, n in sorted(Counter(data.user.tolist()).items()):
            for position in range(n):
                heldout = made.label[row] != TRAIN
                wanted = heldout or made.facts["params"]["positions"] == "all"
                if position >= 1 and wanted and data.item[row] in cold:
                    expected.append([user, position])
                row += 1
        assert made.arrays["cold_cases"].tolist() == expected


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(["hash", "item"]), st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_the_order_of_the_raw_rows(rows, ties, random):
    shuffled = random.sample(rows, len(rows))
    first, second = (splits_of(cleaned(each, ties=ties)) for each in (rows, shuffled))
    for (_, one), (_, other) in zip(first, second, strict=True):
        assert one.label.tobytes() == other.label.tobytes()
        assert one.facts == other.facts
        assert list(one.arrays) == list(other.arrays)
        for name, array in one.arrays.items():
            assert array.tobytes() == other.arrays[name].tobytes()


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tables())
def test_preparing_again_changes_nothing(tmp_path, rows):
    for folder in ("raw", "data"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    (tmp_path / "raw").mkdir()
    lines = [",".join(map(str, row)) for row in rows]
    text = "\n".join(["user_id,item_id,rating,timestamp", *lines]) + "\n"
    (tmp_path / "raw" / "interactions.csv").write_text(text, encoding="utf-8")

    def prepared(splits):
        return prepare(
            "x",
            source=tmp_path / "raw",
            config=PrepareConfig(user_min=0, item_min=0),
            splits=splits,
            data_dir=tmp_path / "data",
        )

    assert prepared(RULES_TO_TRY[:3]).status == "prepared"
    before = snapshot(tmp_path / "data")
    assert prepared(RULES_TO_TRY[:3]).status == "up-to-date"
    assert snapshot(tmp_path / "data") == before
    # Splits that are added later are those that would have been made at once.
    assert prepared(RULES_TO_TRY).status == "split-added"
    later = snapshot(tmp_path / "data" / "x" / "splits")
    shutil.rmtree(tmp_path / "data")
    prepared(RULES_TO_TRY)
    assert snapshot(tmp_path / "data" / "x" / "splits") == later


def test_cold_items_warn_of_users_without_training_not_of_the_items(write_table, tmp_path):
    # One user whose only item is cold, whichever it is: five users with an item of their own.
    raw = write_table([(f"u{k}", f"i{k}") for k in range(5)])
    result = prepare(
        "x", source=raw, data_dir=tmp_path / "data", splits=["cold-items"],
        config=PrepareConfig(user_min=0, item_min=0),
    )  # fmt: skip
    assert (
        "W273 split cold-items: 1 users have no training row; 1 valid and 0 test rows affected"
        in result.warnings
    )


def test_an_added_split_that_fails_leaves_no_trace(write_table, full_rows, tmp_path):
    data = tmp_path / "data"
    raw = write_table([row[:2] for row in full_rows])
    prepare("x", source=raw, data_dir=data)
    before = snapshot(data)
    with pytest.raises(DataError, match="E271 cold-sequences needs timestamps; x has none"):
        prepare("x", data_dir=data, splits=["cold-items", "cold-sequences"])
    assert snapshot(data) == before
