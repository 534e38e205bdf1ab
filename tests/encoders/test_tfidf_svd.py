"""TF-IDF and SVD: against a dense computation by hand, and the texts that hold nothing."""

import numpy as np
import pytest

from mmbench.encoders.tfidf_svd import TfidfSvd
from mmbench.errors import DataError


def encode(texts, seed=7):
    return TfidfSvd().encode_texts(texts, seed)


def by_hand(counts):
    """The header's formula on a dense table of counts [texts, terms]; cosines of the rows."""
    n = len(counts)
    df = (counts > 0).sum(axis=0)
    tf = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0)
    weights = tf * (1 + np.log((1 + n) / (1 + df)))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights @ weights.T


def test_full_rank_vectors_keep_the_cosines_of_the_weights():
    # Words: red, blue, hat; pairs: "red red", "red hat", "blue hat", "red blue".
    texts = ["red red hat", "blue hat", "red blue hat"]
    counts = np.array(
        [
            # red blue hat redred redhat bluehat redblue
            [2, 0, 1, 1, 1, 0, 0],
            [0, 1, 1, 0, 0, 1, 0],
            [1, 1, 1, 0, 0, 1, 1],
        ]
    )
    vectors = encode(texts)
    assert vectors.shape == (3, 3)
    np.testing.assert_allclose(vectors @ vectors.T, by_hand(counts), atol=1e-5)


def test_shape_type_length_and_repetition():
    rng = np.random.default_rng(0)
    words = [f"word{k:03d}" for k in range(400)]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(300)]
    vectors = encode(texts)
    assert vectors.shape == (300, 256)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors, encode(texts))


def test_alike_texts_are_near():
    texts = [
        "sail harbour tide anchor",
        "harbour tide sail",
        "oven dough flour",
        "dough flour oven",
    ]
    vectors = encode(texts * 20)  # twenty copies: a corpus that is not small any more
    near = vectors @ vectors[:4].T
    # Three of four and three of three words in common, but few of the pairs of words.
    assert near[0, 1] > 0.4
    assert near[2, 3] > 0.4
    assert abs(near[0, 2]) < 0.1


def test_a_text_without_shared_words_is_a_row_of_zeros():
    texts = ["cat dog bird"] * 20 + ["dog bird fish"] * 20 + ["cat fish"] * 20
    texts += ["...!", "a b", "xylophone"]  # no word, letters only, a word nobody else has
    vectors = encode(texts)
    assert np.isfinite(vectors).all()
    assert not vectors[-3:].any()
    assert vectors[:-3].any(axis=1).all()


def test_word_in_most_texts_is_left_out():
    texts = ["the cat"] * 30 + ["the dog"] * 30
    vectors = encode([*texts, "the"])
    assert not vectors[-1].any()


@pytest.mark.parametrize("texts", [["one word"], ["same text"] * 5, ["same text"] * 100])
def test_tiny_and_uniform_corpora(texts):
    if len(texts) == 100:  # every word is in every text, so none tells anything
        with pytest.raises(DataError, match="none of the 100 texts has a usable word"):
            encode(texts)
        return
    vectors = encode(texts)
    assert vectors.shape == (len(texts), 1)
    np.testing.assert_allclose(np.abs(vectors), 1, atol=1e-6)


def test_no_word_at_all_is_one_message():
    with pytest.raises(DataError, match="none of the 2 texts has a usable word"):
        encode(["!", "?"])


def test_accents_and_other_scripts():
    vectors = encode(["café noir", "cafe noir", "кошка дом", "кошка"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert vectors[2] @ vectors[3] > 0.3
