"""The table of evidence: what made a run is computed, what is left out is counted."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy import stats

from mmbench.data.prepare import prepare
from mmbench.engine.device import choose
from mmbench.recipe import load_recipe
from mmbench.studies.training import Events, Workplace, train_recipes

FOLDER = Path(__file__).parents[1] / "benchmarks"
EPOCHS = "training.epochs=2"
KINDS = ("engine", "models", "sequential", "extract", "prepare", "mmsr", "finetuning", "paradigms",
         "planted", "calibration")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and `runs`: real trainings of three shipped recipes of demo."""
    root = tmp_path_factory.mktemp("evidence")
    raw = tiny_data.parent / "raw"
    prepare("demo", source=raw, format="mmrec", data_dir=root / "data")
    recipes = [
        load_recipe("demo/popularity"),
        load_recipe("demo/lightgcn", seeds=[0, 1, 2], settings=[EPOCHS]),
        load_recipe("demo/bpr-mf", seeds=[0], settings=[EPOCHS, "model.embedding_size=8"]),
    ]
    place = Workplace(root / "data", root / "runs", choose("cpu"))
    train_recipes(recipes, place, Events())
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the runs that a test may change."""
    return Path(shutil.copytree(trained / "runs", tmp_path / "runs"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script as Python would: with its own folder first on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def show(script: Callable[[str], ModuleType], trained: Path) -> Callable[..., Result]:
    """Calls the script on the data of the trainings."""
    main = script("evidence").main
    return lambda *arguments: CliRunner().invoke(
        main, ["--data-dir", str(trained / "data"), *map(str, arguments)]
    )


def change(run: Path, **facts: Any) -> None:
    """Change facts of a run's manifest."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**manifest, **facts}), encoding="utf-8")


def only(runs: Path, name: str) -> Path:
    """The one folder of a system and seed."""
    (found,) = runs.glob(f"demo-{name}")
    return found


def figures(show: Callable[..., Result], runs: Path, tmp_path: Path, *more: Any) -> dict[str, Any]:
    """What the script writes as JSON."""
    done = show("--runs", runs, "--out", tmp_path / "e.md", *more)
    assert done.exit_code == 0, done.output
    values: dict[str, Any] = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    return values


