import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data import hashing
from mmbench.data.hashing import (
    byte_rank,
    hash_pairs,
    hash_parts,
    order_in_groups,
    sha256_file,
)


def index(*values):
    return np.array(values, dtype=np.int32)


def digest(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def test_hash_equals_the_published_check_values():
    # specs/datasets.md, section 7.
    assert hash_parts(42, "cold_items", ["0"]).tolist() == [4391594225589780491]
    hashes = hash_pairs(42, "random_global", index(0), index(0), ["196"], ["242"], last="0")
    assert hashes.tolist() == [0x5E5933A005BAD8D6]


def test_hash_is_blake2b_of_the_joined_parts():
    expected = digest("7\x1fties\x1fMüller\x1fa b")
    assert hash_parts(7, "ties", ["Müller\x1fa b"]).tolist() == [expected]
    assert hash_pairs(7, "ties", index(0), index(0), ["Müller"], ["a b"]).tolist() == [expected]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_pairs_are_hashed_row_by_row_wherever_blocks_end(monkeypatch, block):
    monkeypatch.setattr(hashing, "_BLOCK", block)
    users, items = ["u", "é", "007"], ["a", "NA"]
    user, item = index(0, 0, 2, 1, 1, 0, 2), index(1, 0, 0, 1, 0, 1, 1)
    expected = [
        digest(f"5\x1frule\x1f{users[u]}\x1f{items[i]}\x1f0")
        for u, i in zip(user, item, strict=True)
    ]
    assert hash_pairs(5, "rule", user, item, users, items, last="0").tolist() == expected


ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), max_size=40)


@given(ROWS, st.sampled_from([1, 1000, 2**61]))
def test_rows_are_ordered_by_group_then_key_then_position(rows, step):
    # Steps of 2**61 need 63 bits, too many to be packed together with a group.
    group = index(*(g for g, _ in rows))
    key = np.array([k for _, k in rows], dtype=np.int64) * step
    order = order_in_groups(group, key)
    assert order.tolist() == sorted(range(len(rows)), key=lambda row: (*rows[row], row))


def test_hashes_with_the_highest_bit_set_come_last():
    key = np.array([2**63 + 1, 5, 2**64 - 1, 0], dtype=np.uint64)
    assert order_in_groups(index(0, 0, 0, 0), key).tolist() == [3, 1, 0, 2]
    assert order_in_groups(index(1, 0, 1, 0), key).tolist() == [3, 1, 0, 2]


def test_byte_rank_orders_by_utf8_bytes():
    ids = ["b", "é", "a", "B", "\U0001f600", "\uffff"]
    by_bytes = sorted(ids, key=lambda text: text.encode())
    assert byte_rank(ids).tolist() == [by_bytes.index(text) for text in ids]


def test_file_hash_reads_the_whole_file(tmp_path):
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()
