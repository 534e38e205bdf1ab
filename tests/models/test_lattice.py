"""LATTICE against its equations, written out with dense matrices and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmbench.models.base import Batch, ItemFeatures

K = 4
SETTINGS = {"embedding_size": 3, "feature_size": 5, "k": K, "regularization": 0.2}


def cosines(matrix):
    """s_ij, dense, 0 where a row is all zeros."""
    norms = matrix.norm(dim=1)
    products = norms[:, None] * norms[None, :]
    return matrix @ matrix.T / torch.where(products > 0, products, 1.0)


def nearest(similarities, k):
    """The k largest of each row, the others zero."""
    result = torch.zeros_like(similarities)
    for i, row in enumerate(similarities):
        order = sorted(range(len(row)), key=lambda j: (-float(row[j]), j))
        for j in order[:k]:
            result[i, j] = row[j]
    return result


def normalised(weights):
    """D^-1/2 W D^-1/2 by row sums, dense; a sum that is not positive counts as a factor 0."""
    sums = weights.sum(dim=1)
    scale = torch.where(sums > 0, torch.where(sums > 0, sums, 1.0) ** -0.5, 0.0)
    return scale[:, None] * weights * scale[None, :]


def dense_cf(train, layers, nodes):
    """Mean of T^0 X ... T^L X, T = (D + I)^-1 (A + I)."""
    n_users, n_nodes = train.n_users, train.n_users + train.n_items
    adjacency = torch.eye(n_nodes, dtype=torch.float64)
    for u, i in zip(train.users.tolist(), train.items.tolist(), strict=True):
        adjacency[u, n_users + i] = adjacency[n_users + i, u] = 1.0
    step = adjacency / adjacency.sum(dim=1, keepdim=True)
    total, power = nodes.clone(), nodes
    for _ in range(layers):
        power = step @ power
        total = total + power
    return total / (layers + 1)


def literal(model, raw, train, batch, *, n_item_layers=1, share=0.9, ensemble=False, mf=False):
    """Scores [U, I] and loss terms, from the parameters and equations 1-9 alone."""
    nodes, n_users = model.nodes, train.n_users
    cf = nodes if mf else dense_cf(train, 2, nodes)
    users, items = cf[:n_users], cf[n_users:]
    if raw:
        logits = model.modal_logits if len(raw) > 1 else torch.zeros(1)
        alpha = logits.exp() / logits.exp().sum()
        learned, start = [], []
        for name, matrix in raw.items():
            layer = model.project[name]
            view = model.features[name] @ layer.weight.T + layer.bias
            keep = nearest(cosines(view.detach()), K) != 0
            learned.append(torch.where(keep, cosines(view), 0.0))
            start.append(normalised(nearest(cosines(matrix), K)))
        powers = []
        if ensemble:
            graphs = [
                (1 - share) * normalised(one) + share * two
                for one, two in zip(learned, start, strict=True)
            ]
        else:
            mixed = sum(a * one for a, one in zip(alpha, learned, strict=True))
            fixed = sum(a * two for a, two in zip(alpha, start, strict=True))
            graphs = [(1 - share) * normalised(mixed) + share * fixed]
        for graph in graphs:
            h = nodes[n_users:]
            for _ in range(n_item_layers):
                h = graph @ h
            powers.append(h / h.norm(dim=1, keepdim=True))
        weights = alpha if ensemble else [1.0]
        items = items + sum(w * power for w, power in zip(weights, powers, strict=True))
    scores = users @ items.T
    triples = list(
        zip(*(x.tolist() for x in (batch.users, batch.positives, batch.negatives)), strict=True)
    )
    bpr = sum(-torch.log(torch.sigmoid(scores[u, i] - scores[u, j])) for u, i, j in triples)
    squares = sum(
        users[u].square().sum() + items[i].square().sum() + items[j].square().sum()
        for u, i, j in triples
    )
    terms = {
        "bpr": bpr / len(triples),
        "regularization": SETTINGS["regularization"] * squares / (2 * len(triples)),
    }
    return scores, terms


def scatter(model, seed=0):
    """All parameters away from their start, the raw features a little."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
            parameter.add_(0.05 * noise) if name.startswith("features") else parameter.copy_(noise)
        for layer in getattr(model, "project", {}).values():
            layer.bias.add_(3.0)  # cosines of the views are positive, so are their sums
    return model


@pytest.fixture
def make(build, train, given):
    def world(n_modalities, **settings):
        sets = given[:n_modalities]
        model = build("lattice", train, sets, **{**SETTINGS, **settings}).double()
        raw = {g.modality: g.matrix.double() for g in sets}
        return scatter(model), raw

    return world


VARIANTS = [
    {},
    {"n_item_layers": 2},
    {"raw_weight": 0.3},
    {"integration": "ensemble"},
    {"backbone": "mf"},
]


