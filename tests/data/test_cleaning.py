from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.data.cleaning import PrepareConfig, Report, clean, k_core, parse_count
from mmbench.errors import ConfigError, DataError

NO_CORE = {"user_min": 0, "item_min": 0}


def frame(rows, split=None):
    """Rows (user, item, rating, timestamp) as a source would give them."""
    users, items, ratings, times = zip(*rows, strict=True)
    return pl.DataFrame(
        {
            "user": pl.Series(users, dtype=pl.String),
            "item": pl.Series(items, dtype=pl.String),
            "rating": pl.Series(ratings, dtype=pl.Float64),
            "timestamp": pl.Series(times, dtype=pl.Int64),
            "split": pl.Series(split or [None] * len(rows), dtype=pl.Int8),
        }
    )


def run(rows, split=None, has=None, report=None, has_order=False, **config):
    return clean(
        frame(rows, split),
        PrepareConfig(**{**NO_CORE, **config}),
        report if report is not None else Report(),
        origin="raw",
        has_content=has or (lambda ids: np.ones(len(ids), dtype=bool)),
        has_order=has_order,
    )


def pairs(cleaned):
    users, items = cleaned.user.tolist(), cleaned.item.tolist()
    return [(cleaned.user_ids[u], cleaned.item_ids[i]) for u, i in zip(users, items, strict=True)]


def peel(rows, user_min, item_min):
    """The k-core by its definition: remove one offending user or item at a time."""
    rows = set(rows)
    while True:
        users, items = Counter(u for u, _ in rows), Counter(i for _, i in rows)
        bad_users = [u for u, n in users.items() if n < user_min]
        bad_items = [i for i, n in items.items() if n < item_min]
        if bad_users:
            rows = {row for row in rows if row[0] != bad_users[0]}
        elif bad_items:
            rows = {row for row in rows if row[1] != bad_items[0]}
        else:
            return rows


@settings(max_examples=150, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=90),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_k_core_is_the_one_found_by_peeling(rows, user_min, item_min):
    ordered = sorted(rows)
    user, item = np.array(ordered).T
    kept = k_core(user, item, user_min, item_min)
    assert {row for row, keep in zip(ordered, kept, strict=True) if keep} == peel(
        rows, user_min, item_min
    )


def test_core_runs_to_the_fixed_point_and_reports_its_counts():
    # The chain a-1, a-2, b-2, b-3, ... falls apart from its ends; the square c,d x 8,9 stays.
    rows = [
        ("a", "1"),
        ("a", "2"),
        ("b", "2"),
        ("b", "3"),
        ("c", "8"),
        ("c", "9"),
        ("d", "8"),
        ("d", "9"),
    ]
    report = Report()
    cleaned = run([(u, i, None, None) for u, i in rows], user_min=2, item_min=2, report=report)
    assert pairs(cleaned) == [("c", "8"), ("c", "9"), ("d", "8"), ("d", "9")]
    assert report.steps == [
        {"step": "read", "rows": 8, "users": 4, "items": 5},
        {"step": "2/2-core", "rows": 4, "users": 2, "items": 2},
    ]


def test_an_emptying_core_says_what_was_there():
    with pytest.raises(
        DataError, match=r"E241 no interactions left after 5/5-core; was 2 rows, 1 users"
    ):
        run([("a", "1", None, None), ("a", "2", None, None)], user_min=5, item_min=5)


def test_a_heavy_loss_is_a_warning():
    report = Report()
    run([("a", str(k), float(k), None) for k in range(10)], min_rating=8, report=report)
    assert "W242 min_rating 8 removed 80.0 % of items" in report.warnings


def test_ids_that_are_numbers_sort_as_numbers_and_others_as_bytes():
    rows = [(u, i, None, None) for u, i in [("10", "b"), ("9", "a10"), ("100", "a9")]]
    cleaned = run(rows)
    assert cleaned.user_ids == ["9", "10", "100"]
    assert cleaned.item_ids == ["a10", "a9", "b"]
    # A leading zero makes an id a name: "010" and "10" are two users.
    assert run([("010", "x", None, None), ("10", "x", None, None)]).user_ids == ["010", "10"]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("first", 1), ("last", 3), ("max_rating", 2)],
)
def test_duplicates_keep_the_row_the_rule_names(rule, kept):
    t = 10**9
    rows = [
        ("a", "x", 2.0, t + 5),
        ("a", "x", 1.0, t),  # first: earliest
        ("a", "x", 5.0, t + 5),  # the best rating
        ("a", "x", 1.0, t + 9),  # last: latest
        ("a", "y", 3.0, t + 1),
    ]
    report = Report()
    cleaned = run(rows, dedup=rule, report=report)
    assert kept in cleaned.source_row.tolist()
    assert len(cleaned.user) == 2
    assert f"W232 3 repeated pairs merged (kept {rule})" in report.warnings


