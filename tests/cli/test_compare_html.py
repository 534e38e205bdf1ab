"""`mmbench compare --html --out` on runs that the program trained, as a user calls it."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from mmbench.cli.main import cli


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Two systems on the tiny dataset, one of them a closed form without epochs."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    common = ["--dataset", "tiny", "--data-dir", str(tiny_data), "--runs-dir", str(runs)]
    for arguments in (
        ["train", "popularity", "--seeds", "0"],
        ["train", "bpr-mf", "--seeds", "0", "--set", "training.epochs=3"],
    ):
        CliRunner().invoke(
            cli, [*arguments, *common], catch_exceptions=False, standalone_mode=False
        )
    assert len(list(runs.iterdir())) == 2
    return runs


def test_writes_the_page_and_the_folder(mmbench, trained, tiny_data, tmp_path):
    done = mmbench(
        "compare",
        trained,
        "--html",
        "report.html",
        "--out",
        "report",
        "--data-dir",
        tiny_data,
        "--metric",
        "recall@10",
    )
    assert done.status == 0, done.err
    assert "report: report.html" in done.err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "mmbench compare" in page
    assert "--html report.html" in page
    assert "source format" in page  # the prepared dataset was found
    assert "Without epochs, hence without a curve: popularity." in page
    mark = json.loads((tmp_path / "report" / "mmbench-report.json").read_text(encoding="utf-8"))
    assert "figures/gain-over-k-recall.png" in mark["files"]
    assert "tables/leaderboard.tex" in mark["files"]
    assert all((tmp_path / "report" / name).stat().st_size > 20 for name in mark["files"])
    assert "Recall@10" in done.out  # the table is printed as ever


def test_vectors_are_drawn_when_asked_for(mmbench, trained, tiny_data, tmp_path):
    asked = ("--tsne", "--metric", "recall@10", "--data-dir", tiny_data)
    done = mmbench("compare", trained, "--html", "r.html", "--out", "r", *asked)
    assert done.status == 0, done.err
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "bpr-mf: items of 6 users" in page
    assert "popularity: items of 6 users" in page  # whose scores tie in plenty
    assert len(list((tmp_path / "r/figures").glob("tsne-*.png"))) == 4
    assert (tmp_path / "r/tables/vectors.csv").read_text("utf-8").startswith("System,D,same user")
    train = ("train", "itemknn", "--dataset", "tiny", "--runs-dir", "knn", "--seeds", "0")
    assert mmbench(*train, "--data-dir", tiny_data).status == 0
    refused = mmbench("compare", "knn", "--html", "none.html", *asked)
    assert refused.status == 2
    assert "none of these runs has any" in " ".join(refused.err.split())
    lost = mmbench("compare", trained, "--html", "none.html", *asked[:3], "--data-dir", "nowhere")
    assert lost.status == 2
    assert not (tmp_path / "none.html").exists()


def test_without_the_prepared_dataset(mmbench, trained, tmp_path):
    one = sorted(trained.iterdir())[0]
    done = mmbench("compare", one, "--html", "r.html", "--metric", "recall@10")
    assert done.status == 0, done.err
    assert "More is told where --data-dir holds" in (tmp_path / "r.html").read_text("utf-8")


def test_what_is_there_is_refused_before_any_work(mmbench, trained, tmp_path):
    page = tmp_path / "r.html"
    page.write_text("mine", encoding="utf-8")
    done = mmbench("compare", "no-such-runs", "--html", page)
    assert (done.status, page.read_text("utf-8")) == (2, "mine")
    assert "pass --force" in done.err
    one = sorted(trained.iterdir())[0]
    done = mmbench("compare", one, "--html", page, "--force", "--metric", "recall@10")
    assert done.status == 0, done.err
    assert page.read_text("utf-8").startswith("<!DOCTYPE")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--force"], "--force belongs to --html and --out"),
        (["--tsne"], "--tsne belongs to --html and --out"),
        (["--html", "r.html", "--by", "k"], "do not go with --by"),
        (["--out", "r", "--over-datasets"], "one report per dataset"),
        (["--html", "r/i.html", "--out", "r"], "put the page beside it"),
        (["--html", "r.html", "--baseline", "nobody"], "unknown baseline 'nobody'"),
        (["--html", "r.html", "--metric", "recall@999"], "choose a cut-off of at most"),
    ],
)
def test_what_does_not_go_together(mmbench, trained, tmp_path, arguments, said):
    done = mmbench("compare", trained, *arguments)
    assert done.status == 2
    assert said in " ".join(done.err.split())
    assert list(tmp_path.glob("r*")) == []


def test_bad_runs_write_nothing(mmbench, trained, tmp_path):
    done = mmbench("compare", tmp_path / "runs*", "--html", "r.html")
    assert done.status == 2
    assert "does not exist; name run folders" in done.err

    copied = tmp_path / "copied"
    shutil.copytree(trained, copied)
    bare = sorted(copied.iterdir())[0]
    shutil.rmtree(bare / "lists")
    done = mmbench("compare", copied, "--html", "r.html", "--out", "r")
    assert done.status == 2
    assert "is missing; the run is damaged" in " ".join(done.err.split())

    manifest = json.loads((bare / "manifest.json").read_text("utf-8"))
    manifest["split"] = {"name": "other", "fingerprint": "0" * 64}
    (bare / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = mmbench("compare", copied, "--html", "r.html", "--out", "r")
    assert done.status == 2
    assert "cannot be compared; they differ in the split" in " ".join(done.err.split())
    assert list(tmp_path.glob("r*")) == []
