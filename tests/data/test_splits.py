import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.data.split_requests import SplitRequest
from mmbench.data.splits import (
    RULES,
    Rows,
    held_out_counts,
    make_split,
    random_global,
    random_per_user,
    time_cuts,
)
from mmbench.errors import DataError

TRAIN, VALID, TEST, EXCLUDED = range(4)


def rows_of(counts, times=None, label=None, has_order=False):
    """Rows of users with the given numbers of items; user u has items 0..n-1."""
    user = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    item = np.concatenate([np.arange(n) for n in counts]).astype(np.int32)
    timestamp = np.full(user.size, -1) if times is None else np.asarray(times)
    return Rows(
        user,
        item,
        timestamp.astype(np.int64),
        [f"u{k}" for k in range(len(counts))],
        [f"i{k}" for k in range(max(counts))],
        None if label is None else np.asarray(label, dtype=np.int8),
        "raw",
        has_order,
    )


def label_of(text, rows, seed=42):
    return make_split(SplitRequest.parse(text), rows, seed).label


@pytest.mark.parametrize(
    ("n", "train", "valid", "test"),
    # specs/datasets.md, section 7, the MMRec table; and users too short to split.
    [
        (1, 1, 0, 0),
        (2, 2, 0, 0),
        (3, 1, 1, 1),
        (9, 7, 1, 1),
        (10, 8, 1, 1),
        (14, 12, 1, 1),
        (15, 12, 1, 2),
        (19, 16, 1, 2),
        (20, 16, 2, 2),
        (25, 20, 2, 3),
        (29, 24, 2, 3),
    ],
)
def test_per_user_counts_follow_the_published_table(n, train, valid, test):
    rows = rows_of([n, 4], times=np.arange(n + 4) + 10**12)
    for rule in ("random-per-user", "user-temporal"):
        of_first = label_of(rule, rows)[:n]
        assert [(of_first == part).sum() for part in (TRAIN, VALID, TEST)] == [train, valid, test]
    swapped = label_of("random-per-user:odd_to=valid", rows)[:n]
    assert [(swapped == part).sum() for part in (TRAIN, VALID, TEST)] == [train, test, valid]


def test_counts_of_many_users_add_up():
    n = np.arange(3, 200)
    valid, test = held_out_counts(n, "test")
    assert ((valid + test) == np.where(n < 10, 2, n // 5)).all()
    assert ((test - valid) >= 0).all()
    assert ((test - valid) <= 1).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=4, max_size=15), st.integers(0, 2**31))
def test_every_rule_labels_each_row_once_and_leaves_no_user_untrained(counts, seed):
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.sort(rng.integers(0, 50, n)) for n in counts]) + 10**12
    rows = rows_of(counts, times=times)
    for rule in RULES:
        if rule == "imported":
            continue
        request = SplitRequest.parse(rule)
        made = make_split(request, rows, seed % 1000)
        label, facts = made.label, made.facts
        assert label.shape == rows.user.shape
        assert sum(facts["rows"]) == label.size
        if rule not in ("random-global", "cold-items"):  # which look at no user
            held_out = np.unique(rows.user[(label == VALID) | (label == TEST)])
            assert np.isin(held_out, rows.user[label == TRAIN]).all()
            assert facts["users_without_train"] == 0


def test_random_global_holds_out_two_tenths_in_whole_numbers():
    label = label_of("random-global", rows_of([13, 26]))
    assert [(label == part).sum() for part in (TRAIN, VALID, TEST)] == [39 - 3 - 3, 3, 3]


def test_hash_splits_follow_raw_ids_not_indices():
    rows = rows_of([12, 12])
    # The same users and items, numbered in the opposite order.
    turned = Rows(
        rows.user, 11 - rows.item, rows.timestamp, rows.user_ids, rows.item_ids[::-1], None, "raw"
    )
    for rule in ("random-per-user", "random-global"):
        assert (label_of(rule, rows) == label_of(rule, turned)).all()
        assert (label_of(rule, rows) != label_of(rule, rows, seed=1)).any()


def test_random_per_user_puts_rows_in_hash_order():
    rows = rows_of([10])

    def key(item):
        text = f"42\x1frandom_per_user\x1fu0\x1fi{item}\x1f0"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    order = sorted(range(10), key=key)
    label = label_of("random-per-user", rows)
    assert label[order].tolist() == [TRAIN] * 8 + [VALID, TEST]


def test_leave_one_out_takes_the_last_two_rows():
    rows = rows_of([2, 3, 5], times=np.arange(10) + 10**12)
    assert label_of("leave-one-out", rows).tolist() == [0, 0, 0, 1, 2, 0, 0, 0, 1, 2]


