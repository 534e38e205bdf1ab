from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmbench.errors import ConfigError, DataError
from mmbench.report.comparison import compare
from mmbench.report.systems import group_runs, recorded_metrics
from mmbench.runs import find_runs, open_run


def labels(runs):
    return [system.label for system in group_runs(runs)]


def test_runs_that_differ_only_in_seed_are_one_system(lab):
    runs = [lab.run("a", 3), lab.run("b", 0), lab.run("a", 1)]
    systems = group_runs(runs)
    assert [(system.label, system.seeds) for system in systems] == [("a", (1, 3)), ("b", (0,))]


def test_the_same_system_and_seed_twice_is_refused(lab):
    runs = [lab.run("a", 1, folder="one"), lab.run("a", 1, folder="two")]
    with pytest.raises(
        ConfigError, match=r"one and .*two are the same system \(a\).*seed 1; name only one"
    ):
        group_runs(runs)


def test_no_run_is_refused():
    with pytest.raises(ConfigError, match="no complete run to compare"):
        group_runs([])


def test_equal_labels_are_told_apart_by_the_setting_that_differs(lab):
    runs = [
        lab.run("vbpr", system=f"s{dim}", recipe={"model": {"name": "vbpr", "dim": dim}})
        for dim in (32, 64)
    ]
    assert labels([*runs, lab.run("ease")]) == [
        "vbpr (model.dim=32)",
        "vbpr (model.dim=64)",
        "ease",
    ]


def test_a_setting_that_only_one_recipe_has_is_none_in_the_other(lab):
    runs = [
        lab.run("vbpr", system="s1", recipe={"features": {"visual": "clip"}}),
        lab.run("vbpr", system="s2", recipe={"features": {}}),
    ]
    assert labels(runs) == ["vbpr (features.visual=clip)", "vbpr (features.visual=none)"]


def test_of_many_differing_settings_as_few_are_shown_as_tell_all_apart(lab):
    def model(number):
        return {
            "name": "vbpr",
            "dim": number // 2,
            "a": number % 2,
            "b": number,
            "c": number,
            "d": number,
        }

    runs = [lab.run("vbpr", system=f"s{n}", recipe={"model": model(n)}) for n in range(4)]
    assert labels(runs) == [f"vbpr (model.dim={n // 2}, model.a={n % 2})" for n in range(4)]


def test_equal_recipes_are_told_apart_by_the_features_they_read(lab):
    features = [[{"key": "f", "modality": "visual", "sha256": digit * 64}] for digit in "12"]
    runs = [lab.run("vbpr", system=f"s{i}", features=f) for i, f in enumerate(features)]
    assert labels(runs) == [f"vbpr (features.visual.sha256={digit * 8})" for digit in "12"]


def test_a_name_that_tells_features_apart_needs_no_hash(lab):
    runs = [
        lab.run(
            "vbpr",
            system=f"s{name}",
            recipe={"features": {"textual": name}},
            features=[{"key": name, "modality": "textual", "sha256": name * 16}],
        )
        for name in ("bert", "clip")
    ]
    names = ("bert", "clip")
    assert labels(runs) == [f"vbpr (features.textual={name})" for name in names]


def test_systems_without_any_recorded_difference_are_told_apart_by_their_hash(lab):
    runs = [lab.run("vbpr", system=digit * 16) for digit in "12"]
    assert labels(runs) == ["vbpr [11111111]", "vbpr [22222222]"]


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        (
            "dataset",
            {"name": "baby", "fingerprint": "e" * 64},
            r"the dataset: toy \(d{12}\) and baby \(e{12}\)",
        ),
        (
            "split",
            {"name": "random", "fingerprint": "6" * 64},
            r"the split: random \(5{12}\) and random \(6{12}\)",
        ),
        (
            "protocol",
            {"name": "mmrec", "mask_validation_at_test": False},
            "protocol.mask_validation_at_test: true and false",
        ),
    ],
)
def test_runs_that_are_not_comparable_are_refused_by_name(lab, field, value, what):
    runs = [lab.run("a"), lab.run("c"), lab.run("b", **{field: value})]
    with pytest.raises(
        ConfigError, match=rf'"a" \(.*a--s0\) and "b" \(.*b--s0\).*differ in {what}'
    ):
        compare(runs)


def test_every_difference_is_named(lab):
    other = {"name": "baby", "fingerprint": "e" * 64}
    with pytest.raises(ConfigError, match=r"the dataset: .*; the split: "):
        compare([lab.run("a"), lab.run("b", dataset=other, split=other)])


def test_masking_at_test_does_not_matter_on_validation_nor_does_training(lab):
    protocol = {"name": "mmrec", "mask_validation_at_test": False, "negatives": "all"}
    compared = compare([lab.run("a"), lab.run("b", protocol=protocol)], part="valid")
    assert compared.protocol == "standard, mmrec"


@pytest.mark.parametrize("part", ["valid", "test"])
def test_what_is_hidden_of_a_history_changes_what_is_ranked_in_both_parts(lab, part):
    standard = {"name": "standard", "mask_validation_at_test": True}
    old = lab.run("old", protocol=standard)  # of before there was a choice: all was hidden
    same = lab.run("same", protocol={**standard, "history_mask": "all"})
    assert len(compare([old, same], part=part).systems) == 2
    open_to_all = lab.run("open", protocol={**standard, "history_mask": "except-target"})
    with pytest.raises(ConfigError, match=r"protocol.history_mask: all and except-target"):
        compare([old, open_to_all], part=part)


