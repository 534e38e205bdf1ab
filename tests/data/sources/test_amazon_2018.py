"""Amazon review data 2018, in samples written in the form of the real files."""

import gzip
import json

import polars as pl
import pytest

from mmbench.data.finding import find_known
from mmbench.data.prepare import prepare
from mmbench.data.sources.amazon_2014 import Amazon2014
from mmbench.data.sources.amazon_2018 import Amazon2018
from mmbench.data.sources.amazon_2023 import Amazon2023
from mmbench.errors import DataError

ITEMS = ["0449819906", "1440234167", "B00004T1N5", "B00004THXI", "B01HJH7CDS"]
USERS = ["ALJ66O1Y6SLHA", "A2CPBQ5W4OGBX", "NA", "1234567890", "A1Ü"]
DAY = 86_400
FIRST_DAY = 1_452_643_200
PICTURES = "https://images-na.ssl-images-amazon.com/images/I/"
SCRIPT = "var aPageStart = (new Date()).getTime();\nvar ue_t0=+new Date();"


def review(user, item, rating=5.0, time=FIRST_DAY):
    return {
        "overall": rating,
        "verified": True,
        "reviewTime": "01 13, 2016",
        "reviewerID": user,
        "asin": item,
        "style": {"Size:": " Large", "Color:": " Charcoal"},
        "reviewerName": "Abbey",
        "reviewText": "Works &quot;great&quot;,\nreally",
        "summary": "Five Stars",
        "unixReviewTime": time,
        "vote": "1,024",
        "image": [PICTURES + "71eG75FTJJL._SY88.jpg"],
    }


REVIEWS = [
    review(user, item, float(1 + (u + i) % 5), FIRST_DAY + (u + i) * DAY)
    for u, user in enumerate(USERS)
    for i, item in enumerate(ITEMS)
]
METADATA = [
    {
        "category": ["Arts, Crafts & Sewing", "Painting", "Painting", "Brushes"],
        "tech1": "",
        "description": ["First &amp; foremost.", "", "Second <br> paragraph."],
        "fit": "",
        "title": "Brush Set &#39;Deluxe&#39;",
        "also_buy": ["B00004T1N5"],
        "tech2": "",
        "brand": "Pinsel & Söhne",
        "feature": ["Soft", "Washable"],
        "rank": [">#5 in Arts"],
        "also_view": [],
        "main_cat": "Arts, Crafts & Sewing",
        "similar_item": "",
        "date": "",
        "price": "$9.99",
        "asin": "0449819906",
        "imageURL": [PICTURES + "51a._SS40_.jpg", PICTURES + "51b._SS40_.jpg"],
        "imageURLHighRes": [PICTURES + "51a.jpg", PICTURES + "51b.jpg"],
    },
    {
        "category": [], "description": [], "title": SCRIPT, "brand": "", "feature": [],
        "rank": "12 in Arts", "asin": "1440234167", "imageURL": [PICTURES + "only small.jpg"],
        "imageURLHighRes": [],
    },
    {"asin": "B00004T1N5", "title": "nan", "description": "Not a list", "imageURL": []},
    {"asin": "B0ELSEWHERE", "title": SCRIPT},
]  # fmt: skip


