"""The Amazon releases by name: fetched from local stand-ins of their sites, and prepared."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmbench.data.prepared import open_dataset

ITEMS = [f"{k:010}" for k in range(1, 7)]
USERS = [f"A{k}USER" for k in range(6)]
MIRRORS = {
    "https://snap.stanford.edu/data/amazon/productGraph/": "snap/",
    "https://mcauleylab.ucsd.edu/public_datasets/data/": "ucsd/",
    "https://jmcauley.ucsd.edu/data/": "old/",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/": "repo/",
    "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/": "hf/",
    "http://ecx.images-amazon.com/": "shop/",
}


def lines(records: list[dict], write: Callable[[dict], str] = json.dumps) -> bytes:
    return "".join(write(record) + "\n" for record in records).encode()


def reviews() -> list[dict]:
    return [
        {"reviewerID": user, "asin": item, "overall": 4.0, "unixReviewTime": 1_400_000_000 + k}
        for user in USERS
        for k, item in enumerate(ITEMS)
    ]


def picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def site(serve: Callable, monkeypatch: pytest.MonkeyPatch):
    """One server that stands for all of them; files are put into `site.files`."""
    server = serve({})
    pairs = (f"{old}={server.url}{new}" for old, new in MIRRORS.items())
    monkeypatch.setenv("MMBENCH_MIRRORS", ";".join(pairs))
    return server


@pytest.fixture
def baby(site):
    """Amazon 2014 Baby; the first item has a picture, the second one's is gone."""
    addresses = ["http://ecx.images-amazon.com/images/I/51%2Ba.jpg"]
    addresses.append("http://ecx.images-amazon.com/images/I/gone.jpg")
    metadata = [{"asin": item, "title": f"Thing {item}"} for item in ITEMS]
    for record, address in zip(metadata, addresses, strict=False):
        record["imUrl"] = address
    vectors = np.arange(len(ITEMS), dtype="<f4")[:, None] + np.ones((1, 4096), dtype="<f4")
    records = zip(ITEMS, vectors, strict=True)
    folder = "snap/categoryFiles/"
    site.files |= {
        f"{folder}reviews_Baby_5.json.gz": gzip.compress(lines(reviews())),
        f"{folder}meta_Baby.json.gz": gzip.compress(lines(metadata, repr)),
        "snap/image_features/categoryFiles/image_features_Baby.b": b"".join(
            item.encode() + vector.tobytes() for item, vector in records
        ),
        "shop/images/I/51+a.jpg": picture(),
    }
    return site


def test_amazon_2014_is_fetched_from_either_site(mmbench: Callable, baby, tmp_path: Path) -> None:
    core, metadata = "categoryFiles/reviews_Baby_5.json.gz", "categoryFiles/meta_Baby.json.gz"
    baby.files[f"ucsd/amazon/{core}"] = baby.files.pop(f"snap/{core}")
    baby.fault(f"snap/{metadata}", cut_after=100)
    done = mmbench("prepare", "amazon-baby", "--download", "--no-features")
    assert done.status == 0, done.err
    assert "6 users, 6 items, 36 interactions" in done.out
    assert len(baby.gets(f"snap/{core}")) == 1
    assert len(baby.gets(f"ucsd/amazon/{core}")) == 1
    assert [asked.range for asked in baby.gets(f"snap/{metadata}")] == ["", "bytes=100-"]
    assert not any("image_features" in asked.path for asked in baby.requests)
    dataset = open_dataset(tmp_path / "data" / "amazon-baby")
    assert dataset.item_ids == ITEMS
    assert dataset.items[0]["text"] == "Thing 0000000001"


