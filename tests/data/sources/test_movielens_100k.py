import io
import zipfile
from pathlib import Path

import pytest

from mmbench.data.prepare import prepare
from mmbench.data.prepared import open_dataset
from mmbench.data.sources.movielens_100k import MovieLens100K
from mmbench.errors import DataError

FLAGS = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def film(number, title, *genres):
    flags = ["1" if flag in genres else "0" for flag in FLAGS]
    return "|".join([str(number), title, "01-Jan-1995", "", "http://x", *flags])


@pytest.fixture
def folder(tmp_path, write_picture):
    """Three films and four users; film 2 has no text row and no poster."""
    raw = tmp_path / "ml"
    raw.mkdir()
    rows = [
        f"{u}\t{i}\t{1 + (u + i) % 5}\t{880000000 + 10 * u + i}"
        for u in range(1, 5)
        for i in (3, 1, 2)
    ]
    (raw / "u.data").write_text("\n".join(rows) + "\n")
    films = [
        film(1, "Misérables, Les (1995)", "Drama", "War"),
        film(2, "unknown", "unknown"),
        film(3, "Casino (1995)", "Drama"),
    ]
    (raw / "u.item").write_bytes(("\n".join(films) + "\n").encode("latin-1"))
    (raw / "tmdb.csv").write_text(
        "movie_id,title,tagline,overview,genres,original_language\n"
        '1,Other,,"A long, long ""tale"" &amp; more.",Drama,fr\n'
        "3,Casino,No one stays at the top forever.,Greed.,Crime|Drama,en\n"
    )
    write_picture(raw / "posters/1.jpg", 1)
    write_picture(raw / "posters/3.jpg", 3)
    return raw


