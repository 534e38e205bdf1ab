from __future__ import annotations

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console
from statsmodels.stats.power import TTestPower

from mmbench.errors import UnknownNameError
from mmbench.report.comparison import compare
from mmbench.report.leaderboard import leaderboard, render
from mmbench.report.numbers import fixed, mean_decimals, p_value, percent, signed

LONG = "model-of-words with several modalities (model.dim=32, training.learning_rate=0.001)"


def printed(comparison, width=80, *, details=False):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(leaderboard(comparison, details=details))
    return captured.get()


@pytest.fixture
def runs(lab):
    qualities = {"good": 1.4, "fair": 1.05, "poor": 1.0, "bad": 0.2}
    return [lab.run(n, seed, quality=q) for n, q in qualities.items() for seed in range(3)]


@pytest.fixture
def comparison(runs):
    return compare(runs, baseline="poor")


def numbers_of(comparison):
    """Every number that the short table must show in full."""
    for row in comparison.cells:
        for cell in row:
            decimals = mean_decimals([cell.mean])
            yield fixed(cell.mean, decimals)
            if cell.contrast:
                yield from (percent(cell.contrast.relative), p_value(cell.contrast.adjusted))
                if cell.contrast.system:
                    yield p_value(cell.contrast.system.adjusted)


def rows_of(text, label):
    return " ".join(line for line in text.splitlines() if line.startswith(label))


@pytest.mark.parametrize(
    ("width", "details"),
    [*((width, False) for width in (60, 80, 100, 140, 200)), (80, True), (120, True), (200, True)],
)
def test_nothing_is_wider_than_the_terminal_nor_cut(comparison, width, details):
    text = printed(comparison, width, details=details)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in numbers_of(comparison):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d%])", text), number


@pytest.mark.parametrize("by", ["user-activity", "item-popularity", "k"])
def test_breakdowns_fit_eighty_columns(runs, by):
    compared = compare(runs, metrics=["recall@10", "ndcg@10"], by=by)
    text = printed(compared)
    assert max(map(len, text.splitlines())) <= 80
    for number in numbers_of(compared):
        assert number in text


def test_long_labels_are_wrapped_and_numbers_are_not(lab):
    runs = [lab.run(label, seed) for label in (LONG, "b") for seed in range(3)]
    text = printed(compare(runs))
    assert max(map(len, text.splitlines())) <= 80
    for number in numbers_of(compare(runs)):
        assert number in text
    # Wrapped rather than that every metric needs a table of its own.
    assert len([line for line in text.splitlines() if line.startswith("System")]) == 2
    words = re.sub(r"\s+", " ", text)
    assert all(word in words for word in ("model-of-words", "modalities"))


def test_many_metrics_become_several_tables_of_full_rows(lab):
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg", "hr", "map") for k in (5, 10, 20)]
    compared = compare([lab.run("a"), lab.run("b")], metrics=metrics)
    text = printed(compared)
    heads = [line for line in text.splitlines() if line.startswith("System")]
    assert len(heads) >= 4
    for number in numbers_of(compared):
        assert number in text
    assert (
        len([line for line in printed(compared, 400).splitlines() if line.startswith("System")])
        == 1
    )


def test_twenty_systems_are_twenty_rows(make_lab):
    lab = make_lab(n_users=60)
    compared = compare([lab.run(f"model-{n:02}", quality=n / 10) for n in range(20)])
    text = printed(compared)
    assert len(re.findall(r"^model-\d\d ", text, flags=re.MULTILINE)) == 20 * 2
    assert "190 comparisons per metric: every pair of the 20 systems" in text.replace("\n", "")


def test_one_system_shows_its_means_alone(lab):
    text = printed(compare([lab.run("a")], metrics=["recall@10"]))
    assert "adj. p" not in text
    assert "ref." not in text
    assert text.splitlines()[-1] == "Seeds: 1."


