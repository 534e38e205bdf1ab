"""Whitening and projection against NumPy, and what the new sets say of themselves."""

import numpy as np
import pytest

from mmbench.data.features import write_features
from mmbench.data.prepared import load_dataset
from mmbench.engine.post_processing import Steps, post_process, transformed
from mmbench.errors import ConfigError, DataError

N, D = 40, 5


def rows(dtype=np.float32):
    """Correlated columns of unlike spread; rows 7 and 30 are missing."""
    rng = np.random.default_rng(3)
    mixed = rng.standard_normal((N, D)) @ rng.standard_normal((D, D)) * [1, 5, 0.2, 1, 3] + 4
    mask = np.ones(N, dtype=bool)
    mask[[7, 30]] = False
    return np.where(mask[:, None], mixed, 0).astype(dtype), mask


def done(steps, matrix=None, mask=None):
    given = rows()
    matrix, mask = given if matrix is None else (matrix, mask)
    return transformed(matrix, mask, steps, "here")


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_whitened_rows_have_the_identity_as_covariance(kind):
    _, mask = rows()
    white = done(Steps(whiten=kind))
    assert white.dtype == np.float32
    np.testing.assert_allclose(np.cov(white[mask].T), np.eye(D), atol=1e-5)
    np.testing.assert_allclose(white[mask].mean(axis=0), 0, atol=1e-5)
    assert not white[~mask].any()


def test_zca_is_the_inverse_root_of_the_covariance():
    matrix, mask = rows(np.float64)
    present = matrix[mask]
    values, vectors = np.linalg.eigh(np.cov(present.T))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    wanted = (present - present.mean(axis=0)) @ root
    np.testing.assert_allclose(done(Steps(whiten="zca"), matrix, mask)[mask], wanted, atol=1e-5)


def test_pca_is_the_singular_value_decomposition():
    matrix, mask = rows(np.float64)
    centred = matrix[mask] - matrix[mask].mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(D), np.abs(right).argmax(axis=1)])
    scores = left * singular * signs
    found = done(Steps(project="pca", dim=2), matrix, mask)[mask]
    np.testing.assert_allclose(found, scores[:, :2], atol=1e-4)
    found = done(Steps(whiten="pca", dim=3), matrix, mask)[mask]
    np.testing.assert_allclose(found, (left * signs)[:, :3] * np.sqrt(N - 3), atol=1e-5)


def test_signs_do_not_depend_on_the_order_of_rows():
    matrix, mask = rows()
    order = np.random.default_rng(0).permutation(N)
    turned = done(Steps(whiten="pca"), matrix[order], mask[order])
    np.testing.assert_allclose(turned, done(Steps(whiten="pca"))[order], atol=1e-5)


def test_directions_without_variance_are_left_out():
    matrix, mask = rows()
    twice = np.concatenate([matrix, matrix[:, :2]], axis=1)
    assert done(Steps(whiten="pca"), twice, mask).shape == (N, D)
    zca = done(Steps(whiten="zca"), twice, mask)
    assert zca.shape == (N, D + 2)
    variances = np.linalg.eigvalsh(np.cov(zca[mask].T))
    np.testing.assert_allclose(variances, [0, 0, 1, 1, 1, 1, 1], atol=1e-5)
    with pytest.raises(ConfigError, match="--dim 6 is more than the 5 directions in which"):
        done(Steps(whiten="pca", dim=6), twice, mask)


def test_random_projection_keeps_lengths_on_average_and_is_the_same_each_time():
    matrix = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)
    mask = np.ones(300, dtype=bool)
    first = done(Steps(project="random", dim=32), matrix, mask)
    np.testing.assert_array_equal(first, done(Steps(project="random", dim=32), matrix, mask))
    ratio = (first**2).sum(axis=1) / (matrix**2).sum(axis=1)
    assert abs(ratio.mean() - 1) < 0.1
    # Linear, without a mean: twice the row is twice the projection.
    doubled = done(Steps(project="random", dim=32), matrix * 2, mask)
    np.testing.assert_allclose(doubled, first * 2, rtol=1e-5)


