import hashlib

from mmbench.data.hashing import byte_rank, hash_parts, pair_tails, sha256_file


def test_hash_equals_the_published_check_values():
    # specs/datasets.md, section 7.
    assert hash_parts(42, "cold_items", ["0"]).tolist() == [4391594225589780491]
    tails = pair_tails(["196"], ["242"], suffix="0")
    assert hash_parts(42, "random_global", tails).tolist() == [0x5E5933A005BAD8D6]


def test_hash_is_blake2b_of_the_joined_parts():
    text = "7\x1fties\x1fMüller\x1fa b"
    expected = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    assert hash_parts(7, "ties", pair_tails(["Müller"], ["a b"])).tolist() == [expected]


def test_byte_rank_orders_by_utf8_bytes():
    ids = ["b", "é", "a", "B", "\U0001f600", "\uffff"]
    by_bytes = sorted(ids, key=lambda text: text.encode())
    assert byte_rank(ids).tolist() == [by_bytes.index(text) for text in ids]


def test_file_hash_reads_the_whole_file(tmp_path):
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()
