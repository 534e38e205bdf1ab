"""Runs laid out as the tables of arXiv 2310.20343."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import parse_metric
from mmbench.report.layout_text import Shown, render_layout
from mmbench.report.layouts import lay_out


def encoded(visual, textual, paradigm="pt"):
    given = {"visual": visual, "textual": textual}
    return [
        {"modality": modality, "encoder": name, "paradigm": paradigm}
        for modality, name in given.items()
        if name
    ]


@pytest.fixture
def add(lab):
    """Writes a run of a model, an encoder and a paradigm."""

    def write(name, visual, textual, paradigm="pt", quality=1.0, seed=0, trial="", **changes):
        system = f"{name}-{visual}-{textual}-{paradigm}{trial}-{changes.get('dataset', '')}"
        about = {"encoding": encoded(visual, textual, paradigm)} if visual or textual else {}
        return lab.run(name, seed, quality=quality, system=system, **about, **changes)

    return write


CLIP, VLMO = "clip-vit-b16", "vlmo-base-plus"


@pytest.fixture
def grid(add):
    """Two models, three encoders, three paradigms; ETE is best for CLIP, FT for VLMo."""
    runs = []
    for model, shift in (("lattice", 0.2), ("vbpr", 0.0)):
        runs.append(add(model, "vgg16", "minilm-l6", quality=0.6 + shift))
        for encoder, qualities in ((CLIP, (0.9, 1.2, 2.0)), (VLMO, (1.0, 2.1, 0.4))):
            for paradigm, quality in zip(("pt", "ft", "ete"), qualities, strict=True):
                runs.append(add(model, encoder, encoder, paradigm, quality + shift))
    return runs


def test_paradigms_are_rows_within_recommender_and_encoder(grid):
    found = lay_out(grid, "paradigms")
    assert [row.label for row in found.rows] == [
        f"{model} {encoder}"
        for model in ("vbpr", "lattice")
        for encoder in (
            "vgg16+minilm-l6 PT",
            *(f"{CLIP} {paradigm}" for paradigm in ("PT", "FT", "ETE")),
            *(f"{VLMO} {paradigm}" for paradigm in ("PT", "FT", "ETE")),
        )
    ]
    assert [row.group for row in found.rows] == [0, 1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5]
    sheet = found.sheets[0]
    best = [row.label for r, row in enumerate(found.rows) if sheet.cell(r, 0).is_best]
    assert best == [
        f"{model} {tail}" for model in ("vbpr", "lattice") for tail in (f"{CLIP} ETE", f"{VLMO} FT")
    ]


def test_the_best_of_a_group_is_tested_in_a_family_of_all_pairs_of_all_groups(grid):
    found = lay_out(grid, "paradigms", metrics=["recall@20"])
    comparison = found.sheets[0].comparison
    # Four groups of three systems have three pairs each.
    assert [(f.name, f.over_users) for f in comparison.families] == [("recall@20", 12)]
    metric = parse_metric("recall@20")
    values = {s.label: s.runs[0].values(metric) for s in comparison.systems}
    raw = {}
    for row in found.rows:
        group = [r.label for r in found.rows if r.group == row.group and r.label != row.label]
        for other in group:
            raw[frozenset((row.label, other))] = ttest_rel(values[row.label], values[other]).pvalue
    ordered = sorted(raw, key=raw.get)
    assert len(ordered) == 12
    adjusted, largest = {}, 0.0
    for place, pair in enumerate(ordered):  # Holm's step-down by hand
        largest = max(largest, min(1.0, (12 - place) * raw[pair]))
        adjusted[pair] = largest
    for r, row in enumerate(found.rows):
        cell = found.sheets[0].cell(r, 0)
        if cell.contrast is not None:
            pair = frozenset((row.label, cell.contrast.reference))
            assert cell.contrast.p == pytest.approx(raw[pair], rel=1e-9)
            assert cell.contrast.adjusted == pytest.approx(adjusted[pair], rel=1e-9)


def test_encoders_are_tested_against_those_of_one_modality_each(grid):
    pretrained = [run for run in grid if run.manifest["encoding"][0]["paradigm"] == "pt"]
    found = lay_out(pretrained, "encoders", metrics=["ndcg@10"])
    assert [row.label for row in found.rows][:3] == [
        "vbpr vgg16+minilm-l6",
        f"vbpr {CLIP}",
        f"vbpr {VLMO}",
    ]
    assert found.reference == "vgg16+minilm-l6 in its group"
    cells = [found.sheets[0].cell(r, 0) for r in range(6)]
    assert [cell.is_reference for cell in cells] == [True, False, False] * 2
    assert cells[4].contrast.reference == "lattice vgg16+minilm-l6"
    assert found.sheets[0].comparison.families[0].over_users == 4
    other = lay_out(pretrained, "encoders", metrics=["ndcg@10"], baseline=CLIP)
    assert other.rows[0].encoder == CLIP
    assert other.sheets[0].cell(0, 0).is_reference


def test_a_recommender_of_pictures_alone_is_tested_against_the_encoder_of_pictures(add):
    runs = [add("mmgcl", "vgg19", "minilm-l6"), add("mmgcl", CLIP, CLIP, quality=2.0)]
    runs += [add("vbpr", CLIP, None, quality=2.0), add("vbpr", "vgg19", None)]
    found = lay_out(runs, "encoders", metrics=["ndcg@20"])
    labels = ["vbpr vgg19", f"vbpr {CLIP}", "mmgcl vgg19+minilm-l6", f"mmgcl {CLIP}"]
    assert [row.label for row in found.rows] == labels
    cells = [found.sheets[0].cell(r, 0) for r in range(4)]
    assert [cell.is_reference for cell in cells] == [True, False, True, False]
    assert cells[1].contrast.reference == "vbpr vgg19"


def test_modalities_alone_are_tested_against_all_of_them(add):
    runs = [
        add("lattice", CLIP, CLIP, "ete", 1.8),
        add("lattice", CLIP, None, "ete", 1.0),
        add("lattice", None, CLIP, "ete", 1.2),
        add("lattice", None, None, quality=0.3),
        add("lightgcn", None, None, quality=0.2),
    ]
    found = lay_out(runs, "modalities")
    assert [row.label for row in found.rows] == [
        f"lattice {CLIP} ETE ({letters})" for letters in ("V&T", "V", "T", "IDs")
    ]
    assert [str(c.metric) for c in found.sheets[0].comparison.columns] == ["ndcg@20"]
    assert found.sheets[0].cell(0, 0).is_reference
    assert found.sheets[0].comparison.families[0].over_users == 3
    assert found.left_out == (("lightgcn", "its model has no run with an encoder"),)


def test_of_the_trials_in_a_cell_the_best_on_validation_is_shown(add, lab):
    worse = add("vbpr", CLIP, CLIP, quality=0.5, trial="a")
    # Its test lists are the worst there are: only validation may choose.
    good_on_valid = add("vbpr", CLIP, CLIP, quality=3.0, trial="b")
    bad = lab.lists(-3.0, 5)
    for name in ("items", "hits"):
        array = getattr(bad, name)
        kind = bool if name == "hits" else np.int32
        np.save(good_on_valid.path / "lists" / "test" / f"{name}.npy", array.astype(kind))
    found = lay_out([worse, good_on_valid], "paradigms")
    sheet = found.sheets[0]
    assert sheet.trials == (2,)
    assert sheet.comparison.systems[0].runs[0].path == good_on_valid.path
    assert "Best on validation of several trials: vbpr clip-vit-b16 PT (2)." in Shown(found).notes()


def test_datasets_stand_side_by_side_and_missing_runs_are_said(add):
    other = {"dataset": {"name": "other", "fingerprint": "e" * 64}}
    runs = [
        add("vbpr", CLIP, CLIP, "pt", 1.0),
        add("vbpr", CLIP, CLIP, "ft", 2.0),
        add("vbpr", CLIP, CLIP, "pt", 1.0, **other),
    ]
    found = lay_out(runs, "paradigms", metrics=["recall@10"])
    assert [sheet.comparison.dataset for sheet in found.sheets] == ["toy", "other"]
    assert found.sheets[1].cell(1, 0) is None
    text = render_layout(Shown(found), "github")
    assert "| Method | toy Recall@10 | other Recall@10 |" in text
    assert text.splitlines()[-1].startswith("- ") or "- \\- no run." in text
    latex = render_layout(Shown(found), "latex")
    assert "\\multicolumn{1}{c}{toy} & \\multicolumn{1}{c}{other}" in latex
    assert latex.count("\\\\") == 4


def test_a_layout_without_two_rows_of_a_model_says_why_nothing_is_tested(add):
    alone = [add("vbpr", CLIP, CLIP), add("lattice", CLIP, CLIP)]
    table = " ".join(render_layout(Shown(lay_out(alone, "encoders")), "table").split())
    assert "No test: rows of one model are compared, and each model has one here; train" in table
    others = [add("vbpr", VLMO, VLMO), add("mmgcn", "vgg16", "minilm-l6")]
    two = [alone[0], *others]
    notes = " ".join(Shown(lay_out(two, "encoders")).notes())
    assert "No test: no group holds both the reference (" in notes
    system_wide = lay_out(two, "encoders", metrics=["coverage@10"])
    assert "No test: these metrics are no means over users." in Shown(system_wide).notes()
    tested = Shown(lay_out(two[:2], "encoders")).notes()
    assert not any(line.startswith("No test") for line in tested)


@pytest.mark.parametrize("kind", ["encoders", "paradigms"])
def test_every_form_holds_the_same_numbers(grid, kind):
    found = Shown(lay_out(grid, kind))
    layout = found.layout
    table = render_layout(found, "table")
    assert max(map(len, table.splitlines())) <= 80
    document = json.loads(render_layout(found, "json"))
    lines = list(csv.DictReader(io.StringIO(render_layout(found, "csv"))))
    assert len(document["cells"]) == len(lines) == 4 * len(layout.rows)
    for record, line in zip(document["cells"], lines, strict=True):
        assert float(line["mean"]) == record["mean"]
        assert f"{record['mean']:.4f}" in table
        assert (line["model"], line["paradigm"]) == (record["model"], record["paradigm"])
    marks = sum(record["is_significant"] for record in document["cells"])
    assert marks
    for form, mark in (("github", "\\* |"), ("latex", "$^{*}$")):
        assert render_layout(found, form).count(mark) == marks
    # One star is the sentence that says what it means.
    assert table.count("*") == marks + 1
    assert document["table"] == {"encoders": 3, "paradigms": 4}[kind]


def test_encoders_that_learn_are_left_out_of_the_layout_of_encoders(grid):
    found = lay_out(grid, "encoders")
    assert {row.paradigm for row in found.rows} == {"pt"}
    assert len(found.left_out) == 8
    notes = Shown(found).notes()
    assert any("see --layout paradigms): lattice clip-vit-b16 FT" in note for note in notes)
    assert any(note.endswith("and 4 more.") for note in notes)


def test_single_modalities_are_rows_of_their_own_among_paradigms(add):
    runs = [
        add("mmgcl", CLIP, CLIP),
        add("mmgcl", CLIP, CLIP, "ft"),
        add("mmgcl", None, CLIP),
        add("vbpr", CLIP, None),
    ]
    labels = [row.label for row in lay_out(runs, "paradigms").rows]
    assert labels == [
        f"vbpr {CLIP} PT",
        f"mmgcl {CLIP} PT",
        f"mmgcl {CLIP} FT",
        f"mmgcl {CLIP} PT (T)",
    ]
    with pytest.raises(ConfigError, match="each stands alone"):
        lay_out([runs[0], runs[3]], "modalities")


def test_groups_are_parted_by_rules(grid):
    found = lay_out(grid, "paradigms", metrics=["recall@10"])
    latex = render_layout(Shown(found), "latex")
    assert latex.count("\\midrule") == 1 + 5
    assert "vbpr vlmo-base-plus ETE & " in latex


def test_what_cannot_be_laid_out(add, grid):
    with pytest.raises(ConfigError, match="no complete run to lay out"):
        lay_out([], "encoders")
    ids = add("bpr-mf", None, None)
    with pytest.raises(ConfigError, match="bpr-mf: it learns from IDs alone"):
        lay_out([ids], "encoders")
    with pytest.raises(UnknownNameError, match="PTT"):
        lay_out(grid, "paradigms", baseline="PTT")
    with pytest.raises(UnknownNameError, match="correction"):
        lay_out(grid, "paradigms", correction="hollm")
    runs = [*grid, add("vbpr", "vit-b16", "bert")]
    with pytest.raises(ConfigError, match="name the one that the others are tested against"):
        lay_out(runs, "encoders")
    spoilt = add(
        "vbpr", CLIP, CLIP, trial="c", recipe={"corruptions": {"visual": {"kind": "noise"}}}
    )
    assert "spoilt on purpose" in lay_out([*grid, spoilt], "paradigms").left_out[0][1]


def test_trials_chosen_by_different_metrics_are_refused(add):
    runs = [
        add("vbpr", CLIP, CLIP, trial=by, recipe={"training": {"select_by": by}})
        for by in ("recall@20", "ndcg@20")
    ]
    with pytest.raises(ConfigError, match="selected by ndcg@20, recall@20"):
        lay_out(runs, "paradigms")


BABY = {"name": "amazon-baby", "fingerprint": "b" * 64, "users": 19445, "items": 7037}
SPLIT = {"name": "random-per-user", "fingerprint": "5" * 64}
# Read off the paper's Tables 3, 4 and 5, not from the file that is tested.
PRINTED = {
    ("encoders", "vbpr vgg19", "recall@20"): 0.0740,
    ("encoders", "lattice vgg19+minilm-l6", "ndcg@20"): 0.0374,
    ("encoders", "lattice vlmo-base-plus", "recall@10"): 0.0502,
    ("paradigms", "vbpr clip-vit-b16 PT", "ndcg@10"): 0.0265,
    ("paradigms", "lattice clip-vit-b16 FT", "recall@20"): 0.0812,
    ("paradigms", "lattice clip-vit-b16 ETE", "recall@20"): 0.0892,
    ("paradigms", "lattice vlmo-base-plus ETE", "ndcg@20"): 0.0393,
    ("modalities", "lattice clip-vit-b16 ETE (V&T)", "ndcg@20"): 0.0393,
    ("modalities", "lattice clip-vit-b16 ETE (V)", "ndcg@20"): 0.0371,
    ("modalities", "lattice clip-vit-b16 ETE (T)", "ndcg@20"): 0.0379,
}


@pytest.fixture
def on_baby(add):
    """Runs on data of the paper's size, with every row that `PRINTED` names."""

    def write(model, visual, textual, paradigm="pt", **changes):
        given = [m for m, name in (("visual", visual), ("textual", textual)) if name]
        about = {"name": model, "integration": "none", "modalities": given, "parameters": 1}
        data = {**BABY, "train_interactions": 118551, **changes}
        return add(model, visual, textual, paradigm, dataset=data, split=SPLIT, model=about)

    return write


