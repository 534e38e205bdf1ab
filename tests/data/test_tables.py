import polars as pl
import pytest

from mmbench.data import tables
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
