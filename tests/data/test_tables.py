import csv
import gzip
import io
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data import blocks, tables
from mmbench.errors import DataError


@pytest.fixture
def put(tmp_path):
    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_every_cell_is_text(put):
    frame = tables.read_delimited(put("user_id,x\n007,NA\nnull,1.0\n,\n"), ",")
    assert frame["user_id"].to_list() == ["007", "null", None]
    assert frame["x"].to_list() == ["NA", "1.0", None]


def test_byte_order_mark_windows_line_ends_and_blank_ends_are_accepted(put):
    frame = tables.read_delimited(put(b"\xef\xbb\xbfa , b\r\n1,2\r\n\r\n\n"), ",")
    assert frame.columns == ["a", "b"]
    assert frame.rows() == [("1", "2")]


def test_quotes_hold_separators_and_line_breaks(put):
    frame = tables.read_delimited(put('a,b\n1,"x, ""y""\nz"\n2,w\n'), ",", quoted=True)
    assert frame["b"].to_list() == ['x, "y"\nz', "w"]


def test_latin_1_is_read_when_told(put):
    path = put("1|Misérables, Les (1995)\n".encode("latin-1"))
    frame = tables.read_delimited(path, "|", columns=("id", "title"), encoding="latin-1")
    assert frame["title"].to_list() == ["Misérables, Les (1995)"]


@pytest.mark.parametrize(
    ("content", "quoted", "message"),
    [
        ("", False, r"E113 .*t\.csv is empty"),
        (" \n\n", False, r"E113 .*t\.csv is empty"),
        ("a,b\n1,2\n3\n4\n", False, r"t\.csv:3: 1 fields, expected 2 separated by comma \(2 such"),
        ("a,b\n1,2,3\n", False, r"t\.csv:2: 3 fields, expected 2"),
        ('a,b\n"1\n1",2\n"3"\n', True, r"t\.csv:4: 1 fields, expected 2"),
        (b"a,b\n1,2\n\xff,2\n", False, r"E111 .*t\.csv:3: byte 0xff is not UTF-8"),
    ],
)
def test_a_misshapen_file_is_refused_with_its_line(put, content, quoted, message):
    with pytest.raises(DataError, match=message):
        tables.read_delimited(put(content), ",", quoted=quoted)


def test_a_missing_file_names_the_cure(tmp_path):
    with pytest.raises(DataError, match=r"E101 x\.csv not found under .*; get it"):
        tables.read_delimited(tmp_path / "x.csv", ",", cure="get it")


def test_a_broken_parquet_file_is_refused(put):
    with pytest.raises(DataError, match=r"E106 .*t\.parquet is not a complete Parquet file"):
        tables.read_parquet(put(b"PAR1 cut off", "t.parquet"))


def test_ids_may_not_be_fractions(tmp_path):
    frame = pl.DataFrame({"a": [1, 2], "b": [1.0, 2.0]})
    assert tables.id_column(frame, tmp_path, "a").to_list() == ["1", "2"]
    with pytest.raises(DataError, match=r"E113 .* column 'b' has type Float64; ids must be text"):
        tables.id_column(frame, tmp_path, "b")


@pytest.mark.parametrize("bad", ["-1", "1.5", "x", "", "1e3", "+1", "12345678901"])
def test_indices_are_whole_numbers_from_zero(tmp_path, bad):
    frame = pl.DataFrame({"i": ["0", " 7 ", bad]})
    with pytest.raises(DataError, match=r"E212 .*f:4: i '" + bad.replace("+", r"\+")):
        tables.index_column(frame, tmp_path / "f", "i", 2)
    assert tables.index_column(frame[:2], tmp_path, "i", 2).tolist() == [0, 7]


@pytest.mark.parametrize("bad", ["good", "NaN", "inf", "4,5"])
def test_numbers_are_finite(tmp_path, bad):
    frame = pl.DataFrame({"r": ["1e1", None, bad]})
    with pytest.raises(DataError, match=rf"E211 .*f:4: r '{bad}'"):
        tables.number_column(frame, tmp_path / "f", "r", 2)
    assert tables.number_column(frame[:2], tmp_path, "r", 2).to_list() == [10.0, None]


def test_no_more_than_five_offenders_are_shown(tmp_path):
    frame = pl.DataFrame({"r": ["x"] * 9})
    with pytest.raises(DataError, match=r"f:2: r 'x', 3: r 'x', .*, 6: r 'x' and 4 more;"):
        tables.number_column(frame, tmp_path / "f", "r", 2)


