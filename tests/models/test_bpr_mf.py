import math

import numpy as np
import pytest


@pytest.mark.parametrize("regularization", [0.0, 0.1, 2.0])
def test_loss_and_scores_by_loops(regularization, build, train, batch, all_scores):
    model = build("bpr-mf", train, [], embedding_size=5, regularization=regularization)
    p, q = model.users.detach().double().numpy(), model.items.detach().double().numpy()
    loss, squares = 0.0, [0.0, 0.0, 0.0]
    triples = list(
        zip(*(x.tolist() for x in (batch.users, batch.positives, batch.negatives)), strict=True)
    )
    for u, i, j in triples:
        loss -= math.log(1 / (1 + math.exp(-(p[u] @ q[i] - p[u] @ q[j]))))
        for place, vector in enumerate((p[u], q[i], q[j])):
            squares[place] += vector @ vector
    penalty = regularization * sum(math.sqrt(s) for s in squares) / len(triples)
    terms = model.double().training_step(batch)
    assert float(terms["bpr"].detach()) == pytest.approx(loss / len(triples), rel=1e-10)
    assert ("regularization" in terms) == (regularization > 0)
    if regularization:
        assert float(terms["regularization"].detach()) == pytest.approx(penalty, rel=1e-10)
    np.testing.assert_allclose(all_scores(model, train), p @ q.T, rtol=1e-10)


def test_initial_vectors_are_xavier_normal(build, checkerboard):
    train, _ = checkerboard
    model = build("bpr-mf", train, [], embedding_size=400)
    assert float(model.users.detach().std()) == pytest.approx(math.sqrt(2 / (20 + 400)), rel=0.05)
    assert float(model.items.detach().std()) == pytest.approx(math.sqrt(2 / (12 + 400)), rel=0.05)
