import numpy as np
import pytest

from mmbench.models.base import Interactions


def by_loops(dense, k, h, neighbourhood):
    """Scores, and whether no similarity at the border of a neighbourhood is tied."""
    n_users, n_items = dense.shape
    similarity = np.zeros((n_users, n_users))
    for u in range(n_users):
        for w in range(n_users):
            if u != w:
                norm = np.sqrt(dense[u] @ dense[u]) * np.sqrt(dense[w] @ dense[w])
                similarity[u, w] = dense[u] @ dense[w] / (norm + h + 1e-6)
    near = [set(np.argsort(-similarity[u], kind="stable")[:k]) for u in range(n_users)]
    scores = np.zeros((n_users, n_items))
    for u in range(n_users):
        for w in range(n_users):
            if w in near[u] if neighbourhood == "own" else u in near[w]:
                scores[u] += similarity[u, w] * dense[w]
    return scores


@pytest.mark.parametrize("neighbourhood", ["own", "reverse"])
def test_scores_by_loops(neighbourhood, build, fit, all_scores):
    # Sparse rows of different lengths over many items, so that no two similarities are equal.
    dense = (np.random.default_rng(1).random((11, 400)) < 0.3).astype(float)
    train = interactions(dense)
    model = build("userknn", train, [], k=3, shrinkage=2.0, neighbourhood=neighbourhood)
    expected = by_loops(dense, 3, 2.0, neighbourhood)
    np.testing.assert_allclose(all_scores(fit(model, train), train), expected, rtol=1e-5)


def test_own_and_reverse_neighbourhoods_differ_for_three_users(build, fit, all_scores):
    # User 0 is nearest to 1, and 1 to 0; user 2 is nearest to 1, but in nobody's list.
    dense = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 1, 1]], dtype=float)
    train = interactions(dense)
    own, reverse = (
        all_scores(
            fit(build("userknn", train, [], k=1, shrinkage=0.0, neighbourhood=side), train), train
        )
        for side in ("own", "reverse")
    )
    # s(2, 1) = 1 / sqrt(2 * 3); user 2 scores the items of user 1.
    np.testing.assert_allclose(own[2], dense[1] / np.sqrt(6), rtol=1e-5)
    np.testing.assert_array_equal(reverse[2], np.zeros(5))
    # User 1 gains what user 2 chose, for having user 1 nearest.
    np.testing.assert_allclose(reverse[1], dense[0] * 2 / 3 + dense[2] / np.sqrt(6), rtol=1e-5)


def test_the_weighted_matrix_also_scores(build, fit, train, dense, all_scores):
    model = fit(build("userknn", train, [], weighting="tf-idf", k=20), train)
    rarity = np.log(len(dense) / (1 + dense.sum(axis=0)))
    np.testing.assert_allclose(model.choices.toarray(), dense * rarity, rtol=1e-6)
    similarity = model.similarities.matrix().toarray()
    np.testing.assert_allclose(
        all_scores(model, train), similarity @ (dense * rarity), rtol=1e-4, atol=1e-7
    )


def interactions(dense):
    import torch

    users, items = np.nonzero(dense)
    return Interactions(*dense.shape, torch.from_numpy(users), torch.from_numpy(items))
