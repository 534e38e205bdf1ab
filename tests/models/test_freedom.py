"""FREEDOM against its equations, written out with dense matrices and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmbench.models.base import Batch, Interactions, ItemFeatures

K = 4
SETTINGS = {"embedding_size": 3, "k": K, "feature_weight": 0.3}


def symmetric(edges, n_users, n_items):
    """D^-1/2 A D^-1/2 of some edges, by loops."""
    result = torch.zeros(n_users + n_items, n_users + n_items, dtype=torch.float64)
    of_user, of_item = [u for u, _ in edges], [i for _, i in edges]
    for u, i in edges:
        value = 1 / math.sqrt(of_user.count(u) * of_item.count(i))
        result[u, n_users + i] = result[n_users + i, u] = value
    return result


def nearest(matrix, k):
    """1 / k at the k most similar items of each, the lowest among equals."""
    n = len(matrix)
    result = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        similarities = []
        for j in range(n):
            norms = float(matrix[i].norm() * matrix[j].norm())
            similarities.append(float(matrix[i] @ matrix[j]) / norms if norms > 0 else 0.0)
        for j in sorted(range(n), key=lambda j: (-similarities[j], j))[:k]:
            result[i, j] = 1 / k
    return result


def literal(model, raw, weights, train, batch, edges=None, *, layers=2, item_layers=1, k=K):
    """Scores [U, I] and loss terms, from the parameters and equations 1-6 alone."""
    every = list(zip(train.users.tolist(), train.items.tolist(), strict=True))
    graph = symmetric(every if edges is None else edges, train.n_users, train.n_items)
    total = power = model.nodes
    for _ in range(layers):
        power = graph @ power
        total = total + power
    mean = total / (layers + 1)
    users, items = mean[: train.n_users], mean[train.n_users :]
    if raw:
        mixed = sum(weights[name] * nearest(matrix, k) for name, matrix in raw.items())
        h = model.nodes[train.n_users :]
        for _ in range(item_layers):
            h = mixed @ h
        items = items + h
    scores = users @ items.T
    triples = list(
        zip(*(x.tolist() for x in (batch.users, batch.positives, batch.negatives)), strict=True)
    )

    def bpr(margins):
        return sum(-torch.log(torch.sigmoid(margin)) for margin in margins) / len(triples)

    terms = {"bpr": bpr([scores[u, i] - scores[u, j] for u, i, j in triples])}
    for name in raw:
        view = model.features[name] @ model.project[name].weight.T
        margins = [users[u] @ view[i] - users[u] @ view[j] for u, i, j in triples]
        terms[f"bpr_{name}"] = SETTINGS["feature_weight"] * bpr(margins)
    return scores, terms


@pytest.fixture
def make(build, train, given):
    def world(n_modalities, **settings):
        sets = given[:n_modalities]
        model = build("freedom", train, sets, **{**SETTINGS, **settings}).double()
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
                raw = name.startswith("features")
                parameter.add_(0.05 * noise) if raw else parameter.copy_(noise)
        return model, {g.modality: g.matrix.double() for g in sets}

    return world


WEIGHTS = [
    {},
    {"visual": 1.0},
    {"visual": 0.1, "textual": 0.9},
    {"visual": 0.1, "textual": 0.45, "acoustic": 0.45},
]


def drawn(model):
    """The edges of the pruned graph and its values, read from the operator."""
    pruned = model.pruned
    rows = torch.repeat_interleave(
        torch.arange(len(pruned.pointers) - 1), pruned.pointers.diff().long()
    )
    first = rows < model.n_users
    columns = pruned.columns.long()[first] - model.n_users
    return list(zip(rows[first].tolist(), columns.tolist(), strict=True))


@pytest.mark.parametrize("n_modalities", [0, 1, 2, 3])
@pytest.mark.parametrize("variant", [{}, {"n_item_layers": 2, "n_layers": 1}], ids=str)
def test_scores_terms_and_gradients_against_the_equations(
    n_modalities, variant, make, train, batch, all_scores
):
    model, raw = make(n_modalities, pruning=0.4, **variant)
    depths = {"layers": variant.get("n_layers", 2), "item_layers": variant.get("n_item_layers", 1)}
    weights = WEIGHTS[n_modalities]
    model.on_epoch_start(1)
    scores, _ = literal(model, raw, weights, train, batch, **depths)
    np.testing.assert_allclose(all_scores(model, train), scores.detach().numpy(), rtol=1e-5)
    _, terms = literal(model, raw, weights, train, batch, drawn(model), **depths)
    mine = model.training_step(batch)
    assert set(mine) == set(terms)
    for name, term in terms.items():
        assert float(mine[name].detach()) == pytest.approx(float(term.detach()), rel=1e-6), name
    sum(mine.values()).backward()
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(sum(terms.values()), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_gradients_over_the_pruned_graph_by_central_differences(make, batch):
    model, _ = make(2, pruning=0.4)
    model.on_epoch_start(1)
    sum(model.training_step(batch).values()).backward()
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for position in slope.abs().argsort(descending=True)[:4].tolist():
            values = []
            for step in (1e-5, -1e-5):
                flat[position] += step
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= step
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4), name


@pytest.mark.parametrize(("pruning", "kept"), [(0.8, 8), (0.9, 4), (0.5, 20), (0.975, 1)])
def test_the_pruned_graph_keeps_the_floor_and_its_own_degrees(build, pruning, kept):
    world = Interactions(8, 5, torch.arange(8).repeat_interleave(5), torch.arange(5).repeat(8))
    model = build("freedom", world, [], pruning=pruning)
    model.on_epoch_start(1)
    edges = drawn(model)
    assert len(edges) == len(set(edges)) == kept
    expected = symmetric(edges, 8, 5).float()
    torch.testing.assert_close(model.pruned.matrix().to_dense(), expected)


def test_each_epoch_draws_anew_and_light_edges_seldom_stay(build):
    """User 0 and item 0 are busy; theirs is the edge that is dropped most."""
    users = torch.tensor([0, 0, 0, 0, 1, 2, 3])
    items = torch.tensor([0, 1, 2, 3, 0, 0, 4])
    model = build("freedom", Interactions(4, 5, users, items), [], pruning=0.5)
    counts: dict[tuple[int, int], int] = {}
    for epoch in range(400):
        model.on_epoch_start(epoch)
        for edge in drawn(model):
            counts[edge] = counts.get(edge, 0) + 1
    assert min(counts, key=counts.__getitem__) == (0, 0)
    assert max(counts, key=counts.__getitem__) == (3, 4)
    assert len(counts) == 7


def test_the_draw_comes_from_the_global_generator(build, train):
    model = build("freedom", train, [])
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        model.on_epoch_start(1)
        draws.append(drawn(model))
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_ranking_is_independent_of_the_draw_and_of_the_mode(build, train, given, all_scores):
    model = build("freedom", train, given)
    before = all_scores(model, train)
    for epoch, mode in ((1, True), (2, False)):
        model.on_epoch_start(epoch)
        model.train(mode)
        np.testing.assert_array_equal(all_scores(model, train), before)


def test_without_pruning_training_sees_the_whole_graph(make, train, batch):
    model, raw = make(2, pruning=0.0)
    model.on_epoch_start(1)
    _, terms = literal(model, raw, WEIGHTS[2], train, batch)
    for name, term in model.training_step(batch).items():
        assert float(term.detach()) == pytest.approx(float(terms[name].detach()), rel=1e-6), name


def test_the_item_graph_weighs_a_tenth_and_nine_tenths(build, train, given):
    model = build("freedom", train, given[:2], k=3)
    dense = model.item_graph.matrix().to_dense()
    allowed = torch.tensor([0.0, 0.1 / 3, 0.9 / 3, 1 / 3])
    assert float((dense[..., None] - allowed).abs().amin(dim=-1).max()) < 1e-7
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(train.n_items))
    nonzero = given[0].matrix.abs().sum(dim=1) > 0
    assert (dense.diagonal()[nonzero] > 0.3).all()  # the item is its own nearest


def test_without_weight_of_features_the_graph_alone_speaks(build, train, given, batch):
    model = build("freedom", train, given, feature_weight=0.0)
    assert [name for name, _ in model.named_parameters()] == ["nodes"]
    assert set(model.training_step(batch)) == {"bpr"}
    assert model.item_graph is not None


def test_frozen_features_are_no_parameters(build, train, given, batch):
    model = build("freedom", train, given, freeze_features=True)
    assert not [name for name, _ in model.named_parameters() if name.startswith("features")]
    sum(model.training_step(batch).values()).backward()
    assert model.project["visual"].weight.grad.abs().max() > 0


def test_rows_of_the_batch_alone_move_their_features(build, train, given, batch):
    model = build("freedom", train, given)
    sum(model.training_step(batch).values()).backward()
    moved = model.features["textual"].grad.abs().sum(dim=1) > 0
    seen = torch.zeros(train.n_items).bool()
    seen[torch.cat([batch.positives, batch.negatives])] = True
    assert torch.equal(moved, seen)


def test_zero_rows_isolated_nodes_and_k_beyond_the_items_are_defined(build, fit, train):
    matrix = torch.randn(train.n_items, 3)
    matrix[:4] = 0.0
    sets = [ItemFeatures("textual__x", "textual", matrix, torch.ones(train.n_items).bool())]
    model = fit(build("freedom", train, sets, k=50), train, epochs=5)
    model.on_epoch_start(1)
    terms = model.training_step(Batch(train.users, train.items, train.items.flip(0)))
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(v).all() for v in model.vectors())
    torch.testing.assert_close(
        model.item_graph.matrix().to_dense(), torch.full((9, 9), 1 / 9), rtol=1e-6, atol=0
    )


def test_a_draw_that_keeps_nothing_is_a_graph_without_edges(build, batch):
    lonely = Interactions(12, 9, torch.tensor([0, 1]), torch.tensor([1, 2]))
    model = build("freedom", lonely, [], pruning=0.9)
    model.on_epoch_start(1)
    assert drawn(model) == []
    assert torch.isfinite(sum(model.training_step(batch).values()))