def as_json(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture
def folder(tmp_path):
    """Arts as it is downloaded."""
    raw = tmp_path / "arts"
    raw.mkdir()
    core, metadata = as_json(REVIEWS), as_json(METADATA)
    (raw / "Arts_Crafts_and_Sewing_5.json.gz").write_bytes(gzip.compress(core))
    (raw / "meta_Arts_Crafts_and_Sewing.json.gz").write_bytes(gzip.compress(metadata))
    return raw


def card(name):
    found = find_known(name)
    assert found is not None
    assert found.source is Amazon2018
    return found.card


def read(folder, tmp_path, name="amazon18-arts"):
    return Amazon2018(card(name) if name else None).read(folder, tmp_path)


def rows_of(raw, items=ITEMS):
    table = raw.items(pl.Series("item", items))
    return {row["item"]: row for row in table.iter_rows(named=True)}


def test_the_reviews_of_the_5_core_are_read(folder, tmp_path):
    raw = read(folder, tmp_path, None)
    assert raw.interactions["user"].to_list() == [user for user in USERS for _ in ITEMS]
    assert raw.interactions["item"].to_list() == ITEMS * 5
    assert raw.interactions["rating"].to_list()[:6] == [1, 2, 3, 4, 5, 2]
    assert raw.interactions["timestamp"].to_list()[:2] == [FIRST_DAY, FIRST_DAY + DAY]
    assert raw.facts["category"] == "Arts_Crafts_and_Sewing"
    assert raw.warnings == []


def test_the_metadata_of_wanted_items_are_rows(folder, tmp_path):
    raw = read(folder, tmp_path)
    rows = rows_of(raw)
    assert list(rows) == ["0449819906", "1440234167", "B00004T1N5"]
    assert rows["0449819906"] == {
        "item": "0449819906",
        "title": "Brush Set &#39;Deluxe&#39;",
        "brand": "Pinsel & Söhne",
        "categories": "Arts, Crafts & Sewing, Painting, Brushes",
        "description": "First &amp; foremost. Second <br> paragraph.",
        "features": "Soft Washable",
        "image": f"{PICTURES}51a.jpg {PICTURES}51a._SS40_.jpg",
    }
    assert rows["B00004T1N5"]["title"] == "nan"
    assert rows["B00004T1N5"]["description"] == "Not a list"
    assert rows["B00004T1N5"]["image"] is None


def test_scraps_of_pages_are_no_titles(folder, tmp_path):
    raw = read(folder, tmp_path)
    rows = rows_of(raw)
    assert rows["1440234167"]["title"] is None
    assert rows["1440234167"]["image"] == f"{PICTURES}only%20small.jpg"
    assert raw.warnings == [
        "W262 1 titles of meta_Arts_Crafts_and_Sewing.json.gz are pieces of a page's script "
        "('getTime') and count as missing"
    ]


def test_of_records_that_repeat_an_item_the_first_counts(folder, tmp_path):
    twice = [*METADATA, METADATA[0], METADATA[1], {**METADATA[2], "brand": "Other"}]
    path = folder / "meta_Arts_Crafts_and_Sewing.json.gz"
    path.write_bytes(gzip.compress(as_json(twice)))
    raw = read(folder, tmp_path)
    assert rows_of(raw)["B00004T1N5"]["brand"] is None
    assert any(w.startswith("W261 1 records of meta_Arts") for w in raw.warnings)
    assert any(w.startswith("W262 1 titles") for w in raw.warnings)


def test_it_prepares_with_repeated_reviews_merged(folder, tmp_path):
    path = folder / "Arts_Crafts_and_Sewing_5.json.gz"
    variants = [review(USERS[0], ITEMS[0], 1.0, FIRST_DAY + 9 * DAY), *REVIEWS]
    path.write_bytes(gzip.compress(as_json(variants)))
    result = prepare("amazon18-arts", source=folder, data_dir=tmp_path / "data")
    assert result.dataset.manifest["counts"]["interactions"] == 25
    assert any(w.startswith("W232 1 repeated pairs merged") for w in result.warnings)
    lines = {line["id"]: line for line in result.dataset.items}
    assert lines["0449819906"]["text"] == (
        "Brush Set 'Deluxe'. Pinsel & Söhne. Arts, Crafts & Sewing, Painting, Brushes. "
        "First & foremost. Second paragraph."
    )
    assert lines["1440234167"]["text_status"] == "missing"
    assert lines["B01HJH7CDS"]["text_status"] == "missing"


@pytest.mark.parametrize("packed", [True, False])
def test_tables_of_ratings_have_the_item_first(folder, tmp_path, packed):
    (folder / "Arts_Crafts_and_Sewing_5.json.gz").unlink()
    lines = [f"{r['asin']},{r['reviewerID']},{r['overall']},{r['unixReviewTime']}" for r in REVIEWS]
    content = ("\n".join(lines) + "\n").encode()
    name = "Arts_Crafts_and_Sewing.csv"
    (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    raw = read(folder, tmp_path)
    assert raw.interactions["user"].to_list() == [user for user in USERS for _ in ITEMS]
    assert raw.interactions["item"].to_list() == ITEMS * 5
    assert raw.interactions["rating"].to_list()[:6] == [1, 2, 3, 4, 5, 2]
    assert raw.facts["interactions_from"] == "ratings"
    assert read(folder, tmp_path, "amazon18-arts-ratings").interactions.height == 25


def test_all_reviews_unpacked_and_deeper_are_read(tmp_path):
    home = tmp_path / "raw" / "Clothing"
    home.mkdir(parents=True)
    (home / "Clothing_Shoes_and_Jewelry.json").write_bytes(as_json(REVIEWS))
    (home / "meta_Clothing_Shoes_and_Jewelry.json").write_bytes(as_json(METADATA))
    raw = read(tmp_path / "raw", tmp_path, "amazon18-clothing")
    assert raw.interactions.height == 25
    assert len(rows_of(raw)) == 3
    assert read(tmp_path / "raw", tmp_path, "amazon18-clothing-ratings").interactions.height == 25


@pytest.mark.parametrize(
    ("line", "belongs"),
    [
        ("0449819906,ALJ66O1Y6SLHA,5.0,1452643200", Amazon2018),
        ("AFKZENTNBQ7A7V7UXW5JJI6UGRYQ,B01HJH7CDS,5.0,1588687728923", Amazon2023),
        ("user_id,parent_asin,rating,timestamp", Amazon2023),
        ("user_id,item_id", None),
        ("<html>", None),
    ],
)
def test_tables_of_the_same_name_belong_to_one_release(tmp_path, line, belongs):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "Video_Games.csv").write_text(line + "\n")
    sources = [Amazon2014, Amazon2018, Amazon2023]
    assert [source for source in sources if source.recognises(raw)] == [belongs] * bool(belongs)


def test_a_table_of_another_release_is_refused(folder, tmp_path):
    (folder / "Arts_Crafts_and_Sewing_5.json.gz").unlink()
    (folder / "Arts_Crafts_and_Sewing.csv").write_text("user_id,parent_asin,rating,timestamp\n")
    message = "E106 .*no such table of Amazon review data 2018, it begins with 'user_id,parent"
    with pytest.raises(DataError, match=message):
        read(folder, tmp_path, "amazon18-arts-ratings")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-30], r"E106 .*truncated gzip"),
        (lambda content: b"<html><body>Sign in</body></html>\n", "E106 .*page"),
        (lambda content: gzip.compress(b"not a record\n" * 5), "E114 .*neither JSON nor"),
    ],
)
@pytest.mark.parametrize(
    "name", ["Arts_Crafts_and_Sewing_5.json.gz", "meta_Arts_Crafts_and_Sewing.json.gz"]
)
def test_broken_files_are_refused(folder, tmp_path, name, damage, message):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        prepare("amazon18-arts", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "amazon18-arts").exists()