def test_amazon_2014_with_features_and_pictures(mmbench: Callable, baby, tmp_path: Path) -> None:
    done = mmbench(
        "prepare", "amazon14-baby", "--download", "--with", "features", "--with", "pictures",
        "--no-features",
    )  # fmt: skip
    assert done.status == 0, done.err
    dataset = open_dataset(tmp_path / "data" / "amazon14-baby")
    features = dataset.features("visual")
    assert features.matrix[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert features.mask.all()
    statuses = [line["image_status"] for line in dataset.items]
    assert statuses == ["ok"] + ["missing"] * 5
    assert dataset.image_paths[0].read_bytes() == picture()
    assert "404" in dataset.items[1]["image_failure"]


def test_what_a_first_download_lacked_is_fetched_later(mmbench: Callable, baby) -> None:
    path = "snap/categoryFiles/meta_Baby.json.gz"
    metadata = baby.files.pop(path)
    done = mmbench("prepare", "amazon14-baby", "--download", "--no-features")
    assert done.status == 2
    assert "meta_Baby.json.gz cannot be fetched" in " ".join(done.err.split())
    baby.files[path] = metadata
    done = mmbench("prepare", "amazon14-baby", "--download", "--no-features")
    assert done.status == 0, done.err
    assert "W262 meta_Baby" not in " ".join(done.err.split())
    assert len(baby.gets("snap/categoryFiles/reviews_Baby_5.json.gz")) == 1


def test_amazon_2018_is_fetched_past_a_login_page(mmbench: Callable, site, tmp_path: Path) -> None:
    core = "amazon_v2/categoryFilesSmall/All_Beauty_5.json.gz"
    metadata = "amazon_v2/metaFiles2/meta_All_Beauty.json.gz"
    described = [{"asin": item, "title": f"Soap &amp; {item}"} for item in ITEMS]
    site.files |= {
        f"old/{core}": gzip.compress(lines(reviews())),
        f"ucsd/{metadata}": gzip.compress(lines(described)),
    }
    site.fault(f"ucsd/{core}", html=True)
    done = mmbench("prepare", "amazon18-all-beauty", "--download", "--no-features")
    assert done.status == 0, done.err
    assert len(site.gets(f"old/{core}")) == 1
    dataset = open_dataset(tmp_path / "data" / "amazon18-all-beauty")
    assert dataset.items[5]["text"] == "Soap & 0000000006"


def test_amazon_2023_is_fetched_with_its_published_split(
    mmbench: Callable, site, tmp_path: Path
) -> None:
    rows = [(u, i, 5.0, 1_600_000_000_000 + k) for u in USERS for k, i in enumerate(ITEMS)]
    parts = {"train": rows[:24], "valid": rows[24:30], "test": rows[30:]}
    tables = {
        part: "user_id,parent_asin,rating,timestamp\n"
        + "".join(",".join(map(str, row)) + "\n" for row in held)
        for part, held in parts.items()
    }
    described = [{"parent_asin": item, "title": f"Rug {item}", "images": []} for item in ITEMS]
    revision = site_revision()
    folder = "benchmark/5core/last_out/"
    metadata = "raw/meta_categories/meta_Baby_Products.jsonl"
    for part in ("train", "valid"):
        path = f"hf/{revision}/{folder}Baby_Products.{part}.csv"
        site.files[path] = tables[part].encode()
    # The mirror has compressed files; they are taken under the same name.
    packed = f"ucsd/amazon_2023/{folder}Baby_Products.test.csv.gz"
    site.files[packed] = gzip.compress(tables["test"].encode())
    site.files[f"ucsd/amazon_2023/{metadata}.gz"] = gzip.compress(lines(described))
    name = "amazon23-baby-products-last-out"
    done = mmbench("prepare", name, "--download", "--no-features")
    assert done.status == 0, done.err
    dataset = open_dataset(tmp_path / "data" / name)
    assert dataset.split_names == ["imported"]
    assert dataset.manifest["splits"]["imported"]["rows"][:3] == [24, 6, 6]
    assert dataset.items[0]["text"] == "Rug 0000000001"


def site_revision() -> str:
    """The revision that the card's addresses are pinned to."""
    from mmbench.data.finding import find_known

    found = find_known("amazon23-baby-products")
    assert found is not None
    assert found.card is not None
    return found.card.files[0].addresses[0].split("/resolve/")[1].split("/")[0]
