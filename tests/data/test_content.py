"""Items read on demand, pictures known by address, and the census of what is missing."""

from __future__ import annotations

import polars as pl
import pytest
from PIL import Image

from mmbench.data.content import ItemContent, describe_content
from mmbench.data.fetch.pictures import fetch_pictures
from mmbench.data.fetch.web import Web
from mmbench.data.source import RawDataset
from mmbench.errors import DataError, UnknownNameError

ROWS = pl.DataFrame({"user": ["u"], "item": ["a"]})
FAST = Web(attempts=2, pause_s=0.01, timeout_s=5)


def content(items, **where):
    raw = RawDataset(ROWS, items=items, text_fields=("title",), image_root=where.pop("root", None))
    return ItemContent(raw, None, "shop", **where)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def reader(asked):
    """An item table that is read on demand and notes what it is asked for."""
    table = pl.DataFrame(
        {"item": ["a", "b", "c"], "title": ["One", "Two", None], "image": [None] * 3}
    )

    def read(ids):
        asked.append(ids.to_list())
        return table.filter(pl.col("item").is_in(ids.to_list()))

    return read


def test_items_are_read_on_demand_and_once(reader, asked):
    items = content(reader)
    assert asked == []
    assert [items.text(item) for item in ("a", "x", "a")] == ["One", "", "One"]
    lines = items.records(["a", "b", "x"], ["a", "b", "x"])
    assert [line["text_status"] for line in lines] == ["ok", "ok", "missing"]
    assert sorted(item for ids in asked for item in ids) == ["a", "b", "x"]
    assert items.fulfils(["a", "c"], "text").tolist() == [True, False]


def test_text_fields_of_a_late_table_are_checked_too(reader):
    raw = RawDataset(ROWS, items=reader)
    with pytest.raises(UnknownNameError, match=r'unknown text field of shop .*"title"'):
        ItemContent(raw, ["titel"], "shop").text("a")


@pytest.mark.parametrize("late", [True, False])
def test_a_table_of_other_items_is_refused(late):
    table = pl.DataFrame({"item": ["0108", "0109"], "title": ["x", "y"]})
    items = (lambda ids: table.filter(pl.col("item").is_in(ids.to_list()))) if late else table
    with pytest.raises(DataError, match=r"E266 shop: no item of the interactions .* e\.g\. '108'"):
        content(items).records(["108", "109"], ["108", "109"])


def test_a_dataset_without_an_item_table_is_fine():
    lines = ItemContent(RawDataset(ROWS), None, "shop").records(["a"], ["a"])
    assert (lines[0]["text_status"], lines[0]["image_status"]) == ("missing", "missing")


@pytest.fixture
def served(serve, tmp_path):
    """Three pictures on a web server; a fourth address leads nowhere, a fifth to a page."""
    files = {}
    for k, name in enumerate("abc"):
        Image.new("RGB", (16, 16), (60 * k, 0, 90)).save(tmp_path / f"{name}.png")
        files[f"{name}.png"] = (tmp_path / f"{name}.png").read_bytes()
    server = serve(files, {"page.png": {"html": True}})
    names = ["a", "b", "c", "nowhere", "page"]
    table = pl.DataFrame(
        {
            "item": [*names, "none"],
            "title": ["x"] * 6,
            "image": [*(f"{server.url}{name}.png" for name in names), None],
        }
    )
    return server, table


def test_pictures_are_fetched_for_the_items_that_are_asked_for(served, tmp_path):
    server, table = served
    folder = tmp_path / "raw" / "images"
    items = content(table, fetched=folder, fetch=lambda which, to: fetch_pictures(which, to, FAST))
    keys = ["a", "b", "nowhere", "page", "none"]
    lines = items.records(keys, keys)
    assert [line["image_status"] for line in lines] == ["ok", "ok", *["missing"] * 3]
    assert lines[0]["image_from"] == "fetched"
    assert (folder / lines[0]["image"]).is_file()
    assert lines[0]["image_address"] == f"{server.url}a.png"
    assert "404" in lines[2]["image_failure"]
    assert "text/html" in lines[3]["image_failure"]
    assert server.gets("c.png") == []
    images = describe_content(lines, items.pictures(keys))[1]
    assert (images["ok"], images["missing"], images["failed"]) == (2, 3, 2)
    assert images["not_fetched"] == 0


def test_pictures_fetched_earlier_are_found_and_nothing_is_fetched_unasked(served, tmp_path):
    server, table = served
    folder = tmp_path / "raw" / "images"
    fetch_pictures({"a": [f"{server.url}a.png"]}, folder, FAST)
    n_requests = len(server.requests)
    items = content(table, fetched=folder)
    lines = items.records(["a", "b"], ["a", "b"])
    assert [line["image_status"] for line in lines] == ["ok", "missing"]
    assert lines[1]["image"] is None
    images = describe_content(lines, items.pictures(["a", "b"]))[1]
    assert (images["not_fetched"], images["failed"]) == (1, 0)
    assert len(server.requests) == n_requests
    assert [path for path, _ in items.signature()] == ["a.png"]
