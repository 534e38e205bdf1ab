"""Cornac's Amazon Clothing, from samples of its archives."""

import io
import json
import zipfile

import numpy as np
import pytest

from mmbench.data.finding import find_known
from mmbench.data.prepare import prepare
from mmbench.data.sources.cornac_amazon_clothing import CornacAmazonClothing
from mmbench.errors import DataError

RATING = "1\t0007\t5.0\n1\t12\t4.0\n2\t0007\t3.0\n2\t30\t1.0\n3\t12\t5.0\n"
TEXT = (
    "0007::silver ring :: size 7 &amp; up\n"
    "12::NA\n"
    "30::leather\x0bboots\x85 brown\n"
    "99::never rated\n"
)
ITEM_IDS = "30\n12\n99\n0007\n"
CONTEXT = "0007\t12\n12\t0007\n"
FEATURES = np.arange(4 * 6, dtype=np.float64).reshape(4, 6) + 1


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return packed.getvalue()


def npy(array, **settings):
    content = io.BytesIO()
    np.save(content, array, **settings)
    return content.getvalue()


@pytest.fixture
def archives():
    return {
        "rating.zip": zipped(rating__txt=RATING),
        "text.zip": zipped(text__txt=TEXT),
        "image.zip": zipped(image_features__npy=npy(FEATURES)),
        "item_ids.zip": zipped(item_ids__txt=ITEM_IDS),
        "context.zip": zipped(context__txt=CONTEXT),
    }


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "amazon_clothing"
    raw.mkdir()
    (raw / "rating.txt").write_text(RATING)
    (raw / "text.txt").write_bytes(TEXT.encode())
    (raw / "item_ids.txt").write_text(ITEM_IDS)
    (raw / "image_features.npy").write_bytes(npy(FEATURES))
    return raw


def assert_whole(dataset):
    assert dataset.item_ids == ["0007", "12", "30"]
    assert dataset.user_ids == ["1", "2", "3"]
    np.testing.assert_array_equal(dataset.features("visual").matrix, FEATURES[[3, 1, 0]])
    stored = (dataset.root / "items.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["text"] for line in stored] == [
        "silver ring :: size 7 & up",
        "NA",
        "leatherboots brown",
    ]
    assert dataset.rating.tolist() == [5, 4, 3, 1, 5]


def test_ratings_texts_and_features_are_joined_by_id(tmp_path, folder):
    result = prepare("cornac-amazon-clothing", source=folder, data_dir=tmp_path / "data")
    assert_whole(result.dataset)
    # No core is taken: the published counts are of all ratings.
    assert result.dataset.manifest["config"]["user_min"] == 0


def test_archives_are_read_as_they_were_downloaded(tmp_path, archives):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, content in archives.items():
        (raw / name).write_bytes(content)
    dataset = prepare("x", source=raw, data_dir=tmp_path / "data").dataset
    assert_whole(dataset)
    files = [file["path"] for file in dataset.manifest["source"]["files"]]
    assert files == ["rating.zip", "text.zip", "image.zip", "item_ids.zip"]


def test_the_files_may_lie_one_folder_deeper(tmp_path, folder):
    folder.rename(tmp_path / "outer")
    (tmp_path / "around").mkdir()
    (tmp_path / "outer").rename(tmp_path / "around" / "amazon_clothing")
    assert CornacAmazonClothing.recognises(tmp_path / "around")
    assert_whole(prepare("x", source=tmp_path / "around", data_dir=tmp_path / "data").dataset)


def test_the_card_names_the_five_archives(archives):
    known = find_known("cornac-amazon-clothing")
    assert {file.path for file in known.card.files} == set(archives)
    for file in known.card.files:
        assert file.addresses == (
            f"https://static.preferred.ai/cornac/datasets/amazon_clothing/{file.path}",
        )
    assert known.card.parts == ["context", "features"]
    (published,) = known.card.published
    assert (published.users, published.items, published.interactions) == (5377, 3393, 13689)


