from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import Metric
from mmbench.report.comparison import compare

QUALITIES = {"good": 1.4, "fair": 1.0, "poor": 0.8, "bad": 0.3}


def recall(run, k, part="test"):
    """Recall of each user by sets, straight from the run's arrays."""
    folder = run.path / "lists" / part
    items, offsets = np.load(folder / "items.npy"), np.load(folder / "relevant_offsets.npy")
    relevant = np.split(np.load(folder / "relevant_items.npy"), offsets[1:-1])
    return np.array(
        [
            len(set(row[:k]) & set(held)) / len(held)
            for row, held in zip(items, relevant, strict=True)
        ]
    )


def over_seeds(runs, label, k):
    return np.mean([recall(run, k) for run in runs if run.label == label], axis=0)


@pytest.fixture
def runs(lab):
    return [
        lab.run(label, seed, quality=quality)
        for label, quality in QUALITIES.items()
        for seed in range(3)
    ]


def test_every_figure_of_a_cell_is_scipys(runs):
    compared = compare(runs, metrics=["recall@10"], baseline="poor")
    found = {label: over_seeds(runs, label, 10) for label in QUALITIES}
    assert [system.label for system in compared.systems] == ["good", "fair", "poor", "bad"]
    others = ["good", "fair", "bad"]
    # scipy 1.12 or later: ttest_rel(...).confidence_interval
    tests = {label: stats.ttest_rel(found[label], found["poor"]) for label in others}
    holm = multipletests([tests[label].pvalue for label in others], method="holm")[1]
    for label, adjusted in zip(others, holm, strict=True):
        cell, difference = compared.cell(label), found[label] - found["poor"]
        contrast, interval = cell.contrast, tests[label].confidence_interval(0.95)
        assert cell.mean == pytest.approx(found[label].mean(), abs=1e-12)
        assert contrast.reference == "poor"
        assert contrast.difference == pytest.approx(difference.mean(), abs=1e-12)
        assert contrast.relative == pytest.approx(
            difference.mean() / found["poor"].mean(), abs=1e-12
        )
        assert (contrast.low, contrast.high) == pytest.approx(tuple(interval), abs=1e-12)
        assert contrast.d_z == pytest.approx(difference.mean() / difference.std(ddof=1), abs=1e-12)
        assert contrast.statistic == pytest.approx(tests[label].statistic, rel=1e-12)
        assert contrast.p == pytest.approx(tests[label].pvalue, rel=1e-10)
        assert contrast.adjusted == pytest.approx(adjusted, rel=1e-10)
        tie = np.isclose(difference, 0, atol=1e-12)
        assert contrast.wins == ((difference > 0) & ~tie).sum()
        assert contrast.ties == tie.sum()
        assert contrast.losses == ((difference < 0) & ~tie).sum()
        means = [recall(run, 10).mean() for run in runs if run.label == label]
        assert cell.seed_means == pytest.approx(means, abs=1e-12)
        assert cell.seed_sd == pytest.approx(np.std(means, ddof=1), abs=1e-12)
        assert cell.n_users == contrast.n_users == compared.n_users == 300
    assert compared.cell("poor").contrast is None
    assert compared.cell("poor").is_reference
    assert [cell.is_best for row in compared.cells for cell in row] == [True, False, False, False]


def test_the_best_of_each_column_stands_for_all_pairs(runs):
    compared = compare(runs, metrics=["recall@10", "recall@20"])
    for column, k in enumerate((10, 20)):
        found = {label: over_seeds(runs, label, k) for label in QUALITIES}
        best = max(found, key=lambda label: found[label].mean())
        pairs = [frozenset(pair) for pair in combinations(QUALITIES, 2)]
        raw = [stats.ttest_rel(*(found[label] for label in pair)).pvalue for pair in pairs]
        holm = dict(zip(pairs, multipletests(raw, method="holm")[1], strict=True))
        for label in set(QUALITIES) - {best}:
            contrast = compared.cell(label, column).contrast
            assert contrast.reference == best
            assert contrast.adjusted == pytest.approx(holm[frozenset((label, best))], rel=1e-10)
    assert [(f.name, f.over_users, f.over_systems) for f in compared.families] == [
        ("recall@10", 6, 6),
        ("recall@20", 6, 6),
    ]


