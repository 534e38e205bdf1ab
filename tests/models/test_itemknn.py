import numpy as np
import pytest
import torch

from mmbench.models.base import Interactions


@pytest.mark.parametrize("neighbourhood", ["target", "history"])
def test_scores_by_loops(neighbourhood, build, fit, all_scores):
    # Columns long enough that no two similarities are equal.
    dense = (np.random.default_rng(2).random((400, 10)) < 0.3).astype(float)
    users, items = np.nonzero(dense)
    train = Interactions(400, 10, torch.from_numpy(users), torch.from_numpy(items))
    similarity = np.zeros((10, 10))
    for i in range(10):
        for j in range(10):
            if i != j:
                norm = np.sqrt(dense[:, i].sum()) * np.sqrt(dense[:, j].sum())
                similarity[i, j] = dense[:, i] @ dense[:, j] / (norm + 50.0 + 1e-6)
    near = [set(np.argsort(-similarity[j])[:3]) for j in range(10)]
    expected = np.zeros((400, 10))
    for u in range(400):
        for j in range(10):
            for i in np.flatnonzero(dense[u]):
                if i in near[j] if neighbourhood == "target" else j in near[i]:
                    expected[u, j] += similarity[i, j]
    model = build("itemknn", train, [], k=3, shrinkage=50.0, neighbourhood=neighbourhood)
    np.testing.assert_allclose(all_scores(fit(model, train), train), expected, rtol=1e-5)


def test_items_are_the_documents_of_a_weighting(build, train, dense):
    model = build("itemknn", train, [], weighting="tf-idf")
    rarity = np.log(dense.shape[1] / (1 + dense.sum(axis=1)))  # users are the terms
    np.testing.assert_allclose(model.choices.toarray(), dense * rarity[:, None], rtol=1e-6)


def test_a_large_shrinkage_favours_popular_neighbours(build, fit, train):
    small, large = (
        fit(build("itemknn", train, [], shrinkage=h, k=50), train).similarities.matrix().toarray()
        for h in (0.0, 1e6)
    )
    support = train.matrix.T @ train.matrix
    expected = support.toarray() / 1e6
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(large, expected, rtol=1e-4)
    assert small.max() > 0.5