def test_the_archives_are_fetched_with_the_features_when_asked(
    mmbench, monkeypatch, serve, archives, tmp_path
):
    server = serve({f"mirror/{name}": content for name, content in archives.items()})
    place = "https://static.preferred.ai/cornac/datasets/amazon_clothing/"
    monkeypatch.setenv("MMBENCH_MIRRORS", f"{place}={server.url}mirror/")
    data = tmp_path / "data"
    done = mmbench(
        *("prepare", "cornac-amazon-clothing", "--download", "--with", "features"),
        *("--data-dir", data),
    )
    assert done.status == 0, done.err
    from mmbench.data.prepared import open_dataset

    assert_whole(open_dataset(data / "cornac-amazon-clothing"))
    assert {asked.path for asked in server.requests if asked.method == "GET"} == {
        f"mirror/{name}.zip" for name in ("rating", "text", "image", "item_ids")
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rating.txt", "1\t0007\t6.0\n", r"E211 .*rating\.txt:1: rating '6\.0'; ratings lie in"),
        ("rating.txt", "1\t0007\tx\n", r"E211 .*rating\.txt:1: rating 'x'"),
        ("rating.txt", "1::0007::5\n", r"E112 .*rating\.txt:1: 1 fields, expected 3"),
        ("rating.txt", "<!DOCTYPE html><html>", r"E106 .*rating\.txt"),
        ("rating.txt", "1\t7\t5.0\n", r"E266 .*leading zeros were lost"),
        ("text.txt", "0007 no separator\n", r"E112 .*text\.txt:1"),
        ("text.txt", b"0007::caf\xe9\n", r"E111 .*text\.txt:1: byte 0xe9"),
        ("text.txt", "0007::a\n0007::b\n", r"E261 .*'0007' listed 2 times"),
        ("item_ids.txt", "30\n12\n99\n", r"E251 .*4 rows, but 3 item ids"),
        ("item_ids.txt", "30\n12\n99\n30\n", r"E261 .*item '30' is listed more than once"),
        ("item_ids.txt", "a\nb\nc\nd\n", r"E251 .*none of its item ids is in the dataset"),
        ("image_features.npy", npy(np.full((4, 2), np.nan)), r"E118 .*NaN or infinity in row 0"),
        (
            "image_features.npy",
            npy(np.array([[None]] * 4), allow_pickle=True),
            r"E118 .*it holds Python objects",
        ),
    ],
)
def test_broken_files_are_refused(tmp_path, folder, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare("cornac-amazon-clothing", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "cornac-amazon-clothing").exists()


def test_features_without_their_order_are_refused(tmp_path, folder):
    (folder / "item_ids.txt").unlink()
    with pytest.raises(DataError, match=r"E101 item_ids\.txt not found .*belong to no item"):
        CornacAmazonClothing().read(folder, tmp_path)


@pytest.mark.parametrize(
    ("member", "message"),
    [("other.txt", "E106 .*should hold one rating.txt, it holds 0"), ("../rating.txt", "E107")],
)
def test_odd_archives_are_refused(tmp_path, folder, member, message):
    (folder / "rating.txt").unlink()
    (folder / "rating.zip").write_bytes(zipped(**{member: RATING}))
    with pytest.raises(DataError, match=message):
        CornacAmazonClothing().read(folder, tmp_path)


def test_other_folders_of_such_names_are_not_recognised(tmp_path, folder):
    assert CornacAmazonClothing.recognises(folder)
    (folder / "text.txt").write_text("some notes\n")
    assert not CornacAmazonClothing.recognises(folder)
    (folder / "text.txt").write_text(TEXT)
    (folder / "rating.txt").write_text("1,0007,5\n")
    assert not CornacAmazonClothing.recognises(folder)
    assert not CornacAmazonClothing.recognises(tmp_path / "missing")