def test_each_column_has_its_own_best(lab):
    lists = lab.lists(1.0, 1)
    # "early" has the first hits, "late" the more: recall@1 and recall@20 disagree.
    early, late = lists.hits.copy(), lists.hits.copy()
    early[:], late[:] = False, False
    early[:200, 0], late[:, 15] = True, True
    runs = [
        lab.run(label, lists=type(lists)(**{**vars_of(lists), "hits": hits}))
        for label, hits in (("early", early), ("late", late))
    ]
    compared = compare(runs, metrics=["recall@1", "recall@20"])
    assert compared.cell("late", 0).contrast.reference == "early"
    assert compared.cell("early", 1).contrast.reference == "late"


def vars_of(lists):
    return {name: getattr(lists, name) for name in lists.__dataclass_fields__}


def test_the_family_can_be_the_whole_table(runs):
    compared = compare(runs, metrics=["recall@10", "recall@20"], baseline="bad", family="table")
    raw, cells = [], []
    for column, k in enumerate((10, 20)):
        for label in ("good", "fair", "poor"):
            raw.append(
                stats.ttest_rel(over_seeds(runs, label, k), over_seeds(runs, "bad", k)).pvalue
            )
            cells.append(compared.cell(label, column).contrast.adjusted)
    assert cells == pytest.approx(multipletests(raw, method="holm")[1], rel=1e-10)
    assert [(f.name, f.over_users, f.over_systems) for f in compared.families] == [("table", 6, 6)]


@pytest.mark.parametrize(("ours", "theirs"), [("bonferroni", "bonferroni"), ("bh", "fdr_bh")])
def test_other_corrections(runs, ours, theirs):
    compared = compare(runs, metrics=["recall@10"], baseline="fair", correction=ours)
    contrasts = [compared.cell(label).contrast for label in ("good", "poor", "bad")]
    expected = multipletests([c.p for c in contrasts], method=theirs)[1]
    assert [c.adjusted for c in contrasts] == pytest.approx(expected, rel=1e-12)


def test_other_paired_tests(runs):
    pair = [run for run in runs if run.label in ("fair", "poor") and run.seed == 0]
    # Hit rates of one seed are 0 or 1, so that no difference is rounded.
    fair, poor = ((recall(run, 10) > 0).astype(float) for run in pair)
    wilcoxon = compare(pair, metrics=["hr@10"], test="wilcoxon").cell("poor").contrast
    assert wilcoxon.p == pytest.approx(stats.wilcoxon(fair, poor).pvalue, rel=1e-9)
    t = stats.ttest_rel(fair, poor).pvalue
    for name in ("permutation", "bootstrap"):
        first, again = (compare(pair, metrics=["hr@10"], test=name).cell("poor") for _ in range(2))
        assert first.contrast == again.contrast
        assert first.contrast.p == pytest.approx(t, abs=0.02)


def test_resampling_does_not_depend_on_the_other_rows(runs):
    def p_of(labels):
        chosen = [run for run in runs if run.label in labels]
        return (
            compare(chosen, metrics=["recall@10"], baseline="poor", test="permutation")
            .cell("fair")
            .contrast.p
        )

    assert p_of(["fair", "poor"]) == p_of(["bad", "fair", "good", "poor"])


def test_three_seeds_on_both_sides_give_a_second_test(runs):
    compared = compare(runs, metrics=["recall@10"], baseline="poor")
    second = [compared.cell(label).contrast.system for label in ("good", "fair", "bad")]
    adjusted = multipletests([s.p for s in second], method="holm")[1]
    assert [s.adjusted for s in second] == pytest.approx(adjusted, rel=1e-12)
    two = [run for run in runs if run.label != "bad" or run.seed < 2]
    compared = compare(two, metrics=["recall@10"], baseline="poor")
    assert compared.cell("bad").contrast.system is None
    assert compared.cell("good").contrast.system is not None
    assert [(f.over_users, f.over_systems) for f in compared.families] == [(3, 2)]


def test_seed_spread_larger_than_the_difference_is_flagged(lab):
    # The seeds of "wild" differ by far more than its mean from that of "tame".
    runs = [lab.run("wild", seed, quality=quality) for seed, quality in enumerate((0.2, 1.0, 1.8))]
    runs += [lab.run("tame", seed, quality=1.0) for seed in range(3)]
    runs += [lab.run("best", seed, quality=3.0) for seed in range(3)]
    compared = compare(runs, metrics=["recall@10"], baseline="tame")
    assert compared.cell("wild").contrast.seed_spread_exceeds
    assert not compared.cell("best").contrast.seed_spread_exceeds


