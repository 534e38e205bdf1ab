"""Titles behind item numbers: quoted as CSV, or bare with whatever is in them."""

from __future__ import annotations

import pytest

from mmbench.data.sources.numbered_titles import read_numbered
from mmbench.errors import DataError


@pytest.fixture
def read(tmp_path):
    def run(content, separator=",", fields=("title",)):
        path = tmp_path / "titles.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        warnings = []
        rows = read_numbered(path, separator, fields, cure="take it again", warnings=warnings)
        return rows.rows(), warnings

    return run


def test_csv_with_a_header_and_quoted_cells(read):
    rows, warnings = read(
        'item,title\r\n1,Plain\r\n2,"One, two, three"\r\n3,"She said ""go"""\r\n4,"Over\r\ntwo"\r\n'
    )
    assert rows == [
        ("1", "Plain"), ("2", "One, two, three"), ("3", 'She said "go"'), ("4", "Over\ntwo"),
    ]  # fmt: skip
    assert warnings == []


def test_bare_lines_without_a_header(read):
    rows, warnings = read('1,Cooking, at home\n2,"Hello" he said\n3,6" pipe\n4,"never closed\n5,NA')
    assert rows == [
        ("1", "Cooking, at home"), ("2", '"Hello" he said'), ("3", '6" pipe'),
        ("4", '"never closed'), ("5", "NA"),
    ]  # fmt: skip
    assert warnings == []


def test_ids_keep_their_zeros_and_empty_titles_are_none(read):
    rows, _ = read('\ufeffid,title\n007,\n7,""\n08,null\n')
    assert rows == [("007", None), ("7", None), ("08", "null")]


def test_several_fields_behind_tabs(read):
    rows, _ = read("1\t10000\t44000\n2\t2\t3\n", "\t", ("likes", "views"))
    assert rows == [("1", "10000", "44000"), ("2", "2", "3")]


def test_malformed_lines_are_counted_below_a_thousandth(read):
    good = "".join(f"{item},Title {item}\n" for item in range(1, 2001))
    rows, warnings = read(good + "and a line on its own\n")
    assert len(rows) == 2000
    (warning,) = warnings
    assert warning.startswith("W112 1 of 2,001 lines of ")
    assert "line 2001: 'and a line on its own' begins with no item number" in warning


def test_malformed_lines_are_refused_above_it(read):
    good = "".join(f"{item},Title {item}\n" for item in range(1, 2001))
    shown = r"titles\.csv:2: 'a' begins .*; line 3: 'b' .*; line 2004: 'c' "
    with pytest.raises(DataError, match=rf"E112 .*{shown}.*; 4 of 2,005 lines are malformed"):
        read("item,title\na\nb\n" + good + "c\nd\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title,item\nx,1\n", r"E113 .*titles\.csv:1: found 'title,item'; expected item,title"),
        ("item,title\n", r"E241 .* has a header and no rows; take it again"),
        ("", r"E113 .*titles\.csv is empty"),
        (b"1,ok\n2,\xe9t\xe9\n", r"E111 .*titles\.csv:2: byte 0xe9 is not UTF-8"),
        ("<html><body>login</body></html>", r"E106 .*titles\.csv is a web page"),
    ],
)
def test_other_files_are_refused(read, content, message):
    with pytest.raises(DataError, match=message):
        read(content)


def test_a_lone_quote_before_much_text_ends_soon(read):
    """Looking for the end of every lone quote to the end of the file would take for ever."""
    text = 'item,title\n1,"open\n' + "words and words\n" * 20000
    with pytest.raises(DataError, match=r"E112 .* 20,000 of 20,002 lines are malformed"):
        read(text)
