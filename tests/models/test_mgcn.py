"""MGCN against its equations, written out in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.base import Batch, Interactions, ItemFeatures

SMALL = {"embedding_size": 4, "regularization": 0.3, "contrast_weight": 0.7, "k": 3}
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
    """KNN-w: cosines of the k nearest, the item itself among them, scaled by their row sums."""
    n = len(raw)
    kept = np.zeros((n, n))
    for i in range(n):
        cosines = []
        for j in range(n):
            norms = np.linalg.norm(raw[i]) * np.linalg.norm(raw[j])
            cosines.append(raw[i] @ raw[j] / norms if norms else 0.0)
        for j in sorted(range(n), key=lambda j: (-cosines[j], j))[:k]:
            kept[i, j] = cosines[j]
    sums = [max(0.0, row.sum()) for row in kept]
    for i in range(n):
        for j in range(n):
            scale = math.sqrt(sums[i] * sums[j])
            kept[i, j] = kept[i, j] / scale if scale else 0.0
    return kept


def block_of_users(dense):
    """S_ui."""
    block = np.zeros(dense.shape)
    for u, i in np.argwhere(dense):
        block[u, i] = 1 / math.sqrt(dense[u].sum() * dense[:, i].sum())
    return block


def behaviour_view(nodes, block, n_layers):
    """C, the mean of the layers."""
    n_users = len(block)
    layers = [nodes]
    for _ in range(n_layers):
        users, items = layers[-1][:n_users], layers[-1][n_users:]
        layers.append(np.concatenate([block @ items, block.T @ users]))
    return sum(layers) / len(layers)


def affine(weights, name, rows):
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def literal(weights, dense, given, raw, config):
    """C, and every `side` of the equations: one, or one of each modality of an ensemble."""
    block = block_of_users(dense)
    behaviour = behaviour_view(weights["nodes"], block, config.n_layers)
    own = weights["nodes"][len(dense) :]
    views = {}
    for features in given:
        name = features.modality
        start = features.matrix.double().numpy()
        graph = neighbour_graph(start, config.k)
        items = own * sigmoid(
            affine(weights, f"gate.{name}", affine(weights, f"project.{name}", raw[name]))
        )
        for _ in range(config.n_item_layers):
            items = graph @ items
        views[name] = np.concatenate([block @ items, items])
    if not views:
        return behaviour, []
    if len(views) == 1 or config.integration == "ensemble":
        return behaviour, [view / 2 for view in views.values()]
    side = np.zeros_like(behaviour)
    for node in range(len(behaviour)):
        scores = [
            weights["attention.query.weight"][0]
            @ np.tanh(affine(weights, "attention.hidden", view[node]))
            for view in views.values()
        ]
        shares = np.exp(scores) / np.exp(scores).sum()
        common = sum(s * view[node] for s, view in zip(shares, views.values(), strict=True))
        side[node] = common
        for name, view in views.items():
            wanted = sigmoid(affine(weights, f"prefer.{name}", behaviour[node]))
            side[node] += wanted * (view[node] - common)
        side[node] /= len(views) + 1
    return behaviour, [side]


def contrast(one, two, temperature):
    unit_one = one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12)
    unit_two = two / np.maximum(np.linalg.norm(two, axis=1, keepdims=True), 1e-12)
    total = 0.0
    for row in range(len(one)):
        shares = [math.exp(unit_one[row] @ other / temperature) for other in unit_two]
        total -= math.log(shares[row] / sum(shares)) / len(one)
    return total


def raw_of(weights, given):
    return {
        g.modality: weights.get(f"features.{g.modality}", g.matrix.double().numpy()) for g in given
    }


@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
@pytest.mark.parametrize("chosen", CHOICES)
def test_scores_and_terms_by_loops(
    chosen, integration, build, train, dense, given, batch, all_scores
):
    given = [given[place] for place in chosen]
    settings = {"integration": integration, "n_item_layers": len(chosen) or 1}
    model = build("mgcn", train, given, **settings, **SMALL)
    config, n_users = model.config, train.n_users
    weights = numbers(model)
    behaviour, sides = literal(weights, dense, given, raw_of(weights, given), config)
    finals = [behaviour + side for side in sides] or [behaviour]
    scores = sum(final[:n_users] @ final[n_users:].T for final in finals) / len(finals)
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-6)
    n, users = len(batch.users), batch.users.numpy()
    ranking = squares = 0.0
    for u, i, j in zip(users, batch.positives.tolist(), batch.negatives.tolist(), strict=True):
        ranking += math.log1p(math.exp(-(scores[u, i] - scores[u, j]))) / n
        for final in finals:
            for row in (u, n_users + i, n_users + j):
                squares += final[row] @ final[row] / len(finals)
    terms = {"bpr": ranking, "regularization": 0.3 * squares / 2 / n}
    if sides:
        items = batch.positives.numpy() + n_users
        terms["contrast"] = 0.7 * np.mean(
            [
                contrast(side[items], behaviour[items], 0.2)
                + contrast(side[users], behaviour[users], 0.2)
                for side in sides
            ]
        )
    computed = {name: float(t.detach()) for name, t in model.training_step(batch).items()}
    assert computed == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
@pytest.mark.parametrize("chosen", CHOICES)
def test_gradients_by_differences(chosen, integration, build, train, given, batch):
    given = [given[place] for place in chosen]
    model = build("mgcn", train, given, integration=integration, **SMALL)
    numbers(model)
    sum(model.training_step(batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        assert slope.abs().max() > 0, name
        for position in rng.choice(len(slope), min(4, len(slope)), replace=False):
            values = []
            for change in (1e-5, -1e-5):
                flat[position] += change
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= change
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-8), name


def test_one_modality_is_half_its_view_and_has_no_attention(build, train, given):
    one = build("mgcn", train, given[:1], **SMALL)
    names = [name for name, _ in one.named_parameters()]
    assert not [name for name in names if "attention" in name or "prefer" in name]
    ensemble = build("mgcn", train, given[:1], integration="ensemble", **SMALL)
    torch.testing.assert_close(one.vectors(), ensemble.vectors())


def test_without_modalities_it_is_lightgcn_with_a_penalty_on_final(build, train, batch):
    model = build("mgcn", train, [], embedding_size=4, n_layers=2)
    plain = build("lightgcn", train, [], embedding_size=4, n_layers=2)
    assert list(model.state_dict()) == ["nodes"]
    plain.load_state(model.state_dict())
    torch.testing.assert_close(model.vectors(), plain.vectors())
    ours, theirs = model.training_step(batch), plain.training_step(batch)
    assert float(ours["bpr"].detach()) == float(theirs["bpr"].detach())


def test_item_graphs_stay_with_the_features_given(build, train, given, batch):
    model = build("mgcn", train, given, **SMALL)
    before = model.item_graphs["visual"].values.clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sum(model.training_step(batch).values()).backward()
    optimizer.step()
    assert not torch.equal(model.features["visual"], given[0].matrix)
    assert torch.equal(model.item_graphs["visual"].values, before)
    assert not [name for name in model.state_dict() if "graph" in name]


def test_frozen_features_are_no_weights(build, train, given, batch, all_scores):
    frozen = build("mgcn", train, given, freeze_features=True, **SMALL)
    trained = build("mgcn", train, given, **SMALL)
    assert not [name for name in frozen.state_dict() if name.startswith("features")]
    np.testing.assert_array_equal(all_scores(frozen, train), all_scores(trained, train))


def test_ranking_does_not_depend_on_mode_or_on_the_last_step(
    build, train, given, batch, all_scores
):
    model = build("mgcn", train, given, **SMALL)
    before = all_scores(model, train)
    model.training_step(batch)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(all_scores(model.eval(), train), before)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
def test_isolated_nodes_zero_rows_and_many_neighbours_give_numbers(integration, build):
    lonely = Interactions(3, 4, torch.tensor([0]), torch.tensor([1]))
    matrix = torch.zeros(4, 2)
    matrix[0] = 1.0
    given = [
        ItemFeatures(f"{name}__x", name, matrix, torch.ones(4).bool())
        for name in ("visual", "textual")
    ]
    model = build("mgcn", lonely, given, k=50, integration=integration)
    one = torch.tensor([0])  # its item has a row of zeros: side_i is zero, and the contrast too
    terms = model.training_step(Batch(one, one + 1, one + 2))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(model.scores(torch.arange(3))).all()


def test_features_that_tell_nothing_apart_are_refused(build, train):
    same = ItemFeatures("visual__x", "visual", torch.ones(9, 2), torch.ones(9).bool())
    with pytest.raises(ConfigError, match="visual__x: all rows are equal"):
        build("mgcn", train, [same])


def test_under_bfloat16_autocast_the_terms_are_close(build, train, given, batch):
    model = build("mgcn", train, given)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.training_step(batch)
    sum(low.values()).backward()
    for name, term in model.training_step(batch).items():
        assert float(low[name].detach()) == pytest.approx(float(term.detach()), rel=0.05, abs=1e-3)
