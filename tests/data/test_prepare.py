import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.identity import parse_config
from mmbench.data.prepare import prepare
from mmbench.data.prepared import load_dataset
from mmbench.errors import ConfigError, DataError, UnknownNameError

ALL = "user_id,item_id,rating,timestamp"


def snapshot(folder):
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def raw(write_table, full_rows):
    return write_table(full_rows, ALL)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def test_the_folder_is_the_canonical_form(raw, data):
    result = prepare("x", source=raw, data_dir=data)
    assert sorted(snapshot(data)) == sorted(
        "x/" + name
        for name in (
            "manifest.json",
            "provenance.json",
            "report.json",
            "users.jsonl",
            "items.jsonl",
            *(
                f"interactions/{c}.npy"
                for c in ("user", "item", "timestamp", "rating", "source_row")
            ),
            "splits/random-per-user/label.npy",
            "splits/random-per-user/split.json",
        )
    )
    manifest = json.loads((data / "x/manifest.json").read_text())
    assert manifest["counts"]["interactions"] == 56
    assert manifest["time"] == {
        "has_timestamps": True, "unit_in": "s", "min": 10**12, "max": (10**9 + 7006) * 1000,
        "tied_rows": 0,
    }  # fmt: skip
    assert manifest["source"]["files"][0]["path"] == "interactions.csv"
    assert [step["step"] for step in result.report["steps"]] == ["read", "5/5-core"]
    assert sorted(result.dataset.user_ids) == [f"u{k}" for k in range(8)]


def test_preparing_twice_is_up_to_date_and_writes_nothing(raw, data):
    prepare("x", source=raw, data_dir=data)
    before = snapshot(data)
    assert prepare("x", source=raw, data_dir=data).status == "up-to-date"
    assert prepare("x", data_dir=data).status == "up-to-date"
    assert prepare("x", data_dir=data, splits=["random-per-user"]).status == "up-to-date"
    assert snapshot(data) == before


def test_a_split_is_added_with_or_without_the_source(raw, data):
    first = prepare("x", source=raw, data_dir=data).dataset
    second = prepare("x", data_dir=data, splits=["leave-one-out"])
    third = prepare(
        "x", source=raw, data_dir=data, splits=["random-global:seed=3", "leave-one-out"]
    )
    assert (second.status, third.status) == ("split-added", "split-added")
    dataset = load_dataset("x", data)
    assert dataset.split_names == ["random-per-user", "leave-one-out", "random-global.seed-3"]
    assert dataset.fingerprint == first.fingerprint
    assert dataset.split("random-per-user").fingerprint == first.split().fingerprint
    at_once = prepare(
        "y", source=raw, data_dir=data, splits=["leave-one-out", "random-per-user"]
    ).dataset
    assert at_once.split().name == "leave-one-out"
    for name in ("random-per-user", "leave-one-out"):
        assert at_once.split(name).fingerprint == dataset.split(name).fingerprint


def test_a_split_that_cannot_be_added_leaves_the_dataset_as_it_was(write_table, data):
    raw = write_table([(f"u{u}", f"i{i}") for u in range(6) for i in range(6)])
    prepare("x", source=raw, data_dir=data)
    before = snapshot(data)
    with pytest.raises(DataError, match="E271 leave-one-out needs timestamps; x has none"):
        prepare("x", data_dir=data, splits=["random-global", "leave-one-out"])
    assert snapshot(data) == before


def test_other_settings_are_refused_and_named(raw, data):
    prepare("x", source=raw, data_dir=data)
    before = snapshot(data)
    for source in (raw, None):
        with pytest.raises(
            DataError, match=r"E301 .*different settings \(user_min 5 -> 3\).*--force"
        ):
            prepare("x", source=source, config=PrepareConfig(user_min=3), data_dir=data)
    (raw / "interactions.csv").write_text((raw / "interactions.csv").read_text() + "u0,new,,\n")
    with pytest.raises(DataError, match=r"interactions\.csv has changed"):
        prepare("x", source=raw, data_dir=data)
    assert snapshot(data) == before


def test_force_replaces_the_dataset(raw, data):
    prepare("x", source=raw, data_dir=data, splits=["leave-one-out"])
    result = prepare(
        "x",
        source=raw,
        config=PrepareConfig(min_rating=3, user_min=0, item_min=0),
        data_dir=data,
        force=True,
    )
    assert result.status == "prepared"
    assert load_dataset("x", data).rating.min() == 3
    assert [path.name for path in data.iterdir()] == ["x"]


def test_changed_pictures_are_noticed(raw, data, write_picture):
    write_picture(raw / "images/i0.png")
    prepare("x", source=raw, data_dir=data)
    write_picture(raw / "images/i0.png", side=20)
    with pytest.raises(DataError, match="the pictures have changed"):
        prepare("x", source=raw, data_dir=data)


