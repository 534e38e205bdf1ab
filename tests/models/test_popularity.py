import numpy as np
import torch


def test_scores_are_the_training_counts(build, fit, train, dense, all_scores):
    model = fit(build("popularity", train, []), train)
    expected = np.tile(dense.sum(axis=0), (train.n_users, 1))
    np.testing.assert_array_equal(all_scores(model, train), expected)


def test_before_the_fit_all_items_are_equal(build, train):
    assert torch.equal(build("popularity", train, []).item_vectors(), torch.zeros(train.n_items, 1))