def test_rows_name_the_recipe_that_has_the_identity(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    (group,) = figures(show, runs, tmp_path)["quality"]
    made = {row["label"]: row["made_by"] for row in group["systems"]}
    assert {label: one["command"] for label, one in made.items()} == {
        "popularity": "mmbench train demo/popularity --seeds 0",
        "lightgcn": "mmbench train demo/lightgcn --seeds 0,1,2 --set training.epochs=2",
        "bpr-mf": "mmbench train demo/bpr-mf --seeds 0 --set model.embedding_size=8 "
        "--set training.epochs=2",
    }
    assert all(one["is_current"] is True for one in made.values())
    epochs = {row["label"]: row["cost"]["epochs"] for row in group["systems"]}
    assert epochs == {"popularity": None, "lightgcn": 2.0, "bpr-mf": 2.0}
    assert group["baseline"] == "lightgcn"


def test_a_name_alone_proves_nothing(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    """A run that says that it is popularity, with a recipe that no shipped one has or leads to."""
    run = only(runs, "popularity-*-s0")
    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(text.replace("dataset: demo", "dataset: elsewhere"), "utf-8")
    (group,) = figures(show, runs, tmp_path)["quality"]
    made = {row["label"]: row["made_by"] for row in group["systems"]}["popularity"]
    assert made["recipe"] == "recipe.yaml"
    assert made["command"] == f"mmbench train {run.name}/recipe.yaml --seeds 0"
    assert made["is_current"] is None
    assert "elsewhere" in made["reason"]


def test_a_recipe_of_another_version_is_named_as_it_lies(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    run = only(runs, "popularity-*-s0")
    with (run / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write("key_of_old: 1\n")
    (group,) = figures(show, runs, tmp_path)["quality"]
    made = {row["label"]: row["made_by"] for row in group["systems"]}["popularity"]
    assert made["recipe"] == "recipe.yaml"
    assert "does not read its recipe" in made["reason"]
    assert str(runs) not in made["reason"]


def test_the_adjusted_p_is_that_of_scipy_and_holm(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    (group,) = figures(show, runs, tmp_path)["quality"]
    values = {name: recalls(runs, name) for name in ("lightgcn", "bpr-mf", "popularity")}
    raw = {n: stats.ttest_rel(values[n], values["lightgcn"]).pvalue for n in list(values)[1:]}
    low, high = sorted(raw, key=lambda name: raw[name])
    expected = {low: min(1.0, 2 * raw[low])}
    expected[high] = max(expected[low], raw[high])
    cells = {cell["label"]: cell for cell in group["cells"] if cell["metric"] == "recall@20"}
    for name, adjusted in expected.items():
        assert cells[name]["adjusted"] == pytest.approx(adjusted, rel=1e-9)
    for name, own in values.items():
        assert cells[name]["mean"] == pytest.approx(own.mean(), rel=1e-9)


def recalls(runs: Path, model: str) -> np.ndarray:
    """Recall@20 of each user, the mean over seeds, counted from the stored lists."""
    of_seeds = []
    for run in sorted(runs.glob(f"demo-{model}-*")):
        arrays = {n: np.load(run / "lists/test" / f"{n}.npy") for n in ("items", "relevant_items")}
        offsets = np.load(run / "lists/test/relevant_offsets.npy")
        of_users = []
        for user, items in enumerate(arrays["items"]):
            wanted = set(arrays["relevant_items"][offsets[user] : offsets[user + 1]].tolist())
            of_users.append(len(wanted & set(items[:20].tolist())) / len(wanted))
        of_seeds.append(of_users)
    return np.mean(of_seeds, axis=0)


def test_what_cannot_be_used_is_left_out_and_counted(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    source = only(runs, "bpr-mf-*-s0")
    shutil.copytree(source, more / "copied")
    shutil.copytree(source, more / "begun")
    change(more / "begun", status="unfinished")
    shutil.copytree(source, more / "broken")
    (more / "broken/lists/test/items.npy").write_bytes(b"\x93NUMPY")
    shutil.copytree(source, more / "foreign")
    change(more / "foreign", schema=99)
    values = figures(show, runs, tmp_path, "--runs", more)
    assert values["remarks"][:4] == [
        "5 finished runs were read.",
        "Left out, unfinished: 1 (begun).",
        "Left out, not readable by this version: 2 (broken, foreign).",
        "Left out, of a system and seed that is there already: 1 (copied).",
    ]


def test_versions_of_one_system_are_told_and_marked(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    older = shutil.copytree(only(runs, "bpr-mf-*-s0"), runs / "older")
    change(older, system="0" * 16, created="2000-01-01T00:00:00+00:00")
    (group,) = figures(show, runs, tmp_path)["quality"]
    assert [sorted(same) for same in group["versions_of_one_system"]] == [
        ["bpr-mf v1", "bpr-mf v2"]
    ]
    made = {row["label"]: row["made_by"] for row in group["systems"]}
    assert made["bpr-mf v1"]["is_current"] is False
    assert "earlier version" in made["bpr-mf v1"]["reason"]
    assert made["bpr-mf v2"]["is_current"] is True
    text = (tmp_path / "e.md").read_text(encoding="utf-8")
    assert "versions of one system" in text
    assert "† The command would train anew today, not find this run. bpr-mf v1: " in text


def test_other_data_are_told(show: Callable[..., Result], runs: Path, tmp_path: Path) -> None:
    run = only(runs, "popularity-*-s0")
    split = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["split"]
    change(run, system="1" * 16, split={**split, "fingerprint": "f" * 64})
    groups = figures(show, runs, tmp_path)["quality"]
    assert len(groups) == 2  # another split is another table
    (row,) = next(group["systems"] for group in groups if len(group["systems"]) == 1)
    assert row["made_by"]["reason"] == "other data now: split"


def test_next_item_runs_are_judged_by_hits_and_published_values_stand_beside(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    for run in runs.glob("demo-bpr-mf-*"):
        change(run, protocol={"name": "mmsr"}, split={"name": "s", "fingerprint": "e" * 64})
    baby = {"users": 19445, "items": 7050, "train_interactions": 118551}
    for run in runs.glob("demo-lightgcn-*"):
        about = {"name": "amazon-baby", "fingerprint": "b" * 64, **baby}
        change(run, dataset=about, split={"name": "imported", "fingerprint": "c" * 64})
    groups = {group["split"]: group for group in figures(show, runs, tmp_path)["quality"]}
    assert {cell["metric"] for cell in groups["s"]["cells"]} == {"hr@10", "ndcg@10"}
    text = (tmp_path / "e.md").read_text(encoding="utf-8")
    assert "No LightGCN, or SASRec, is among these runs" in text
    # LightGCN on Baby in published/general.csv: 0.0698 (MMSSL) to 0.0754 (MMRec)
    assert "0.0698 to 0.0754" in text


def test_text_is_80_wide_and_names_no_folder_of_the_machine(
    show: Callable[..., Result], runs: Path, tmp_path: Path
) -> None:
    done = show("--runs", runs, "--out", tmp_path / "e.md")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    for file in (tmp_path / "e.md", tmp_path / "e.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8")
    assert "--runs runs --data-dir data --out e.md" in (tmp_path / "e.md").read_text(
        encoding="utf-8"
    )
    for kind in KINDS:
        assert f"({kind}-" in " ".join(done.stdout.split())


RESULTS: Mapping[str, Any] = {
    "engine-x": {
        "caption": "Data: some (prepared); here",
        "environment": {"device": "cpu", "threads": 2},
        "repeats": 3,
        "results": [
            {"work": work, "median_s": 1.0, "toolbox_median_s": theirs, "ratio": theirs,
             "ratio_needed_on_cpu": 2.0, "distance_from_floor": 1.5, "memory_mib": 10.0,
             "toolbox_memory_mib": None}
            for work, theirs in (("fast", 2.5), ("slow", 1.5), ("alone", None))
        ],
    },
    "sequential-x": {
        "command": "python benchmarks/sequential.py --told",
        "date": "2001-02-03",
        "caption": "1,000 users",
        "environment": {"device": "cpu", "threads": 2},
        "results": [{"work": "training", "unit": "sequences", "times_s": [1.0], "rate": 30.0,
                     "recbole_rate": 10.0}],
    },
    "extract-x": {
        "machine": {"device": "cpu", "threads": 2}, "items": 64, "batch_size": 32,
        "rows": [{"encoder": "bert", "ours_s": 4.0, "bare_s": 2.0, "ratio": 0.5,
                  "ours_all_s": [4.0]}],
    },
    "prepare-x": {
        "threads": 2,
        "results": [
            {"work": work, "rows": 10, "time_s": 5.0, "cpu_s": 4.0, "memory_mib": 100.0,
             "time_bound_s": time, "memory_bound_mib": memory}
            for work, time, memory in (("both", 6, 50), ("one", 6, None), ("none", None, None))
        ],
    },
    "calibration-x": {
        "level": 0.05,
        "results": [
            # 0.05 + 1.96 sqrt(0.05 * 0.95 / 1900) = 0.0598: just below, just above, far below
            {"null": null, "seeds_a_side": 3, "users": 0.1, "users_and_seeds": rate, "cases": 1900}
            for null, rate in (("simulated a", 0.0597), ("simulated b", 0.0599),
                               ("simulated c", 0.03), ("20 real trainings", 0.2))
        ],
    },
    "mmsr-x": {
        "caption": "1,000 items, batches of 3 sequences with 20 inputs;\nmedians of 2 steps.",
        "environment": {"device": "cpu", "threads": 2},
        "results": [
            {"mask_ratio": 0.75, "cache": kept, "tune": "top", "step_s": [7.0, 9.0],
             "share_outside": share, "least_share_outside": 0.05}
            for kept, share in ((False, 0.1), (True, 0.11))  # a tenth is the most
        ],
    },
    "finetuning-x": {
        "dataset": "some", "environment": {"device": "cpu", "threads": 1},
        # Recall@1, @5, @10 and the place of the right one, picture to text and back
        "results": {
            system: {"before": [[0, 0, 0.02, 0.5], [0, 0, 0.04, 0.5]],
                     "after": [[0, 0, 0.03, 0.5 + by], [0, 0, 0.05, 0.5 + 2 * by]],
                     "chance": [0, 0, 0.03, 0.5], "n_items": 9, "n_runs": 1,
                     "place": {"difference": 1.5 * by, "p": p, "p_chance": 0.5},
                     "recall@10": {"difference": 0.01, "p": 0.5, "p_chance": 0.5}}
            for system, by, p in (("clip", -0.1, 0.01), ("vlmo", 0.1, 0.01), ("pair", -0.1, 0.06))
        },
        "runs": [{"system": "clip", "seed": 4, "settings": {"batch_size": [8]}}],
    },
    "paradigms-x": {
        "command": "python benchmarks/paradigms.py report --told",
        "environment": {"device": "cpu", "threads": 1},
        "lines": [
            {"model": "vbpr", "encoder": "clip", "against": way, "frozen": 0.25, "learnt": learnt,
             "differences": by, "drift": 0.5, "seeds": [0, 1], "steps": 30}
            for way, learnt, by in (("PT", 0.2, [-0.1, 0.0]), ("FT", 0.25, [-0.1, 0.1]))
        ],
    },
    # Of two shops; what carries nothing is "found" in both, more often than a level of 5 % allows
    # (the exact interval of 2 of 2 begins at the square root of 0.025, 0.158).
    "planted-x": [
        {"shop": shop, "modality": modality, "gain": gain, "low": 0.0, "high": 0.0,
         "over_users": p, "over_systems": None}
        for shop in (1, 2)
        for modality, gain, p in (("textual", 0.1, 0.01), ("visual", -0.1, 0.01),
                                  ("acoustic", 0.1, 0.04))
    ],
    "planted-none": [],
    "unheard-x": {},
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of results with known verdicts."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name, facts in RESULTS.items():
        (folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_bars_are_judged_and_commands_told(
    script: Callable[[str], ModuleType], results: Path
) -> None:
    measured = script("measured")
    found, said = measured.read_results(results)
    verdicts = {one.script: [entry.verdict for entry in one.entries] for one in found}
    assert verdicts == {
        "engine": ["met", "missed", "-"],
        "sequential": ["met"],
        "extract": ["missed"],
        "prepare": ["missed", "met", "-"],
        "mmsr": ["met", "missed"],
        "finetuning": ["met", "-", "missed", "-", "missed", "-"],
        "paradigms": ["met", "missed"],
        "planted": ["-", "-", "missed"],
        "calibration": ["met", "missed", "met", "-"],
    }
    commands = {one.script: (one.command, one.rebuilt) for one in found}
    assert commands["engine"] == (
        "python benchmarks/engine.py --dataset some --mmrec DIR --threads 2 --repeats 3",
        True,
    )
    assert commands["sequential"] == ("python benchmarks/sequential.py --told", False)
    assert [commands[script] for script in ("mmsr", "finetuning", "planted")] == [
        ("python benchmarks/mmsr.py --items 1000 --batch-size 3 --mask-ratios 0.75 --tune top "
         "--steps 2 --threads 2", True),
        ("python benchmarks/finetuning.py --dataset some --systems clip --seeds 4 "
         "--batch-size 8 --threads 1", True),
        ("python benchmarks/planted.py --shops 2", True),
    ]  # fmt: skip
    assert "date 2001-02-03" in next(o.caption for o in found if o.script == "sequential")
    (extraction,) = next(one.entries for one in found if one.script == "extract")
    assert (extraction.ours, extraction.theirs, extraction.unit) == (16.0, 32.0, "items/s")
    place, recall, *_ = next(one.entries for one in found if one.script == "finetuning")
    assert (place.ours, place.theirs) == pytest.approx((35.0, 50.0))  # 40 and 30 there, 50 before
    assert (recall.ours, recall.theirs) == pytest.approx((4.0, 3.0))
    one_seed, none = next(one.entries for one in found if one.script == "paradigms")
    assert (one_seed.ours, one_seed.theirs) == (0.2, 0.25)
    assert "lower in 1 of 2 seeds" in one_seed.note
    assert "lower in 1 of 2 seeds" in none.note  # though the mean is no lower
    texts, pictures, *_ = next(one.entries for one in found if one.script == "planted")
    assert [(one.ours, one.theirs) for one in (texts, pictures)] == [(2, 2), (0, 2)]
    assert "16% to 100%" in texts.note
    assert "worse with it in 2" in pictures.note
    cautious = next(one.entries for one in found if one.script == "calibration")[2]
    assert "less often than its level" in cautious.note
    assert said == [
        "Missing: no models-*.json; python benchmarks/models.py --help tells how to make it.",
        "Not shown, for their figures have no reader here: unheard-x.json.",
        "Not shown, for they hold no figures yet: planted-none.json.",
    ]
    assert script("evidence").bars(found) == [
        "Bars of benchmarks: 17; met 8.",
        "Missed: engine slow (1.50 for 2 times; engine-x.json); extract bert (0.500 for 0.9 of it; "
        "extract-x.json); prepare both, 10 rows (5.00 for 6 s and 50 MiB; prepare-x.json); "
        "mmsr top, 0.75 masked, kept (11.0 for <= 10; mmsr-x.json); finetuning tiny VLMo, place "
        "(65.0 for better, p < 0.05; finetuning-x.json); finetuning MiniLM pair, place (35.0 for "
        "better, p < 0.05; finetuning-x.json); paradigms vbpr with clip, beside FT (0.250 for "
        "lower; paradigms-x.json); planted acoustic, over users (2.00 for <= 5%, up to chance; "
        "planted-x.json); calibration simulated b, 3 seeds a side (0.0599 for <= "
        "0.060; calibration-x.json).",
    ]


def test_scripts_keep_their_command_without_folders(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    size = ["--size", "90,80,900", "--widths", "12,5", "--rate-seconds", "0.01", "--repeats", "1"]
    done = CliRunner().invoke(
        script("engine").main, [*size, "--only", "BPR-MF", "--json", str(file)]
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(file.read_text(encoding="utf-8"))
    assert facts["command"] == (
        "python benchmarks/engine.py --size 90,80,900 --widths 12,5 --only BPR-MF --repeats 1 "
        "--rate-seconds 0.01 --json figures.json"
    )
    assert len(facts["date"]) == len("2026-01-31")


def test_bad_input_is_one_message_and_status_2(
    show: Callable[..., Result], runs: Path, results: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(results, tmp_path / "broken")
    (broken / "engine-x.json").write_text('{"results": [{}]}', encoding="utf-8")
    good = ("--runs", runs)
    for arguments, message in (
        (("--runs", tmp_path / "nowhere"), "nowhere is no folder"),
        (("--runs", tmp_path / "empty"), "no finished run"),
        ((*good, "--dataset", "other"), "no finished run"),
        ((*good, "--results", tmp_path / "nowhere"), "is no folder of results"),
        ((*good, "--results", broken), "does not hold what engine.py writes"),
        ((*good, "--out", tmp_path / "e.txt"), "takes the name of a Markdown file"),
        ((*good, "--out", tmp_path / "no/e.md"), "is no folder that can be written to"),
    ):
        done = show(*arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert message in " ".join(done.stderr.split())
        assert isinstance(done.exception, SystemExit)
        assert not done.stdout
    assert not list(tmp_path.glob("e.*"))