def test_times_keep_their_unit_and_dates_become_milliseconds(tmp_path):
    def read(values, **kinds):
        frame = pl.DataFrame({"t": pl.Series(values, **kinds)})
        return tables.time_column(frame, tmp_path / "f", "t", 2).to_list()

    day = 86_400_000
    assert read(["881250949", "5.0", None]) == [881250949, 5, None]
    assert read([1.0, None]) == [1, None]
    assert read(["1970-01-02", "1970-01-03"]) == [day, 2 * day]
    assert read(["1970-01-02T01:00:00+01:00"]) == [day]
    assert read([day], dtype=pl.Datetime("ms")) == [day]
    assert read([2], dtype=pl.Date) == [2 * day]
    for bad in (["yesterday"], ["1970-01-02", "12"], ["1.5"]):
        with pytest.raises(DataError, match=r"E216 .*f:.*times must all be"):
            read(bad)


def read(path, **more):
    return tables.read_delimited(path, ",", quoted=True, **more)


# The csv module of Python 3.10 writes no NUL.
SIGNS = 'a,"\n é;' + ("\x00" if sys.version_info >= (3, 11) else "")
CELL = st.text(st.sampled_from(SIGNS), max_size=6)


@given(
    rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=12),
    header=st.tuples(CELL, CELL).map(lambda names: (f"x{names[0]}", f"y{names[1]}")),
    all_quoted=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n"]),
    size=st.integers(1, 40),
)
def test_blocks_of_any_size_give_what_the_csv_module_wrote(
    tmp_path_factory, rows, header, all_quoted, line_end, size
):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator=line_end, quoting=quoting).writerows([header, *rows])
    frame = read(path, block=size)
    assert frame.columns == [name.strip() for name in header]
    found = [tuple(cell or "" for cell in row) for row in frame.rows()]
    assert found == [tuple(cell.replace("\r\n", "\n") for cell in row) for row in rows]


SCRAPS = st.lists(
    st.sampled_from(["a", "é", ",", ",", "\n", "\n", '"', '""', '"\n', '","', '"a"', " "]),
    max_size=24,
)


@given(scraps=SCRAPS, size=st.integers(1, 20))
def test_stray_quotes_mean_what_they_mean_to_the_csv_module(tmp_path_factory, scraps, size):
    path = tmp_path_factory.getbasetemp() / "stray.csv"
    text = "x,y\n" + "".join(scraps).rstrip("\n") + "\n"
    path.write_bytes(text.encode())
    body = text.rstrip("\n") + "\n"
    rows = list(csv.reader(io.StringIO(body, newline="")))
    # The csv module closes a quote that the file leaves open; we do not.
    is_open = len(list(csv.reader(io.StringIO(body + "1,2\n", newline="")))) == len(rows)
    if is_open or any(len(row) != 2 for row in rows):
        with pytest.raises(DataError, match=r"E112 .*stray\.csv:\d+: "):
            read(path, block=size)
    else:
        found = [[cell or "" for cell in row] for row in read(path, block=size).rows()]
        assert found == rows[1:]