def test_the_caption_declares_what_was_done(comparison):
    caption = re.sub(r"\s+", " ", printed(comparison))
    for sentence in (
        "toy | test | 300 users | split random | protocol standard",
        "two-sided paired t-test over users, each user's value averaged over the seeds",
        "Holm-Bonferroni over 3 comparisons per metric: each system against poor",
        "* adj. p < 0.05",
        "sys. p: users and seeds both random (from 3 seeds a side)",
        "Seeds: 3 each.",
    ):
        assert sentence in caption


def test_the_caption_says_how_small_a_difference_could_have_been_found(lab):
    runs = [lab.run("fair", quality=1.05), lab.run("poor"), lab.run("good", quality=3.0)]
    compared = compare(runs, metrics=["recall@10"], baseline="poor")
    assert compared.cell("good").contrast.adjusted < 0.05 < compared.cell("fair").contrast.adjusted
    fair, poor = (runs[i].values(compared.columns[0].metric) for i in (0, 1))
    # statsmodels.stats.power.TTestPower, statsmodels 0.14: level 0.05 / 2 comparisons
    effect = TTestPower().solve_power(nobs=300, alpha=0.025, power=0.8)
    least = effect * np.std(fair - poor, ddof=1)
    said = re.sub(r"\s+", " ", printed(compared))
    assert (
        f"in Recall@10 a true difference of {least:.4f} ({100 * least / poor.mean():.1f}%) would "
        "be found with probability 0.8 (paired t-test, level 0.05 / 2)."
    ) in said
    both = compare(runs, metrics=["recall@10"], baseline="poor", correction="none")
    assert "level 0.05)." in re.sub(r"\s+", " ", printed(both))
    clear = printed(compare(runs[1:], metrics=["recall@10"]))
    assert "true difference" not in clear


def test_the_caption_says_when_numbers_of_seeds_differ(runs):
    chosen = [run for run in runs if run.label != "fair" or run.seed == 0]
    caption = re.sub(r"\s+", " ", printed(compare(chosen)))
    assert "Seeds: 3 of good, poor, bad; 1 of fair." in caption


def test_the_caption_of_the_whole_table_and_of_no_correction(runs):
    whole = re.sub(r"\s+", " ", printed(compare(runs, family="table", baseline="poor")))
    assert "over all 12 comparisons of this table: each system against poor" in whole
    none = re.sub(r"\s+", " ", printed(compare(runs, correction="none")))
    assert "not corrected for multiple testing. * p < 0.05" in none
    assert "adj. p" not in none


def test_significant_means_are_marked_and_the_best_is_bold(comparison):
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(leaderboard(comparison))
    best = fixed(comparison.cell("good").mean, 4)
    assert f"\x1b[1m{best}" in captured.get()
    assert f"\x1b[1m{fixed(comparison.cell('fair').mean, 4)}" not in captured.get()
    text = printed(comparison)
    for row, system in zip(comparison.cells, comparison.systems, strict=True):
        for cell in row:
            marked = f"{fixed(cell.mean, 4)}*" in rows_of(text, system.label)
            assert marked == (cell.contrast is not None and cell.contrast.adjusted < 0.05)


def test_spread_over_seeds_is_marked_and_explained(lab):
    runs = [lab.run("wild", seed, quality=q) for seed, q in enumerate((0.2, 1.0, 1.8))]
    runs += [lab.run("tame", seed, quality=1.0) for seed in range(3)]
    text = printed(compare(runs, metrics=["recall@10"], baseline="tame"))
    assert "~" in rows_of(text, "wild")
    assert "~ the standard deviation over seeds is larger than the difference." in text


def test_details_show_every_figure(comparison):
    text = printed(comparison, details=True)
    contrast, cell = comparison.cell("good").contrast, comparison.cell("good")
    for figure in (
        fixed(cell.seed_sd, 5),
        signed(contrast.difference, 4),
        percent(contrast.relative),
        f"[{signed(contrast.low, 4)}, {signed(contrast.high, 4)}]",
        signed(contrast.d_z, 3),
        p_value(contrast.p),
        p_value(contrast.adjusted),
        p_value(contrast.system.p),
        p_value(contrast.system.adjusted),
        f"{contrast.wins}/{contrast.ties}/{contrast.losses}",
    ):
        assert figure in rows_of(text, "good")