def test_ties_of_a_duplicate_go_to_the_higher_rating_then_the_lower_row():
    t = 10**9
    rows = [("a", "x", 2.0, t), ("a", "x", 4.0, t), ("a", "x", 4.0, t)]
    assert run(rows).source_row.tolist() == [1]


def test_a_pair_in_two_parts_of_an_imported_split_is_refused():
    rows = [("a", "x", None, None), ("a", "x", None, None)]
    with pytest.raises(
        DataError, match=r"E231 1 user-item pairs are in more than one split, e.g. \(a,x\)"
    ):
        run(rows, split=[0, 2])
    assert run(rows, split=[1, 1]).label.tolist() == [1]


@pytest.mark.parametrize(("scale", "unit"), [(1, "s"), (1000, "ms"), (10**6, "us")])
def test_times_become_milliseconds_whatever_their_unit(scale, unit):
    cleaned = run([("a", "x", None, 10**9 * scale), ("a", "y", None, (10**9 + 7) * scale)])
    assert cleaned.timestamp.tolist() == [10**12, (10**9 + 7) * 1000]
    assert cleaned.time_unit == unit


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([10**9, None], "E215 1 of 2 rows of raw lack a timestamp"),
        (
            [10**9, 10**9, 10**12],
            "E214 timestamps of raw mix seconds and another unit \\(1 of 3\\)",
        ),
        ([10**9, -5], "E216 1 timestamps of raw outside 1995..today, e.g. -5 in data row 2"),
        ([10**9, 7 * 10**8], "E216 1 timestamps"),
        ([10**9, 9 * 10**9], "E216 1 timestamps"),
    ],
)
def test_times_that_cannot_be_are_refused(times, message):
    with pytest.raises(DataError, match=message):
        run([("a", str(k), None, time) for k, time in enumerate(times)])


def test_rows_without_an_id_are_dropped_and_told():
    report = Report()
    cleaned = run(
        [("a", "x", None, None), ("", "y", None, None), (None, "z", None, None)], report=report
    )
    assert pairs(cleaned) == [("a", "x")]
    assert "W201 2 rows without user or item id dropped" in report.warnings
    assert report.samples["rows without id"] == [1, 2]


def test_ids_are_stripped_but_never_translated():
    ids = [" NA", "null", "None ", "nan", "007"]
    assert set(run([(u, "x", None, None) for u in ids]).user_ids) == {
        "NA",
        "null",
        "None",
        "nan",
        "007",
    }


def test_blanks_around_ids_neither_reorder_nor_tell_them_apart():
    # Before stripping " b" sorts before "a", and " b" and "b " are two ids.
    report = Report()
    rows = [(" b", "x", None, None), ("a", "y", None, None), ("b ", "z\t", None, None)]
    cleaned = run([*rows, (" ", "w", None, None)], report=report)
    assert cleaned.user_ids == ["a", "b"]
    assert cleaned.item_ids == ["x", "y", "z"]
    assert pairs(cleaned) == [("a", "y"), ("b", "x"), ("b", "z")]
    assert [step["users"] for step in report.steps] == [4, 2]  # as read; with ids


def test_labels_are_for_all_rows_or_none():
    rows = [("a", "x", None, None), ("a", "y", None, None)]
    with pytest.raises(DataError, match="E221 1 of 2 rows of raw lack a split label"):
        run(rows, split=[0, None])


def test_a_control_character_in_an_id_is_refused():
    with pytest.raises(DataError, match=r"E217 raw: data row 2: item id 'a\\x00b' holds a control"):
        run([("a", "x", None, None), ("a", "a\0b", None, None)])


def test_a_rating_threshold_needs_ratings():
    with pytest.raises(DataError, match="E274 min_rating=4 needs ratings"):
        run([("a", "x", None, None)], min_rating=4)
    assert pairs(run([("a", "x", 4.0, None), ("a", "y", 3.9, None)], min_rating=4)) == [("a", "x")]


def test_required_content_acts_before_or_after_the_core():
    # Without item 2 user a has one row left: before the core a falls, after it a stays.
    rows = [
        (u, i, None, None)
        for u, i in [
            ("a", "1"),
            ("a", "2"),
            ("b", "1"),
            ("b", "3"),
            ("c", "1"),
            ("c", "3"),
            ("d", "2"),
        ]
    ]

    def has(ids):
        return np.array([item != "2" for item in ids])

    before = run(rows, has=has, require="image", when="before_core", user_min=2)
    after = run(rows, has=has, require="image", when="after_core", user_min=2)
    assert before.user_ids == ["b", "c"]
    assert after.user_ids == ["a", "b", "c"]