@given(
    lines=st.lists(st.sampled_from(["1,2", "3,4", "5", "", "6,7,8", '"9\n9",0']), max_size=12),
    size=st.integers(1, 30),
    is_quoted=st.booleans(),
)
def test_lines_left_out_do_not_move_the_others(tmp_path_factory, lines, size, is_quoted):
    path = tmp_path_factory.getbasetemp() / "left_out.csv"
    path.write_text("x,y\n" + "\n".join([*lines, "good,bad"]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MALFORMED_SHARE", 1.0)
        warnings = []
        frame = tables.read_delimited(path, ",", quoted=is_quoted, warnings=warnings, block=size)
    split = "\n".join([*lines, "good,bad"]).split("\n")
    records = [*lines, "good,bad"] if is_quoted else split
    wanted = [record for record in records if record.count(",") == 1]
    shown = [record.replace('"', "") if is_quoted else record for record in wanted]
    assert [",".join(row) for row in frame.rows()] == shown
    n_bad = len(records) - len(wanted)
    assert len(warnings) == (n_bad > 0)
    if n_bad:
        assert warnings[0].startswith(f"W112 {n_bad} of {1 + len(split)} lines of {path} are mal")
    assert frame.lines.of(frame.height - 1) == 1 + len(split)


def test_malformed_lines_up_to_a_share_are_left_out_and_shown(put):
    lines = [f"{k},x" for k in range(2, 6001)]
    for line, bad in ((17, "1,2,3"), (20, "7"), (3000, ""), (3001, "a,b,c,d")):
        lines[line - 2] = bad
    warnings = []
    path = put("id,r\n" + "\n".join(lines) + "\n")
    frame = tables.read_delimited(path, ",", warnings=warnings)
    assert frame.height == 5999 - 4
    assert frame["id"][-1] == "6000"
    assert warnings == [
        f"W112 4 of 6,000 lines of {path} are malformed and left out, e.g. line 17: 3 fields, "
        "expected 2; line 20: 1 fields, expected 2; line 3000: an empty line"
    ]
    # Row 15 is line 18, for line 17 was left out.
    with pytest.raises(DataError, match=r"t\.csv:2: r 'x', 3: r 'x'"):
        tables.number_column(frame, path, "r", 2)
    assert frame.lines.of(14) == 16
    assert frame.lines.of(15) == 18
    assert frame.lines.of(frame.height - 1) == 6000
    with pytest.raises(DataError, match=r"E112 .*t\.csv:17: 3 fields, .* separated by comma \(4 "):
        tables.read_delimited(path, ",")
    with pytest.raises(
        DataError,
        match=r"E112 .*:17: 3 fields, expected 2 separated by comma; line 20: 1 fields, expected "
        r"2; line 3000: an empty line; 4 of 3,001 lines are malformed, more than 0\.1%",
    ):
        tables.read_delimited(put("id,r\n" + "\n".join(lines[:3000])), ",", warnings=[])


def test_a_quote_that_is_never_closed_is_named_with_its_line(put):
    with pytest.raises(DataError, match=r"E112 .*t\.csv:3: a quote is not closed"):
        read(put('a,b\n1,2\n3,"4\n5,6\n'))
    with pytest.raises(DataError, match=r"E112 .*t\.csv:1: a quote is not closed"):
        read(put('"a,b\n1,2\n'))


@pytest.mark.parametrize("block", [1, 9, 1000])
def test_a_separator_may_have_several_characters(put, block):
    path = put("1::Caf\xe9: a :b::x|y\n2::\x1f::\n".encode("latin-1"))
    frame = tables.read_delimited(
        path, "::", columns=("a", "b", "c"), encoding="latin-1", block=block
    )
    assert frame.rows() == [("1", "Café: a :b", "x|y"), ("2", "\x1f", None)]
    with pytest.raises(DataError, match=r":2: 2 fields, expected 3 separated by ::"):
        tables.read_delimited(put("1::2::3\n1::2\n"), "::", columns=("a", "b", "c"))
    header = tables.read_delimited(put("a::b\n1::2\n"), "::")
    assert (header.columns, header.rows()) == (["a", "b"], [("1", "2")])


@pytest.mark.parametrize("block", [1, 1000])
def test_the_last_column_may_take_the_rest(put, block):
    path = put('1,One, "two", three\n2,\n3\n4,x\n')
    options = {"columns": ("item", "title"), "last_takes_rest": True, "block": block}
    with pytest.raises(DataError, match=r"E112 .*:3: 1 fields, expected 2 separated by comma; "):
        tables.read_delimited(path, ",", **options)
    path.write_text(path.read_text().replace("3\n", ""))
    frame = tables.read_delimited(path, ",", **options)
    assert frame.rows() == [("1", 'One, "two", three'), ("2", None), ("4", "x")]


def test_only_the_columns_asked_for_are_kept(put):
    path = put("a,b,c\n1,2,3\n4,5,6\n")
    assert read(path, keep=("c", "a", "z")).rows() == [("1", "3"), ("4", "6")]
    assert read(path, keep=("c",), numbers=("a", "c", "z")).rows() == [(3.0,), (6.0,)]
    assert tables.read_header(path, ",") == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"E113 .*column 'd' missing; found a, b, c"):
        tables.need_columns(tables.read_header(path, ","), path, ["d"])


def test_names_that_stand_twice_are_told_apart(put):
    assert read(put("a,a,b,a\n1,2,3,4\n")).columns == [
        "a", "a_duplicated_0", "b", "a_duplicated_1",
    ]  # fmt: skip


def test_a_file_of_one_column_has_no_empty_lines(put):
    frame = tables.read_delimited(put("v1\nv2\n\n"), "\t", columns=("item",))
    assert frame.rows() == [("v1",), ("v2",)]
    with pytest.raises(DataError, match=r"E112 .*:2: an empty line"):
        tables.read_delimited(put("v1\n\nv2\n"), "\t", columns=("item",))


@pytest.mark.parametrize("block", [1, 25, 1000])
def test_numbers_and_times_are_converted_on_the_way(put, block):
    text = "r,t\n4.0,1000\n 5 ,1001.0\n,\n1e-1, 1002\n"
    frame = read(put(text), numbers=("r",), times=("t",), block=block)
    assert frame.dtypes == [pl.Float64, pl.Int64]
    assert frame.rows() == [(4.0, 1000), (5.0, 1001), (None, None), (0.1, 1002)]
    days = read(put("t\n1970-01-02\n1970-01-03\n"), times=("t",), block=block)
    assert days["t"].to_list() == [86_400_000, 172_800_000]
    empty = read(put("r,t\n"), numbers=("r",), times=("t",), block=block)
    assert (empty.height, empty.dtypes) == (0, [pl.Float64, pl.Int64])
    # Typed columns are fit for the same functions as text.
    assert tables.number_column(frame, put(""), "r", 2).to_list() == [4.0, 5.0, None, 0.1]
    assert tables.time_column(frame, put(""), "t", 2).to_list() == [1000, 1001, None, 1002]


@pytest.mark.parametrize("block", [1, 10, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r,t\n1,1\n2,2\ngood,3\n", r"E211 .*t\.csv:4: r 'good'; it must be a finite number"),
        ("r,t\n1,1\nnan,2\n", r"E211 .*t\.csv:3: r 'nan'"),
        ("r,t\n1,1\n1e999,2\n", r"E211 .*t\.csv:3: r '1e999'"),
        ('r,t\n1,1\n"2\n",2\nx,3\n', r"E211 .*t\.csv:5: r 'x'"),
        ("r,t\n1,1\n2,now\n", r"E216 .*t\.csv:3: t 'now'; times must all be whole numbers"),
        ("r,t\n1,1000000000\n2,2020-01-01\n", r"E216 .*t\.csv:3: t '2020-01-01'; times"),
        ("r,t\n1,2020-01-01\n2,1000000000\n", r"E216 .*t\.csv:2: t '2020-01-01'; times"),
        ("r,t\n1,99999999999999999999\n", r"E216 .*t\.csv:2: t '99999999999999999999'"),
        ("r,t\n1,1.5\n", r"E216 .*t\.csv:2: t '1\.5'"),
    ],
)
def test_cells_that_do_not_convert_are_named_whatever_the_block(put, text, message, block):
    with pytest.raises(DataError, match=message):
        read(put(text), numbers=("r",), times=("t",), block=block)


NUMBER = st.sampled_from(
    ["", "0", "-1", "+2", "1.50", ".5", "5.", "1e5", "1E-3", " 7", "8 ", "0x1", "1_0", "nan", "inf",
     "1,5", "9007199254740993", "2.0", "--1", "1e400", "true"]
)  # fmt: skip


@given(cells=st.lists(NUMBER, min_size=1, max_size=6), kind=st.sampled_from(["numbers", "times"]))
def test_converting_on_the_way_and_later_agree(tmp_path_factory, cells, kind):
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_text("c,d\n" + "".join(f'"{cell}",x\n' for cell in cells))
    convert = tables.number_column if kind == "numbers" else tables.time_column

    def result(action):
        try:
            return action().to_list()
        except DataError as error:
            return str(error)

    later = result(lambda: convert(read(path), path, "c", 2))
    for block in (1, 1000):
        on_the_way = result(lambda size=block: read(path, **{kind: ["c"]}, block=size)["c"])
        assert isinstance(on_the_way, str) == isinstance(later, str)
        if not isinstance(later, str):
            assert on_the_way == later


def test_packed_tables_are_read_and_cut_off_ones_refused(put):
    text = b"a,b\n" + b"".join(b"%d,%d\n" % (k, k * k) for k in range(9000))
    assert read(put(gzip.compress(text), "t.csv.gz")).height == 9000
    with pytest.raises(DataError, match=r"E106 .*t\.csv\.gz .*truncated gzip after [\d,]+ lines"):
        read(put(gzip.compress(text)[:9000], "t.csv.gz"))


def test_invalid_utf8_far_into_a_file_is_named_by_its_line(put):
    text = b"a,b\n" + b"1,2\n" * 500 + b"\xe9,2\n"
    with pytest.raises(DataError, match=r"E111 .*t\.csv:502: byte 0xe9 is not UTF-8"):
        read(put(text), block=64, warnings=[])


def test_a_quoted_cell_may_be_longer_than_a_block(put):
    long = "x\n" * 5000
    frame = read(put(f'a,b\n1,"{long}"\n2,y\n'), block=100)
    assert frame["b"].to_list() == [long, "y"]
    assert frame.lines.of(1) == 5003


def test_parquet_gives_the_columns_asked_for(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": [1], "b": ["x"]}).write_parquet(path)
    assert tables.parquet_header(path) == ["a", "b"]
    assert tables.read_parquet(path, keep=("b", "z")).to_dict(as_series=False) == {"b": ["x"]}
    whole = path.read_bytes()
    for content, message in (
        (whole[:-9], r"E106 .*not a complete Parquet file \(truncated\)"),
        (b"", r"E113 .*is empty"),
        (b"<!doctype html>", r"E106 .*a web page"),
        (b"a,b\n", r"E106 .*\(begins otherwise\)"),
        (whole[:4] + whole[:4], r"E106 .*not a complete Parquet file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            tables.read_parquet(path)


def test_lines_are_counted_past_what_was_left_out():
    lines = tables.Lines(2, np.array([3, 5]), np.array([1, 4]))
    assert [lines.of(row) for row in range(7)] == [2, 3, 4, 6, 7, 11, 12]
