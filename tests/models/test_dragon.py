"""DRAGON against its equations, written once more with loops over nodes and neighbours."""

import math

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError

SIZES = {"embedding_size": 3, "hidden_size": 4, "regularization": 0.3}


def unit(row):
    length = math.sqrt(float((row**2).sum()))
    return row / length if length > 0 else row


def leaky(row):
    return np.where(row > 0, row, 0.01 * row)


def propagated_by_loops(dense, start, n_layers):
    """x + S x + ... + S^L x, one edge at a time."""
    n_users, layer, total = len(dense), start, start.copy()
    for _ in range(n_layers):
        following = np.zeros_like(layer)
        for user in range(n_users):
            for item in np.flatnonzero(dense[user]):
                weight = 1 / math.sqrt(dense[user].sum() * dense[:, item].sum())
                following[user] += weight * layer[n_users + item]
                following[n_users + item] += weight * layer[user]
        layer = following
        total += layer
    return total


def user_weights_by_loops(dense, k):
    """beta: softmax of the numbers of common items over the k users with most of them."""
    beta = np.zeros((len(dense), len(dense)))
    for user, row in enumerate(dense):
        counts = [(-int(row @ other), w) for w, other in enumerate(dense) if w != user]
        best = [(w, -count) for count, w in sorted(counts) if count < 0][:k]
        total = sum(math.exp(count) for _, count in best)
        for other, count in best:
            beta[user, other] = math.exp(count) / total
    return beta


def representations_by_loops(model, dense, given):
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    found = {}
    for features in given:
        at = f"branches.{features.modality}"
        raw = features.matrix.double().numpy()
        items = [
            weights[f"{at}.project.weight"]
            @ leaky(weights[f"{at}.hidden.weight"] @ row + weights[f"{at}.hidden.bias"])
            + weights[f"{at}.project.bias"]
            for row in raw
        ]
        start = np.array([unit(row) for row in [*weights[f"{at}.preferences"], *items]])
        found[features.modality] = propagated_by_loops(dense, start, model.config.n_layers)
    return found, weights


def item_graph_by_loops(raw, k):
    """1 / k for each of the k items with the largest cosine, the lowest index first."""
    graph = np.zeros((len(raw), len(raw)))
    for i, row in enumerate(raw):
        cosines = [(-float(unit(row) @ unit(other)), j) for j, other in enumerate(raw)]
        nearest = [j for _, j in sorted((round(c, 6), j) for c, j in cosines)[:k]]
        graph[i, nearest] = 1 / len(nearest)
    return graph


def shares_of(modalities, visual):
    others = [name for name in modalities if name != "visual"]
    if "visual" not in modalities or not others:
        return {name: 1 / len(modalities) for name in modalities}
    return {name: (1 - visual) / len(others) for name in others} | {"visual": visual}


def scores_by_loops(model, dense, given):
    config, n_users = model.config, len(dense)
    found, weights = representations_by_loops(model, dense, given)
    names = list(found)
    omega = weights.get("weights", np.ones((n_users, 1)))
    beta = user_weights_by_loops(dense, config.user_k)
    graphs = {g.modality: item_graph_by_loops(g.matrix.double().numpy(), config.k) for g in given}
    shares = shares_of(names, config.visual_weight)
    mixed = sum(shares[name] * graphs[name] for name in names)
    scores = np.zeros(dense.shape)
    for place, name in enumerate(names):  # side by side, so the score is a sum over modalities
        graph = graphs[name] if config.integration == "ensemble" else mixed
        own, items = omega[:, [place]] * found[name][:n_users], found[name][n_users:]
        users = own + np.linalg.matrix_power(beta, config.n_user_layers) @ own
        items = items + np.linalg.matrix_power(graph, config.n_item_layers) @ items
        scores += users @ items.T
    return scores, weights


def losses_by_loops(scores, weights, batch, modalities):
    bpr = 0.0
    columns = (batch.users.tolist(), batch.positives.tolist(), batch.negatives.tolist())
    for u, i, j in zip(*columns, strict=True):
        bpr += math.log2(1 + math.exp(-(scores[u, i] - scores[u, j])))
    penalty = sum(
        (weights[f"branches.{name}.preferences"][batch.users.numpy()] ** 2).mean()
        for name in modalities
    )
    if len(modalities) > 1:
        penalty += (weights["weights"] ** 2).mean()
    return bpr / len(batch.users), 0.3 * penalty


