import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from pydantic import ValidationError

from mmbench.models.neighbours import (
    NeighbourConfig,
    SparseTable,
    largest_per_row,
    nearest,
    weigh,
)

CASES = [
    {},
    {"shrinkage": 0.0},
    {"weighting": "tf-idf"},
    {"weighting": "bm25"},
    {"normalize": False},
    {"normalize": False, "shrinkage": 0.0},
    {"similarity": "asymmetric", "asymmetric_alpha": 0.2, "shrinkage": 1.0},
    {"similarity": "asymmetric", "asymmetric_alpha": 1.7, "weighting": "tf-idf"},
    {"similarity": "jaccard", "shrinkage": 2.0},
    {"similarity": "dice", "shrinkage": 3.0},
    {"similarity": "tversky", "tversky_alpha": 0.3, "tversky_beta": 1.4, "shrinkage": 0.0},
]


def weighted_by_loops(dense, weighting):
    n, n_terms = dense.shape
    result = np.zeros_like(dense)
    mean_length = dense.sum() / n
    for document in range(n):
        for term in range(n_terms):
            r = dense[document, term]
            if r == 0 or weighting == "none":
                result[document, term] = r
                continue
            rarity = math.log(n / (1 + (dense[:, term] > 0).sum()))
            if weighting == "tf-idf":
                result[document, term] = math.sqrt(r) * rarity
            else:
                relative = dense[document].sum() / mean_length
                norm = 1.2 * (1 - 0.75 + 0.75 * relative)
                result[document, term] = r * (1.2 + 1) / (norm + r) * rarity
    return result


def similarity_by_loops(dense, config):
    n, h = len(dense), config.shrinkage
    result = np.zeros((n, n))
    for x in range(n):
        for y in range(n):
            if x == y:
                continue
            dot = float(dense[x] @ dense[y])
            size_x, size_y = float(dense[x] @ dense[x]), float(dense[y] @ dense[y])
            if dot == 0:
                continue
            if not config.normalize:
                result[x, y] = dot / h if h > 0 else dot
                continue
            denominator = {
                "cosine": lambda a, b, d: math.sqrt(a) * math.sqrt(b),
                "asymmetric": lambda a, b, d: (
                    math.sqrt(a) ** (2 * config.asymmetric_alpha)
                    * math.sqrt(b) ** (2 * (1 - config.asymmetric_alpha))
                ),
                "jaccard": lambda a, b, d: a + b - d,
                "dice": lambda a, b, d: a + b,
                "tversky": lambda a, b, d: (
                    d + config.tversky_alpha * (a - d) + config.tversky_beta * (b - d)
                ),
            }[config.similarity](size_x, size_y, dot)
            result[x, y] = dot / (denominator + h + 1e-6)
    return result


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("k", [3, 100])
def test_nearest_by_loops(case, k, dense):
    config = NeighbourConfig(k=k, **case)
    weighted = weighted_by_loops(dense, config.weighting)
    rows = weigh(sp.csr_array(dense), config.weighting)
    np.testing.assert_allclose(rows.toarray(), weighted, rtol=1e-12)
    found = nearest(rows, config, torch.Generator().manual_seed(0)).toarray()
    expected = similarity_by_loops(weighted, config)
    for x in range(len(dense)):
        kept = np.flatnonzero(found[x])
        np.testing.assert_allclose(found[x, kept], expected[x, kept], rtol=1e-5)
        largest = np.sort(expected[x])[::-1][: min(k, np.count_nonzero(expected[x]))]
        np.testing.assert_allclose(np.sort(found[x, kept])[::-1], largest, rtol=1e-5)


def test_nearest_does_not_depend_on_the_block(dense, monkeypatch):
    rows, config = sp.csr_array(dense), NeighbourConfig(k=4)
    whole = nearest(rows, config, torch.Generator().manual_seed(0))
    monkeypatch.setattr("mmbench.models.neighbours.BLOCK_PRODUCTS", 20)
    parts = nearest(rows, config, torch.Generator().manual_seed(0))
    assert (whole != parts).nnz == 0


def test_an_empty_row_has_no_neighbours_and_is_nobodys(dense):
    found = nearest(sp.csr_array(dense), NeighbourConfig(k=5), torch.Generator()).toarray()
    assert not found[3].any()
    assert not found[:, 3].any()
    assert np.isfinite(found).all()


def test_a_matrix_without_entries_has_no_neighbours():
    empty = sp.csr_array((4, 3))
    assert nearest(empty, NeighbourConfig(), torch.Generator()).nnz == 0


def test_equals_are_chosen_between_at_random_and_repeatably():
    rows = sp.csr_array(np.ones((30, 1)))
    config = NeighbourConfig(k=5)
    one, again = (nearest(rows, config, torch.Generator().manual_seed(4)) for _ in range(2))
    assert (one != again).nnz == 0
    popular = np.zeros(30)
    for seed in range(40):
        found = nearest(rows, config, torch.Generator().manual_seed(seed))
        assert (np.diff(found.indptr) == 5).all()
        popular += (found.toarray() > 0).sum(axis=0)
    # Chosen by index, the first five would be in every list and the last 24 in none.
    assert (popular > 0).all()
    assert popular[:6].mean() < 2 * popular[6:].mean()


def test_largest_per_row_by_sorting():
    rng = np.random.default_rng(0)
    matrix = sp.random_array((20, 15), density=0.5, rng=rng, format="csr")
    priority = rng.permutation(15)
    kept = largest_per_row(matrix, 4, priority).toarray()
    for row, before in zip(kept, matrix.toarray(), strict=True):
        np.testing.assert_array_equal(np.sort(row)[-4:], np.sort(before)[-4:])
        assert np.count_nonzero(row) <= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity": "jaccard", "weighting": "bm25"}, "weighting bm25 needs similarity"),
        ({"similarity": "dice", "normalize": False}, "no meaning for dice"),
        ({"k": 0}, "greater than 0"),
        ({"similarity": "cosin"}, "Input should be 'cosine'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        NeighbourConfig(**settings)


def test_a_sparse_table_stays_on_the_cpu_in_float32_and_int32():
    table = SparseTable(3, 4)
    assert table.state_dict()["values"].numel() == 0
    matrix = sp.csr_array(np.array([[0.0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 0, 0]]))
    table.store(matrix)
    table.double()
    assert table.values.dtype == torch.float32
    assert table.columns.dtype == table.pointers.dtype == torch.int32
    np.testing.assert_array_equal(table.matrix().toarray(), matrix.toarray())
