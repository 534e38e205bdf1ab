import gzip
import json
import math
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data import lines
from mmbench.data.blocks import Malformed
from mmbench.data.lines import read_scalars, records
from mmbench.errors import DataError

COLUMNS = {"a": pl.String, "n": pl.Float64, "i": pl.Int64, "b": pl.Boolean}
REVIEW = (
    '{"reviewerID": "A%d", "asin": "B%d", "reviewerName": "x \\"y\\"", "helpful": [0, 0], '
    '"reviewText": "said \\"asin\\": fine\\n", "overall": 5.0, "unixReviewTime": %d}\n'
)


@pytest.fixture
def put(tmp_path):
    def write(content, name="x.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def scalars(path, columns=COLUMNS, **more):
    warnings = []
    frame = read_scalars(path, columns, warnings=warnings, **more)
    assert warnings == []
    return frame


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
@pytest.mark.parametrize("block", [1, 500, 1 << 20])
def test_reviews_become_columns(put, name, block):
    text = "".join(REVIEW % (k, 2 * k, 10**9 + k) for k in range(9)).encode()
    path = put(gzip.compress(text) if name.endswith("gz") else text, name)
    columns = {"reviewerID": pl.String, "overall": pl.Float64, "unixReviewTime": pl.Int64}
    frame = scalars(path, columns, block=block)
    assert frame.schema == columns
    assert frame.rows() == [(f"A{k}", 5.0, 10**9 + k) for k in range(9)]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ('{"a": "x", "n": 1, "i": 2, "b": true, "z": {"a": "q"}}', ("x", 1.0, 2, True)),
        ("{'a': u'caf\\xe9', 'n': 1.5, 'z': None, 'b': False}", ("café", 1.5, None, False)),
        ("{}", (None, None, None, None)),
        ('{"a": null, "n": NaN, "i": null}', (None, None, None, None)),
        ('{"a": 7, "n": "2.5", "i": "12"}', ("7", 2.5, 12, None)),
        ('{"a": 1.10, "i": 3.0}', ("1.1", None, 3, None)),
        ('{"a": true, "n": 123}', ("true", 123.0, None, None)),
        ('{"a": "007"}', ("007", None, None, None)),
        ('{"a": "NA", "n": 1e3}', ("NA", 1000.0, None, None)),
        ('{"a": "first", "a": "last", "n": 1, "n": 2}', ("last", 2.0, None, None)),
        ('{"a": "first", "a": null}', (None, None, None, None)),
        ('{"\\u0061": "escaped key"}', ("escaped key", None, None, None)),
        ('{"a": "\\ud83d\\ude00 \\ud83d."}', ("😀 \ufffd.", None, None, None)),
        ("{'a': u'\\ud83d\\ude00'}", ("😀", None, None, None)),
        ('{"a": "tab\there"}', ("tab\there", None, None, None)),
        ('{"a": "nul\x00here"}', ("nul\x00here", None, None, None)),
        ('{"a": "' + "x" * 10**6 + '"}', ("x" * 10**6, None, None, None)),
        (r"{'a': 'back\/slash'}", (r"back\/slash", None, None, None)),
        ('{"i": 9223372036854775807, "n": 9007199254740993}', (None, 2.0**53, 2**63 - 1, None)),
    ],
)
def test_what_a_line_means(put, line, row):
    assert scalars(put(line)).rows() == [row]
    # The same beside a line that is plain, and one that is not.
    both = put(f'{{"a": "x"}}\n{line}\n' + "{'a': 'y'}\n")
    assert scalars(both).rows()[1] == row


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "an empty line"),
        ("not at all", "neither JSON nor a Python literal"),
        ('{"a": "cut off', "neither JSON nor a Python literal"),
        ('{"a": "x"} {"a": "y"}', "neither JSON nor a Python literal"),
        ("{'a': null}", "neither JSON nor a Python literal"),
        ("{'a': true}", "neither JSON nor a Python literal"),
        ("{'a': nan}", "neither JSON nor a Python literal"),
        ("{'a': open('boom', 'w')}", "neither JSON nor a Python literal"),
        ("{'a': [" + "[" * 5000, "neither JSON nor a Python literal"),
        ("[1, 2]", "not an object"),
        ("null", "not an object"),
        ("{'a', 'b'}", "not an object"),
        ('{"a": "x", "z": Infinity}', "Infinity is no number"),
        ('{"n": {"x": 1}}', "n is {'x': 1}, expected a number"),
        ('{"n": true}', "n is True, expected a number"),
        ('{"n": "1,024"}', "n is '1,024', expected a number"),
        ('{"n": "nan"}', "n is 'nan', expected a number"),
        ('{"n": 1e999}', "n is inf, expected a number"),
        ('{"i": 2.5}', "i is 2.5, expected a number"),
        ('{"i": 9223372036854775808}', "i is 9223372036854775808, expected a number"),
        ('{"a": ["x"]}', "a is ['x'], expected text"),
        ('{"b": 1}', "b is 1, expected true or false"),
    ],
)
def test_malformed_lines_are_left_out_and_told_of(put, line, reason):
    good = [f'{{"a": "{k}"}}' for k in range(2000)]
    path = put("\n".join([*good[:1000], line, *good[1000:]]) + "\n")
    warnings = []
    frame = read_scalars(path, COLUMNS, warnings=warnings, block=4096)
    assert frame["a"].to_list() == [str(k) for k in range(2000)]
    assert len(warnings) == 1
    assert warnings[0] == (
        f"W114 1 of 2,001 lines of {path} are malformed and left out, e.g. line 1001: {reason}"
    )
    message = re.escape(f"x.json:2: {reason}; 1 of 3 lines are malformed, more than 0.1%; ")
    with pytest.raises(DataError, match=f"E114 .*{message}"):
        read_scalars(put(f"{good[0]}\n{line}\n{good[1]}\n"), COLUMNS, warnings=[])
    assert not Path("boom").exists()