def paper_runs(write):
    runs = [write("vbpr", name, None) for name in ("vgg19", CLIP)]
    runs += [write("lattice", "vgg19", "minilm-l6"), write("lattice", VLMO, VLMO)]
    for encoder in (CLIP, VLMO):
        runs += [write("lattice", encoder, encoder, paradigm) for paradigm in ("ft", "ete")]
    return [*runs, write("lattice", CLIP, None, "ete"), write("lattice", None, CLIP, "ete")]


def test_the_papers_numbers_stand_beside_the_rows_that_they_are_of(on_baby):
    runs = paper_runs(on_baby)
    found = {}
    for kind in ("encoders", "paradigms", "modalities"):
        shown = Shown(lay_out(runs, kind, data_dir=None), with_published=True)
        for record in json.loads(render_layout(shown, "json"))["cells"]:
            found[kind, record["label"], record["metric"]] = record["published"]
        table = render_layout(shown, "table")
        assert max(map(len, table.splitlines())) <= 80
        assert "publ." in table
        assert "its encoders were fine-tuned there" not in table
    assert {key: found[key] for key in PRINTED} == PRINTED


def test_what_does_not_compare_is_not_shown_beside(on_baby):
    runs = [on_baby("lattice", CLIP, CLIP, kind, items=9000) for kind in ("pt", "ft")]
    shown = Shown(lay_out(runs, "paradigms"), with_published=True)
    text = render_layout(shown, "table")
    assert "0.0354" not in text
    assert "not comparable" in text
    assert "7,037 items there, 9,000 here" in text.replace("\n", " ")
    records = json.loads(render_layout(shown, "json"))["cells"]
    assert {record["comparable"] for record in records} == {False}


def test_no_printed_number_of_a_row_is_said(on_baby):
    shown = Shown(lay_out([on_baby("freedom", CLIP, CLIP)], "paradigms"), with_published=True)
    assert "arXiv:2310.20343 prints none of these rows." in shown.notes()