def test_titles_texts_and_posters_are_joined(tmp_path, folder):
    dataset = prepare("movielens-100k", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.item_ids == ["1", "2", "3"]
    assert dataset.texts == [
        'Misérables, Les (1995). Drama, War. A long, long "tale" & more.',
        "unknown",
        "Casino (1995). Drama. No one stays at the top forever.. Greed.",
    ]
    assert dataset.image_paths == [folder / "posters/1.jpg", None, folder / "posters/3.jpg"]
    assert dataset.manifest["config"]["user_min"] == 0  # the dataset's own default
    # By time each user saw film 1, 2, 3.
    assert dataset.item.tolist() == [0, 1, 2] * 4
    assert dataset.timestamp[0] == 880000011000
    assert dataset.rating[0] == 3


def test_ratings_alone_are_enough(tmp_path, folder):
    (folder / "tmdb.csv").unlink()
    (folder / "u.item").write_text("\n".join(film(k, f"Film {k}") for k in (1, 2, 3)) + "\n")
    dataset = prepare(
        "movielens-100k", source=folder, data_dir=tmp_path / "data", splits=["leave-one-out"]
    ).dataset
    assert dataset.texts == ["Film 1", "Film 2", "Film 3"]
    assert dataset.split().label.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.data", None, r"E101 u\.data not found under .*unzip https"),
        ("u.data", b"", r"E113 .*u\.data is empty"),
        ("u.data", b"1\t2\t6\t880000000\n", r"E211 .*u\.data:1: rating '6'; ratings lie in 1\.\.5"),
        (
            "u.data",
            b"1 2 3 880000000\n",
            r"E112 .*u\.data:1: 1 fields, expected 4 separated by tab",
        ),
        ("u.item", b"1|Toy Story\n", r"E112 .*u\.item:1: 2 fields, expected 24 separated by pipe"),
        ("tmdb.csv", b"id,title\n1,x\n", r"E113 .*tmdb\.csv: column 'movie_id' missing"),
    ],
)
def test_broken_files_are_refused(tmp_path, folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare("movielens-100k", source=folder, data_dir=tmp_path / "data")


def test_the_archive_may_lie_unpacked_one_folder_deeper(tmp_path, folder):
    """As the download leaves it, with texts and posters put beside the folder of the archive."""
    inner = tmp_path / "_raw" / "ml-100k"
    inner.mkdir(parents=True)
    for name in ("u.data", "u.item"):
        (folder / name).rename(inner / name)
    for name in ("tmdb.csv", "posters"):
        (folder / name).rename(inner.parent / name)
    assert MovieLens100K.recognises(inner.parent)
    dataset = prepare("ml-100k", source=inner.parent, data_dir=tmp_path / "data").dataset
    assert dataset.texts[2] == "Casino (1995). Drama. No one stays at the top forever.. Greed."
    assert dataset.image_paths[0] == inner.parent / "posters/1.jpg"


def test_a_packed_archive_is_to_be_unzipped(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/ml-100k.zip").write_bytes(b"PK")
    assert not MovieLens100K.recognises(tmp_path / "raw")
    with pytest.raises(
        DataError, match=r"E101 u\.data not found .*ml-100k\.zip lies there still p"
    ):
        MovieLens100K().read(tmp_path / "raw", tmp_path)


def test_films_that_nobody_rated_and_raters_without_films_must_share_an_id(tmp_path, folder):
    (folder / "u.item").write_text("\n".join(film(k, f"Film {k}") for k in (7, 8)) + "\n")
    with pytest.raises(DataError, match=r"E266 none of the 2 item ids of .*u\.item occurs in u\.d"):
        prepare("movielens-100k", source=folder, data_dir=tmp_path / "data")


def test_a_film_listed_twice_with_another_title_is_refused(tmp_path, folder):
    films = [film(1, "One"), film(1, "Another"), film(2, "Two"), film(3, "Three")]
    (folder / "u.item").write_text("\n".join(films) + "\n")
    with pytest.raises(DataError, match=r"E261 .*'1' listed 2 times with different content"):
        prepare("movielens-100k", source=folder, data_dir=tmp_path / "data")


def test_an_empty_overview_and_a_title_called_null_are_what_they_are(tmp_path, folder):
    films = [film(1, "null"), film(2, "NA"), film(3, "Nannies (1995)")]
    (folder / "u.item").write_text("\n".join(films) + "\n")
    (folder / "tmdb.csv").write_text("movie_id,tagline,overview\n1,,\n")
    dataset = prepare("movielens-100k", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.texts == ["null", "NA", "Nannies (1995)"]


@pytest.fixture
def archive(folder):
    """ml-100k.zip as GroupLens packs it: everything in a folder of that name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("u.data", "u.item"):
            file.writestr(f"ml-100k/{name}", (folder / name).read_bytes())
    return packed.getvalue()


def test_it_is_fetched_from_grouplens_and_prepared(mmbench, serve, monkeypatch, archive):
    server = serve({"movielens/ml-100k.zip": archive}, {"movielens/ml-100k.zip": {"cut_after": 90}})
    monkeypatch.setenv("MMBENCH_MIRRORS", f"https://files.grouplens.org/datasets/={server.url}")
    said = mmbench("prepare", "ml-100k", "--no-features")
    assert said.status == 2
    assert "nothing is fetched unasked" in " ".join(said.err.split())
    assert server.gets("movielens/ml-100k.zip") == []

    # The sample is not GroupLens' archive, which is what the recorded hash is for.
    said = mmbench("prepare", "ml-100k", "--download", "--no-features")
    assert said.status == 2
    assert "E105" in said.err
    assert not (Path("data") / "ml-100k").exists()

    said = mmbench("prepare", "ml-100k", "--download", "--accept-changed", "--no-features")
    assert said.status == 0, said.err
    dataset = open_dataset(Path("data/ml-100k"))
    assert dataset.texts == [
        "Misérables, Les (1995). Drama, War",
        "unknown",
        "Casino (1995). Drama",
    ]
    assert dataset.manifest["counts"]["interactions"] == 12