def test_a_sample_of_users_does_not_depend_on_the_others_order():
    rows = [(f"u{u}", f"i{i}", None, None) for u in range(20) for i in range(2)]
    chosen = run(rows, sample_users=5).user_ids
    assert len(chosen) == 5
    assert run(rows[::-1], sample_users=5).user_ids == chosen
    assert run(rows, sample_users=5, seed=1).user_ids != chosen


def test_samples_of_one_seed_are_nested():
    rows = [(f"u{u}", f"i{u % 7}", None, None) for u in range(60)]
    samples = [set(run(rows, sample_users=n).user_ids) for n in (10, 20, 50, 60, 1000)]
    assert [len(sample) for sample in samples] == [10, 20, 50, 60, 60]
    assert all(small <= large for small, large in pairwise(samples))


@pytest.mark.parametrize(
    ("text", "count"),
    [("500", 500), ("10K", 10_000), (" 20k ", 20_000), ("1M", 10**6), ("007", 7)],
)
def test_a_count_may_have_a_suffix(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "0K", "K", "-1", "1.5K", "10G", "1e3", "ten", "\u0661"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ConfigError, match=f"E274 '{text}' is no count; write for example 500, 10K"):
        parse_count(text)


@pytest.mark.parametrize("ties", ["source", "hash", "item"])
def test_an_order_without_times_is_kept_under_every_tie_rule(ties):
    items = [*"dbeac"]
    rows = [(u, i, None, None) for u in "xy" for i in items]
    cleaned = run(rows, has_order=True, ties=ties)
    assert [i for u, i in pairs(cleaned) if u == "x"] == items
    # It also says which of two interactions came first.
    twice = [("x", i, None, None) for i in "aba"]
    assert pairs(run(twice, has_order=True, dedup="first", ties=ties)) == [("x", "a"), ("x", "b")]
    assert pairs(run(twice, has_order=True, dedup="last", ties=ties)) == [("x", "b"), ("x", "a")]


def test_rows_are_ordered_by_user_then_time_then_tie_rule():
    t = 10**9
    rows = [("b", "2", None, t), ("a", "3", None, t + 1), ("a", "2", None, t), ("a", "1", None, t)]
    assert pairs(run(rows))[:3] == [("a", "2"), ("a", "1"), ("a", "3")]  # the file's order
    assert pairs(run(rows, ties="item"))[:3] == [("a", "1"), ("a", "2"), ("a", "3")]


@pytest.mark.parametrize("ties", ["item", "hash"])
def test_the_order_of_input_rows_does_not_matter(ties):
    t = 10**9
    rows = [("a", "1", 2.0, t), ("a", "2", 3.0, t), ("a", "2", 4.0, t), ("b", "1", 1.0, t + 3)]
    results = [run(list(order), ties=ties) for order in permutations(rows)]
    first = results[0]
    for other in results[1:]:
        for column in ("user", "item", "timestamp", "rating"):
            np.testing.assert_array_equal(getattr(first, column), getattr(other, column))


IDS = st.sampled_from(["NA", "007", "7", "é", "", " a", "a", "x" * 300, "\U0001f600"])
TABLES = st.lists(
    st.tuples(
        IDS,
        IDS,
        st.one_of(st.none(), st.integers(1, 5).map(float)),
        st.integers(0, 3).map(lambda day: 10**9 + 86_400 * day),
    ),
    min_size=1,
    max_size=40,
).filter(lambda rows: any(u.strip() and i.strip() for u, i, _, _ in rows))


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(["item", "hash"]), st.sampled_from(["first", "last", "max_rating"]),
       st.randoms(use_true_random=False))  # fmt: skip
def test_shuffled_rows_give_the_same_dataset(rows, ties, dedup, random):
    shuffled = random.sample(rows, len(rows))
    first, second = (run(each, ties=ties, dedup=dedup) for each in (rows, shuffled))
    for column in ("user", "item", "timestamp", "rating"):
        one, other = getattr(first, column), getattr(second, column)
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
    assert (first.user_ids, first.item_ids) == (second.user_ids, second.item_ids)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(["first", "last", "max_rating"]))
def test_of_each_pair_the_best_row_is_kept(rows, dedup):
    best = {}
    for number, (user, item, rating, time) in enumerate(rows):
        value = -1.0 if rating is None else rating
        rank = {
            "first": (-time, value, -number),
            "last": (time, value, -number),
            "max_rating": (value, -time, -number),
        }[dedup]
        pair = user.strip(), item.strip()
        if all(pair):
            best[pair] = max(best.get(pair, (rank, number)), (rank, number))
    cleaned = run(rows, dedup=dedup)
    assert sorted(cleaned.source_row.tolist()) == sorted(number for _, number in best.values())
    assert sorted(pairs(cleaned)) == sorted(best)
