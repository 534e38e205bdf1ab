import numpy as np
import pytest
import torch

from mmbench.errors import DataError


def test_histories_by_loops(train, dense):
    users = torch.tensor([4, 3, 0, 4, 3])  # user 3 has no interaction
    items, starts = train.histories(users)
    ends = [*starts.tolist()[1:], len(items)]
    for user, start, end in zip(users.tolist(), starts.tolist(), ends, strict=True):
        assert items[start:end].tolist() == np.flatnonzero(dense[user]).tolist()


def test_histories_of_nobody(train):
    items, starts = train.histories(torch.tensor([], dtype=torch.int64))
    assert len(items) == len(starts) == 0


def test_matrix_degrees_and_pointers(train, dense):
    np.testing.assert_array_equal(train.matrix.toarray(), dense)
    np.testing.assert_array_equal(train.user_degrees, dense.sum(axis=1))
    np.testing.assert_array_equal(train.item_degrees, dense.sum(axis=0))
    np.testing.assert_array_equal(train.pointers, np.append(0, np.cumsum(dense.sum(axis=1))))


def test_what_a_model_does_not_have_is_said(build, train):
    model = build("popularity", train, [])
    with pytest.raises(TypeError, match="Popularity is not trained by gradient"):
        model.training_step(None)
    with pytest.raises(TypeError, match="Popularity is not trained by epochs of its own"):
        model.fit_epoch(torch.Generator())
    with pytest.raises(TypeError, match="UserKNN has no vectors of users and items"):
        build("userknn", train, []).user_vectors()


def test_stored_weights_with_missing_or_unknown_names_are_refused(build, train):
    model = build("bpr-mf", train, [])
    with pytest.raises(DataError, match=r"(?s)do not fit this BPRMF.*items"):
        model.load_state({"users": model.users.detach()})
    with pytest.raises(DataError, match="nobody"):
        model.load_state({**model.state_dict(), "inner.nobody": torch.zeros(1)})


def test_a_model_that_was_not_fitted_takes_stored_buffers_of_any_size(build, fit, train):
    stored = fit(build("ease", train, []), train).state_dict()
    model = build("ease", train, [])
    assert model.weights.numel() == 0
    model.load_state(stored)
    assert torch.equal(model.weights, stored["weights"])