def test_the_addresses_are_those_of_the_release():
    arts = card("amazon18-arts-crafts-and-sewing")
    assert arts.name == "amazon18-arts"
    assert [file.path for file in arts.files] == [
        "Arts_Crafts_and_Sewing_5.json.gz", "meta_Arts_Crafts_and_Sewing.json.gz",
    ]  # fmt: skip
    base = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/"
    assert arts.files[0].addresses[0] == (
        f"{base}categoryFilesSmall/Arts_Crafts_and_Sewing_5.json.gz"
    )
    assert arts.files[1].addresses[0] == f"{base}metaFiles2/meta_Arts_Crafts_and_Sewing.json.gz"
    assert all(len(file.addresses) == 3 for file in arts.files)
    assert card("amazon18-clothing-ratings").files[0].path == "Clothing_Shoes_and_Jewelry.csv"
    assert card("amazon18-luxury-beauty").facts["category"] == "Luxury_Beauty"
    published = arts.published[0]
    assert (published.users, published.items, published.interactions) == (56_210, 22_917, 494_485)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("amazon18-baby", ["no category 'baby'", "amazon14-baby has it"]),
        ("amazon18-beauty", ["amazon14-beauty and amazon23-beauty have it", "amazon18-all-beauty"]),
    ],
)
def test_a_category_of_other_releases_names_them(name, told):
    with pytest.raises(DataError) as caught:
        find_known(name)
    for part in ["E102 Amazon review data 2018", *told]:
        assert part in str(caught.value)


def test_other_folders_are_not_recognised(tmp_path):
    (tmp_path / "reviews_Books_5.json.gz").write_bytes(b"")
    (tmp_path / "meta_Books.json.gz").write_bytes(b"")
    (tmp_path / "Baby_5.json.gz").write_bytes(b"")
    (tmp_path / "Books.csv").write_bytes(b"\x1f\x8b\x00broken")
    assert not Amazon2018.recognises(tmp_path)
    assert not Amazon2018.recognises(tmp_path / "nowhere")