@pytest.mark.parametrize("n_modalities", [0, 1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_scores_terms_and_gradients_against_the_equations(
    n_modalities, variant, make, train, batch, all_scores
):
    model, raw = make(n_modalities, **variant)
    options = {
        "n_item_layers": variant.get("n_item_layers", 1),
        "share": variant.get("raw_weight", 0.9),
        "ensemble": "integration" in variant,
        "mf": "backbone" in variant,
    }
    scores, terms = literal(model, raw, train, batch, **options)
    np.testing.assert_allclose(all_scores(model, train), scores.detach().numpy(), rtol=1e-5)
    model.on_epoch_start(1)
    mine = model.training_step(batch)
    assert set(mine) == set(terms)
    for name, term in terms.items():
        assert float(mine[name].detach()) == pytest.approx(float(term.detach()), rel=1e-6), name
    sum(mine.values()).backward()
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(
        sum(terms.values()), list(parameters.values()), allow_unused=True
    )
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_gradients_of_the_first_batch_by_central_differences(make, batch):
    model, _ = make(2)
    model.on_epoch_start(1)
    sum(model.training_step(batch).values()).backward()
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for position in slope.abs().argsort(descending=True)[:4].tolist():
            values = []
            for step in (1e-5, -1e-5):
                flat[position] += step
                model.on_epoch_start(1)
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= step
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4), name


def test_only_the_first_batch_of_an_epoch_moves_the_graph(make, batch):
    model, _ = make(2)
    learning = ["modal_logits", "project.visual.weight", "features.textual"]
    for epoch in (1, 2):
        model.on_epoch_start(epoch)
        for step in range(3):
            model.zero_grad(set_to_none=True)
            sum(model.training_step(batch).values()).backward()
            gradients = {name: p.grad for name, p in model.named_parameters()}
            for name in learning:
                assert (gradients[name] is None) == (step > 0), name
            assert gradients["nodes"] is not None


def test_later_batches_take_the_graph_as_a_constant(make, train, batch):
    """Their value is the first one's, their gradient to Q that of a frozen matrix."""
    model, raw = make(2)
    model.on_epoch_start(1)
    first = model.training_step(batch)
    later = model.training_step(batch)
    for name, term in first.items():
        torch.testing.assert_close(later[name], term, rtol=1e-6, atol=0)
    sum(later.values()).backward()
    _, terms = literal(model, raw, train, batch)
    (expected,) = torch.autograd.grad(sum(terms.values()), [model.nodes])
    torch.testing.assert_close(model.nodes.grad, expected, rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        model.project["visual"].weight.neg_()  # the graph of this epoch stands
    again = model.training_step(batch)
    torch.testing.assert_close(again["bpr"], later["bpr"])
    model.on_epoch_start(2)
    assert not torch.allclose(model.training_step(batch)["bpr"], later["bpr"])


def test_rebuilding_every_batch_gives_each_a_gradient(make, batch):
    model, _ = make(2, rebuild="batch")
    model.on_epoch_start(1)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        sum(model.training_step(batch).values()).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_ranking_sees_the_weights_as_they_are_whatever_training_kept(
    make, train, batch, all_scores
):
    model, raw = make(2)
    model.on_epoch_start(1)
    model.training_step(batch)
    with torch.no_grad():
        model.project["textual"].weight.neg_()
    scores, _ = literal(model, raw, train, batch)
    for mode in (True, False):
        model.train(mode)
        np.testing.assert_allclose(all_scores(model, train), scores.detach().numpy(), rtol=1e-5)


def test_frozen_features_are_no_parameters_and_start_with_the_same_scores(
    build, train, given, all_scores
):
    trained, frozen = (
        build("lattice", train, given, freeze_features=freeze) for freeze in (False, True)
    )
    np.testing.assert_array_equal(all_scores(trained, train), all_scores(frozen, train))
    assert {n for n, _ in trained.named_parameters()} - {
        n for n, _ in frozen.named_parameters()
    } == {"features.visual", "features.textual", "features.acoustic"}


def test_a_constant_under_the_walk_stays_constant(build, train, all_scores):
    model = build("lattice", train, [], embedding_size=2)
    with torch.no_grad():
        model.nodes.fill_(1.0)
    np.testing.assert_allclose(all_scores(model, train), 2.0, rtol=1e-6)


def test_without_two_modalities_equal_training_as_if_never_configured(
    build, fit, train, given, all_scores
):
    one, two = (
        fit(build("lattice", train, sets, k=3), train, epochs=3)
        for sets in (given[1:2], [g for g in given if g.modality == "textual"])
    )
    np.testing.assert_array_equal(all_scores(one, train), all_scores(two, train))


@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
def test_zero_rows_isolated_nodes_and_k_beyond_the_items_are_defined(
    integration, build, fit, train
):
    rng = np.random.default_rng(3)
    matrix = torch.from_numpy(rng.standard_normal((train.n_items, 3)).astype(np.float32))
    matrix[:4] = 0.0
    present = torch.ones(train.n_items).bool()
    sets = [
        ItemFeatures("visual__made", "visual", matrix, present),
        ItemFeatures("textual__made", "textual", -matrix, present),
    ]
    settings = {"k": 50, "rebuild": "batch", "integration": integration}
    model = fit(build("lattice", train, sets, **settings), train, epochs=5)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(torch.isfinite(v).all() for v in model.vectors())
    terms = model.training_step(Batch(train.users, train.items, train.items.flip(0)))
    assert all(torch.isfinite(term) for term in terms.values())
