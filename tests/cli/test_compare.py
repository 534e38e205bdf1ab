from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mmbench.cli.compare import compare
from mmbench.cli.main import cli
from mmbench.errors import ConfigError, DataError
from mmbench.metrics.lists import RankedLists
from mmbench.runs import SCHEMA, write_json, write_lists
from mmbench.stats.correction import CORRECTIONS
from mmbench.stats.paired import TESTS

N_USERS, N_ITEMS, DEPTH = 200, 50, 20


def write_run(
    path: Path, label: str, hit_rate: float, *, seed: int = 0, rng: int = 0, **changes
) -> Path:
    """A run folder in which each user has one relevant item, found at rank 1 or not at all."""
    draw = np.random.default_rng([rng, seed, *label.encode()])
    items = np.tile(np.arange(1, DEPTH + 1), (N_USERS, 1))
    found = draw.random(N_USERS) < hit_rate
    items[found, 0] = 0  # item 0 is relevant to everybody
    lists = RankedLists(
        users=np.arange(N_USERS),
        items=items,
        hits=items == 0,
        relevant_offsets=np.arange(N_USERS + 1),
        relevant_items=np.zeros(N_USERS, dtype=np.int64),
        popularity=np.arange(N_ITEMS)[::-1].copy(),
        activity=1 + np.arange(N_USERS) % 9,
    )
    path.mkdir(parents=True)
    for part in ("valid", "test"):
        write_lists(path / "lists" / part, lists)
    np.save(path / "popularity.npy", lists.popularity.astype(np.int32))
    recipe = {"model": {"name": label}, "evaluation": {"metrics": ["recall@10", "ndcg@10"]}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    metrics = {"recall@10": float(found.mean()), "ndcg@10": float(found.mean())}
    manifest = {
        "schema": SCHEMA,
        "status": "complete",
        "label": label,
        "system": f"hash-of-{label}",
        "seed": seed,
        "dataset": {"name": "toy", "fingerprint": "d" * 64},
        "split": {"name": "random", "fingerprint": "5" * 64},
        "protocol": {"name": "standard", "mask_validation_at_test": True},
        "features": [],
        "metrics": {"valid": metrics, "test": metrics},
        **changes,
    }
    write_json(path / "manifest.json", manifest)
    return path


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for label, rate in (("good", 0.8), ("fair", 0.5), ("bad", 0.2)):
        write_run(folder / label, label, rate)
    return folder


def call(*arguments):
    return CliRunner().invoke(compare, [str(argument) for argument in arguments])


def results(*arguments):
    """The JSON that a call prints, which must succeed."""
    done = call(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_folder_of_runs_is_one_table(runs):
    done = call(runs)
    assert done.exit_code == 0
    assert "Holm-Bonferroni over 3 comparisons per metric" in done.stdout
    assert [
        line.split()[0] for line in done.stdout.splitlines() if line[:4] in ("good", "fair", "bad ")
    ] == [
        "good",
        "fair",
        "bad",
    ]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_options_reach_the_comparison(runs):
    data = results(
        *("--baseline", "fair", "--metric", "hr@5", "--metric", "map@10", "--part", "valid"),
        *(
            "--test",
            "wilcoxon",
            "--correction",
            "bonferroni",
            "--family",
            "table",
            "--alpha",
            "0.01",
        ),
        runs / "good",
        runs / "fair",
    )
    assert [record["metric"] for record in data["cells"]] == ["hr@5", "map@10"] * 2
    found = (
        data["baseline"],
        data["part"],
        data["test"],
        data["correction"],
        data["family"],
        data["alpha"],
    )
    assert found == ("fair", "valid", "wilcoxon", "bonferroni", "table", 0.01)
    record = data["cells"][0]
    assert record["adjusted"] == pytest.approx(min(1, 2 * record["p"]))


def test_choices_are_what_the_statistics_offer():
    choices = {option.name: option.type for option in compare.params}
    assert list(choices["test"].choices) == list(TESTS)
    assert list(choices["correction"].choices) == list(CORRECTIONS)


def test_breakdowns(runs):
    groups = {record["group"] for record in results(runs, "--by", "user-activity")["cells"]}
    assert groups == {"users 1-3", "users 4-5", "users 6-7", "users 8-9"}
    cut = results(runs, "--by", "k", "--cutoff", 2, "--cutoff", 7, "--metric", "recall@10")
    assert {record["metric"] for record in cut["cells"]} == {"recall@2", "recall@7"}
    items = results(runs, "--by", "item-popularity", "--metric", "recall@10")["cells"]
    assert {record["n_users"] for record in items} == {N_USERS, 0}


def test_formats(runs):
    assert len(list(csv.DictReader(io.StringIO(call(runs, "--format", "csv").stdout)))) == 6
    assert "| good" in call(runs, "--format", "github").stdout
    assert r"\bottomrule" in call(runs, "--format", "latex").stdout
    assert "wins/ties/losses" in call(runs, "--details").stdout


def test_a_significant_loss_fails_the_job(tmp_path):
    write_run(tmp_path / "main" / "a", "a", 0.8)
    write_run(tmp_path / "new" / "a", "a", 0.5)
    sides = (tmp_path / "new", "--against", tmp_path / "main", "--metric", "recall@10")
    assert call(*sides).exit_code == 0
    done = call(*sides, "--fail-on-regression")
    assert done.exit_code == 1
    assert "regression: a is worse than a (against) in Recall@10: -" in " ".join(
        done.stderr.split()
    )
    assert "a (against)" in done.stdout
    assert call(*sides, "--fail-on-regression", "--margin", "0.9").exit_code == 0


def test_no_loss_passes_the_job(tmp_path):
    write_run(tmp_path / "main" / "a", "a", 0.5)
    write_run(tmp_path / "new" / "a", "a", 0.5, rng=1)
    done = call(tmp_path / "new", "--against", tmp_path / "main", "--fail-on-regression")
    assert done.exit_code == 0
    assert "no regression" in done.stderr


def test_a_job_can_judge_systems_over_their_seeds(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "main" / f"a{seed}", "a", 0.8, seed=seed)
        write_run(tmp_path / "new" / f"a{seed}", "a", 0.4, seed=seed)
    sides = (tmp_path / "new", "--against", tmp_path / "main", "--fail-on-regression")
    assert call(*sides, "--level", "systems").exit_code == 1
    shutil.rmtree(tmp_path / "new" / "a2")
    assert isinstance(call(*sides, "--level", "systems").exception, ConfigError)


def test_several_folders_can_be_the_reference_side(tmp_path):
    for label in "ab":
        write_run(tmp_path / "main" / label, label, 0.5)
        write_run(tmp_path / "new" / label, label, 0.5)
    against = ("--against", tmp_path / "main" / "a", "--against", tmp_path / "main" / "b")
    data = results(tmp_path / "new", *against)
    assert [system["label"] for system in data["systems"]] == [
        "a (against)",
        "a",
        "b (against)",
        "b",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'RUNS...'"),
        (["runs", "--against", "runs", "--baseline", "a"], "both name the reference"),
        (["runs", "--fail-on-regression"], "--fail-on-regression needs a reference"),
        (
            ["runs", "--fail-on-regression", "--baseline", "best"],
            "--fail-on-regression needs a reference",
        ),
        (["runs", "--cutoff", "5"], "--cutoff belongs to --by k"),
        (["runs", "--margin", "0.1"], "--margin belongs to --fail-on-regression"),
        (["runs", "--alpha", "1"], "is not in the range"),
        (["runs", "--margin", "-1"], "is not in the range"),
        # A margin of nan would let every regression pass.
        (["runs", "--margin", "nan"], "not a finite number"),
        (["runs", "--alpha", "nan"], "not a finite number"),
        (["runs", "--by", "users"], "is not one of"),
    ],
)
def test_wrong_usage_ends_with_status_two(arguments, message):
    done = call(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_one_run_on_both_sides_is_refused(runs):
    found = call(runs, "--against", runs / "good").exception
    assert isinstance(found, ConfigError)
    assert "good is on both sides" in str(found)


def test_paths_that_hold_no_runs_are_refused(tmp_path):
    missing = call(tmp_path / "runs" / "*").exception
    assert isinstance(missing, DataError)
    assert "does not exist; name run folders" in str(missing)
    empty = call(tmp_path).exception
    assert isinstance(empty, DataError)
    assert "is not a run folder and holds none" in str(empty)


def test_a_folder_of_unfinished_runs_is_refused(tmp_path):
    write_run(tmp_path / "runs" / "a", "a", 0.5, status="unfinished")
    for path in (tmp_path / "runs", tmp_path / "runs" / "a"):
        assert isinstance(call(path).exception, (ConfigError, DataError))


def test_unfinished_runs_below_a_folder_are_left_out(runs):
    write_run(runs / "begun", "begun", 0.5, status="unfinished")
    assert {system["label"] for system in results(runs)["systems"]} == {"good", "fair", "bad"}


def test_bad_input_prints_one_message_and_no_result(runs):
    write_run(runs / "other", "other", 0.5, split={"name": "random", "fingerprint": "6" * 64})
    program = [sys.executable, "-c", "from mmbench.cli.main import main; main()"]
    done = subprocess.run(
        [*program, "compare", str(runs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    message = " ".join(done.stderr.split())
    assert message.startswith("error:")
    split = "the split: random (555555555555) and random (666666666666)"
    assert f"cannot be compared; they differ in {split}. Name the runs of one kind" in message
    assert "Traceback" not in message


def test_a_comparison_changes_no_run(runs):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in runs.rglob("*")
            if path.is_file()
        }

    before = state()
    call(runs)
    assert state() == before


def test_the_command_is_found_by_name():
    done = CliRunner().invoke(cli, ["compare", "--help"])
    assert done.exit_code == 0
    assert "mmbench compare runs/new --against runs/main --fail-on-regression" in done.output


def test_cost_is_a_second_table_of_real_runs(tiny_data, tmp_path, mmbench):
    for model in ("bpr-mf", "ease"):
        trained = mmbench(
            "train", model, "--dataset", "tiny", "--data-dir", tiny_data, "--runs-dir",
            tmp_path / "runs", *(["--set", "training.epochs=2"] if model == "bpr-mf" else []),
        )  # fmt: skip
        assert trained.status == 0, trained.err
    done = mmbench("compare", tmp_path / "runs", "--cost")
    assert done.status == 0, done.err
    table = done.out.split("peak MiB")[1]
    assert "bpr-mf" in table
    assert "ease" in table
    assert "Device: CPU" in table
    assert max(map(len, done.out.splitlines())) <= 80
    refused = mmbench("compare", tmp_path / "runs", "--cost", "--over-datasets")
    assert refused.status == 2


def test_published_numbers_stand_beside_their_dataset_alone(tmp_path, mmbench):
    write_run(
        tmp_path / "runs" / "a", "lightgcn", 0.2,
        dataset={"name": "tiktok", "fingerprint": "d" * 64, "users": 9308, "items": 6710},
        split={"name": "imported", "fingerprint": "5" * 64},
        model={"name": "lightgcn", "modalities": []},
    )  # fmt: skip
    asked = ("compare", tmp_path / "runs", "--metric", "recall@20", "--published")
    done = mmbench(*asked)
    assert done.status == 0, done.err
    assert "lightgcn: MMSSL README" in done.out
    assert "0.0653" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    for refused in (["--part", "valid"], ["--by", "k"], ["--over-datasets"]):
        assert mmbench(*asked, *refused).status == 2
