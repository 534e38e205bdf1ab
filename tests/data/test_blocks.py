import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data import blocks
from mmbench.data.blocks import Malformed, check_utf8, line_blocks
from mmbench.errors import DataError


def zipped(content):
    """Without the time, which would change the names of tests from process to process."""
    return gzip.compress(content, mtime=0)


@pytest.fixture
def put(tmp_path):
    def write(content, name="t.txt"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def joined(path, size):
    """The text of all blocks, after checking that each begins where the one before ended."""
    text, line = b"", 1
    for first_line, block in line_blocks(path, size=size):
        assert first_line == line
        assert block.endswith(b"\n")
        line += block.count(b"\n")
        text += block
    return text


PIECES = st.lists(st.sampled_from(["a", "é", " ", "\n", "\r\n", "\r", "\x00"]), max_size=14)


@given(pieces=PIECES, size=st.integers(1, 9), packed=st.booleans(), mark=st.booleans())
def test_blocks_are_the_lines_of_the_file(tmp_path_factory, pieces, size, packed, mark):
    text = "".join(pieces).encode()
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    content = b"\xef\xbb\xbf" * mark + text
    path.write_bytes(gzip.compress(content) if packed else content)
    wanted = text + b"\n"
    while b"\r\n" in wanted:
        wanted = wanted.replace(b"\r\n", b"\n")
    wanted = wanted.rstrip(b"\n") + b"\n"
    if wanted.isspace():
        with pytest.raises(DataError, match=r"E113 .*blocks\.txt is empty"):
            joined(path, size)
    else:
        assert joined(path, size) == wanted


def test_gzip_is_told_by_its_first_bytes_and_may_have_several_members(put):
    packed = gzip.compress(b"a\nb") + gzip.compress(b"c\n")
    assert joined(put(packed, "t.csv"), 2) == b"a\nbc\n"
    assert joined(put(b"plain\n", "t.csv.gz"), 2) == b"plain\n"  # a browser unpacked it


def test_a_truncated_gzip_file_tells_how_far_it_goes(put):
    packed = gzip.compress(b"".join(b"line %d\n" % k for k in range(50_000)))
    path = put(packed[: len(packed) // 2])
    ends = []

    def read():
        for first_line, block in line_blocks(path, size=1000):
            ends.append(first_line + block.count(b"\n") - 1)

    with pytest.raises(DataError, match=r"E106 .*truncated gzip after ([\d,]+) lines") as caught:
        read()
    told = int(str(caught.value).split("after ")[1].split(" ")[0].replace(",", ""))
    assert 10_000 < told < 40_000
    assert 0 <= told - ends[-1] < 2000  # all but the last block was given out


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (zipped(b"a\n" * 9)[:-6], "t", r"E106 .*truncated gzip after"),
        (zipped(b"a\n" * 9)[:-8] + b"01234567", "t", r"E106 .*CRC check failed .* after 9"),
        (zipped(b"a\n") + b"garbage", "t", r"E106 .*not a complete gzip file"),
        (b"\x1f\x8b garbage of no kind", "t", r"E106 .*not a complete gzip file"),
        (b"\x00\x01\x02 no gzip", "t.gz", r"E106 .*does not begin like one"),
        (
            b"\xef\xbb\xbf \n<!DOCTYPE html><p>Log in",
            "t.csv",
            r"E106 .*a web page, perhaps a login",
        ),
        (b"<HTML>404", "t.json.gz", r"E106 .*a web page"),
        (b"<?xml version='1.0'?>\n<!-- x --><html xmlns=''>", "t.csv", r"E106 .*a web page"),
        (zipped(b"<html>"), "t.gz", r"E106 .*a web page"),
        (b"PK\x03\x04abc", "t.csv", r"E106 .*is a zip archive, not a text file; unpack it"),
        (zipped(b"a" * 257 + b"ustar\x0000"), "t.csv.gz", r"E106 .*is a tar archive"),
        (b"PAR1abc", "t.csv", r"E106 .*is a Parquet file.*suffix \.parquet"),
        ("a,b\n".encode("utf-16"), "t.csv", r"E111 .*is UTF-16 text, not UTF-8"),
        (b"", "t", r"E113 .*is empty; mend it"),
        (b" \n\n", "t", r"E113 .*is empty"),
        (zipped(b""), "t", r"E113 .*is empty"),
    ],
)
def test_what_is_no_text_is_refused(put, content, name, message):
    with pytest.raises(DataError, match=message):
        list(line_blocks(put(content, name), cure="mend it"))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"E101 no\.csv not found under .*; get it"):
        list(line_blocks(tmp_path / "no.csv", cure="get it"))
    with pytest.raises(DataError, match=r"E101 .* is a folder, not a file"):
        list(line_blocks(tmp_path))


def test_a_file_that_the_system_does_not_give_is_named(put, monkeypatch):
    path = put(b"a\n")

    def refuse(*arguments, **more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(DataError, match=r"E101 .*t\.txt cannot be read: Permission denied; "):
        list(line_blocks(path))


def test_a_line_without_end_is_refused(put, monkeypatch):
    monkeypatch.setattr(blocks, "LINE_CAP", 100)
    with pytest.raises(DataError, match=r"E112 .*t\.txt:3: does not end within"):
        list(line_blocks(put(b"a\nb\n" + b"x" * 500), size=10))


def test_invalid_utf8_is_named_with_line_and_byte(tmp_path):
    check_utf8(tmp_path, 1, "é\n".encode())
    with pytest.raises(DataError, match=r"E111 .*:12: byte 0xe9 is not UTF-8; save the file as"):
        check_utf8(tmp_path, 10, "a\né\n".encode() + b"caf\xe9\n")


def test_malformed_lines_are_told_of_up_to_their_share(tmp_path):
    warnings = []
    few = Malformed(tmp_path / "f", "114", warnings, "mend them")
    for line in (17, 20, 21, 30):
        few.add(line, f"reason {line}")
    few.close(4000)
    assert warnings == [
        f"W114 4 of 4,000 lines of {tmp_path / 'f'} are malformed and left out, e.g. line 17: "
        "reason 17; line 20: reason 20; line 21: reason 21"
    ]
    with pytest.raises(
        DataError,
        match=r"E114 .*f:17: reason 17; line 20: reason 20; line 21: reason 21; 4 of 3,999 lines "
        r"are malformed, more than 0\.1%; mend them",
    ):
        few.close(3999)
    none = Malformed(tmp_path / "f", "114", warnings, "")
    none.close(10)
    assert len(warnings) == 1


def test_a_file_that_is_all_wrong_is_given_up(tmp_path):
    malformed = Malformed(tmp_path / "f", "112", [], "mend it")
    malformed.add(1, "wrong", 6000)
    malformed.give_up(9_999)
    malformed.give_up(12_000)
    with pytest.raises(DataError, match=r"E112 .*f:1: wrong; 6,000 of the first 11,000 lines"):
        malformed.give_up(11_000)
