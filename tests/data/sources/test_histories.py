"""What the four sets of short videos share."""

from __future__ import annotations

import re

import polars as pl
import pytest

from mmbench.data.sources import histories
from mmbench.data.sources.histories import (
    check_listed,
    choose,
    compare_histories,
    matching_files,
    read_histories,
    with_pictures,
)
from mmbench.errors import DataError

TSV = re.compile(r".*\.tsv")


@pytest.fixture
def read(tmp_path):
    def run(content):
        path = tmp_path / "x_users.tsv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        warnings = []
        return read_histories(path, cure="take it again", warnings=warnings), warnings

    return run


def test_histories_keep_their_order_and_their_ids(read):
    pairs, warnings = read("u2\t007 7 NA\nu1\tnull 007\n")
    assert pairs.rows() == [
        ("u2", "007"), ("u2", "7"), ("u2", "NA"), ("u1", "null"), ("u1", "007"),
    ]  # fmt: skip
    assert warnings == []


def test_lines_of_windows_and_blanks_at_their_ends_change_nothing(read):
    pairs, warnings = read(b"\xef\xbb\xbfu1\ta b \r\nu2\tc  d\r\n")
    assert pairs.rows() == [("u1", "a"), ("u1", "b"), ("u2", "c"), ("u2", "d")]
    assert warnings == []


def test_blocks_make_no_difference(read, monkeypatch):
    text = "".join(f"u{user}\t" + " ".join(map(str, range(user + 1))) + "\n" for user in range(25))
    whole, _ = read(text)
    monkeypatch.setattr(histories, "_BLOCK", 4)
    assert read(text)[0].rows() == whole.rows()
    assert whole.height == 25 * 26 // 2


def test_an_empty_history_is_counted(read):
    pairs, warnings = read("u1\ta b\nu2\t\nu3\t  \n")
    assert pairs["user"].to_list() == ["u1", "u1"]
    assert warnings == ["W201 2 users of x_users.tsv have an empty history; left out"]


def test_a_user_with_two_lines_is_told(read):
    pairs, warnings = read("u1\ta\nu2\tb\nu1\tc\n")
    assert pairs.height == 3
    assert warnings == [
        "W268 1 users of x_users.tsv have a second line, e.g. 'u1'; their items are joined in "
        "the order of the file"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("u1\ta b\nu2 a b\n", r"E112 .*x_users\.tsv:2: 1 fields, expected 2"),
        ("u1\t\n", r"E241 .*x_users\.tsv names no item; take it again"),
        ("", r"E113 .*x_users\.tsv is empty; take it again"),
        (b"u1\ta\nu2\t\xff\n", r"E111 .*x_users\.tsv:2: byte 0xff is not UTF-8"),
        ("<!DOCTYPE html>\n<p>sign in</p>\n", r"E106 .*x_users\.tsv is a web page"),
    ],
)
def test_a_broken_file_of_histories_is_refused(read, content, message):
    with pytest.raises(DataError, match=message):
        read(content)


def test_pairs_and_histories_that_differ_are_told(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("u1\ta b\nu2\ta\n")
    warnings = []
    agreeing = pl.DataFrame({"user": ["u1", "u2", "u1"], "item": ["a", "a", "b"]})
    names = (tmp_path / "x.csv", path, tmp_path / "x.csv")
    compare_histories(agreeing, *names, cure="", warnings=warnings)
    assert warnings == []
    compare_histories(agreeing.head(2), *names, cure="", warnings=warnings)
    assert warnings == [
        "W267 x.tsv holds 2 users with 3 interactions, x.csv 2 with 2; x.csv is used"
    ]


def test_items_without_an_entry_are_told_and_strangers_refused(tmp_path):
    pairs, items = tmp_path / "pairs.csv", tmp_path / "items.csv"
    used = pl.Series(["a", "b", "c", "c", None])
    warnings = []
    check_listed(used, pairs, pl.Series(["a", "d"]), items, warnings)
    assert warnings == [
        "W269 2 of the 3 items of pairs.csv are not in items.csv, e.g. 'b', 'c'; they have no text"
    ]
    with pytest.raises(DataError, match=r"E266 none of the 1 item ids of .*items\.csv"):
        check_listed(used, pairs, pl.Series(["d"]), items, warnings)


def test_files_are_found_in_folders_but_not_among_pictures(tmp_path):
    for name in ("b.tsv", "in/a.tsv", "in/deep/c.tsv", "in/deep/er/d.tsv", "x_cover/e.tsv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in matching_files(tmp_path, TSV, 2)]
    assert found == ["b.tsv", "in/a.tsv", "in/deep/c.tsv"]
    assert matching_files(tmp_path / "b.tsv", TSV, 1) == []
    assert matching_files(tmp_path / "none", TSV, 1) == []


def test_the_dataset_asked_for_is_the_one_taken(tmp_path):
    found = {"QB": tmp_path / "QB_pair.csv", "TN": tmp_path / "TN_pair.csv"}
    assert choose(found, "tn", tmp_path, "ninerec-tn") == "TN"
    with pytest.raises(DataError, match=r"E103 .* holds QB, TN \(QB_pair\.csv\), but x is KU"):
        choose(found, "KU", tmp_path, "x")
    with pytest.raises(DataError, match=r"E103 .* holds QB, TN; pass the folder of one of them"):
        choose(found, None, tmp_path, "")


def test_pictures_are_joined_by_name_whatever_their_kind(tmp_path):
    covers = tmp_path / "Covers"
    (covers / "more").mkdir(parents=True)
    for name in ("a.JPG", "b.png", "more/c.webp", "d.txt", "B.jpeg", "unused.jpg"):
        (covers / name).touch()
    used = pl.Series(["c", "b", "a", "d", "a"])
    table, root = with_pictures(None, used, [tmp_path], ["x_cover", "covers"], [])
    assert root == covers
    assert table.rows() == [("a", "a.JPG"), ("b", "b.png"), ("c", "more/c.webp"), ("d", None)]


def test_pictures_that_cannot_be_used_are_told(tmp_path):
    (tmp_path / "hm_image.lmdb").mkdir()
    (tmp_path / "covers.7z").touch()
    warnings = []
    table, root = with_pictures(None, pl.Series(["a"]), [tmp_path], ["covers"], warnings)
    assert (table, root) == (None, None)
    assert len(warnings) == 2
    assert warnings[0].startswith("W263 covers.7z is still packed")
    assert "hm_image.lmdb is an LMDB of pickled Python objects, which are never read" in warnings[1]
    (tmp_path / "covers").mkdir()
    warnings = []
    with_pictures(None, pl.Series(["a"]), [tmp_path], ["covers"], warnings)
    assert warnings == []