VALUE = st.sampled_from(
    ['"x"', '"é"', '"\\u00e9"', '"\\ud800"', '""', '"null"', '"[1]"', '"a\\"b"', "1", "0", "-0",
     "1.5", "1.10", "1e5", "3.0", "1e-7", "123456789012345678", "99999999999999999999", "true",
     "false", "null", "[1]", '{"a":"q"}', '{"n":1,"n":null}', "1E400", "NaN", '"7"']
)  # fmt: skip
LINE = st.lists(
    st.tuples(st.sampled_from("aanibz"), st.sampled_from([":", ": "]), VALUE), max_size=4
)


@given(content=st.lists(LINE, min_size=1, max_size=3))
def test_the_quick_reader_is_believed_only_where_it_agrees(content):
    text = "".join(
        "{" + ", ".join(f'"{key}"{colon}{value}' for key, colon, value in line) + "}\n"
        for line in content
    ).encode()
    quick = lines._scalars_at_once(text, COLUMNS)
    if quick is not None:
        malformed = Malformed(Path("x"), "114", [], "")
        assert quick.equals(lines._scalars_one_by_one(1, text, COLUMNS, malformed))
        assert malformed.n == 0


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_the_quick_reader_rounds_as_python_does(number):
    frame = lines._scalars_at_once(json.dumps({"n": number}).encode() + b"\n", {"n": pl.Float64})
    assert frame is not None
    assert frame["n"][0] == number
    assert math.copysign(1, frame["n"][0]) == math.copysign(1, number)


def test_plain_reviews_are_read_by_the_quick_reader():
    text = (REVIEW % (1, 2, 3)).encode()
    columns = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64}
    assert lines._scalars_at_once(text, columns).rows() == [("A1", "B2", 5.0)]


METADATA = [
    "{'asin': 'B1', 'title': \"it's\", 'related': {'also_bought': ['B2', 'B3']}, 'price': 1.5}",
    '{"asin": "B2", "description": "he wrote \\"asin\\": \\"B1\\"", "price": null}',
    "{'title': 'nested', 'x': {'asin': 'B1'}}",
    "{'x': {'asin': 'B9'}, 'asin': 'B1', 'title': 'second'}",
    "{u'asin': u'B3'}",
    '{"asin":"B4"}',
    '{"asin": 5}',
    '{"asin": 5.5}',
    '{"asin" : "B\\u0031"}',
    "{'title': \"the 'asin': 'B7'\", 'asin': 'B8'}",
    "{'asin': 'B' '1'}",
    '{"no": "key"}',
    '{"asin": null}',
    '{"asin": "caf\u00e9"}',
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"B1"}, [0, 3, 8, 10]),
        ({"B2", "B3"}, [1, 4]),
        ({"B4", "5", "5.5"}, [5, 6, 7]),
        ({"B7", "B9"}, []),
        ({"B8", "caf\u00e9"}, [9, 13]),
        (set(), []),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_only_wanted_records_are_given(put, wanted, found, block):
    path = put("\n".join(METADATA))
    warnings = []
    everything = list(records(path, warnings=warnings, block=block))
    assert len(everything) == len(METADATA)
    some = list(records(path, key="asin", wanted=wanted, warnings=warnings, block=block))
    assert some == [everything[k] for k in found]
    assert warnings == []


