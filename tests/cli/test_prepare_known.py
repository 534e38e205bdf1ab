"""Datasets known by name: shown, fetched when agreed, stored under names, the same everywhere."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmbench.data.finding import sources

ZIP = "datasets/movielens/ml-100k.zip"


def films(n_users: int = 12, n_items: int = 15) -> bytes:
    """An archive in the form of ml-100k.zip: every user rates ten films."""
    rng = np.random.default_rng(3)
    rows = [
        f"{user}\t{item}\t{rating}\t{880000000 + 100 * user + k}"
        for user in range(1, n_users + 1)
        for k, (item, rating) in enumerate(
            zip(rng.permutation(n_items)[:10] + 1, rng.integers(1, 6, 10), strict=True)
        )
    ]
    flags = "|".join(["0"] * 5 + ["1"] + ["0"] * 13)
    titles = [
        f"{item}|Café {item} (1995)|01-Jan-1995||http://x.org/{item}|{flags}"
        for item in range(1, n_items + 1)
    ]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ml-100k/u.data", "\n".join(rows) + "\n")
        archive.writestr("ml-100k/u.item", ("\n".join(titles) + "\n").encode("latin-1"))
    return packed.getvalue()


@pytest.fixture
def site(serve: Callable, monkeypatch: pytest.MonkeyPatch):
    """A local stand-in for the site of MovieLens; --mirror is not needed, the environment tells."""
    server = serve({ZIP: films()})
    monkeypatch.setenv("MMBENCH_MIRRORS", f"https://files.grouplens.org/={server.url}")
    return server


def test_nothing_is_fetched_unasked(mmbench: Callable, site, tmp_path: Path) -> None:
    done = mmbench("prepare", "movielens-100k")
    assert done.status == 2
    said = " ".join(done.err.split())
    assert "ml-100k.zip" in said
    assert "nothing is fetched unasked" in said
    assert "--download" in said
    assert site.gets(ZIP) == []
    assert list(tmp_path.iterdir()) == []


def test_a_known_dataset_is_fetched_once(mmbench: Callable, site, tmp_path: Path) -> None:
    site.fault(ZIP, cut_after=300)
    done = mmbench("prepare", "ml-100k", "--download", "--accept-changed", "--no-features")
    assert done.status == 0, done.err
    assert "ml-100k is movielens-100k" in " ".join(done.err.split())
    assert "12 users, 15 items, 120 interactions" in done.out
    assert "W276 the size differs from the published 943 users" in " ".join(done.err.split())
    assert [asked.range for asked in site.gets(ZIP)] == ["", "bytes=300-"]
    assert (tmp_path / "data/_raw/movielens-100k/downloads.json").is_file()
    for more in ([], ["--force"], ["--as", "films"]):
        assert mmbench("prepare", "ml-100k", "--no-features", *more).status == 0
    assert len(site.gets(ZIP)) == 2
    listed = json.loads(mmbench("prepare", "--list", "--output-format", "json").out)
    kinds = {row["name"]: (row["kind"], row["prepared"]) for row in listed}
    assert kinds["movielens-100k"] == ("dataset", True)
    assert kinds["films"] == ("own", True)


def test_a_file_of_another_size_than_recorded_is_not_kept(
    mmbench: Callable, site, tmp_path: Path
) -> None:
    done = mmbench("prepare", "movielens-100k", "--download")
    said = " ".join(done.err.split())
    assert done.status == 2
    assert "E105 ml-100k.zip cannot be fetched" in said
    assert "recorded 4924029" in said
    assert "--accept-changed" in said
    assert not (tmp_path / "data/_raw/movielens-100k/ml-100k.zip").exists()
    assert not (tmp_path / "data/movielens-100k").exists()


def test_an_unknown_part_is_refused(mmbench: Callable, site) -> None:
    done = mmbench("prepare", "movielens-100k", "--with", "pictures,trailers")
    assert done.status == 2
    assert "unknown part of movielens-100k 'trailers'" in " ".join(done.err.split())


def test_a_login_is_explained_and_files_put_there_are_taken(
    mmbench: Callable, tmp_path: Path
) -> None:
    done = mmbench("prepare", "hm")
    said = " ".join(done.err.split())
    assert done.status == 2
    assert "E104 hm needs a login or a manual download" in said
    assert "articles.csv" in said
    assert "data/_raw/hm" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["movielens-100k", "amazon-baby", "hm", "microlens-100k"])
def test_a_card_tells_what_is_known(mmbench: Callable, name: str) -> None:
    done = mmbench("prepare", name, "--about")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    for word in ("terms", "cite", "page"):
        assert word in done.out
    card = json.loads(mmbench("prepare", name, "--about", "--output-format", "json").out)
    assert card["page"].startswith("http")
    assert card["files"] or card["by_hand"]


def test_a_layout_tells_what_its_folders_hold(mmbench: Callable) -> None:
    layouts = [name for name, source in sources().items() if source.layout]
    assert "plain" in layouts
    for name in layouts:
        done = mmbench("prepare", name.replace("-", "_"), "--about")
        assert done.status == 0
        assert len(done.out.splitlines()) > 3
        assert done.out.endswith(f"mmbench prepare NAME --source DIR --format {name}\n")
    facts = json.loads(mmbench("prepare", "plain", "--about", "--output-format", "json").out)
    assert facts["layout"] == "plain"
    for word in ("interactions", "item_id", "images/", "features/"):
        assert word in facts["files"]
    done = mmbench("prepare", "mine", "--about")
    assert done.status == 2
    assert "mmbench prepare plain --about" in " ".join(done.err.split())


def test_a_preset_sets_core_and_splits_and_options_come_on_top(mmbench: Callable, site) -> None:
    done = mmbench(
        "prepare", "movielens-100k", "--download", "--accept-changed", "--no-features",
        "--preset", "mmsr", "--user-core", "3", "--output-format", "json",
    )  # fmt: skip
    assert done.status == 0, done.err
    facts = json.loads(done.out)
    assert (facts["config"]["user_min"], facts["config"]["item_min"]) == (3, 0)
    assert [split["name"] for split in facts["splits"]] == ["leave-one-out", "cold-sequences"]
    wrong = mmbench("prepare", "movielens-100k", "--preset", "mmrs")
    assert wrong.status == 2
    assert 'Did you mean "mmsr"' in wrong.err


def test_several_seeds_and_several_samples_at_once(mmbench: Callable, site, tmp_path: Path) -> None:
    done = mmbench(
        "prepare", "movielens-100k", "--download", "--accept-changed", "--no-features",
        "--split", "random-per-user", "--split", "leave-one-out", "--split-seeds", "0-2",
        "--sample-users", "4,8",
        "--output-format", "json",
    )  # fmt: skip
    assert done.status == 0, done.err
    small, large = json.loads(done.out)
    assert [facts["name"] for facts in (small, large)] == ["movielens-100k-4", "movielens-100k-8"]
    names = [split["name"] for split in small["splits"]]
    assert names == [*(f"random-per-user.seed-{k}" for k in range(3)), "leave-one-out"]
    assert len({split["fingerprint"] for split in small["splits"]}) == 4
    stored = [tmp_path / f"data/{facts['name']}/users.jsonl" for facts in (small, large)]
    users = [{json.loads(line)["id"] for line in p.read_text().splitlines()} for p in stored]
    assert (len(users[0]), len(users[1])) == (4, 8)
    assert users[0] < users[1]


def test_two_machines_make_the_same_bytes(mmbench: Callable, site, tmp_path: Path) -> None:
    options = ["--split", "cold-items", "--split", "leave-one-out", "--no-features"]
    first = mmbench(
        "prepare",
        "movielens-100k",
        "--download",
        "--accept-changed",
        "--data-dir",
        "here",
        *options,
    )
    raw = tmp_path / "elsewhere"
    with zipfile.ZipFile(io.BytesIO(films())) as archive:
        archive.extractall(raw)
    second = mmbench(
        "prepare", "movielens-100k", "--source", raw, "--data-dir", "far/away", *options
    )
    assert (first.status, second.status) == (0, 0), first.err + second.err
    made = [tmp_path / "here/movielens-100k", tmp_path / "far/away/movielens-100k"]
    files = [
        {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in made
    ]
    differing = {path for path in files[0] if files[0][path] != files[1].get(path)}
    assert differing == {"provenance.json"}
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) > 10