def test_other_users_are_refused(lab):
    lists = lab.lists(1.0, 1)
    fewer = lists.restrict(np.arange(lab.n_users) != 4)
    with pytest.raises(
        ConfigError, match="300 and 299, of whom 1 are only in the first and 0 only"
    ):
        compare([lab.run("a", lists=lists), lab.run("b", lists=fewer)])


def test_other_held_out_items_are_refused(lab):
    lists = lab.lists(1.0, 1)
    moved = lists.relevant_items.copy()
    moved[0] = (moved[0] + 1) % lab.n_items
    with pytest.raises(ConfigError, match="the held-out items of the same users"):
        compare(
            [lab.run("a", lists=lists), lab.run("b", lists=replace(lists, relevant_items=moved))]
        )


def test_the_order_of_a_users_held_out_items_is_immaterial(lab):
    lists = lab.lists(1.0, 1)
    user = int(np.flatnonzero(lists.n_relevant > 1)[0])
    place = slice(lists.relevant_offsets[user], lists.relevant_offsets[user + 1])
    turned = lists.relevant_items.copy()
    turned[place] = turned[place][::-1]
    runs = [lab.run("a", lists=lists), lab.run("b", lists=replace(lists, relevant_items=turned))]
    assert len(compare(runs).systems) == 2


def test_another_catalogue_is_refused(lab):
    lists = lab.lists(1.0, 1)
    larger = replace(lists, popularity=np.append(lists.popularity, 1))
    with pytest.raises(ConfigError, match="the catalogue: 120 and 121 items"):
        compare([lab.run("a", lists=lists), lab.run("b", lists=larger)])


def test_lists_that_are_too_short_are_refused_by_run(lab):
    lists = lab.lists(1.0, 1)
    short = replace(lists, items=lists.items[:, :20], hits=lists.hits[:, :20])
    runs = [lab.run("a", lists=lists), lab.run("b", lists=short)]
    with pytest.raises(
        ConfigError, match=r"recall@25 needs lists of 25 items, but .*b--s0 stores 20"
    ):
        compare(runs, metrics=["recall@25"])


def test_default_metrics_are_those_of_all_runs_in_the_recipes_order(lab):
    runs = [
        lab.run("a", metrics=("recall@20", "recall@5", "ndcg@10")),
        lab.run("b", metrics=("ndcg@10", "map@10", "recall@20")),
    ]
    assert [str(metric) for metric in recorded_metrics(runs, "test")] == ["recall@20", "ndcg@10"]


def test_runs_without_a_common_metric_are_refused(lab):
    runs = [lab.run("a", metrics=("recall@20",)), lab.run("b", metrics=("ndcg@10",))]
    with pytest.raises(ConfigError, match=r"no metric in common \(ndcg@10 \| recall@20\)"):
        compare(runs)


@pytest.mark.parametrize(
    "field", ["system", "seed", "label", "dataset", "split", "protocol", "metrics"]
)
def test_a_manifest_without_a_field_is_damaged(lab, field):
    run = lab.run("a")
    manifest = {key: value for key, value in run.manifest.items() if key != field}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"manifest.json lacks {field}.*damaged"):
        compare([open_run(run.path)])


@pytest.mark.parametrize(
    "name", ["hits", "items", "users", "relevant_offsets", "relevant_items", "activity"]
)
def test_arrays_that_do_not_fit_together_are_damage(lab, name):
    run = lab.run("a")
    file = run.path / "lists" / "test" / f"{name}.npy"
    np.save(file, np.load(file)[:-1])
    with pytest.raises(
        DataError, match=r"lists/test: the arrays do not fit together.*train it again"
    ):
        compare([run])


@pytest.mark.parametrize(("name", "wrong"), [("items", 120), ("items", -2), ("relevant_items", -1)])
def test_items_outside_the_catalogue_are_damage(lab, name, wrong):
    run = lab.run("a")
    file = run.path / "lists" / "test" / f"{name}.npy"
    array = np.load(file)
    array.flat[5] = wrong
    np.save(file, array)
    with pytest.raises(DataError, match="the arrays do not fit together"):
        compare([run])


def test_a_missing_or_truncated_array_is_damage(lab):
    run = lab.run("a")
    file = run.path / "lists" / "test" / "hits.npy"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"hits.npy cannot be read"):
        compare([run])
    file.unlink()
    with pytest.raises(DataError, match=r"hits.npy is missing"):
        compare([run])


def test_a_missing_recipe_is_damage(lab):
    run = lab.run("a")
    (run.path / "recipe.yaml").unlink()
    with pytest.raises(DataError, match=r"recipe.yaml is missing; the run folder is damaged"):
        compare([run])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 99}, "another version of mmbench"), ({"status": "unfinished"}, "is unfinished")],
)
def test_a_run_of_another_version_and_an_unfinished_one_are_refused(lab, change, message):
    run = lab.run("a")
    manifest = {**run.manifest, **change}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        find_runs([run.path])
