import math

import numpy as np
import pytest
import torch


def final_by_loops(dense, start, n_layers):
    """Mean of the layers, summed over one neighbour at a time."""
    n_users = len(dense)
    layers = [start]
    for _ in range(n_layers):
        layer = np.zeros_like(start)
        for user in range(n_users):
            for item in np.flatnonzero(dense[user]):
                weight = 1 / math.sqrt(dense[user].sum() * dense[:, item].sum())
                layer[user] += weight * layers[-1][n_users + item]
                layer[n_users + item] += weight * layers[-1][user]
        layers.append(layer)
    return sum(layers) / (n_layers + 1)


@pytest.mark.parametrize("n_layers", [1, 2, 4])
@pytest.mark.parametrize("penalty", ["frobenius", "squared"])
def test_loss_and_scores_by_loops(n_layers, penalty, build, train, dense, batch, all_scores):
    settings = {"n_layers": n_layers, "penalty": penalty, "regularization": 0.3}
    model = build("lightgcn", train, [], embedding_size=4, **settings)
    start = model.nodes.detach().double().numpy()
    final, n_users = final_by_loops(dense, start, n_layers), train.n_users
    expected = final[:n_users] @ final[n_users:].T
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-4, atol=1e-6)
    loss, squares = 0.0, [0.0, 0.0, 0.0]
    triples = list(
        zip(*(x.tolist() for x in (batch.users, batch.positives, batch.negatives)), strict=True)
    )
    for u, i, j in triples:
        loss += math.log(1 + math.exp(-(expected[u, i] - expected[u, j])))
        for place, row in enumerate((u, n_users + i, n_users + j)):
            squares[place] += start[row] @ start[row]
    if penalty == "frobenius":
        amount = sum(map(math.sqrt, squares)) / len(triples)
    else:
        amount = sum(squares) / 2 / len(triples)
    terms = model.training_step(batch)
    assert float(terms["bpr"].detach()) == pytest.approx(loss / len(triples), rel=1e-6)
    assert float(terms["regularization"].detach()) == pytest.approx(0.3 * amount, rel=1e-6)


def test_initial_vectors_are_xavier_uniform_for_users_and_items_apart(build, checkerboard):
    train, _ = checkerboard
    model = build("lightgcn", train, [], embedding_size=400)
    for rows, n in ((model.nodes[:20], 20), (model.nodes[20:], 12)):
        limit = math.sqrt(6 / (n + 400))
        assert float(rows.detach().abs().max()) <= limit
        assert float(rows.detach().abs().max()) > 0.99 * limit


def test_one_propagation_serves_users_and_items(build, train, monkeypatch):
    model = build("lightgcn", train, [])
    calls = []
    original = model.graph.mean_of_powers
    monkeypatch.setattr(
        model.graph, "mean_of_powers", lambda *given: calls.append(1) or original(*given)
    )
    model.vectors()
    assert len(calls) == 1


def test_the_graph_is_not_among_the_weights(build, train):
    assert list(build("lightgcn", train, []).state_dict()) == ["nodes"]


def test_under_bfloat16_autocast_it_propagates_in_float32(build, train, batch):
    model = build("lightgcn", train, [])
    with torch.autocast("cpu", torch.bfloat16):
        low = sum(model.training_step(batch).values())
    low.backward()
    full = sum(model.training_step(batch).values())
    assert float(low.detach()) == pytest.approx(float(full.detach()), rel=1e-2)
    assert torch.isfinite(model.nodes.grad).all()


def test_no_product_with_the_graph_runs_under_autocast(build, train, batch, monkeypatch):
    # The product that a GPU takes, addmm of a sparse matrix, would be lowered and its backward
    # fail; the one that a CPU takes is no operation that autocast knows.
    model = build("lightgcn", train, [])
    seen = []
    original = model.graph.multiply_add

    def spy(*given):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(*given)

    monkeypatch.setattr(model.graph, "multiply_add", spy)
    with torch.autocast("cpu", torch.bfloat16):
        sum(model.training_step(batch).values()).backward()
    assert len(seen) == 2 * model.config.n_layers
    assert not any(seen)
