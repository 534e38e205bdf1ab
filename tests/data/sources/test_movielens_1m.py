"""MovieLens 1M, in samples written in the form of the real files."""

import io
import zipfile
from pathlib import Path

import pytest

from mmbench.data.prepare import prepare
from mmbench.data.prepared import open_dataset
from mmbench.data.sources.movielens_1m import MovieLens1M
from mmbench.errors import DataError

RATINGS = [
    "1::1193::5::978300760",
    "1::661::3::978302109",
    "1::914::3::978301968",
    "2::1193::4::978298413",
    "2::661::1::978299000",
    "2::914::2::978299351",
    "10::1193::4::978224375",
]
MOVIES = [
    "661::James and the Giant Peach (1996)::Animation|Children's|Musical",
    "914::My Fair Lady: a film (1964)::Musical|Romance",
    "1193::Cidade de Deus, A::Drama",
    "3000::Never rated: Misérables, Les (1995)::Drama",
]


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "ml-1m"
    raw.mkdir()
    (raw / "ratings.dat").write_bytes(("\n".join(RATINGS) + "\n").encode("latin-1"))
    (raw / "movies.dat").write_bytes(("\n".join(MOVIES) + "\n").encode("latin-1"))
    (raw / "users.dat").write_text("1::F::1::10::48067\n")
    return raw


def test_ratings_titles_and_genres_are_read(tmp_path, folder):
    raw = MovieLens1M().read(folder, tmp_path)
    assert raw.interactions["user"].to_list() == ["1", "1", "1", "2", "2", "2", "10"]
    assert raw.interactions["item"][0] == "1193"
    assert raw.interactions["rating"].to_list() == [5, 3, 3, 4, 1, 2, 4]
    assert raw.interactions["timestamp"][0] == 978300760
    assert raw.items.rows() == [
        ("661", "James and the Giant Peach (1996)", "Animation, Children's, Musical"),
        ("914", "My Fair Lady: a film (1964)", "Musical, Romance"),
        ("1193", "Cidade de Deus, A", "Drama"),
        ("3000", "Never rated: Misérables, Les (1995)", "Drama"),
    ]
    assert raw.text_fields == ("title", "genres")
    assert [path.name for path in raw.files] == ["ratings.dat", "movies.dat"]
    assert raw.warnings == []


def test_no_core_is_taken_and_only_rated_films_are_items(tmp_path, folder):
    dataset = prepare("movielens-1m", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.item_ids == ["661", "914", "1193"]
    assert dataset.user_ids == ["1", "2", "10"]
    assert dataset.manifest["counts"]["interactions"] == 7
    assert dataset.timestamp.min() == 978224375000


def test_texts_and_posters_are_joined_where_there_are_any(tmp_path, folder, write_picture):
    (folder / "tmdb.csv").write_text("movie_id,tagline,overview\n914,Why,A flower girl.\n")
    write_picture(folder / "posters/914.jpg", 1)
    dataset = prepare("ml-1m", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.texts[1] == "My Fair Lady: a film (1964). Musical, Romance. Why. A flower girl."
    assert dataset.image_paths == [None, folder / "posters/914.jpg", None]


def test_the_larger_release_is_not_taken_for_it(tmp_path, folder):
    assert MovieLens1M.recognises(folder)
    assert MovieLens1M.recognises(tmp_path)  # the archive unpacked: one folder deeper
    (folder / "tags.dat").write_text("15::4973::excellent!::1215184630\n")
    assert not MovieLens1M.recognises(folder)
    assert not MovieLens1M.recognises(tmp_path / "nowhere")


def test_a_thousandth_of_malformed_lines_is_left_out_and_told(tmp_path, folder):
    lines = [f"{1 + k // 3}::{(661, 914, 1193)[k % 3]}::4::{978300000 + k}" for k in range(3000)]
    lines[17] = "7::661"
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    result = prepare("movielens-1m", source=folder, data_dir=tmp_path / "data")
    assert result.dataset.manifest["counts"]["interactions"] == 2999
    told = [line for line in result.warnings if "malformed" in line]
    assert len(told) == 1
    assert "1 of 3,000 lines" in told[0]
    assert "line 18" in told[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ratings.dat", None, r"E101 ratings\.dat not found under .*unzip https"),
        ("movies.dat", None, r"E101 movies\.dat not found under .*unzip https"),
        ("ratings.dat", b"", r"E113 .*ratings\.dat is empty"),
        ("ratings.dat", b"<!DOCTYPE html>\n<html></html>\n", r"E106 .*ratings\.dat .*web page"),
        ("ratings.dat", b"1::661::6::978300760\n", r"E211 .*rating '6'.*ratings lie in 1\.\.5"),
        ("ratings.dat", b"1::661::0.5::978300760\n", r"E211 .*rating '0\.5'"),
        ("ratings.dat", b"1::661::good::978300760\n", r"E211 .*rating 'good'"),
        ("ratings.dat", b"1::661::4::yesterday\n", r"E216 .*timestamp 'yesterday'"),
        ("ratings.dat", b"1::661::4::978300760\n2::914\n", r"E112 .*ratings\.dat:2.* 4 "),
        ("ratings.dat", b"1::77::4::978300760\n", r"E266 none of the 4 item ids of .*movies\.dat"),
        ("ratings.dat", b"1::0661::4::978300760\n", r"E266 .*leading zeros were lost"),
        ("movies.dat", b"661::Peach\n", r"E112 .*movies\.dat:1.* 3 "),
        ("movies.dat", b"661::A::x\n661::B::x\n", r"E261 .*'661' listed 2 times"),
    ],
)
def test_broken_files_are_refused(tmp_path, folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare("movielens-1m", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data/movielens-1m").exists()


def test_it_is_fetched_from_grouplens_and_prepared(mmbench, serve, monkeypatch, folder):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(f"ml-1m/{path.name}", path.read_bytes())
    server = serve({"movielens/ml-1m.zip": packed.getvalue()})
    monkeypatch.setenv("MMBENCH_MIRRORS", f"https://files.grouplens.org/datasets/={server.url}")
    # The recorded hash is that of GroupLens' archive, and this is a sample.
    said = mmbench("prepare", "movielens-1m", "--download", "--no-features")
    assert said.status == 2
    assert "E105" in said.err
    assert not Path("data/movielens-1m").exists()
    said = mmbench("prepare", "movielens-1m", "--download", "--accept-changed", "--no-features")
    assert said.status == 0, said.err
    dataset = open_dataset(Path("data/movielens-1m"))
    assert dataset.texts[0] == "James and the Giant Peach (1996). Animation, Children's, Musical"
    assert dataset.manifest["counts"]["users"] == 3
