"""Published numbers: every name in the tables has a meaning, and what differs is never silent."""

from __future__ import annotations

import csv

import pytest

from mmbench.models.base import MODELS
from mmbench.report.comparison import compare
from mmbench.report.publications import (
    FOLDER,
    beside,
    facts,
    published_dataset,
    published_results,
    same_name,
    source_facts,
)

TIKTOK = {"name": "tiktok", "fingerprint": "f" * 64, "users": 9308, "items": 6710,
          "train_interactions": 59541}  # fmt: skip
BABY = {"name": "amazon-baby", "fingerprint": "f" * 64, "users": 19445, "items": 7050,
        "train_interactions": 118551}  # fmt: skip
UNMASKED = {"name": "mmrec", "mask_validation_at_test": False}


def published(lab, model, dataset, *, split="imported", metrics=("recall@20",), **changes):
    """What stands beside one run of a model."""
    changes = {
        "protocol": UNMASKED,
        "model": {"name": model, "modalities": changes.pop("modalities", [])},
        **changes,
    }
    split = {"name": split, "fingerprint": "5" * 64}
    run = lab.run(
        changes.pop("label", model), dataset=dataset, split=split, metrics=metrics, **changes
    )
    return beside(compare([run], metrics=list(metrics)))


def test_every_row_of_the_tables_has_a_meaning():
    known = facts()
    for name, columns in (("general.csv", 1431), ("sequential.csv", 534)):
        with (FOLDER / name).open(encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == columns
    rows = published_results()
    assert {row.dataset for row in rows} == set(known["datasets"])
    assert {row.split for row in rows} == set(known["splits"])
    assert {row.encoder for row in rows} - {""} == set(known["encoders"])
    assert all(0 <= row.value < 1 for row in rows)
    used = {source_facts(row.source)["source"] for row in rows}
    assert used == {entry["source"] for entry in known["sources"]}
    for row in rows:  # no row is claimed by two sources
        assert sum(row.source.startswith(e["source"]) for e in known["sources"]) == 1


def test_every_model_of_the_names_exists_and_is_in_the_tables():
    named = {row.model for row in published_results()}
    assert set(facts()["models"]) <= set(MODELS.names())
    for names in facts()["models"].values():
        for name in names:
            assert (name if isinstance(name, str) else name["name"]) in named


@pytest.mark.parametrize(
    ("model", "value"),
    [("lightgcn", 0.0653), ("mmgcn", 0.0730), ("lattice", 0.0843), ("slmrec", 0.0845),
     ("bm3", 0.0957)],
)  # fmt: skip
def test_tiktok_stands_beside_with_what_differs(lab, model, value):
    given = [] if model == "lightgcn" else ["visual", "acoustic"]
    (row,) = published(lab, model, TIKTOK, modalities=given)
    assert row.comparable
    assert row.published == value
    assert row.relative == pytest.approx(row.here / value - 1)
    said = "; ".join(row.differs)
    assert ("text used there as well, which this run lacks" in said) == bool(given)
    assert ("9,319 users there, 9,308 here" in said) == (model != "bm3")  # DiffMM counts as we do


def test_another_split_and_another_size_are_reasons(lab):
    (row,) = published(lab, "lightgcn", TIKTOK, split="random-per-user", label="a")
    assert row.reasons == ("another split: mmssl-release there, random-per-user here",)
    assert row.relative is None
    smaller = {**TIKTOK, "train_interactions": 50_000}
    (row,) = published(lab, "lightgcn", smaller, label="b")
    assert row.reasons == ("another size: 59,541 training interactions there, 50,000 here",)


def test_the_smaller_item_sets_of_one_paper(lab):
    features = [{"encoder": "imported", "key": "visual__imported", "modality": "visual"}]
    rows = published(lab, "vbpr", BABY, modalities=["visual"], features=features)
    paper = [row for row in rows if row.source.startswith("arXiv:2310.20343")]
    assert paper
    for row in paper:
        assert row.comparable  # 13 items of 7,050 are 0.2 %
        assert "7,037 items there, 7,050 here" in row.differs
        assert "items without a picture are left out there" in row.differs
    clothing = {**BABY, "name": "amazon-clothing", "users": 39387, "items": 23033,
                "train_interactions": 197338}  # fmt: skip
    rows = published(lab, "vbpr", clothing, label="c", modalities=["visual"], features=features)
    paper = [row for row in rows if row.source.startswith("arXiv:2310.20343")]
    assert paper
    for row in paper:
        assert row.reasons == ("another size: 22,499 items there, 23,033 here",)


def test_another_ndcg_is_apart_and_recall_of_the_same_source_is_not(lab):
    rows = published(lab, "lightgcn", BABY, metrics=("recall@20", "ndcg@20"))
    readme = {row.metric: row for row in rows if row.source == "MMSSL README"}
    assert readme["recall@20"].comparable
    assert not readme["ndcg@20"].comparable
    assert "another NDCG" in readme["ndcg@20"].reasons[0]
    (row,) = published(lab, "lightgcn", TIKTOK, label="t", metrics=("ndcg@20",))
    assert row.comparable  # one test item per user: the two are the same


def test_protocol_features_and_training_are_named(lab):
    masked = {"name": "standard", "mask_validation_at_test": True}
    given = {"modalities": ["visual", "textual"], "features": [{"encoder": "minilm-l6"}]}
    rows = published(lab, "bm3", BABY, protocol=masked, **given)
    said = {row.source: row.differs for row in rows if row.variant.endswith("vt")}
    page = said["MMRec evaluation/README table 1"]
    assert "validation items are candidates at test there" in page
    assert "the settings were chosen on the test part there" in page
    assert any("features there: CNN pictures" in note and "minilm-l6" in note for note in page)
    tuned = [row for row in published(lab, "slmrec", BABY, **given) if " ete " in row.variant]
    assert tuned
    assert all("its encoders learned with it there" in row.differs for row in tuned)
    (plain, *_) = published(lab, "bm3", BABY, label="sound", modalities=["acoustic"])
    assert "pictures and text used there as well, which this run lacks" in plain.differs
    assert "no sound used there, which this run uses" in plain.differs


def test_sequential_rows_are_of_the_model_and_of_its_modalities(lab):
    hm = {"name": "hm", "fingerprint": "f" * 64, "users": 200_000, "items": 85_019}
    asked = {"split": "leave-one-out", "metrics": ("hr@10",)}
    rows = published(lab, "sasrec", hm, **asked)
    assert {row.model for row in rows} == {"SASRec", "IDSR"}
    assert 0.084672 in {round(row.published, 6) for row in rows}
    text = published(lab, "mmsr", hm, label="t", modalities=["textual"], **asked)
    assert {row.model for row in text} == {"MMSR-T"}
    both = published(lab, "mmsr", hm, label="b", modalities=["visual", "textual"], **asked)
    assert {row.model for row in both} == {"MMSR"}
    assert not [row for row in both if "cold" in row.source or "transfer" in row.source]
    other = published(lab, "sasrec", {**hm, "items": 60_000}, label="o", **asked)
    assert other
    assert all("another size: 85,019 items there" in row.reasons[0] for row in other)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("amazon-baby", "baby"), ("Amazon_Baby", "baby"), ("tiktok", "tiktok"), ("hm", "HM"),
     ("movielens-100k", None), ("baby-products", None)],
)  # fmt: skip
def test_dataset_names(name, dataset):
    assert published_dataset(name) == dataset


def test_names_differ_by_more_than_writing():
    assert same_name("MoRec++") == same_name("morec-pp")
    assert same_name("MMSR") != same_name("MMSR-T")


def test_a_manifest_that_tells_little_gets_no_row(lab):
    run = lab.run("old", model=None, dataset={"name": "tiktok", "fingerprint": "f" * 64})
    assert beside(compare([run], metrics=["recall@20"])) == []
