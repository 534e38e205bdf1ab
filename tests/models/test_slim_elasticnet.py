import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import ElasticNet

from mmbench.models.slim_elasticnet import nonnegative_minimum


@pytest.mark.parametrize(
    ("alpha", "l1_ratio"), [(1e-3, 0.1), (0.01, 0.5), (0.05, 0.9), (0.02, 1.0)]
)
def test_equals_scikit_learn(alpha, l1_ratio, build, fit, monkeypatch):
    # scikit-learn 1.x: ElasticNet minimises |y - Xw|^2 / 2n + a r |w|_1 + a (1 - r) |w|^2 / 2.
    monkeypatch.setattr("mmbench.models.slim_elasticnet.WORKING_SET", 2)
    train, dense = _random()
    model = build("slim-elasticnet", train, [], alpha=alpha, l1_ratio=l1_ratio, top_k=100)
    found = fit(model, train).weights.matrix().toarray()
    for j in range(train.n_items):
        others = dense.copy()
        others[:, j] = 0
        expected = ElasticNet(
            alpha=alpha,
            l1_ratio=l1_ratio,
            positive=True,
            fit_intercept=False,
            max_iter=100_000,
            tol=1e-12,
        ).fit(others, dense[:, j])
        np.testing.assert_allclose(found[:, j], expected.coef_, atol=2e-6)


def test_without_l1_equals_scipy(build, fit):
    train, dense = _random()
    model = build("slim-elasticnet", train, [], alpha=0.01, l1_ratio=0.0, top_k=100)
    found = fit(model, train).weights.matrix().toarray()
    for j in range(train.n_items):
        # A ridge of U alpha is that many more rows, sqrt(U alpha) times the identity.
        others = np.delete(np.arange(train.n_items), j)
        rows = np.vstack([dense[:, others], np.sqrt(60 * 0.01) * np.eye(len(others))])
        expected, _ = nnls(rows, np.append(dense[:, j], np.zeros(len(others))))
        np.testing.assert_allclose(found[others, j], expected, atol=1e-6)


def test_only_the_largest_weights_of_each_target_are_kept(build, fit):
    train, _dense = _random()
    full, cut = (
        fit(build("slim-elasticnet", train, [], top_k=k), train).weights.matrix().toarray()
        for k in (100, 3)
    )
    for j in range(train.n_items):
        kept = np.flatnonzero(cut[:, j])
        assert len(kept) == min(3, np.count_nonzero(full[:, j]))
        np.testing.assert_array_equal(
            np.sort(cut[kept, j]), np.sort(full[:, j])[len(full) - len(kept) :]
        )


def test_the_diagonal_is_zero_and_no_weight_negative(build, fit, train, dense, all_scores):
    model = fit(build("slim-elasticnet", train, []), train)
    weights = model.weights.matrix().toarray()
    np.testing.assert_array_equal(weights.diagonal(), 0)
    assert weights.min() >= 0
    np.testing.assert_allclose(all_scores(model, train), dense @ weights, rtol=1e-5)


def test_the_published_default_leaves_no_weight(build, fit, train, all_scores):
    model = fit(build("slim-elasticnet", train, [], alpha=1.0, l1_ratio=0.9), train)
    np.testing.assert_array_equal(all_scores(model, train), 0)


@pytest.mark.parametrize("seed", range(30))
def test_nonnegative_minimum_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 25))
    factor = rng.standard_normal((n + 5, n)) + 0.5 * (seed % 3)
    target = rng.standard_normal(n + 5)
    # With A = F'F and b = F'y, the minimum of w'Aw/2 - b'w is that of |Fw - y|.
    expected, _ = nnls(factor, target)
    found = nonnegative_minimum(factor.T @ factor, factor.T @ target)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def _random():
    import torch

    from mmbench.models.base import Interactions

    dense = (np.random.default_rng(3).random((60, 14)) < 0.25).astype(float)
    dense[:, 4] = np.maximum(dense[:, 4], dense[:, 5])
    users, items = np.nonzero(dense)
    return Interactions(60, 14, torch.from_numpy(users), torch.from_numpy(items)), dense
