import json
import sys

import numpy as np
import pytest
from PIL import Image

from mmbench.cli.main import main


@pytest.fixture
def mmbench(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process: exit status, stdout, stderr unwrapped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, " ".join(printed.err.split())

    return run


@pytest.fixture
def shop(tmp_path):
    """A plain source of 8 users and 8 items with titles, pictures, times and ratings."""
    raw = tmp_path / "shop"
    (raw / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,rating,timestamp"]
    lines += [
        f"u{u},i{i},{(u + i) % 5 + 1},{10**9 + 10 * u + i}" for u in range(8) for i in range(8)
    ]
    (raw / "interactions.csv").write_text("\n".join(lines) + "\n")
    words = ["red", "blue", "warm", "cold", "round", "long", "old", "new"]
    titles = [f"i{i},{words[i]} {words[(i * 3 + 1) % 8]} thing" for i in range(8)]
    (raw / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    for i in range(8):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(raw / f"images/i{i}.png")
    return raw


def test_a_source_is_prepared_into_the_data_folder(mmbench, shop, tmp_path):
    status, out, err = mmbench("prepare", "shop", "--source", shop, "--no-features")
    assert status == 0
    assert out.splitlines()[0].startswith("shop: prepared in data/shop")
    assert "8 users, 8 items, 64 interactions" in out
    assert "recognised layout plain in" in err
    assert (tmp_path / "data/shop/manifest.json").exists()


def test_features_come_along(mmbench, shop):
    status, out, _ = mmbench(
        "prepare", "shop", "--source", shop, "--output-format", "json", "--data-dir", "d"
    )
    assert status == 0
    facts = json.loads(out)
    assert facts["status"] == "prepared"
    assert {f["key"].partition("__")[0] for f in facts["features"]} == {"visual", "textual"}


def test_options_reach_the_settings(mmbench, shop, monkeypatch):
    monkeypatch.setenv("MMBENCH_DATA", "elsewhere")
    options = {
        "min-rating": 2, "user-core": 2, "item-core": 3, "dedup": "max-rating", "require": "text",
        "require-when": "after-core", "ties": "hash", "text-fields": "title", "sample-users": 6,
        "seed": 7,
    }  # fmt: skip
    given = [part for key, value in options.items() for part in (f"--{key}", value)]
    given += ["--split", "leave-one-out", "--split", "random-per-user:odd_to=valid"]
    given += ["--no-features", "--output-format", "json"]
    status, out, _ = mmbench("prepare", "shop", "--source", shop, *given)
    assert status == 0
    facts = json.loads(out)
    assert facts["config"] == {
        "min_rating": 2.0, "user_min": 2, "item_min": 3, "dedup": "max_rating", "require": "text",
        "when": "after_core", "ties": "hash", "text_fields": ["title"], "sample_users": 6,
        "seed": 7,
    }  # fmt: skip
    names = [split["name"] for split in facts["splits"]]
    assert names == ["leave-one-out", "random-per-user.odd_to-valid"]
    assert facts["root"] == "elsewhere/shop"
    assert facts["counts"]["users"] == 6


def test_a_description_fits_80_columns(mmbench, shop):
    mmbench(
        "prepare", "shop", "--source", shop, "--no-features", "--split", "leave-one-out",
        "--split", "global-temporal",
    )  # fmt: skip
    status, out, _ = mmbench("prepare", "shop", "--describe")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for fact in ("density", "sparsity 0.0000%", "leave-one-out", "pictures", "100.0%"):
        assert fact in out
    # A look starts no work: no features were made.
    assert "mmbench extract shop" in " ".join(out.split())


def test_the_list_names_sources_and_what_is_here(mmbench, shop):
    mmbench("prepare", "shop", "--source", shop, "--no-features")
    status, out, _ = mmbench("prepare", "--list")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    listed = json.loads(mmbench("prepare", "--list", "--output-format", "json")[1])
    kinds = {row["name"]: (row["kind"], row["prepared"]) for row in listed}
    assert kinds["demo"] == ("dataset", False)
    assert kinds["mmrec"] == ("layout", False)
    assert kinds["shop"] == ("own", True)
    assert set(kinds) >= {"demo", "mmrec", "movielens-100k", "plain", "shop"}
    assert all(row["about"] for row in listed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["movielens-10k"], "unknown dataset 'movielens-10k'. Did you mean \"movielens-100k\"?"),
        (["a/b", "--source", "shop"], "'a/b' cannot name a dataset"),
        (["x", "--source", "nowhere"], "E101 --source nowhere does not exist"),
        (["x", "--source", "shop", "--format", "plane"], 'Did you mean "plain"?'),
        (["x", "--source", "shop", "--split", "random"], "unknown split 'random'"),
        (
            ["x", "--source", "shop", "--user-core", "99"],
            "E241 no interactions left after 99/5-core",
        ),
        (["x", "--source", "shop", "--user-core", "-1"], "user_min=-1"),
        (["x", "--source", "shop", "--min-rating", "nan"], "min_rating=nan"),
        (["x", "--source", "shop", "--data-dir", "/proc/x"], "E108 cannot write below /proc/x"),
        (["x", "--source", "shop", "--seed", "one"], "'one' is not a valid integer"),
        ([], "name a dataset, or see what there is with --list"),
    ],
)
def test_bad_input_is_one_message_and_status_2(mmbench, shop, tmp_path, arguments, message):
    status, out, err = mmbench("prepare", *arguments)
    assert status == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "data").exists()


def test_strict_makes_a_corrupt_picture_an_error(mmbench, shop, tmp_path):
    (shop / "images/i3.png").write_bytes(b"not a picture")
    status, _, err = mmbench("prepare", "x", "--source", shop, "--strict")
    assert status == 2
    assert "i3.png" in err
    assert not (tmp_path / "data").exists()
    status, _, err = mmbench("prepare", "x", "--source", shop, "--no-features")
    assert status == 0
    assert "warning: W263 pictures unusable: 1 corrupt, 0 placeholders (i3.png:" in err


def test_features_that_fail_leave_the_dataset_and_say_so(mmbench, shop):
    (shop / "items.csv").write_text("\n".join(["item_id,title", *(f"i{i},t" for i in range(8))]))
    status, _, err = mmbench("prepare", "shop", "--source", shop)
    assert status == 2
    assert "none of the 8 texts has a usable word" in err
    assert "The dataset itself is prepared in data/shop; `mmbench extract shop`" in err
    assert mmbench("prepare", "shop", "--describe")[0] == 0


def test_another_preparation_needs_force(mmbench, shop):
    mmbench("prepare", "x", "--source", shop, "--no-features")
    again = ("prepare", "x", "--source", shop, "--no-features", "--min-rating", "2")
    status, _, err = mmbench(*again)
    assert status == 2
    assert "E301" in err
    assert "min_rating none -> 2.0" in err
    assert mmbench(*again, "--force", "--user-core", 0, "--item-core", 0)[0] == 0