def spread(model):
    """All parameters away from zero, in float64."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.7 * rng.standard_normal(tuple(parameter.shape))))
    return model


VARIANTS = [
    {"k": 3},
    {"user_k": 2, "n_layers": 1, "visual_weight": 0.4},
    {"k": 2, "n_item_layers": 2, "n_user_layers": 2},
    {"k": 3, "integration": "ensemble"},
]


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1], [2, 1], [0, 1, 2]])
@pytest.mark.parametrize("settings", VARIANTS)
def test_loss_and_scores_by_loops(chosen, settings, build, train, dense, given, batch, all_scores):
    given = [given[index] for index in chosen]
    model = spread(build("dragon", train, given, **SIZES, **settings).double())
    expected, weights = scores_by_loops(model, dense, given)
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-5)
    terms = {name: float(term.detach()) for name, term in model.training_step(batch).items()}
    bpr, penalty = losses_by_loops(expected, weights, batch, [g.modality for g in given])
    assert terms == {
        "bpr": pytest.approx(bpr, rel=1e-5),
        "regularization": pytest.approx(penalty, rel=1e-9),
    }


@pytest.mark.parametrize("chosen", [[1], [0, 1, 2]])
@pytest.mark.parametrize("settings", VARIANTS)
def test_gradients_of_all_parameters(chosen, settings, build, train, given, batch):
    given = [given[index] for index in chosen]
    model = spread(build("dragon", train, given, **SIZES, **settings).double())
    sum(model.training_step(batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for position in rng.choice(len(flat), min(4, len(flat)), replace=False):
            values = []
            for step in (1e-6, -1e-6):
                flat[position] += step
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= step
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(
                float(slope[position]), rel=1e-4, abs=1e-7
            ), name


def test_the_users_weights_start_near_equal_and_sum_to_one(build, train, given):
    weights = build("dragon", train, given).weights.detach()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(train.n_users))
    assert float((weights - 1 / 3).abs().max()) < 0.3
    assert build("dragon", train, given[:1]).weights is None


def test_more_neighbours_than_items_are_all_items(build, train, given, all_scores):
    many, all_of_them = (build("dragon", train, given, k=k) for k in (50, train.n_items))
    np.testing.assert_array_equal(all_scores(many, train), all_scores(all_of_them, train))


def test_a_single_modality_has_its_graph_in_full(build, train, given):
    (graph,) = build("dragon", train, given[:1], k=3).item_graphs
    torch.testing.assert_close(graph.matrix().to_dense().sum(dim=1), torch.ones(train.n_items))


def test_resampled_padding_changes_by_epoch_not_by_ranking_and_is_stored(
    build, train, given, all_scores
):
    model = build("dragon", train, given, pad="resample")
    plain = build("dragon", train, given)
    np.testing.assert_array_equal(all_scores(model, train), all_scores(plain, train))
    model.on_epoch_start(1)
    drawn = all_scores(model, train)
    assert not np.allclose(drawn, all_scores(plain, train))
    np.testing.assert_array_equal(drawn, all_scores(model, train))
    other = build("dragon", train, given, seed=1, pad="resample")
    other.load_state(model.state_dict())
    np.testing.assert_array_equal(drawn, all_scores(other, train))
    plain.on_epoch_start(1)
    assert not [name for name in plain.state_dict() if "graph" in name]


def test_without_features_it_is_refused(build, train):
    with pytest.raises(ConfigError, match=r"dragon .* under `features`"):
        build("dragon", train, [])


def test_under_bfloat16_it_stays_finite(build, train, given, batch):
    model = build("dragon", train, given)
    with torch.autocast("cpu", torch.bfloat16):
        low = sum(model.training_step(batch).values())
    low.backward()
    full = sum(model.training_step(batch).values())
    assert float(low.detach()) == pytest.approx(float(full.detach()), rel=2e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
