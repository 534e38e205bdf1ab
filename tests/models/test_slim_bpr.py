import math

import numpy as np
import pytest
import torch

DECAYS = {"positive_decay": 0.02, "negative_decay": 0.05}


class Literal:
    """One triple at a time, one entry at a time, as the equations are written."""

    def __init__(self, dense, config):
        self.config, self.histories = config, [np.flatnonzero(row) for row in dense]
        n = dense.shape[1]
        self.s, self.c = np.zeros((n, n)), np.zeros(n)
        self.m, self.v, self.t = np.zeros(n), np.zeros(n), 0

    def get(self, row, column):
        if self.config.symmetric:
            row, column = max(row, column), min(row, column)
        return self.s[row, column]

    def add(self, row, column, amount):
        if self.config.symmetric:
            row, column = max(row, column), min(row, column)
        self.s[row, column] += amount

    def adapt(self, row, g):
        name = self.config.optimizer
        if name == "adagrad":
            self.c[row] += g * g
        elif name == "rmsprop":
            self.c[row] = 0.995 * self.c[row] + 0.005 * g * g
        elif name == "adam":
            self.m[row] = 0.9 * self.m[row] + 0.1 * g
            self.v[row] = 0.999 * self.v[row] + 0.001 * g * g
            first = self.m[row] / (1 - 0.9**self.t)
            return first / (math.sqrt(self.v[row] / (1 - 0.999**self.t)) + 1e-8)
        return g if name == "sgd" else g / (math.sqrt(self.c[row]) + 1e-8)

    def step(self, u, i, j):
        config, history = self.config, self.histories[u]
        x = sum(self.get(i, item) for item in history if item != i)
        x -= sum(self.get(j, item) for item in history)
        g = 1 / (1 + math.exp(x))
        self.t += 1
        up, down = self.adapt(i, g), -self.adapt(j, -g)
        for item in history:
            if item != i:
                decay = config.positive_decay * self.get(i, item)
                self.add(i, item, config.learning_rate * (up - decay))
            decay = config.negative_decay * self.get(j, item)
            self.add(j, item, -config.learning_rate * (down + decay))
        return math.log(1 + math.exp(-x))


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", "adam"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_triple_at_a_time_equals_the_literal_updates(optimizer, symmetric, build, train, dense):
    settings = {"optimizer": optimizer, "symmetric": symmetric, "learning_rate": 0.05, **DECAYS}
    model = build("slim-bpr", train, [], batch_size=1, **settings).double()
    literal = Literal(dense, model.config)
    generator, same = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(8):
        expected = 0.0
        for _ in range(train.n_users):
            triple = (int(x) for x in model._triples(1, same))
            expected += literal.step(*triple)
        loss = model.fit_epoch(generator)
        assert loss["bpr"] == pytest.approx(expected / train.n_users, rel=1e-9)
        np.testing.assert_allclose(model.weights.numpy(), literal.s, rtol=1e-9, atol=1e-12)


def test_batches_of_many_triples_learn_much_the_same(build, train, fit):
    one, many = (
        fit(build("slim-bpr", train, [], batch_size=size, learning_rate=0.05), train, epochs=200)
        for size in (1, 12)
    )
    assert np.corrcoef(one.weights.numpy().ravel(), many.weights.numpy().ravel())[0, 1] > 0.9


def test_triples_are_drawn_from_every_history_and_its_outside_alone(build, train, dense):
    model = build("slim-bpr", train, [])
    users, positives, negatives = model._triples(40_000, torch.Generator().manual_seed(0))
    assert dense[users, positives].all()
    assert not dense[users, negatives].any()
    eligible = np.flatnonzero((dense.sum(axis=1) > 0) & (dense.sum(axis=1) < dense.shape[1]))
    share = np.bincount(users, minlength=len(dense)) / 40_000
    np.testing.assert_allclose(share[eligible], 1 / len(eligible), atol=0.01)
    # Uniform within a history and outside it: 40,000 draws, so a standard error below 0.01.
    for user in eligible:
        drawn = negatives[users == user].numpy()
        outside = np.flatnonzero(dense[user] == 0)
        share = np.bincount(drawn, minlength=dense.shape[1])[outside] / len(drawn)
        np.testing.assert_allclose(share, 1 / len(outside), atol=0.05)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scores_use_the_largest_entries_of_each_row(
    symmetric, build, train, dense, fit, all_scores
):
    settings = {"symmetric": symmetric, "learning_rate": 0.1}
    model = fit(build("slim-bpr", train, [], top_k=3, **settings), train, epochs=30)
    full = model.weights.double().numpy()
    full = full + full.T if symmetric else full
    expected = np.zeros(dense.shape)
    for j in range(train.n_items):
        kept = np.argsort(-full[j], kind="stable")[:3]
        for u in range(train.n_users):
            expected[u, j] = sum(full[j, item] for item in kept if dense[u, item] and item != j)
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-7)


def test_the_diagonal_stays_zero(build, train, fit):
    model = fit(build("slim-bpr", train, [], learning_rate=0.1), train, epochs=20)
    np.testing.assert_array_equal(model.weights.diagonal(), 0)


def test_scores_follow_further_training_and_loading(build, train, fit, all_scores):
    model = fit(build("slim-bpr", train, [], learning_rate=0.1), train, epochs=2)
    early, stored = all_scores(model, train), {k: v.clone() for k, v in model.state_dict().items()}
    fit(model, train, seed=1, epochs=20)
    assert not np.array_equal(all_scores(model, train), early)
    model.load_state(stored)
    np.testing.assert_array_equal(all_scores(model, train), early)
