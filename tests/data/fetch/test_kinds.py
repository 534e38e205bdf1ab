"""Files are what their suffix says, or are named for what they are."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmbench.data.fetch.kinds import archive_kind, check_kind
from mmbench.errors import DataError

PAGES = [
    b"<!DOCTYPE html><html>",
    b"\n\n  <HTML><head>",
    b"\xef\xbb\xbf<!doctype HTML>",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", content)
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(file)
    return file.getvalue()


GOOD = {
    "x.json.gz": gzip.compress(b'{"asin": "1"}'),
    "x.zip": zipped(b"text"),
    "x.npy": npy(np.ones((3, 4), dtype=np.float32)),
    "x.parquet": parquet(),
}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "name", ["x.json", "x.csv", "x.tsv", "x.b", "x.txt", "x.inter", "x.json.gz", "x.npy", "u.data"]
)
def test_a_page_in_the_place_of_a_file_is_named(name: str, page: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(page)
    with pytest.raises(DataError, match=f"^E106 {name} is a web page, perhaps a login; download"):
        check_kind(tmp_path / name)


def test_pages_that_are_meant_are_fine(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_bytes(PAGES[0])
    check_kind(tmp_path / "x.html")


@pytest.mark.parametrize("name", GOOD)
def test_good_files_pass_and_broken_ones_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    check_kind(path, whole=True)
    path.write_bytes(GOOD[name][:-5])
    with pytest.raises(DataError, match=rf"^E106 {name} is not a complete .* file \("):
        check_kind(path, whole=True)
    path.write_bytes(b"user,item\n" + GOOD[name])
    with pytest.raises(DataError, match=f"^E106 {name} is not a .* file .it begins with b'user,it"):
        check_kind(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"^E106 {name} is empty; download it again$"):
        check_kind(path)


def test_a_temporary_file_is_checked_under_its_true_name(tmp_path: Path) -> None:
    (tmp_path / "x.npy.part").write_bytes(GOOD["x.npy"][:100])
    check_kind(tmp_path / "x.npy.part")
    with pytest.raises(DataError, match=r"^E106 x\.npy is not a complete npy file"):
        check_kind(tmp_path / "x.npy.part", name="x.npy")


def test_the_second_half_of_a_gzip_costs_reading_it(tmp_path: Path) -> None:
    content = gzip.compress(np.random.default_rng(0).bytes(10_000))
    (tmp_path / "x.gz").write_bytes(content[:5000])
    check_kind(tmp_path / "x.gz")
    with pytest.raises(DataError, match="its end is missing"):
        check_kind(tmp_path / "x.gz", whole=True)
    (tmp_path / "x.gz").write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:])
    with pytest.raises(DataError, match="not a complete gzip file"):
        check_kind(tmp_path / "x.gz", whole=True)


def test_archives_are_told_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(zipped(b"text"))
    (tmp_path / "b.zip").write_bytes(gzip.compress(b"text"))
    (tmp_path / "c.tar").write_bytes(bytes(10240))
    (tmp_path / "d.csv").write_bytes(b"user,item\n" * 100)
    assert archive_kind(tmp_path / "a.tar.gz") == "zip"
    assert archive_kind(tmp_path / "b.zip") == "gzip"
    assert archive_kind(tmp_path / "c.tar") == "tar"
    assert archive_kind(tmp_path / "d.csv") is None