def test_a_metric_of_the_whole_system_is_shown_and_not_tested(runs):
    compared = compare(runs, metrics=["coverage@10", "recall@10"], baseline="poor")
    assert all(row[0].contrast is None and row[0].n_users == 1 for row in compared.cells)
    assert [f.name for f in compared.families] == ["recall@10"]
    items = [
        np.load(run.path / "lists/test/items.npy")[:, :10] for run in runs if run.label == "good"
    ]
    expected = np.mean([len(np.unique(row)) / 120 for row in items])
    assert compared.cell("good").mean == pytest.approx(expected)


def test_a_metric_without_a_direction_has_no_best(runs):
    compared = compare(runs, metrics=["popularity@10"])
    assert not any(row[0].is_best or row[0].contrast for row in compared.cells)
    compared = compare(runs, metrics=["popularity@10"], baseline="poor")
    assert compared.cell("good").contrast.reference == "poor"


def test_users_without_a_value_enter_nothing(lab):
    lists = lab.lists(1.0, 1)
    counts = lab.counts.copy()
    counts[:7] = 0
    keep = np.repeat(np.arange(lab.n_users) >= 7, lab.counts)
    values = {
        **vars_of(lists),
        "relevant_offsets": np.concatenate([[0], np.cumsum(counts)]),
        "relevant_items": lists.relevant_items[keep],
    }
    better = {**values, "hits": lists.hits | (np.arange(lab.depth) == 0)}
    runs = [lab.run("a", lists=type(lists)(**values)), lab.run("b", lists=type(lists)(**better))]
    cell = compare(runs, metrics=["recall@10"], baseline="a").cell("b")
    assert (cell.n_users, cell.n_undefined, cell.contrast.n_users) == (293, 7, 293)
    assert math.isfinite(cell.contrast.p)


def test_one_system_is_only_described(lab):
    compared = compare([lab.run("a", seed) for seed in range(2)])
    assert len(compared.columns) == 4
    assert compared.families == ()
    assert not any(cell.contrast or cell.is_best for cell in compared.cells[0])
    assert compared.cells[0][0].seed_sd > 0


def test_identical_systems_have_p_one(lab):
    lists = lab.lists(1.0, 1)
    compared = compare([lab.run(name, lists=lists) for name in "abc"], metrics=["recall@10"])
    assert [row[0].is_best for row in compared.cells] == [True] * 3
    contrasts = [row[0].contrast for row in compared.cells[1:]]
    assert [(c.difference, c.p, c.adjusted, c.ties, c.seed_spread_exceeds) for c in contrasts] == [
        (0, 1, 1, 300, False)
    ] * 2


def test_validation_lists_are_read_on_request(lab):
    from mmbench.runs import write_lists

    run = lab.run("a")
    write_lists(run.path / "lists" / "valid", lab.lists(3.0, 9))
    cell = compare([run], metrics=["recall@10"], part="valid").cell("a")
    assert cell.mean == pytest.approx(recall(run, 10, "valid").mean())
    assert cell.mean != pytest.approx(recall(run, 10, "test").mean())


def test_each_system_is_tested_against_its_namesake(make_lab):
    new, main = make_lab("new"), make_lab("main")
    ours = [new.run("a", quality=0.3), new.run("b", quality=1.0)]
    theirs = [main.run(label, quality=1.0) for label in ("b", "a", "c")]
    compared = compare(ours, against=theirs, metrics=["recall@10"])
    assert [s.label for s in compared.systems] == ["a (against)", "a", "b (against)", "b"]
    assert compared.unpaired == ("c",)
    assert not any(cell.is_best for row in compared.cells for cell in row)
    contrast = compared.cell("a").contrast
    expected = stats.ttest_rel(recall(ours[0], 10), recall(theirs[1], 10)).pvalue
    assert contrast.reference == "a (against)"
    assert contrast.p == pytest.approx(expected, rel=1e-10)
    assert contrast.adjusted == pytest.approx(2 * expected, rel=1e-10)
    # The same recipe, seed and lists on both sides: no difference, and no refusal either.
    assert compared.cell("b").contrast.p == 1


