import pytest

from mmbench.data.prepare import prepare
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


def test_without_its_files_it_says_where_they_are(tmp_path):
    with pytest.raises(DataError, match=r"E104 movielens-100k .* pass --source DIR.*ml-100k\.zip"):
        prepare("movielens-100k", data_dir=tmp_path)
