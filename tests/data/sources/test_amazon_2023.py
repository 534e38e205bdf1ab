"""Amazon Reviews 2023, in samples written in the form of the real files."""

import gzip
import json

import polars as pl
import pytest

from mmbench.data.finding import find_known
from mmbench.data.prepare import prepare
from mmbench.data.sources.amazon_2023 import Amazon2023
from mmbench.errors import DataError

ITEMS = ["0123456789", "9729375011", "B07DK1H3H5", "B08PFNJF1X", "B0BZYCJK89"]
USERS = ["AGKHLEW2SOWHNMFQIJGBECAF7INQ", "AFKZENTNBQ7A7V7UXW5JJI6UGRYQ", "null", "007", "AÉ"]
DAY = 86_400_000
FIRST = 1_588_687_728_923
HEADER = "user_id,parent_asin,rating,timestamp"
ROWS = [
    (user, item, float(1 + (u + i) % 5), FIRST + i * DAY)
    for u, user in enumerate(USERS)
    for i, item in enumerate(ITEMS)
]
PICTURES = "https://m.media-amazon.com/images/I/"


def picture(name, variant, hi_res=True):
    return {
        "thumb": f"{PICTURES}{name}._SS40_.jpg",
        "large": f"{PICTURES}{name}.jpg",
        "variant": variant,
        "hi_res": f"{PICTURES}{name}._SL1500_.jpg" if hi_res else None,
    }


METADATA = [
    {
        "main_category": "Baby",
        "title": "Swaddle &amp; Blanket",
        "average_rating": 4.2,
        "rating_number": 15,
        "features": ["Soft", "100% cotton"],
        "description": ["For the night.", "Et pour la journée."],
        "price": None,
        "images": [picture("71side", "PT01"), picture("71main", "MAIN")],
        "videos": [],
        "store": "Bissport",
        "categories": ["Baby Products", "Nursery", "Bedding"],
        "details": {"Brand": "Bissport", "Unit Count": "1.00 Count"},
        "parent_asin": "0123456789",
        "bought_together": None,
        "subtitle": None,
        "author": None,
    },
    {
        "title": "", "features": [], "description": [], "price": "12.99",
        "images": [picture("61front", "PT02", hi_res=False), picture("61back", "PT03")],
        "store": None, "categories": [], "details": '{"Brand": "x"}', "parent_asin": "9729375011",
    },
    {
        "title": "None", "parent_asin": "B07DK1H3H5",
        "images": {
            "hi_res": [None, f"{PICTURES}51m._SL1500_.jpg"], "thumb": ["t", "t"],
            "large": [f"{PICTURES}51s.jpg", f"{PICTURES}51m.jpg"], "variant": ["PT01", "MAIN"],
        },
    },
    {"title": "Elsewhere", "parent_asin": "B0ELSEWHERE", "images": []},
]  # fmt: skip


