"""The page as text: well-formed, self-contained, escaped, and with the numbers of the table."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import html5lib
import pytest

from mmbench.report.comparison import compare
from mmbench.report.formats import as_dict
from mmbench.report.html.content import Section, Text, figures_of, tables_of
from mmbench.report.html.evidence import Request, gather
from mmbench.report.html.page import SECTIONS, head_of, make_sections, render

HOSTILE = '<b>"x"&\'</b><script>alert(1)</script>'
LABELS = ("plain", HOSTILE, "_under $a$ {{ 7*7 }}")
XLINK = "{http://www.w3.org/1999/xlink}"


def history(path: Path, best: float, epochs: int = 6) -> None:
    lines = [
        {"epoch": e, "train_s": 0.5, "evaluate_s": 0.1, "losses": {"bpr": 1 / e}}
        | ({"valid": {"recall@10": best * e / epochs}} if e % 2 == 0 else {})
        for e in range(1, epochs + 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "history.jsonl").write_text(text, encoding="utf-8")


def costs(seconds: float, parameters: int) -> dict[str, object]:
    return {
        "training": {
            "epochs": 6,
            "best_epoch": 4,
            "select_by": "recall@10",
            "seconds": seconds + 1,
            "train_seconds": seconds,
            "seconds_per_epoch": seconds / 6,
            "peak_memory_mib": 100 * seconds,
        },
        "model": {"name": "m", "integration": "none", "modalities": [], "parameters": parameters},
        "environment": {"device": "cpu", "threads": 1, "torch": "2.0", "numpy": "2.0"},
    }


@pytest.fixture(scope="module")
def runs(laboratory, tmp_path_factory):
    lab = laboratory(tmp_path_factory.mktemp("page"), n_users=120, n_items=60, depth=25)
    made = []
    for place, label in enumerate(LABELS):
        for seed in range(3 if place < 2 else 1):
            run = lab.run(
                label,
                seed,
                quality=2.0 - 0.8 * place,
                system=f"hash-{place}",
                folder=f"run-{place}-{seed}",
                metrics=("recall@10", "ndcg@10", "recall@20"),
                **costs(3.0 * 10**place, 100 * place),
            )
            history(run.path, 0.3 - 0.1 * place)
            made.append(run)
    return made


@pytest.fixture(scope="module")
def evidence(runs, tmp_path_factory):
    return gather(Request(runs, data_dir=tmp_path_factory.mktemp("none"), command="mmbench <x>"))


@pytest.fixture(scope="module")
def sections(evidence):
    return make_sections(evidence)


@pytest.fixture(scope="module")
def page(evidence, sections):
    return render(head_of(evidence), sections)


@pytest.fixture(scope="module")
def parsed(page):
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    document = parser.parse(page)
    assert parser.errors == []
    return document


def table(document, name):
    """Rows of a table as {head: (text, value)}, the first column under "System"."""
    found = next(t for t in document.iter("table") if t.get("id") == name)
    heads = found.findall("thead/tr")
    groups = [
        (cell.text or "").strip() for cell in heads[0] for _ in range(int(cell.get("colspan", "1")))
    ]
    names = [" ".join("".join(cell.itertext()).split()) for cell in heads[-1]]
    if len(heads) == 2:
        names = [f"{group} {name}".strip() for group, name in zip(groups, names, strict=True)]
    return [
        {
            name: ("".join(cell.itertext()), cell.get("data-value"))
            for name, cell in zip(names, row, strict=True)
        }
        for row in found.findall("tbody/tr")
    ]


def test_has_every_section_in_order(parsed):
    ids = [section.get("id") for section in parsed.iter("section")]
    names = "leaderboard significance effects gain-over-k sparsity convergence cost dataset"
    assert ids == [f"{name}-section" for name in [*names.split(), "provenance"]]
    links = [link.get("href") for nav in parsed.iter("nav") for link in nav.iter("a")]
    assert links == [f"#{each}" for each in ids]


def test_refers_to_nothing_outside(page, parsed):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    for element in parsed.iter():
        for name in ("src", "href", f"{XLINK}href", "srcset", "action", "data"):
            value = element.get(name)
            assert value is None or value == "data:," or value.startswith("#"), (element, value)
    policies = [m.get("content") for m in parsed.iter("meta") if m.get("http-equiv")]
    assert policies == [policy for policy in policies if "default-src 'none'" in policy] != []


def test_ids_are_unique_and_every_reference_has_its_target(page, parsed):
    ids = [element.get("id") for element in parsed.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 30
    wanted = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    wanted += [
        each
        for element in parsed.iter()
        for name in ("aria-labelledby", "aria-describedby")
        for each in (element.get(name) or "").split()
    ]
    assert set(wanted) <= set(ids)


def test_labels_are_text_wherever_they_stand(page, parsed):
    assert [s.text for s in parsed.iter("script") if "alert(1)" in (s.text or "")] == []
    assert len(list(parsed.iter("script"))) == 1
    assert list(parsed.iter("b")) == []
    assert HOSTILE not in page
    heads = {"".join(th.itertext()) for th in parsed.iter("th")}
    assert set(LABELS) <= heads
    drawn = {" ".join("".join(text.itertext()).split()) for text in parsed.iter("text")}
    drawn |= {"".join(text.itertext()) for text in parsed.iter()}
    assert any("_under $a$ {{ 7*7 }}" in text for text in drawn)


def test_numbers_are_those_of_the_table(runs, parsed):
    records = as_dict(compare(runs))["cells"]
    shown = {row["System"][0]: row for row in table(parsed, "leaderboard")}
    heads = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10", "recall@20": "Recall@20"}
    seen = 0
    for record in records:
        row, head = shown[record["label"]], heads[record["metric"]]
        assert float(row[f"{head} mean"][1]) == record["mean"]
        for column, field in (("diff", "relative"), ("adj. p", "adjusted"), ("seed sd", "seed_sd")):
            value = row[f"{head} {column}"][1]
            assert (float(value) if value else None) == record[field]
        seen += 1
    assert seen == len(LABELS) * 3


def test_breakdowns_are_those_of_by(runs, evidence, parsed):
    best = evidence.main.systems[0].label
    for by, name, wanted in (
        ("k", "gain-over-k", ["recall@10", "ndcg@10"]),
        ("user-activity", "gain-by-user-activity", ["recall@10", "ndcg@10"]),
        ("item-popularity", "gain-by-item-popularity", ["recall@10", "ndcg@10"]),
    ):
        cutoffs = (1, 2, 3, 5, 7, 10, 15, 20, 25)
        c = compare(runs, metrics=wanted, baseline=best, by=by, cutoffs=cutoffs)
        tests = [r for r in as_dict(c)["cells"] if r["difference"] is not None]
        shown = table(parsed, name)
        for field, head in (("difference", "diff"), ("low", "low"), ("adjusted", "adj. p")):
            assert sorted(float(row[head][1]) for row in shown) == pytest.approx(
                sorted(record[field] for record in tests), abs=0
            )


def test_matrix_holds_every_pair_corrected_together(runs, evidence, parsed):
    """Holm over the three pairs, from raw p-values that other comparisons made."""
    labels = evidence.labels
    raw = {}
    for label in labels:
        c = compare(runs, metrics=["ndcg@10"], baseline=label, correction="none")
        for other in labels:
            if contrast := c.cell(other).contrast:
                raw[other, label] = contrast.p
    ordered = sorted({frozenset(pair): p for pair, p in raw.items()}.items(), key=lambda x: x[1])
    holm, running = {}, 0.0
    for place, (pair, p) in enumerate(ordered):
        running = max(running, min(1.0, p * (len(ordered) - place)))
        holm[pair] = running
    shown = {row["System"][0]: row for row in table(parsed, "significance-ndcg-10")}
    for row_label in labels:
        for column_label in labels:
            value = shown[row_label][column_label][1]
            if row_label == column_label:
                assert value == ""
            else:
                expected = holm[frozenset((row_label, column_label))]
                assert float(value) == pytest.approx(expected, rel=1e-9)


def test_figures_are_described_and_labelled(sections, parsed):
    figures = [figure for section in sections for figure in figures_of(section.parts)]
    drawn = [svg for svg in parsed.iter() if str(svg.tag).endswith("svg")]
    assert len(drawn) == len(figures) >= 12
    for svg in drawn:
        assert svg.get("role") == "img"
        assert svg.get("viewBox")
    assert len({figure.name for figure in figures}) == len(figures)
    assert all(len(figure.description) > 20 for figure in figures)


def test_tables_have_heads_with_scopes(sections, parsed):
    tables = [t for section in sections for t in tables_of(section.parts)]
    assert len({t.name for t in tables}) == len(tables) >= 8
    for each in parsed.iter("table"):
        assert each.find("caption") is not None
        scopes = {th.get("scope") for th in each.iter("th")}
        assert {"col", "row"} <= scopes <= {"col", "row", "colgroup"}
        for row in each.findall("tbody/tr"):
            assert row[0].tag == "th"


def test_both_themes_are_there(page):
    assert "@media (prefers-color-scheme: dark)" in page
    assert ':root[data-theme="dark"]' in page
    assert 'name="viewport" content="width=device-width' in page
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--series-0)" in svgs
    assert set(re.findall(r"#[0-9a-f]{6}\b", svgs)) == set()  # every colour follows the theme


def test_command_and_recipes_are_kept(parsed):
    listings = ["".join(pre.itertext()) for pre in parsed.iter("pre")]
    assert "mmbench <x>" in listings
    assert sum("evaluation:" in listing for listing in listings) == len(LABELS)


def test_one_system_has_no_comparisons(runs):
    evidence = gather(Request(runs[:3]))
    sections = make_sections(evidence)
    names = [section.name for section in sections]
    assert names == ["leaderboard", "convergence", "cost", "dataset", "provenance"]
    assert "Comparisons need a second one" in render(head_of(evidence), sections)


def test_pairs_of_two_sides(runs, laboratory, tmp_path):
    other = laboratory(tmp_path / "old", n_users=120, n_items=60, depth=25)
    old = [other.run(label, quality=0.5, folder=f"{i}") for i, label in enumerate(LABELS)]
    evidence = gather(Request(runs, against=old))
    sections = {section.name: section for section in make_sections(evidence)}
    assert "significance" not in sections
    assert {"effects", "gain-over-k", "sparsity"} <= set(sections)
    assert evidence.others == list(LABELS)
    assert "the other side" in sections["gain-over-k"].parts[1].figures[0].title
    assert evidence.no_cost
    assert evidence.no_cost in render(head_of(evidence), list(sections.values()))


def test_named_baseline_keeps_its_own_family(runs):
    evidence = gather(Request(runs, baseline="plain", metrics=("recall@10",)))
    assert evidence.reference == "plain"
    assert evidence.main.families[0].over_users == 2
    assert evidence.pairs is not None
    assert evidence.pairs.families[0].over_users == 3


def test_metrics_of_the_whole_system_are_shown_untested(runs):
    evidence = gather(Request(runs, metrics=("coverage@10",)))
    sections = make_sections(evidence)
    assert [s.name for s in sections][:2] == ["leaderboard", "convergence"]
    assert "Coverage@10" in render(head_of(evidence), sections)


def test_a_study_adds_its_section(evidence):
    def study(given):
        return Section("cold-start", "Cold start", (Text((f"<i> {given.main.dataset}",)),))

    sections = make_sections(evidence, [SECTIONS[0], study, lambda given: None])
    assert [section.name for section in sections] == ["leaderboard", "cold-start"]
    assert "&lt;i&gt; toy" in render(head_of(evidence), sections)


def test_values_keep_full_precision(sections):
    board = tables_of(sections[0].parts)[0]
    for row in board.rows:
        for cell in row:
            if isinstance(cell.value, float) and math.isfinite(cell.value):
                assert float(cell.sort_key) == cell.value