def test_global_cut_is_at_the_quantiles_and_leaves_new_users_out():
    # Ten rows at 0..9: quantiles 7.2 and 8.1, so 8 train, one valid, one test.
    times = np.arange(10) + 10**12
    rows = rows_of([8, 2], times=times)
    assert time_cuts(times) == pytest.approx((10**12 + 7.2, 10**12 + 8.1), abs=1e-3)
    assert label_of("global-temporal:drop_new_users=false", rows).tolist() == [0] * 8 + [1, 2]
    made = make_split(SplitRequest.parse("global-temporal"), rows, 42)
    label, facts = made.label, made.facts
    assert label.tolist() == [0] * 8 + [EXCLUDED] * 2  # user 1 starts after the cut
    assert facts["rows"] == [8, 0, 0, 2]
    assert facts["params"] == {"drop_new_users": True}


@pytest.mark.parametrize(
    "rule", ["leave-one-out", "user-temporal", "global-temporal", "cold-sequences"]
)
def test_temporal_rules_need_times(rule):
    with pytest.raises(DataError, match=f"E271 {rule} needs timestamps; raw has none"):
        label_of(rule, rows_of([5]))


@pytest.mark.parametrize("rule", ["leave-one-out", "user-temporal", "cold-sequences"])
def test_an_order_without_times_is_enough_within_users(rule):
    made = make_split(SplitRequest.parse(rule), rows_of([2, 5], has_order=True), 42)
    assert made.label.tolist() == [0, 0, 0, 0, 0, 1, 2]


def test_an_order_without_times_gives_no_cut_in_time():
    message = "E271 global-temporal needs timestamps; raw has only the order of each user's"
    with pytest.raises(DataError, match=message):
        label_of("global-temporal", rows_of([5], has_order=True))


def test_cold_items_are_a_fifth_in_hash_order_half_of_them_for_each_part():
    # 16 items: 3 are held out, the first 3 // 2 of them for test, the other two for validation.
    rows = rows_of([16, 9])

    def key(item):
        return hashlib.blake2b(f"42\x1fcold_items\x1fi{item}".encode(), digest_size=8).digest()

    first, second, third = sorted(range(16), key=key)[:3]
    made = make_split(SplitRequest.parse("cold-items"), rows, 42)
    part = {first: TEST, second: VALID, third: VALID}
    assert made.label.tolist() == [part.get(item, TRAIN) for item in rows.item.tolist()]
    assert made.arrays["cold_items"].tolist() == sorted(part)
    assert made.arrays["cold_items"].dtype == np.int32
    facts = made.facts
    assert facts["candidates"] == ["all", "cold"]
    assert facts["cold_items"] == 3
    assert facts["cold_items_in"] == {"valid": 2, "test": 1}
    assert facts["cold_cases"] == {"valid": facts["rows"][1], "test": facts["rows"][2]}


def test_cold_items_are_drawn_from_those_with_rows_only():
    rows = rows_of([10])
    # Positional layouts keep items without interactions; they are no part of the draw.
    wider = Rows(
        rows.user, rows.item, rows.timestamp, rows.user_ids,
        [*rows.item_ids, *(f"unused{k}" for k in range(50))],
    )  # fmt: skip
    assert (label_of("cold-items", rows) == label_of("cold-items", wider)).all()
    assert (label_of("cold-items", rows) != label_of("cold-items:seed=3", rows)).any()


def sequences():
    """Three users; under leave-one-out item 0 trains 3 times, items 1 and 2 twice, 3 and 4 never.

    user 0: 0 1 2 | 3 | 4    user 1: 0 2 | 1 | 3    user 2: 0 1, too short to hold anything out
    """
    user = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2], dtype=np.int32)
    item = np.array([0, 1, 2, 3, 4, 0, 2, 1, 3, 0, 1], dtype=np.int32)
    times = np.arange(user.size) + 10**12
    return Rows(user, item, times, ["a", "b", "c"], [*"vwxyz"], None, "raw")


@pytest.mark.parametrize(
    ("rule", "cold", "cases", "counts"),
    [
        # Held out are 3, 4 (user 0) and 1, 3 (user 1): those that are cold are the cases.
        ("cold-sequences:below=1", [3, 4], [[0, 3], [0, 4], [1, 3]], (0, 1, 2)),
        ("cold-sequences:below=3", [1, 2, 3, 4], [[0, 3], [0, 4], [1, 2], [1, 3]], (0, 2, 2)),
        # Any position but the first, where there is nothing to go by.
        (
            "cold-sequences:below=3,positions=all",
            [1, 2, 3, 4],
            [[0, 1], [0, 2], [0, 3], [0, 4], [1, 1], [1, 2], [1, 3], [2, 1]],
            (4, 2, 2),
        ),
        (
            "cold-sequences:positions=all",
            [0, 1, 2, 3, 4],
            [[0, 1], [0, 2], [0, 3], [0, 4], [1, 1], [1, 2], [1, 3], [2, 1]],
            (4, 2, 2),
        ),
    ],
)
def test_cold_sequences_end_in_rarely_trained_items(rule, cold, cases, counts):
    made = make_split(SplitRequest.parse(rule), sequences(), 42)
    assert made.label.tolist() == [0, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0]
    assert made.arrays["cold_items"].tolist() == cold
    assert made.arrays["cold_cases"].tolist() == cases
    assert made.arrays["cold_cases"].dtype == np.int32
    assert made.facts["cold_items"] == len(cold)
    assert made.facts["cold_cases"] == dict(zip(("train", "valid", "test"), counts, strict=True))
    assert made.facts["candidates"] == ["all", "cold"]