def as_json(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table(rows, header=HEADER):
    lines = [",".join(map(str, row)) for row in rows]
    return ("\n".join([header, *lines] if header else lines) + "\n").encode()


@pytest.fixture
def folder(tmp_path):
    """Baby Products as it is downloaded, in the folders of the release."""
    raw = tmp_path / "baby"
    for place in ("benchmark/5core/rating_only", "raw/meta_categories"):
        (raw / place).mkdir(parents=True)
    (raw / "benchmark/5core/rating_only/Baby_Products.csv").write_bytes(table(ROWS))
    (raw / "raw/meta_categories/meta_Baby_Products.jsonl").write_bytes(as_json(METADATA))
    return raw


def card(name):
    found = find_known(name)
    assert found is not None
    assert found.source is Amazon2023
    return found.card


def read(folder, tmp_path, name="amazon23-baby-products"):
    return Amazon2023(card(name) if name else None).read(folder, tmp_path)


def rows_of(raw, items=ITEMS):
    rows = raw.items(pl.Series("item", items))
    return {row["item"]: row for row in rows.iter_rows(named=True)}


def write_split(folder, place, rows=ROWS, header=HEADER):
    home = folder / place
    home.mkdir(parents=True, exist_ok=True)
    parts = {"train": rows[:15], "valid": rows[15:20], "test": rows[20:]}
    for part, held in parts.items():
        (home / f"Baby_Products.{part}.csv").write_bytes(table(held, header))


@pytest.mark.parametrize("header", [HEADER, f"{HEADER},history", None])
def test_the_5_core_is_read_with_a_header_and_without(folder, tmp_path, header):
    rows = [(*row, "B1 B2") for row in ROWS] if header and "history" in header else ROWS
    path = folder / "benchmark/5core/rating_only/Baby_Products.csv"
    path.write_bytes(table(rows, header))
    raw = read(folder, tmp_path)
    assert raw.interactions["user"].to_list() == [user for user in USERS for _ in ITEMS]
    assert raw.interactions["item"].to_list() == ITEMS * 5
    assert raw.interactions["rating"].to_list()[:6] == [1, 2, 3, 4, 5, 2]
    assert raw.interactions["timestamp"].to_list()[:2] == [FIRST, FIRST + DAY]
    assert raw.interactions["split"].null_count() == 25
    assert raw.facts["interactions_from"] == "5core"
    assert raw.warnings == []


def test_a_table_without_header_may_have_histories(folder, tmp_path):
    rows = [(*row, "" if k % 5 == 0 else "0123456789 B1") for k, row in enumerate(ROWS)]
    path = folder / "benchmark/5core/rating_only/Baby_Products.csv"
    path.write_bytes(table(rows, None))
    assert read(folder, tmp_path).interactions["timestamp"].to_list()[1] == FIRST + DAY


def test_items_are_parent_products_with_their_main_picture(folder, tmp_path):
    rows = rows_of(read(folder, tmp_path))
    assert rows["0123456789"] == {
        "item": "0123456789",
        "title": "Swaddle &amp; Blanket",
        "brand": "Bissport",
        "categories": "Baby Products, Nursery, Bedding",
        "description": "For the night. Et pour la journée.",
        "features": "Soft 100% cotton",
        "image": f"{PICTURES}71main._SL1500_.jpg {PICTURES}71main.jpg",
    }
    assert rows["9729375011"]["image"] == f"{PICTURES}61front.jpg"
    assert {rows["9729375011"][name] for name in ("title", "brand", "categories")} == {None}
    assert rows["B07DK1H3H5"]["title"] == "None"
    assert rows["B07DK1H3H5"]["image"] == f"{PICTURES}51m._SL1500_.jpg {PICTURES}51m.jpg"
    assert list(rows) == ["0123456789", "9729375011", "B07DK1H3H5"]


def test_it_prepares(folder, tmp_path):
    dataset = prepare("amazon23-baby-products", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.manifest["counts"]["interactions"] == 25
    assert dataset.manifest["time"]["min"] == FIRST
    assert sorted(dataset.user_ids) == sorted(USERS)
    lines = {line["id"]: line for line in dataset.items}
    assert lines["0123456789"]["text"].startswith("Swaddle & Blanket. Bissport. Baby Products, ")
    assert lines["B0BZYCJK89"]["text_status"] == "missing"


@pytest.mark.parametrize("form", ["last-out", "timestamp"])
@pytest.mark.parametrize("header", [HEADER, None])
def test_published_splits_are_kept(folder, tmp_path, form, header):
    write_split(folder, f"benchmark/5core/{form.replace('-', '_')}", header=header)
    raw = read(folder, tmp_path, f"amazon23-baby-products-{form}")
    assert raw.interactions["split"].to_list() == [0] * 15 + [1] * 5 + [2] * 5
    assert raw.facts["interactions_from"] == form
    assert [path.name for path in raw.files[:3]] == [
        f"Baby_Products.{part}.csv" for part in ("train", "valid", "test")
    ]
    assert read(folder, tmp_path).interactions["split"].null_count() == 25


def test_a_published_split_is_the_split_of_the_dataset(folder, tmp_path):
    write_split(folder, "benchmark/5core/last_out")
    name = "amazon23-baby-products-last-out"
    dataset = prepare(name, source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.split_names == ["imported"]
    assert dataset.manifest["splits"]["imported"]["rows"][:3] == [15, 5, 5]


def test_a_split_beside_nothing_else_needs_no_folders(tmp_path):
    write_split(tmp_path / "raw", ".")
    assert Amazon2023.recognises(tmp_path / "raw")
    raw = read(tmp_path / "raw", tmp_path, None)
    assert raw.interactions["split"].to_list() == [0] * 15 + [1] * 5 + [2] * 5
    assert raw.items is None
    assert raw.warnings[0].startswith("W262 raw/meta_categories/meta_Baby_Products.jsonl is not")
    (tmp_path / "raw" / "Baby_Products.valid.csv").unlink()
    assert not Amazon2023.recognises(tmp_path / "raw")


def test_the_name_decides_between_the_core_and_all_ratings(folder, tmp_path):
    home = folder / "benchmark/0core/rating_only"
    home.mkdir(parents=True)
    (home / "Baby_Products.csv").write_bytes(table([*ROWS, ("A", "B", 1.0, FIRST)]))
    assert read(folder, tmp_path).interactions.height == 25
    assert read(folder, tmp_path, None).interactions.height == 25
    assert read(folder, tmp_path, "amazon23-baby-products-ratings").interactions.height == 26


@pytest.mark.parametrize("time", ["timestamp", "sortTimestamp"])
def test_all_reviews_are_read_where_there_is_no_table(tmp_path, time):
    raw = tmp_path / "raw"
    raw.mkdir()
    reviews = [
        {
            "rating": rating, "title": "Fine", "text": "{\"a\": 1}\n", "images": [],
            "asin": "B0VARIANT0", "parent_asin": item, "user_id": user, time: stamp,
            "helpful_vote": 0, "verified_purchase": True,
        }
        for user, item, rating, stamp in ROWS
    ]  # fmt: skip
    (raw / "Baby_Products.jsonl.gz").write_bytes(gzip.compress(as_json(reviews)))
    (raw / "meta_Baby_Products.jsonl.gz").write_bytes(gzip.compress(as_json(METADATA)))
    assert Amazon2023.recognises(raw)
    read_ = read(raw, tmp_path)
    assert read_.interactions["item"].to_list() == ITEMS * 5
    assert read_.interactions["timestamp"].to_list() == [row[3] for row in ROWS]
    assert len(rows_of(read_)) == 3


def test_compressed_files_of_the_mirror_are_read_under_any_name(folder, tmp_path):
    for name in ("benchmark/5core/rating_only/Baby_Products.csv",
                 "raw/meta_categories/meta_Baby_Products.jsonl"):  # fmt: skip
        path = folder / name
        path.write_bytes(gzip.compress(path.read_bytes()))
    raw = read(folder, tmp_path)
    assert raw.interactions.height == 25
    assert len(rows_of(raw)) == 3


def write_parquet(folder):
    """The metadata in two Parquet files, pictures as one list per field."""
    (folder / "raw/meta_categories/meta_Baby_Products.jsonl").unlink()
    home = folder / "raw_meta_Baby_Products"
    home.mkdir()
    texts, lists = ("title", "store", "price", "parent_asin"), ("description", "categories")
    for part, record in enumerate(METADATA[:2]):
        images = {
            name: [image[name] for image in record["images"]]
            for name in ("hi_res", "large", "thumb", "variant")
        }
        row = {name: record.get(name) for name in texts} | {name: record[name] for name in lists}
        frame = pl.DataFrame(
            [{**row, "features": record["features"], "images": images, "details": "{}"}],
            schema_overrides=dict.fromkeys(texts, pl.String)
            | dict.fromkeys((*lists, "features"), pl.List(pl.String)),
        )
        frame.write_parquet(home / f"full-{part:05}-of-00002.parquet")
    return home


def test_metadata_may_be_parquet(folder, tmp_path):
    expected = rows_of(read(folder, tmp_path))
    home = write_parquet(folder)
    raw = read(folder, tmp_path)
    rows = rows_of(raw)
    assert rows == {item: expected[item] for item in ("0123456789", "9729375011")}
    assert [path.parent for path in raw.files[1:]] == [home, home]
    with pytest.raises(DataError, match=r"E266 .*'0123456789' against 'B1'"):
        raw.items(pl.Series("item", ["B1"]))


def test_broken_parquet_is_refused(folder, tmp_path):
    path = write_parquet(folder) / "full-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"E106 .*full-00001.* not a complete Parquet file"):
        rows_of(read(folder, tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: gzip.compress(content)[:-30], r"E106 .*truncated gzip"),
        (lambda content: b"<html><body>Sign in</body></html>\n", "E106 .*page"),
        (lambda content: content + b"{{{\n" * 5, "E11[24] "),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "benchmark/5core/rating_only/Baby_Products.csv",
        "raw/meta_categories/meta_Baby_Products.jsonl",
    ],
)
def test_broken_files_are_refused(folder, tmp_path, name, damage, message):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        prepare("amazon23-baby-products", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "amazon23-baby-products").exists()


def test_the_addresses_are_pinned_and_mirrored():
    baby = card("amazon23-baby-products")
    assert [file.path for file in baby.files] == [
        "benchmark/5core/rating_only/Baby_Products.csv",
        "raw/meta_categories/meta_Baby_Products.jsonl",
    ]
    first, mirror = baby.files[1].addresses
    assert first.startswith("https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/")
    assert "/resolve/main/" not in first
    assert first.endswith("/raw/meta_categories/meta_Baby_Products.jsonl")
    assert mirror.startswith("https://mcauleylab.ucsd.edu/")
    assert mirror.endswith("amazon_2023/raw/meta_categories/meta_Baby_Products.jsonl.gz")
    assert [file.path for file in card("amazon23-toys-timestamp").files][:3] == [
        f"benchmark/5core/timestamp/Toys_and_Games.{part}.csv"
        for part in ("train", "valid", "test")
    ]
    assert card("amazon23-beauty").facts["category"] == "Beauty_and_Personal_Care"


def test_baby_is_called_otherwise_here():
    with pytest.raises(DataError) as caught:
        find_known("amazon23-baby")
    assert "Amazon Reviews 2023 has no category 'baby'. amazon14-baby has it" in str(caught.value)
    assert "amazon23-baby-products" in str(caught.value)


def test_other_folders_are_not_recognised(tmp_path):
    (tmp_path / "meta_Books.jsonl").write_bytes(b"{}\n")
    (tmp_path / "Shoes.csv").write_bytes(table(ROWS))
    (tmp_path / "Books.csv").write_bytes(b"\x00\x01\x02")
    assert not Amazon2023.recognises(tmp_path)
    assert not Amazon2023.recognises(tmp_path / "nowhere")