def test_steps_follow_one_another():
    _, mask = rows()
    narrow = done(Steps(project="pca", dim=3))
    both = done(Steps(project="pca", dim=3, whiten="zca", l2=True))
    white = done(Steps(whiten="zca"), narrow, mask)
    wanted = white[mask] / np.linalg.norm(white[mask], axis=1, keepdims=True)
    np.testing.assert_allclose(both[mask], wanted, atol=1e-5)
    lengths = np.linalg.norm(done(Steps(l2=True))[mask], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "no step is named"),
        ({"project": "pca"}, "--project needs --dim"),
        ({"whiten": "zca", "dim": 3}, "ZCA whitening keeps all columns"),
    ],
)
def test_steps_that_make_no_sense(steps, message):
    with pytest.raises(ConfigError, match=message):
        Steps(**steps)


def test_too_little_to_fit():
    alike = np.ones((4, 3), dtype=np.float32)
    with pytest.raises(DataError, match="all rows of the source are alike"):
        done(Steps(whiten="zca"), alike, np.ones(4, dtype=bool))
    one = np.array([True, False, False, False])
    with pytest.raises(DataError, match="1 items have a row; at least two are needed"):
        done(Steps(whiten="zca"), alike, one)
    with pytest.raises(ConfigError, match="--dim 9 is more than the 3 columns"):
        done(Steps(project="random", dim=9), alike, np.ones(4, dtype=bool))


@pytest.fixture
def stored(content):
    data = content(n_items=N)
    dataset = load_dataset("mine", data)
    matrix, mask = rows()
    write_features(dataset.root, dataset.fingerprint, "visual", "clip", matrix, mask, {"of": 1})
    return data


def test_a_new_set_names_its_source_and_steps(stored):
    made = post_process("mine", "visual__clip", Steps(whiten="zca", l2=True), stored)
    assert made.is_new
    assert made.features.key == "visual__clip-zca-l2"
    source = load_dataset("mine", stored).features("visual", "clip")
    settings = made.features.manifest["settings"]
    assert settings["source"] == "visual__clip"
    assert settings["source_sha256"] == source.manifest["sha256"]
    assert [step["step"] for step in settings["steps"]] == ["whiten", "l2"]
    np.testing.assert_array_equal(made.features.mask, source.mask)
    again = post_process("mine", "visual__clip", Steps(whiten="zca", l2=True), stored)
    assert not again.is_new


def test_a_changed_source_makes_the_set_anew(stored):
    steps = Steps(whiten="pca", dim=2)
    first = post_process("mine", "visual__clip", steps, stored).features
    assert first.key == "visual__clip-pcawhite2"
    dataset = load_dataset("mine", stored)
    matrix, mask = rows()
    changed = matrix * np.arange(1, 6, dtype=np.float32)
    write_features(dataset.root, dataset.fingerprint, "visual", "clip", changed, mask, {"of": 2})
    again = post_process("mine", "visual__clip", steps, stored)
    assert again.is_new
    assert again.features.manifest["sha256"] != first.manifest["sha256"]


def test_names_that_are_taken(stored):
    post_process("mine", "visual__clip", Steps(l2=True), stored, "small")
    with pytest.raises(ConfigError, match=r"E411 mine has a feature set visual__small"):
        post_process("mine", "visual__clip", Steps(whiten="pca"), stored, "small")
    made = post_process("mine", "visual__clip", Steps(whiten="pca"), stored, "small", force=True)
    assert made.is_new
    with pytest.raises(ConfigError, match="cannot be called like its source"):
        post_process("mine", "visual__clip", Steps(l2=True), stored, "clip")
    with pytest.raises(DataError, match="E101 mine has no feature set visual__clp"):
        post_process("mine", "visual__clp", Steps(l2=True), stored)