def test_cold_sequences_without_a_case_are_an_empty_table():
    made = make_split(SplitRequest.parse("cold-sequences:below=1"), rows_of([1, 1, 1, 2],
        times=[10**12] * 5), 42)  # fmt: skip
    assert made.arrays["cold_cases"].shape == (0, 2)


def test_imported_labels_are_untouched():
    rows = rows_of([3, 3], label=[0, 1, 2, 2, 0, 0])
    made = make_split(SplitRequest.parse("imported"), rows, 42)
    label, facts = made.label, made.facts
    assert label.tolist() == [0, 1, 2, 2, 0, 0]
    assert facts["rows"] == [3, 1, 2, 0]
    with pytest.raises(DataError, match="E222 imported split has no valid rows"):
        label_of("imported", rows_of([3], label=[0, 0, 2]))
    with pytest.raises(DataError, match="E221 raw brings no split labels"):
        label_of("imported", rows_of([3]))


def test_facts_count_what_training_never_saw():
    # User 1 and item 3 have no training row.
    rows = Rows(
        np.array([0, 0, 0, 1, 1], dtype=np.int32),
        np.array([0, 1, 3, 0, 1], dtype=np.int32),
        np.full(5, -1),
        ["a", "b"],
        ["p", "q", "r", "s"],
        np.array([0, 0, 2, 1, 2], dtype=np.int8),
    )
    facts = make_split(SplitRequest.parse("imported"), rows, 42).facts
    assert facts["users"] == [1, 1, 2]
    assert facts["items_train"] == 2
    assert (facts["items_unseen_in_valid"], facts["items_unseen_in_test"]) == (0, 1)
    assert facts["users_without_train"] == 1
    assert facts["rows_without_train"] == [1, 2]


def test_equal_hashes_fall_back_on_the_ids(monkeypatch):
    rows = rows_of([20])
    monkeypatch.setattr(Rows, "hashes", lambda rows, seed, purpose: np.full(20, 7, dtype=np.uint64))
    last = sorted(range(20), key=lambda k: f"i{k}".encode())
    label = random_global(rows, seed=1)
    assert sorted(np.flatnonzero(label == TEST).tolist()) == sorted(last[-2:])
    label = random_per_user(rows, seed=1, odd_to="test")
    assert sorted(np.flatnonzero(label != TRAIN).tolist()) == sorted(last[-4:])


def test_hashes_that_differ_in_their_last_bit_alone_are_told_apart(monkeypatch):
    # One bit of 64 goes to the user's number when the two are sorted together.
    hashes = np.arange(20, dtype=np.uint64)[::-1] + np.uint64(2**63)
    monkeypatch.setattr(Rows, "hashes", lambda rows, seed, purpose: hashes)
    label = random_per_user(rows_of([20]), seed=1, odd_to="test")
    assert label.tolist() == [TEST] * 2 + [VALID] * 2 + [TRAIN] * 16


@pytest.mark.parametrize("rule", ["random-per-user", "leave-one-out"])
def test_warm_rows_of_cold_items_can_be_split_by_another_rule(rule):
    # Ten users with all of fifteen items: three are cold, and twelve rows of each user are not.
    user = np.repeat(np.arange(10, dtype=np.int32), 15)
    item = np.tile(np.arange(15, dtype=np.int32), 10)
    rows = Rows(
        user,
        item,
        np.tile(np.arange(15, dtype=np.int64), 10),
        [f"u{n}" for n in range(10)],
        [f"i{n}" for n in range(15)],
    )
    plain = make_split(SplitRequest.parse("cold-items"), rows, 42)
    made = make_split(SplitRequest.parse(f"cold-items:warm={rule}"), rows, 42)
    cold = plain.arrays["cold_items"]
    assert made.arrays["cold_items"].tolist() == cold.tolist()
    assert made.facts["cold_cases"] == plain.facts["cold_cases"] == {"valid": 20, "test": 10}
    is_cold = np.isin(item, cold)
    assert (made.label[is_cold] == plain.label[is_cold]).all()
    # 12 rows: 12 // 5 = 2 are held out, one for each part; leave-one-out takes the last two.
    for one in range(10):
        warm = made.label[(user == one) & ~is_cold]
        assert np.bincount(warm, minlength=3).tolist() == [10, 1, 1]
        if rule == "leave-one-out":
            assert warm[-2:].tolist() == [1, 2]
