"""The product quantiser against loops over its equations, and what it must survive."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from mmbench.models.sequential import product_quantisation
from mmbench.models.sequential.product_quantisation import (
    ProductQuantiser,
    fit_product_quantiser,
    principal_axes,
)


def rows(n=200, width=12, seed=0):
    """Correlated columns of unequal variance in a few clusters, as text vectors are."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((9, width))
    noise = rng.standard_normal((n, width)) * np.linspace(0.1, 1.0, width)
    mixed = (centres[rng.integers(0, 9, n)] + noise) @ rng.standard_normal((width, width))
    return torch.from_numpy(mixed.astype(np.float32))


def fit(x, n_parts=4, n_centroids=16, n_rounds=5, seed=0):
    return fit_product_quantiser(
        x, n_parts=n_parts, n_centroids=n_centroids, n_rounds=n_rounds, seed=seed
    )


def error(quantiser, x, codes=None):
    codes = quantiser.quantise(x) if codes is None else codes
    return float((quantiser.reconstruct(codes) - x).double().square().sum(dim=1).mean())


@pytest.fixture(scope="module")
def x():
    return rows()


@pytest.fixture(scope="module")
def fitted(x):
    return fit(x)


def test_codes_and_reconstructions_equal_loops_over_the_equations():
    rng = np.random.default_rng(3)
    n, width, n_parts, n_centroids, part = 7, 5, 3, 4, 2  # widened from 5 to 6 columns
    mean = np.append(rng.standard_normal(width), 0.0)
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    centroids = rng.standard_normal((n_parts, n_centroids, part))
    x = rng.standard_normal((n, width))
    quantiser = ProductQuantiser(width, *map(torch.from_numpy, (mean, rotation, centroids)))
    codes = quantiser.quantise(torch.from_numpy(x))
    back = quantiser.reconstruct(codes)
    for i in range(n):
        wide = np.append(x[i], 0.0) - mean
        rotated = np.array([sum(wide[a] * rotation[a, b] for a in range(6)) for b in range(6)])
        chosen = []
        for k in range(n_parts):
            own = rotated[k * part : (k + 1) * part]
            distances = [((own - centroid) ** 2).sum() for centroid in centroids[k]]
            assert int(codes[i, k]) == int(np.argmin(distances))
            chosen.extend(centroids[k][np.argmin(distances)])
        expected = [
            mean[a] + sum(chosen[b] * rotation[a, b] for b in range(6)) for a in range(width)
        ]
        np.testing.assert_allclose(back[i].numpy(), expected, rtol=0, atol=1e-12)


def test_fitted_tensors_have_the_stated_shapes_and_the_rotation_is_orthogonal(x, fitted):
    assert (fitted.n_parts, fitted.n_centroids) == (4, 16)
    assert fitted.centroids.shape == (4, 16, 3)
    assert torch.allclose(fitted.rotation @ fitted.rotation.T, torch.eye(12), atol=1e-5)
    torch.testing.assert_close(fitted.mean, x.mean(dim=0), rtol=1e-5, atol=1e-5)
    codes = fitted.quantise(x)
    assert codes.shape == (200, 4)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 16


def test_each_centroid_is_the_mean_of_the_rows_with_its_code():
    # Few clusters and many steps, so that k-means has come to rest.
    x = rows(120, 6, seed=5)
    quantiser = fit(x, n_parts=2, n_centroids=3, n_rounds=0)
    rotated = (x - quantiser.mean) @ quantiser.rotation
    codes = quantiser.quantise(x)
    for k in range(2):
        for c in range(3):
            mean = rotated[codes[:, k] == c, 3 * k : 3 * k + 3].mean(dim=0)
            torch.testing.assert_close(quantiser.centroids[k, c], mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_learned_rotations_beat_the_principal_axes_which_beat_random_codes(seed):
    x = rows(seed=seed)
    total = float((x - x.mean(dim=0)).square().sum(dim=1).mean())
    fitted = [fit(x, n_rounds=rounds, seed=seed) for rounds in (0, 2, 10)]
    axes, few, many = (error(quantiser, x) for quantiser in fitted)
    assert many < few < axes < total
    drawn = torch.randint(16, (200, 4), generator=torch.Generator().manual_seed(seed))
    assert error(fitted[-1], x, drawn) > 3 * many


def test_the_error_falls_with_every_rotation(x, monkeypatch):
    errors = []
    improved = product_quantisation._improved

    def recorded(rotated, centroids, n_steps):
        result = improved(rotated, centroids, n_steps)
        errors.append(float(np.square(rotated - result[1]).sum(dtype=np.float64)))
        return result

    monkeypatch.setattr(product_quantisation, "_improved", recorded)
    fit(x, n_rounds=8)
    assert 5 < len(errors) <= 10  # the first codes, at most eight rotations, the last steps
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def test_more_centroids_and_more_parts_leave_less_error(x):
    errors = [error(fit(x, n_centroids=n), x) for n in (2, 8, 32)]
    assert errors[0] > errors[1] > errors[2]
    assert error(fit(x, n_parts=2), x) > error(fit(x, n_parts=6), x)


def test_principal_axes_are_dealt_to_the_part_with_the_least_variance():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 6)) * np.sqrt([32.0, 16.0, 8.0, 4.0, 2.0, 1.0])
    x = (x - x.mean(axis=0)).astype(np.float32)
    axes = principal_axes(x, 2)
    np.testing.assert_allclose(axes.T @ axes, np.eye(6), atol=1e-5)
    variances = (x @ axes).var(axis=0)
    # 32 to the first part; 16, 8 and 4 to the second until it is full; the rest to the first.
    np.testing.assert_allclose(variances[[0, 3, 4, 5]], [32, 16, 8, 4], rtol=0.3)
    np.testing.assert_allclose(variances[[1, 2]], [2, 1], rtol=0.3)
    covariance = np.cov((x @ axes).T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-2)