def test_unwanted_records_are_not_parsed(put, monkeypatch):
    parsed = []
    parse = lines._parse
    monkeypatch.setattr(lines, "_parse", lambda line: parsed.append(line) or parse(line))
    path = put("".join(f"{{'asin': 'B{k}', 'title': 'x'}}\n" for k in range(50)))
    assert [r["asin"] for r in records(path, key="asin", wanted={"B7"}, warnings=[])] == ["B7"]
    assert len(parsed) == 1


def test_records_tell_of_malformed_lines_at_the_end(put):
    good = [f"{{'asin': 'B{k}'}}" for k in range(2000)]
    path = put("\n".join([*good[:16], "<broken>", *good[16:]]))
    warnings = []
    assert len(list(records(path, warnings=warnings))) == 2000
    assert len(warnings) == 1
    assert warnings[0].endswith("e.g. line 17: neither JSON nor a Python literal")
    wanted = {"B3", "B1999"}
    found = records(path, key="asin", wanted=wanted, warnings=warnings)
    assert {record["asin"] for record in found} == wanted
    assert len(warnings) == 2
    with pytest.raises(DataError, match=r"E114 .*x\.json:2: neither JSON nor .*; get it again$"):
        list(records(put(f"{good[0]}\nx\n"), warnings=[], cure="get it again"))


def test_a_file_of_another_kind_is_given_up_early(put):
    path = put("user,item,rating\n" * 30_000)
    with pytest.raises(DataError, match=r"E114 .*x\.json:1: neither .* of the first 1\d,\d+ lines"):
        list(records(path, warnings=[], block=200_000))
    with pytest.raises(DataError, match=r"E114 .*x\.json:1: neither .* of the first 1\d,\d+ lines"):
        read_scalars(path, COLUMNS, warnings=[], block=200_000)


def test_a_long_literal_is_not_parsed(put, monkeypatch):
    monkeypatch.setattr(lines, "_LITERAL_CAP", 100)
    with pytest.raises(DataError, match=r"E114 .*:1: no JSON, and a Python literal of more than"):
        list(records(put("{'a': '" + "x" * 200 + "'}"), warnings=[]))
    assert len(list(records(put('{"a": "' + "x" * 200 + '"}'), warnings=[]))) == 1


def test_records_keep_text_that_utf_8_can_hold(put):
    line = r'{"a\ud800": ["\ud83d\ude00", {"b": "\udc00"}], "c": NaN, "d": 1}'
    (record,) = records(put(line), warnings=[])
    assert record == {"a\ufffd": ["😀", {"b": "\ufffd"}], "c": None, "d": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b'{"a": "x"}\n' * 20_000, mtime=0)[:100],
            r"E106 .*truncated gzip after [\d,]+ line",
        ),
        (b"<!DOCTYPE html><html>log in", r"E106 .*a web page"),
        (b"", r"E113 .*is empty"),
        (b'{"a": "x"}\n{"a": "caf\xe9"}\n', r"E111 .*x\.json:2: byte 0xe9 is not UTF-8"),
    ],
)
def test_broken_files_are_refused(put, content, message):
    path = put(content)
    with pytest.raises(DataError, match=message):
        read_scalars(path, COLUMNS, warnings=[])
    with pytest.raises(DataError, match=message):
        list(records(path, warnings=[]))
    with pytest.raises(DataError, match=message):
        list(records(path, key="a", wanted={"y"}, warnings=[]))


def test_a_missing_file_names_the_cure(tmp_path):
    with pytest.raises(DataError, match=r"E101 x\.json not found under .*; get it"):
        read_scalars(tmp_path / "x.json", COLUMNS, warnings=[], cure="get it")
