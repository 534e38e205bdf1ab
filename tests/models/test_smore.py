"""SMORE against its equations, written out in loops."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from mmbench.models.base import Batch, Interactions, ItemFeatures
from mmbench.models.smore import largest_weights

SMALL = {
    "embedding_size": 4,
    "n_layers": 2,
    "regularization": 0.3,
    "contrast_weight": 0.7,
    "visual_k": 4,
    "k": 3,
}
CHOICES = [[], [0], [1, 2], [0, 1, 2]]


def numbers(model):
    """All parameters, away from zero and from each other, as float64."""
    model.double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def neighbour_graph(raw, k):
    """KNN-w; None where there is no edge."""
    n = len(raw)
    kept = [[None] * n for _ in range(n)]
    for i in range(n):
        cosines = []
        for j in range(n):
            norms = np.linalg.norm(raw[i]) * np.linalg.norm(raw[j])
            cosines.append(raw[i] @ raw[j] / norms if norms else 0.0)
        for j in sorted(range(n), key=lambda j: (-cosines[j], j))[:k]:
            kept[i][j] = cosines[j]
    sums = [max(0.0, sum(value for value in row if value is not None)) for row in kept]
    for i in range(n):
        for j in range(n):
            if kept[i][j] is not None:
                scale = math.sqrt(sums[i] * sums[j])
                kept[i][j] = kept[i][j] / scale if scale else 0.0
    return kept


def as_matrix(graph):
    return np.array([[value or 0.0 for value in row] for row in graph])


def joined_graph(graphs):
    """The union of edges; the largest weight of those that have the edge."""
    n = len(graphs[0])
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            weights = [graph[i][j] for graph in graphs if graph[i][j] is not None]
            result[i, j] = max(weights, default=0.0)
    return result


def spectrum(row):
    """The first D / 2 + 1 of the orthonormal Fourier coefficients."""
    n = len(row)
    return [
        sum(x * cmath.exp(-2j * math.pi * f * t / n) for t, x in enumerate(row)) / math.sqrt(n)
        for f in range(n // 2 + 1)
    ]


def signal(coefficients, n):
    """The real signal of half a spectrum: the other half is its mirrored conjugate."""
    full = [0j] * n
    for f, value in enumerate(coefficients):
        full[f] += value
        if f not in (0, n / 2):
            full[n - f] = value.conjugate()
    full[0] = full[0].real
    if n % 2 == 0:
        full[n // 2] = full[n // 2].real
    return [
        (
            sum(v * cmath.exp(2j * math.pi * f * t / n) for f, v in enumerate(full)) / math.sqrt(n)
        ).real
        for t in range(n)
    ]


def affine(weights, name, rows):
    return rows @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def literal(weights, dense, given, config):
    """C and E_b of each view."""
    n_users, nodes = len(dense), weights["nodes"]
    block = np.zeros(dense.shape)
    for u, i in np.argwhere(dense):
        block[u, i] = 1 / math.sqrt(dense[u].sum() * dense[:, i].sum())
    layers = [nodes]
    for _ in range(config.n_layers):
        users, items = layers[-1][:n_users], layers[-1][n_users:]
        layers.append(np.concatenate([block @ items, block.T @ users]))
    behaviour = sum(layers) / len(layers)
    if not given:
        return behaviour, {}
    graphs, spectra = {}, {}
    for features in given:
        name, start = features.modality, features.matrix.double().numpy()
        k = config.visual_k if name == "visual" else config.k
        graphs[name] = neighbour_graph(start, k)
        raw = weights.get(f"features.{name}", start)
        spectra[name] = np.array([spectrum(y) for y in affine(weights, f"project.{name}", raw)])
    matrices = {name: as_matrix(graph) for name, graph in graphs.items()}
    matrices["joined"] = joined_graph(list(graphs.values()))
    spectra["joined"] = np.prod(list(spectra.values()), axis=0)
    views = {}
    for name, coefficients in spectra.items():
        factors = weights[f"filter.{name}.factors"]
        filtered = coefficients * (factors[:, 0] + 1j * factors[:, 1])
        content = np.array([signal(row, config.embedding_size) for row in filtered])
        gate = sigmoid(affine(weights, f"gate.{name}", content))
        items = matrices[name] @ (nodes[n_users:] * gate)
        views[name] = np.concatenate([block @ items, items])
    return behaviour, views


def side_of(weights, behaviour, views, node, masks=None):
    """`side` of one node; the masks are those of dropout, by view."""
    total = np.zeros(behaviour.shape[1])
    for name, view in views.items():
        row = view[node]
        if name != "joined":
            hidden = np.tanh(affine(weights, f"query.{name}.0", views["joined"][node]))
            scores = np.exp(affine(weights, f"query.{name}.2", hidden))
            row = scores / scores.sum() * row
        wanted = sigmoid(affine(weights, f"prefer.{name}", behaviour[node]))
        total += wanted * row * (1.0 if masks is None else masks[name])
    return total / len(views)


def contrast(one, two, temperature):
    unit_one = one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12)
    unit_two = two / np.maximum(np.linalg.norm(two, axis=1, keepdims=True), 1e-12)
    total = 0.0
    for row in range(len(one)):
        shares = [math.exp(unit_one[row] @ other / temperature) for other in unit_two]
        total -= math.log(shares[row] / sum(shares)) / len(one)
    return total


def step(model, batch):
    torch.manual_seed(5)
    return model.training_step(batch)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("chosen", CHOICES)
def test_scores_and_terms_by_loops(
    chosen, size, dropout, build, train, dense, given, batch, all_scores
):
    given = [given[place] for place in chosen]
    model = build("smore", train, given, **{**SMALL, "embedding_size": size, "dropout": dropout})
    weights, n_users = numbers(model), train.n_users
    behaviour, views = literal(weights, dense, given, model.config)
    final = behaviour.copy()
    if views:
        final += [side_of(weights, behaviour, views, node) for node in range(len(behaviour))]
    expected = final[:n_users] @ final[n_users:].T
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-6)

    n = len(batch.users)
    torch.manual_seed(5)  # users', positives' and negatives' rows, one view after the other
    ones = torch.ones(3 * n, size, dtype=torch.float64)
    masks = {name: F.dropout(ones, dropout).numpy() for name in views}
    rows = torch.cat([batch.users, batch.positives + n_users, batch.negatives + n_users]).tolist()
    own, sides = behaviour[rows], np.zeros((3 * n, size))
    if views:
        for place, node in enumerate(rows):
            mine = {name: mask[place] for name, mask in masks.items()}
            sides[place] = side_of(weights, behaviour, views, node, mine)
    users, positives, negatives = np.split(own + sides, 3)
    terms = {"bpr": 0.0, "regularization": 0.0}
    for u, i, j in zip(users, positives, negatives, strict=True):
        terms["bpr"] += math.log1p(math.exp(-(u @ i - u @ j))) / n
        terms["regularization"] += 0.3 * (u @ u + i @ i + j @ j) / 2 / n
    if views:
        of_items = contrast(sides[n : 2 * n], own[n : 2 * n], 0.2)
        terms["contrast"] = 0.7 * (of_items + contrast(sides[:n], own[:n], 0.2))
    computed = {name: float(t.detach()) for name, t in step(model, batch).items()}
    assert computed == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("chosen", CHOICES)
def test_gradients_by_differences(chosen, build, train, given, batch):
    given = [given[place] for place in chosen]
    model = build("smore", train, given, dropout=0.3, **SMALL)
    numbers(model)
    sum(step(model, batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        assert slope.abs().max() > 0, name
        for position in rng.choice(len(slope), min(4, len(slope)), replace=False):
            values = []
            for change in (1e-5, -1e-5):
                flat[position] += change
                with torch.no_grad():
                    values.append(float(sum(step(model, batch).values())))
                flat[position] -= change
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-8), name


def test_the_joined_graph_keeps_the_largest_weight_of_each_edge():
    one = sp.csr_array((np.array([0.2, -0.5, 0.3]), (np.array([0, 0, 1]), np.array([0, 2, 1]))))
    two = sp.csr_array(
        (np.array([0.4, 0.1, -0.2]), (np.array([0, 1, 2]), np.array([0, 1, 0]))), shape=(3, 3)
    )
    one = sp.csr_array((one.data, one.indices, [0, 2, 3, 3]), shape=(3, 3))
    expected = [[0.4, 0.0, -0.5], [0.0, 0.3, 0.0], [-0.2, 0.0, 0.0]]
    assert largest_weights([one, two]).toarray() == pytest.approx(np.array(expected))


def test_one_modality_keeps_its_view_and_the_joined_one(build, train, given):
    model = build("smore", train, given[:1], **SMALL)
    assert model.views == ("visual", "joined")
    graphs = model.item_graphs
    assert torch.equal(graphs["visual"].columns, graphs["joined"].columns)
    assert torch.equal(graphs["visual"].values, graphs["joined"].values)


def test_a_modality_has_its_own_number_of_neighbours(build, train, given):
    model = build("smore", train, given, k=2, visual_k=5, acoustic_k=3)
    sizes = {name: len(graph.columns) // 9 for name, graph in model.item_graphs.items()}
    assert (sizes["visual"], sizes["textual"], sizes["acoustic"]) == (5, 2, 3)
    assert sizes["joined"] >= 5


def test_filters_are_real_numbers_that_start_standard_normal(build, train, given):
    model = build("smore", train, given, embedding_size=512)
    factors = torch.cat([part.factors.detach() for part in model.filter.values()])
    assert factors.shape == (4 * 257, 2)
    assert float(factors.mean()) == pytest.approx(0, abs=0.1)
    assert float(factors.std()) == pytest.approx(1, abs=0.1)
    assert not any(p.is_complex() for p in model.parameters())


def test_without_modalities_it_is_lightgcn_with_a_penalty_on_final(build, train, batch):
    model = build("smore", train, [], embedding_size=4, n_layers=3)
    plain = build("lightgcn", train, [], embedding_size=4, n_layers=3)
    assert list(model.state_dict()) == ["nodes"]
    plain.load_state(model.state_dict())
    torch.testing.assert_close(model.vectors(), plain.vectors())
    assert set(model.training_step(batch)) == {"bpr", "regularization"}


def test_frozen_features_are_no_weights(build, train, given, all_scores):
    frozen = build("smore", train, given, freeze_features=True, **SMALL)
    trained = build("smore", train, given, **SMALL)
    assert not [name for name in frozen.state_dict() if name.startswith("features")]
    np.testing.assert_array_equal(all_scores(frozen, train), all_scores(trained, train))


def test_ranking_does_not_depend_on_mode_or_on_the_last_step(
    build, train, given, batch, all_scores
):
    model = build("smore", train, given, dropout=0.5, **SMALL)
    before = all_scores(model, train)
    model.training_step(batch)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(all_scores(model.eval(), train), before)
    assert torch.equal(state, torch.get_rng_state())


def test_isolated_nodes_zero_rows_and_many_neighbours_give_numbers(build):
    lonely = Interactions(3, 4, torch.tensor([0]), torch.tensor([1]))
    matrix = torch.zeros(4, 2)
    matrix[0] = 1.0
    given = [
        ItemFeatures(f"{name}__x", name, matrix, torch.ones(4).bool())
        for name in ("visual", "textual")
    ]
    model = build("smore", lonely, given, k=50)
    one = torch.tensor([0])  # its item has a row of zeros: side_i is zero, and the contrast too
    terms = model.training_step(Batch(one, one + 1, one + 2))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(model.scores(torch.arange(3))).all()


def test_under_bfloat16_autocast_the_terms_are_close(build, train, given, batch):
    model = build("smore", train, given)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(model, batch)
    sum(low.values()).backward()
    for name, term in step(model, batch).items():
        assert float(low[name].detach()) == pytest.approx(float(term.detach()), rel=0.05, abs=1e-3)
