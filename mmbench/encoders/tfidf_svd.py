"""TF-IDF and truncated SVD: item texts to dense vectors, without any download.

Deerwester et al., JASIS 1990 (latent semantic indexing).

    weight   (1 + ln tf_wd) (1 + ln((1 + n) / (1 + df_w))) of term w in text d of n
    X        weights [n, terms], each row scaled to length 1
    vectors  U_k S_k of the k largest singular triples of X = U S V', rows scaled to length 1

Terms are words of two or more letters and pairs of them. k = 256, or less where the corpus is
smaller. A text without any term that others share has a row of zeros: it tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.encoders.base import CorpusEncoder, register_encoder
from mmbench.errors import DataError

DIM = 256
MAX_TERMS = 100_000
MIN_TEXTS = 2
"""Texts a term must occur in; 1 in a corpus of fewer than `SMALL_CORPUS` texts."""
SMALL_CORPUS = 50
MAX_SHARE = 0.5
"""A term in more than this share of the texts tells them apart too little to be kept."""
_NEGLIGIBLE = 1e-5


@register_encoder("tfidf-svd")
class TfidfSvd(CorpusEncoder):
    """Latent semantic vectors of item texts."""

    modalities = ("textual",)
    fitted = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, for the manifest."""
        return {
            "version": 1,
            "dim": DIM,
            "ngrams": [1, 2],
            "min_texts": MIN_TEXTS,
            "small_corpus": SMALL_CORPUS,
            "max_share": MAX_SHARE,
            "max_terms": MAX_TERMS,
        }

    def encode_texts(self, texts: Sequence[str], seed: int) -> NDArray[np.float32]:
        """Vectors of non-empty texts [len(texts), k], of length 1, or 0 where nothing is known.

        Raises:
            DataError: no text has a word that tells it from the others.
        """
        # Imported here: listing encoders must not wait for scikit-learn.
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        small = len(texts) < SMALL_CORPUS
        vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            ngram_range=(1, 2),
            min_df=1 if small else MIN_TEXTS,
            max_df=1.0 if small else MAX_SHARE,
            max_features=MAX_TERMS,
            strip_accents="unicode",
            dtype=np.float32,
        )
        try:
            weights = vectorizer.fit_transform(texts)
        except ValueError:  # no term is left
            raise DataError(
                f"none of the {len(texts)} texts has a usable word, so tfidf-svd has nothing to "
                "encode; check the text columns of the item table"
            ) from None
        dim = min(DIM, *weights.shape)
        left, singular, _ = randomized_svd(
            weights, n_components=dim, n_iter=5, random_state=seed % 2**32
        )
        rank = max(1, int((singular > _NEGLIGIBLE * singular[0]).sum()))
        vectors = (left * singular)[:, :rank]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        # A row that the kept directions do not reach is rounding noise; scaled up it would look
        # like content.
        known = lengths > _NEGLIGIBLE
        return np.where(known, vectors / np.where(known, lengths, 1), 0).astype(np.float32)