def test_json_holds_everything_at_full_precision(comparison):
    data = json.loads(render(comparison, "json"))
    assert (data["dataset"], data["part"], data["n_users"]) == ("toy", "test", 300)
    assert data["families"][0] == {"name": "recall@10", "over_users": 3, "over_systems": 3}
    assert [system["seeds"] for system in data["systems"]] == [[0, 1, 2]] * 4
    records = {(record["label"], record["metric"]): record for record in data["cells"]}
    assert len(records) == 16
    cell = comparison.cell("good", 1)
    record = records["good", "recall@20"]
    assert record["mean"] == cell.mean
    assert record["seed_means"] == list(cell.seed_means)
    assert record["adjusted"] == cell.contrast.adjusted
    assert record["system_adjusted"] == cell.contrast.system.adjusted
    assert record["wins"] == cell.contrast.wins
    assert records["poor", "recall@20"]["p"] is None


def test_json_has_no_nan(lab):
    # Two equal rows for one user: no interval, no effect.
    lists = lab.lists(1.0, 1).restrict(lab.activity == lab.activity.max())
    one = lists.restrict(lists.users == lists.users[0])
    compared = compare([lab.run("a", lists=one), lab.run("b", lists=one)], metrics=["recall@10"])
    assert math.isnan(compared.cell("b").contrast.p)
    record = json.loads(render(compared, "json"))["cells"][1]
    assert (record["p"], record["low"], record["d_z"]) == (None, None, None)
    assert rows_of(printed(compared), "b").split()[-1] == "-"


def test_csv_reads_back(comparison):
    rows = list(csv.DictReader(io.StringIO(render(comparison, "csv"))))
    assert len(rows) == 16
    row = next(r for r in rows if (r["label"], r["metric"]) == ("good", "ndcg@10"))
    cell = comparison.cell("good", 2)
    assert float(row["mean"]) == cell.mean
    assert [float(mean) for mean in row["seed_means"].split()] == list(cell.seed_means)
    assert float(row["p"]) == cell.contrast.p
    assert float(row["system_p"]) == cell.contrast.system.p
    assert row["is_best"] == "True"


def test_github_is_one_table_with_bold_and_marks(comparison):
    lines = render(comparison, "github").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1
    assert f"**{fixed(comparison.cell('good').mean, 4)}**\\*" in table[2]
    assert lines[0] == "**toy | test | 300 users | split random | protocol standard**"


def test_a_bar_in_a_label_does_not_break_the_github_table(lab):
    table = render(compare([lab.run("a|b"), lab.run("c")], metrics=["recall@10"]), "github")
    assert r"| a\|b" in table


def test_latex_is_booktabs_and_escaped(lab):
    latex = render(compare([lab.run("a_b"), lab.run("c")], metrics=["recall@10"]), "latex")
    table = [line for line in latex.splitlines() if not line.startswith("%")]
    assert table[0].startswith(r"\begin{tabular}")
    assert r"\toprule" in latex
    assert r"\textbf{" in latex
    assert r"a\_b" in latex
    assert all(line.count("&") == 3 for line in table if line.endswith(r"\\"))
    assert not re.search(r"(?<!\\)%", "".join(table))


def test_plain_table_is_that_of_the_terminal(comparison):
    assert render(comparison, "table") == printed(comparison)


def test_an_unknown_format_is_refused(comparison):
    with pytest.raises(UnknownNameError, match=r"unknown format 'jsn'\. Did you mean \"json\"\?"):
        render(comparison, "jsn")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (p_value(0.0009999), "<0.001"),
        (p_value(0.001), "0.001"),
        (p_value(1.0), "1.000"),
        (p_value(float("nan")), "-"),
        (percent(-0.123), "-12.3%"),
        (percent(12.3), "+1230%"),
        (percent(-0.0001), "0.0%"),
        (percent(float("nan")), "-"),
        (signed(-0.00001, 4), "0.0000"),
        (signed(float("inf"), 3), "-"),
        (fixed(None, 4), "-"),
    ],
)
def test_numbers(text, expected):
    assert text == expected
