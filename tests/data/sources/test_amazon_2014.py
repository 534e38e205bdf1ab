"""Amazon product data 2014, in samples written in the form of the real files."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from mmbench.data.finding import find_known
from mmbench.data.prepare import prepare
from mmbench.data.sources.amazon_2014 import Amazon2014
from mmbench.errors import DataError, UnknownNameError

ITEMS = ["097293751X", "9729375011", "B0043XBDOW", "B000IDSLOG", "B00005BVSZ"]
USERS = ["A1HK2FQW6KXQB2", "A19K65VY14D13R", "nan", "0123456789", "AÉ1"]
DAY = 86_400
FIRST_DAY = 1_373_932_800  # 2013-07-16, like all of them at midnight


def review(user, item, rating=5.0, time=FIRST_DAY):
    return {
        "reviewerID": user,
        "asin": item,
        "reviewerName": 'Amanda "Amanda E." Johnsen',
        "helpful": [0, 1],
        "reviewText": 'Keeps track, {of} it: "all"\nit\'s great',
        "overall": rating,
        "summary": "Très bien",
        "unixReviewTime": time,
        "reviewTime": "07 16, 2013",
    }


REVIEWS = [
    review(user, item, float(1 + (u + i) % 5), FIRST_DAY + (u + i) * DAY)
    for u, user in enumerate(USERS)
    for i, item in enumerate(ITEMS)
]
METADATA = [
    {
        "asin": "097293751X",
        "description": "Track your child's life &amp; <b>more</b>\nin one book.",
        "title": "Baby Tracker&reg; - Daily Childcare Journal",
        "price": 10.5,
        "imUrl": "http://ecx.images-amazon.com/images/I/51EzU6%2BZbXL._SX300_.jpg",
        "related": {"also_bought": ["B000IDSLOG"]},
        "salesRank": {"Baby": 16759},
        "brand": "Baby Tracker",
        "categories": [["Baby", "Gifts", "Keepsakes"], ["Baby", "Nursery", "Gifts"]],
    },
    {"asin": "B0NOTBOUGHT", "title": "Never reviewed"},
    {"asin": "9729375011", "categories": [["Baby"]], "title": "NA"},
    {
        "asin": "B0043XBDOW",
        "title": "Poupée \U0001f476 b\xe9b\xe9",
        "brand": "",
        "imUrl": "nothing",
    },
    {"asin": "B000IDSLOG"},
]


def as_json(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_literals(records):
    return "".join(ascii(record) + "\n" for record in records).encode()


def image_records(items, seed=0):
    vectors = np.random.default_rng(seed).random((len(items), 4096)).astype("<f4")
    rows = zip(items, vectors, strict=True)
    return b"".join(item.encode("ascii") + vector.tobytes() for item, vector in rows), vectors


@pytest.fixture
def folder(tmp_path):
    """Baby as it is downloaded, without the image features."""
    raw = tmp_path / "baby"
    raw.mkdir()
    (raw / "reviews_Baby_5.json.gz").write_bytes(gzip.compress(as_json(REVIEWS)))
    (raw / "meta_Baby.json.gz").write_bytes(gzip.compress(as_literals(METADATA)))
    return raw


def card(name):
    found = find_known(name)
    assert found is not None
    assert found.source is Amazon2014
    return found.card


def read(folder, tmp_path, name=None):
    return Amazon2014(card(name) if name else None).read(folder, tmp_path)


def rows_of(raw, items=ITEMS):
    table = raw.items(pl.Series("item", items))
    return {row["item"]: row for row in table.iter_rows(named=True)}


def test_the_reviews_of_the_5_core_are_read(folder, tmp_path):
    raw = read(folder, tmp_path)
    assert raw.interactions.height == 25
    assert raw.interactions["user"].to_list() == [user for user in USERS for _ in ITEMS]
    assert raw.interactions["item"].to_list() == ITEMS * 5
    assert raw.interactions["rating"].to_list()[:6] == [1, 2, 3, 4, 5, 2]
    assert raw.interactions["timestamp"].to_list()[:2] == [FIRST_DAY, FIRST_DAY + DAY]
    assert raw.interactions["split"].null_count() == 25
    assert raw.facts == {"release": 2014, "category": "Baby", "interactions_from": "5-core"}
    assert [path.name for path in raw.files] == ["reviews_Baby_5.json.gz", "meta_Baby.json.gz"]
    assert raw.text_fields == ("title", "brand", "categories", "description")
    assert raw.image_root is None
    assert raw.warnings == []


def test_the_metadata_of_wanted_items_are_rows(folder, tmp_path):
    raw = read(folder, tmp_path)
    rows = rows_of(raw)
    assert list(rows) == ["097293751X", "9729375011", "B0043XBDOW", "B000IDSLOG"]
    assert rows["097293751X"] == {
        "item": "097293751X",
        "title": "Baby Tracker&reg; - Daily Childcare Journal",
        "brand": "Baby Tracker",
        "categories": "Baby, Gifts, Keepsakes",
        "all_categories": "Baby, Gifts, Keepsakes, Nursery",
        "description": "Track your child's life &amp; <b>more</b>\nin one book.",
        "price": "10.5",
        "image": "http://ecx.images-amazon.com/images/I/51EzU6%2BZbXL._SX300_.jpg",
    }
    assert rows["9729375011"]["title"] == "NA"
    assert rows["B0043XBDOW"]["title"] == "Poupée \U0001f476 bébé"
    assert rows["B0043XBDOW"]["brand"] is None
    assert rows["B0043XBDOW"]["image"] is None
    assert set(rows["B000IDSLOG"].values()) == {"B000IDSLOG", None}
    assert raw.warnings == []


def test_fields_of_a_strange_type_count_as_missing(folder, tmp_path):
    strange = {
        "asin": "097293751X", "title": 1984, "brand": None, "categories": "Baby",
        "description": {"a": 1}, "price": "$3", "imUrl": ["x"],
    }  # fmt: skip
    (folder / "meta_Baby.json.gz").write_bytes(gzip.compress(as_literals([strange])))
    assert set(rows_of(read(folder, tmp_path))["097293751X"].values()) == {"097293751X", None}


def test_of_records_that_repeat_an_item_the_first_counts(folder, tmp_path):
    twice = [*METADATA, METADATA[0], {**METADATA[2], "title": "Another"}, METADATA[1], METADATA[1]]
    (folder / "meta_Baby.json.gz").write_bytes(gzip.compress(as_literals(twice)))
    raw = read(folder, tmp_path)
    assert rows_of(raw)["9729375011"]["title"] == "NA"
    expected = (
        "W261 1 records of meta_Baby.json.gz repeat an item with other content; the first of each "
        "is kept"
    )
    assert raw.warnings == [expected]
    rows_of(raw)
    assert raw.warnings == [expected]


def test_it_prepares_with_texts_and_picture_addresses(folder, tmp_path):
    result = prepare("amazon14-baby", source=folder, data_dir=tmp_path / "data")
    dataset = result.dataset
    assert dataset.manifest["counts"]["interactions"] == 25
    assert sorted(dataset.item_ids) == sorted(ITEMS)
    assert sorted(dataset.user_ids) == sorted(USERS)
    lines = {line["id"]: line for line in dataset.items}
    assert lines["097293751X"]["text"] == (
        "Baby Tracker® - Daily Childcare Journal. Baby Tracker. Baby, Gifts, Keepsakes. "
        "Track your child's life & more in one book."
    )
    assert lines["097293751X"]["image_address"].endswith("51EzU6%2BZbXL._SX300_.jpg")
    assert lines["9729375011"]["text"] == "NA. Baby"
    assert lines["B00005BVSZ"]["text_status"] == "missing"
    assert dataset.manifest["text"]["missing"] == 2


def test_pictures_that_are_here_are_used(folder, tmp_path, write_picture):
    held = write_picture(folder / "images" / "097293751X.png")
    write_picture(folder / "images" / "B0043XBDOW.jpg", seed=1)
    assert read(folder, tmp_path).image_root == folder / "images"
    dataset = prepare("amazon14-baby", source=folder, data_dir=tmp_path / "data").dataset
    paths = dict(zip(dataset.item_ids, dataset.image_paths, strict=True))
    assert paths["097293751X"].read_bytes() == held.read_bytes()
    assert [item for item, path in paths.items() if path] == ["097293751X", "B0043XBDOW"]


def test_other_text_fields_can_be_asked_for(folder, tmp_path):
    from mmbench.data.cleaning import PrepareConfig

    config = PrepareConfig(text_fields=("all_categories",))
    dataset = prepare("x", source=folder, config=config, data_dir=tmp_path / "data").dataset
    lines = {line["id"]: line for line in dataset.items}
    assert lines["097293751X"]["text"] == "Baby, Gifts, Keepsakes, Nursery"


@pytest.mark.parametrize("place", [".", "Baby", "Baby/categoryFiles"])
def test_files_are_found_unpacked_and_deeper(folder, tmp_path, place):
    home = tmp_path / "other" / place
    home.mkdir(parents=True)
    (home / "reviews_Baby_5.json").write_bytes(as_json(REVIEWS))
    (home / "meta_Baby.json").write_bytes(as_literals(METADATA))
    assert Amazon2014.recognises(tmp_path / "other")
    raw = read(tmp_path / "other", tmp_path, "amazon14-baby")
    assert raw.interactions.equals(read(folder, tmp_path).interactions)
    assert len(rows_of(raw)) == 4


def test_ratings_without_header_have_the_user_first(folder, tmp_path):
    (folder / "reviews_Baby_5.json.gz").unlink()
    lines = [f"{r['reviewerID']},{r['asin']},{r['overall']},{r['unixReviewTime']}" for r in REVIEWS]
    (folder / "ratings_Baby.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    raw = read(folder, tmp_path, "amazon-baby")
    assert raw.interactions["user"].to_list() == [user for user in USERS for _ in ITEMS]
    assert raw.interactions["item"].to_list() == ITEMS * 5
    assert raw.interactions["rating"].to_list()[:6] == [1, 2, 3, 4, 5, 2]
    assert raw.interactions["timestamp"][0] == FIRST_DAY
    assert raw.facts["interactions_from"] == "ratings"


def test_all_reviews_become_a_5_core_where_that_file_is_absent(folder, tmp_path):
    expected = prepare("core", source=folder, data_dir=tmp_path / "data").dataset
    more = [review("A3", "B000IDSLOG"), *REVIEWS, review("A4", "B0RARE0000")]
    (folder / "reviews_Baby_5.json.gz").unlink()
    (folder / "reviews_Baby.json.gz").write_bytes(gzip.compress(as_json(more)))
    assert read(folder, tmp_path).interactions.height == 27
    dataset = prepare("all", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.user_ids == expected.user_ids
    assert dataset.item_ids == expected.item_ids


def test_the_name_decides_between_the_core_and_all_ratings(folder, tmp_path):
    (folder / "ratings_Baby.csv").write_text("A1,B000IDSLOG,5.0,1373932800\n", encoding="utf-8")
    assert read(folder, tmp_path).interactions.height == 25
    assert read(folder, tmp_path, "amazon14-baby").interactions.height == 25
    assert read(folder, tmp_path, "amazon14-baby-ratings").interactions.height == 1


def test_image_features_keep_the_item_of_each_record(folder, tmp_path):
    content, vectors = image_records(["B0NOTBOUGH", "9729375011", "097293751X"])
    (folder / "image_features_Baby.b").write_bytes(content)
    (stored,) = read(folder, tmp_path).features
    assert (stored.modality, stored.encoder) == ("visual", "cnn-4096")
    assert stored.item_ids == ("B0NOTBOUGH", "9729375011", "097293751X")

    dataset = prepare("baby", source=folder, data_dir=tmp_path / "data").dataset
    features = dataset.features("visual")
    order = [dataset.item_ids.index(item) for item in ("9729375011", "097293751X")]
    assert np.array_equal(features.matrix[order], vectors[1:])
    assert features.mask.sum() == 2


def test_of_image_features_that_repeat_an_item_the_first_counts(folder, tmp_path):
    content, vectors = image_records(["9729375011", "097293751X", "9729375011"])
    (folder / "image_features_Baby.b").write_bytes(content)
    raw = read(folder, tmp_path)
    assert raw.features[0].item_ids[:2] == ("9729375011", "097293751X")
    assert raw.features[0].item_ids[2] not in ITEMS
    assert "1 records of image_features_Baby.b repeat an item" in raw.warnings[0]
    dataset = prepare("baby", source=folder, data_dir=tmp_path / "data").dataset
    row = dataset.item_ids.index("9729375011")
    assert np.array_equal(dataset.features("visual").matrix[row], vectors[0])


@pytest.mark.parametrize("cut", [1, 10, 16_393])
def test_truncated_image_features_are_refused(folder, tmp_path, cut):
    content, _ = image_records(["9729375011", "097293751X"])
    (folder / "image_features_Baby.b").write_bytes(content[:-cut])
    with pytest.raises(DataError, match=r"E117 .*not a multiple of 16394"):
        read(folder, tmp_path)


def test_shifted_image_features_are_refused(folder, tmp_path):
    content, _ = image_records(["9729375011", "097293751X"])
    (folder / "image_features_Baby.b").write_bytes(content[4:] + content[:4])
    with pytest.raises(DataError, match=r"E117 .*no item id"):
        read(folder, tmp_path)


def test_a_folder_of_two_categories_needs_a_name(folder, tmp_path):
    (folder / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(as_json(REVIEWS)))
    assert Amazon2014.recognises(folder)
    with pytest.raises(DataError, match=r"E103 .*\(Baby, Beauty\).*amazon14-baby, amazon14-beauty"):
        read(folder, tmp_path)
    assert read(folder, tmp_path, "amazon14-beauty").facts["category"] == "Beauty"


def test_the_files_of_another_category_are_named(folder, tmp_path):
    with pytest.raises(DataError) as caught:
        read(folder, tmp_path, "amazon14-sports")
    message = str(caught.value)
    assert message.startswith("E101 reviews_Sports_and_Outdoors_5.json.gz not found under")
    assert "but files of Baby" in message
    assert "https://snap.stanford.edu/" in message
    (folder / "reviews_Baby_5.json.gz").unlink()
    with pytest.raises(DataError, match=r"E101 no interactions .* expected reviews_<Category>_5"):
        read(folder, tmp_path)


def test_metadata_of_other_items_are_refused_naming_both(folder, tmp_path):
    other = [{"asin": "B000BEAUTY", "title": "Soap"}]
    (folder / "meta_Baby.json.gz").write_bytes(gzip.compress(as_literals(other)))
    with pytest.raises(DataError) as caught:
        prepare("amazon14-baby", source=folder, data_dir=tmp_path / "data")
    for part in ("E266", "meta_Baby.json.gz", "reviews_Baby_5.json.gz", "'B000BEAUTY'"):
        assert part in str(caught.value)
    assert not (tmp_path / "data" / "amazon14-baby").exists()


def test_without_metadata_items_have_no_content(folder, tmp_path):
    (folder / "meta_Baby.json.gz").unlink()
    raw = read(folder, tmp_path, "amazon14-baby")
    assert raw.items is None
    assert raw.text_fields == ()
    assert raw.warnings[0].startswith("W262 meta_Baby.json.gz is not under")
    dataset = prepare("amazon14-baby", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.manifest["text"]["missing"] == 5


@pytest.mark.parametrize("name", ["reviews_Baby_5.json.gz", "meta_Baby.json.gz"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-30], r"E106 .*truncated gzip"),
        (lambda content: b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "E106 .*page"),
        (lambda content: gzip.compress(b'{"asin": \n' * 5), "E114 .*neither JSON nor"),
        (lambda content: gzip.compress(b'{"asin": "\xff\xfe"}\n'), "E111 .*not UTF-8"),
        (lambda content: b"", "E113 .*empty"),
    ],
)
def test_broken_files_are_refused(folder, tmp_path, name, damage, message):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        prepare("amazon14-baby", source=folder, data_dir=tmp_path / "data")
    assert name in str(caught.value)
    assert not (tmp_path / "data" / "amazon14-baby").exists()


@pytest.mark.parametrize("name", ["reviews_Baby_5.json.gz", "meta_Baby.json.gz"])
def test_a_few_malformed_lines_are_counted_and_left_out(folder, tmp_path, name):
    path = folder / name
    filler = [{"asin": f"B{k:09}", "reviewerID": f"X{k}", "overall": 3.0} for k in range(2_000)]
    for record in filler:
        record["unixReviewTime"] = FIRST_DAY
    lines = gzip.decompress(path.read_bytes()) + b"{'asin': 'B000\n" + as_json(filler)
    path.write_bytes(gzip.compress(lines))
    raw = read(folder, tmp_path)
    rows_of(raw)
    assert len(raw.warnings) == 1
    assert raw.warnings[0].startswith("W114 1 of")
    assert name in raw.warnings[0]


def test_absurd_times_are_refused_by_the_cleaning(folder, tmp_path):
    odd = [*REVIEWS, review("A1", "B000IDSLOG", time=-1), review("A2", "B000IDSLOG", time=10**10)]
    (folder / "reviews_Baby_5.json.gz").write_bytes(gzip.compress(as_json(odd)))
    assert read(folder, tmp_path).interactions["timestamp"].to_list()[-2:] == [-1, 10**10]
    with pytest.raises(DataError, match=r"E216 2 timestamps"):
        prepare("amazon14-baby", source=folder, data_dir=tmp_path / "data")


def test_rows_without_ids_are_dropped_and_told(folder, tmp_path):
    lacking = [{key: value for key, value in review("x", "y").items() if key != "reviewerID"}]
    (folder / "reviews_Baby_5.json.gz").write_bytes(gzip.compress(as_json(REVIEWS + lacking)))
    result = prepare("amazon14-baby", source=folder, data_dir=tmp_path / "data")
    assert any(w.startswith("W201 1 rows") for w in result.warnings)


def test_the_files_name_the_category(tmp_path):
    assert [file.path for file in card("amazon14-video-games").files] == [
        "reviews_Video_Games_5.json.gz", "meta_Video_Games.json.gz",
        "image_features_Video_Games.b",
    ]  # fmt: skip
    assert card("amazon14-video-games").parts == ["features"]
    assert card("amazon14-Video_Games").name == "amazon14-video-games"
    assert card("amazon14-kindle-store").facts["category"] == "Kindle_Store"
    assert card("amazon14-kindle-store-ratings").files[0].path == "ratings_Kindle_Store.csv"
    core = card("amazon14-baby").files[0]
    assert core.addresses[0] == (
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_Baby_5.json.gz"
    )
    assert len(core.addresses) == 2


@pytest.mark.parametrize("word", ["baby", "sports", "clothing", "beauty", "electronics"])
def test_names_without_a_release_mean_this_one(word):
    assert card(f"amazon-{word}").name == f"amazon14-{word}"


def test_the_published_sizes_are_on_the_cards():
    sizes = {
        name: [(p.users, p.items, p.interactions) for p in card(name).published if not p.settings]
        for name in ("amazon14-baby", "amazon14-sports", "amazon14-clothing", "amazon14-beauty")
    }
    assert sizes == {
        "amazon14-baby": [(19_445, 7_050, 160_792)],
        "amazon14-sports": [(35_598, 18_357, 296_337)],
        "amazon14-clothing": [(39_387, 23_033, 278_677)],
        "amazon14-beauty": [(22_363, 12_101, 198_502)],
    }


@pytest.mark.parametrize("name", ["amazon14-arts", "amazon-arts"])
def test_a_category_of_other_releases_names_them(name):
    with pytest.raises(DataError) as caught:
        find_known(name)
    assert "E102 Amazon product data 2014 has no category 'arts'" in str(caught.value)
    assert "amazon18-arts and amazon23-arts have it" in str(caught.value)


def test_a_name_that_several_releases_have_is_not_guessed():
    with pytest.raises(DataError, match="say amazon14-books or amazon18-books or amazon23-books"):
        find_known("amazon-books")


def test_an_unknown_category_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match='Did you mean "amazon14-beauty"'):
        find_known("amazon14-beuaty")
    assert find_known("amazon-own-shop") is None
    assert find_known("amazon-2014") is None


def test_other_folders_are_not_recognised(tmp_path, folder):
    empty = tmp_path / "empty"
    (empty / "reviews_Baby_5.json.gz").mkdir(parents=True)
    (empty / "ratings_Nothing.csv").write_bytes(b"\x00\x01")
    (empty / "Arts_Crafts_and_Sewing_5.json.gz").write_bytes(b"")
    assert not Amazon2014.recognises(empty)
    (empty / "circle").symlink_to(empty / "circle")
    assert not Amazon2014.recognises(empty)
    assert not Amazon2014.recognises(tmp_path / "nowhere")
    (folder / "5-core").mkdir()
    assert not Amazon2014.recognises(folder)