def test_the_order_of_items_changes_nothing_but_the_order_of_codes(x, fitted):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    other = fit(x[order])
    for one, two in zip(fitted.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(fitted.quantise(x)[order], other.quantise(x[order]))


def test_one_seed_one_quantiser_and_no_global_draw(x, fitted):
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again, other = fit(x), fit(x, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert torch.equal(again.centroids, fitted.centroids)
    assert torch.equal(again.rotation, fitted.rotation)
    assert not torch.equal(other.centroids, fitted.centroids)


def test_a_row_alone_is_coded_as_among_others(x, fitted, monkeypatch):
    codes = fitted.quantise(x)
    assert torch.equal(torch.cat([fitted.quantise(x[i : i + 1]) for i in range(30)]), codes[:30])
    monkeypatch.setattr(product_quantisation, "_BLOCK", 7)
    assert torch.equal(fitted.quantise(x), codes)
    assert fitted.quantise(x[:0]).shape == (0, 4)


def test_fewer_rows_than_centroids_are_kept_exactly():
    x = rows(9, 8)
    quantiser = fit(x, n_centroids=256)
    assert quantiser.n_centroids == 9
    assert error(quantiser, x) < 1e-8 * float(x.square().sum())


def test_equal_rows_have_equal_codes_and_count_as_one_centroid():
    x = rows(5, 8)
    x = x[[0, 1, 2, 0, 4, 3, 0]]
    quantiser = fit(x, n_centroids=64)
    assert quantiser.n_centroids == 5
    codes = quantiser.quantise(x)
    assert torch.equal(codes[0], codes[3])
    assert torch.equal(codes[0], codes[6])
    assert error(quantiser, x) < 1e-8 * float(x.square().sum())


@pytest.mark.parametrize("n", [1, 6])
def test_rows_that_are_all_the_same_share_one_code(n):
    for value in (0.0, 2.5):
        x = torch.full((n, 8), value)
        quantiser = fit(x)
        assert quantiser.n_centroids == 1
        assert torch.equal(quantiser.quantise(x), torch.zeros(n, 4, dtype=torch.int64))
        torch.testing.assert_close(quantiser.reconstruct(quantiser.quantise(x)), x)


def test_rows_of_zeros_among_others_are_points_like_any():
    x = rows(40)
    x[[3, 11, 30]] = 0.0
    codes = fit(x).quantise(x)
    assert torch.equal(codes[3], codes[11])
    assert torch.equal(codes[3], codes[30])


@pytest.mark.parametrize(("width", "n_parts"), [(12, 5), (3, 8), (1, 1), (7, 7)])
def test_widths_that_do_not_divide_are_widened_with_zeros(width, n_parts, recwarn):
    x = rows(60, width)
    quantiser = fit(x, n_parts=n_parts)
    assert quantiser.centroids.shape[0] == n_parts
    assert quantiser.quantise(x).shape == (60, n_parts)
    back = quantiser.reconstruct(quantiser.quantise(x))
    assert back.shape == (60, width)
    assert torch.isfinite(back).all()
    total = (x - x.mean(dim=0)).square().sum()
    assert (back - x).square().sum() < 0.5 * total
    assert not [w for w in recwarn if issubclass(w.category, ConvergenceWarning)]


def test_of_many_rows_a_seeded_sample_is_fitted(x, monkeypatch):
    monkeypatch.setattr(product_quantisation, "MAX_ROWS", 50)
    one, two, other = fit(x), fit(x.flip(0)), fit(x, seed=3)
    assert torch.equal(one.centroids, two.centroids)
    assert not torch.equal(one.mean, other.mean)
    assert not torch.allclose(one.mean, x.mean(dim=0))
    assert error(one, x) < float((x - x.mean(dim=0)).square().sum(dim=1).mean())


def test_vectors_of_another_width_are_refused(fitted):
    with pytest.raises(ValueError, match="11 columns, the quantiser 12"):
        fitted.quantise(torch.zeros(2, 11))