def test_what_mmbench_did_not_make_is_never_replaced(raw, data):
    (data / "x").mkdir(parents=True)
    (data / "x/thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"E301 .* exists and is no prepared dataset"):
        prepare("x", source=raw, data_dir=data, force=True)
    assert (data / "x/thesis.txt").read_text() == "years of work"


def test_a_failing_replacement_keeps_the_old_dataset(raw, data):
    prepare("x", source=raw, data_dir=data)
    before = snapshot(data)
    with pytest.raises(DataError, match="E241"):
        prepare("x", source=raw, config=PrepareConfig(user_min=50), data_dir=data, force=True)
    assert snapshot(data) == before


def test_leftovers_of_killed_processes_are_removed_but_not_of_living_ones(raw, data):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    dead = data / f"x.partial-{process.pid}"
    alive = data / f"x.partial-{os.getppid()}"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    prepare("x", source=raw, data_dir=data)
    assert not dead.exists()
    assert alive.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a b", "x.partial-7", "é"])
def test_names_that_cannot_be_folders_are_refused(raw, data, name):
    with pytest.raises(ConfigError, match="cannot name a dataset"):
        prepare(name, source=raw, data_dir=data)
    assert not data.exists()


def test_unknown_names_offer_the_nearest(raw, data, tmp_path):
    with pytest.raises(UnknownNameError, match=r'Did you mean "movielens-100k"'):
        prepare("movielens-100", data_dir=data)
    with pytest.raises(UnknownNameError, match=r'unknown format \'mmrek\'\. Did you mean "mmrec"'):
        prepare("x", source=raw, format="mmrek", data_dir=data)
    with pytest.raises(DataError, match="'plain' is a layout of files; pass the folder"):
        prepare("plain", data_dir=data)
    with pytest.raises(ConfigError, match="demo is generated and takes no --source"):
        prepare("demo", source=raw, data_dir=data)
    with pytest.raises(DataError, match=r"E101 --source .* does not exist"):
        prepare("x", source=tmp_path / "none", data_dir=data)
    with pytest.raises(DataError, match=r"E101 --source .* is a file"):
        prepare("x", source=raw / "interactions.csv", data_dir=data)


def test_a_folder_of_no_or_several_layouts_is_refused(raw, data, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train.json").touch()
    with pytest.raises(DataError, match=r"E103 no known layout .* \(it holds train\.json\)"):
        prepare("x", source=tmp_path / "other", data_dir=data)
    (raw / "a.inter").write_text("userID\titemID\tx_label\n")
    with pytest.raises(DataError, match=r"E103 .* fits mmrec and plain; pass --format"):
        prepare("x", source=raw, data_dir=data)
    assert prepare("x", source=raw, format="plain", data_dir=data).status == "prepared"


def test_settings_are_checked_all_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_config({"user_min": -1, "dedupe": "first", "min_rating": float("nan")})
    text = str(caught.value)
    assert "user_min=-1" in text
    assert 'Did you mean "dedup"' in text
    assert "min_rating=nan" in text


def test_a_generated_dataset_keeps_its_own_pictures(data):
    result = prepare("demo", data_dir=data)
    dataset = result.dataset
    shown = [path for path in dataset.image_paths if path is not None]
    assert len(shown) > 100
    assert all(path.is_relative_to(data / "demo/images") for path in shown)
    assert dataset.manifest["images"]["mode"] == "copied"
    assert prepare("demo", data_dir=data).status == "up-to-date"
    assert [path.name for path in data.iterdir()] == ["demo"]
    assert not (data / "demo/.scratch").exists()


def test_nobody_can_write_below_proc(raw):
    with pytest.raises(DataError, match=r"E108 cannot write below /proc/x: .*--data-dir"):
        prepare("x", source=raw, data_dir=Path("/proc/x"))


def test_a_data_folder_that_is_a_file_is_refused(raw, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="E108 cannot write below"):
        prepare("x", source=raw, data_dir=tmp_path / "file")


FULL = """
import resource, sys
from pathlib import Path
from mmbench.data.prepare import prepare
from mmbench.errors import DataError
raw, data, limit, splits = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    prepare("x", source=raw, data_dir=data, splits=splits)
except DataError as error:
    sys.exit("caught " + str(error))
"""


@pytest.mark.parametrize("limit", [100, 2000])
def test_a_write_that_fails_midway_leaves_nothing(raw, data, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(raw), str(data), str(limit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "caught E108 cannot write below" in done.stderr
    assert "nothing was kept" in done.stderr
    assert not data.exists()


def test_a_split_that_cannot_be_written_leaves_the_dataset_as_it_was(raw, data):
    prepare("x", source=raw, data_dir=data)
    before = snapshot(data)
    # 100 bytes hold no label array; 1000 hold it, but not the new manifest.
    for limit in (100, 1000):
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(raw), str(data), str(limit), "leave-one-out"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "caught E108 cannot write below" in done.stderr
        assert load_dataset("x", data).split_names == ["random-per-user"]
        assert snapshot(data) == before
    assert prepare("x", data_dir=data, splits=["leave-one-out"]).status == "split-added"


def test_a_split_for_a_read_only_dataset_is_one_message(raw, data, monkeypatch):
    prepare("x", source=raw, data_dir=data)

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    # The superuser may write anywhere, so the operating system's refusal is played.
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DataError, match=r"cannot write below .*Read-only file system"):
        prepare("x", data_dir=data, splits=["leave-one-out"])


def test_ids_map_both_ways(write_table, data):
    rng = np.random.default_rng(0)
    rows = {(f"U-{a}", f"{b:03d}") for a, b in rng.integers(0, 40, (500, 2))}
    raw = write_table(sorted(rows))
    dataset = prepare(
        "x", source=raw, config=PrepareConfig(user_min=3, item_min=3), data_dir=data
    ).dataset
    for ids, size in ((dataset.user_ids, dataset.n_users), (dataset.item_ids, dataset.n_items)):
        assert len(ids) == len(set(ids)) == size
    back = {
        (dataset.user_ids[u], dataset.item_ids[i])
        for u, i in zip(dataset.user, dataset.item, strict=True)
    }
    assert back <= rows
    assert len(back) == dataset.user.size
    assert set(np.unique(dataset.user)) == set(range(dataset.n_users))
    assert set(np.unique(dataset.item)) == set(range(dataset.n_items))