def test_one_system_on_each_side_is_a_pair_whatever_the_labels(make_lab):
    ours, theirs = make_lab("new").run("candidate"), make_lab("main").run("released")
    compared = compare([ours], against=[theirs], metrics=["recall@10"])
    assert compared.cell("candidate").contrast.reference == "released (against)"


def test_a_system_without_a_namesake_is_refused(make_lab):
    new, main = make_lab("new"), make_lab("main")
    ours = [new.run("a"), new.run("x")]
    with pytest.raises(
        ConfigError, match="no run to compare 'x' against; the other side has 'a', 'b'"
    ):
        compare(ours, against=[main.run("a"), main.run("b")])


@pytest.mark.parametrize(
    ("by", "heads", "size"),
    [
        ("k", ["Recall@5", "Recall@10", "Recall@30"], 9),
        ("user-activity", ["users 3-4", "users 5-6", "users 7-9", "users 10-24"], 12),
        ("item-popularity", ["head", "mid", "tail"], 9),
    ],
)
def test_a_breakdown_is_one_family_per_metric(runs, by, heads, size):
    compared = compare(runs, metrics=["recall@10"], by=by, cutoffs=(5, 10, 30), baseline="bad")
    found = [column.head.replace("Recall@10 ", "") for column in compared.columns]
    assert [head.split()[0] for head in found] == [head.split()[0] for head in heads]
    assert [family.over_users for family in compared.families] == [size]
    raw = [cell.contrast.p for row in compared.cells for cell in row if cell.contrast]
    adjusted = [cell.contrast.adjusted for row in compared.cells for cell in row if cell.contrast]
    assert adjusted == pytest.approx(multipletests(raw, method="holm")[1], rel=1e-10)


def test_groups_of_users_are_tested_on_their_own_users(runs, lab):
    compared = compare(runs, metrics=["recall@10"], by="user-activity", baseline="bad")
    for index, column in enumerate(compared.columns):
        low, _, high = column.group.name.removeprefix("users ").partition("-")
        inside = (lab.activity >= int(low)) & (lab.activity <= int(high or low))
        good, bad = (over_seeds(runs, label, 10)[inside] for label in ("good", "bad"))
        cell = compared.cell("good", index)
        assert cell.mean == pytest.approx(good.mean())
        assert cell.contrast.p == pytest.approx(stats.ttest_rel(good, bad).pvalue, rel=1e-9)
    assert sum(compared.cell("good", i).n_users for i in range(len(compared.columns))) == 300


def test_item_groups_count_only_their_own_items_as_relevant(runs, lab):
    compared = compare(runs, metrics=["recall@10"], by="item-popularity", baseline="bad")
    run = next(run for run in runs if run.label == "good" and run.seed == 0)
    items = np.load(run.path / "lists/test/items.npy")
    for index, column in enumerate(compared.columns):
        members = set(np.flatnonzero(column.group.items))
        values = [
            len(set(row[:10]) & held) / len(held)
            for row, held in zip(items, (set(r) & members for r in lab.relevant), strict=True)
            if held
        ]
        cell = compared.cell("good", index)
        assert cell.seed_means[0] == pytest.approx(np.mean(values))
        assert (cell.n_users, cell.n_undefined) == (len(values), 300 - len(values))


def test_default_metrics_of_an_item_breakdown_leave_the_whole_system_out(lab):
    run = lab.run("a", metrics=("recall@10", "coverage@10"))
    compared = compare([run], by="item-popularity")
    assert {column.metric for column in compared.columns} == {Metric("recall", 10)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "goood"}, "unknown baseline 'goood'. Did you mean \"good\"?"),
        ({"test": "z-test"}, "unknown significance test 'z-test'"),
        ({"correction": "holmes"}, "unknown correction 'holmes'. Did you mean \"holm\"?"),
        ({"metrics": ["recal@10"]}, "unknown metric 'recal'. Did you mean \"recall\"?"),
    ],
)
def test_unknown_names_are_refused(lab, arguments, message):
    with pytest.raises(UnknownNameError) as caught:
        compare([lab.run("good"), lab.run("bad")], **arguments)
    assert message in str(caught.value)


def test_twenty_systems(make_lab):
    lab = make_lab(n_users=60)
    runs = [lab.run(f"model-{number:02}", quality=number / 10) for number in range(20)]
    compared = compare(runs, metrics=["recall@10"])
    assert len(compared.systems) == 20
    assert compared.families[0].over_users == 190
