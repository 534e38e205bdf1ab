"""GRCN against its equations, written once more with loops over nodes and neighbours."""

import math

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.base import Interactions
from mmbench.models.grcn import GRCNConfig

SIZES = {"embedding_size": 3, "regularization": 0.3}


def unit(row):
    length = math.sqrt(float((row**2).sum()))
    return row / length if length > 0 else row


def leaky(row):
    return np.where(row > 0, row, 0.01 * row)


def softmax(values):
    shares = [math.exp(value) for value in values]
    return [share / sum(shares) for share in shares]


def neighbours(dense, node):
    n_users = len(dense)
    if node < n_users:
        return [n_users + int(i) for i in np.flatnonzero(dense[node])]
    return [int(u) for u in np.flatnonzero(dense[:, node - n_users])]


def refined_by_loops(weights, name, features, dense, n_routings):
    """y before, z after the last pass, and alpha[k, l], of one modality."""
    at, n_users = f"branches.{name}", len(dense)
    project, bias = weights[f"{at}.project.weight"], weights[f"{at}.project.bias"]
    looks = [unit(leaky(project @ row + bias)) for row in features.matrix.double().numpy()]
    likes = [unit(row) for row in weights[f"{at}.preferences"]]
    for _ in range(n_routings):
        for user in range(n_users):
            near = np.flatnonzero(dense[user])
            shares = softmax([likes[user] @ looks[i] for i in near])
            message = sum((a * looks[i] for a, i in zip(shares, near, strict=True)), np.zeros(3))
            likes[user] = unit(likes[user] + message)
    before = np.array([*likes, *looks])
    alpha, after = np.zeros((len(before), len(before))), before.copy()
    for node in range(len(before)):
        near = neighbours(dense, node)
        for share, other in zip(
            softmax([before[node] @ before[n] for n in near]), near, strict=True
        ):
            alpha[node, other] = share
            after[node] += share * before[other]
    return before, after, alpha


def ids_by_loops(weights, alphas, columns, dense, n_layers, pruning):
    """e^0 + ... + e^L with the weights of the modalities in `columns`."""
    layer = np.array([unit(row) for row in weights["nodes"]])
    total, n_nodes = layer.copy(), len(layer)
    for _ in range(n_layers):
        following = np.zeros_like(layer)
        for node in range(n_nodes):
            for other in neighbours(dense, node):
                weight = max(
                    alphas[c][node, other] * weights["confidence"][other, c] for c in columns
                )
                following[node] += (max(weight, 0.0) if pruning else weight) * layer[other]
        layer = following
        total += layer
    return total


def scores_by_loops(model, dense, given):
    config, n_users = model.config, len(dense)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    routings = config.n_routings if config.routing else 0
    refined = [refined_by_loops(weights, g.modality, g, dense, routings) for g in given]
    alphas = [alpha for _, _, alpha in refined]
    parts = [after for _, after, _ in refined]
    sets = [range(len(given))]
    if config.integration == "ensemble":
        sets = [[column] for column in range(len(given))]
    for columns in sets:
        parts.append(ids_by_loops(weights, alphas, columns, dense, config.n_layers, config.pruning))
    joined = np.concatenate(parts, axis=1)
    return joined[:n_users] @ joined[n_users:].T, weights


def losses_by_loops(scores, weights, batch, modalities):
    bpr, pairs, n_users = 0.0, [], len(scores)
    columns = (batch.users.tolist(), batch.positives.tolist(), batch.negatives.tolist())
    for u, i, j in zip(*columns, strict=True):
        bpr += math.log(1 + math.exp(-(scores[u, i] - scores[u, j])))
        for item in (i, j):
            pairs.append(weights["nodes"][u] ** 2 + weights["nodes"][n_users + item] ** 2)
    penalty = np.mean(pairs)
    for name in modalities:
        table = weights[f"branches.{name}.preferences"]
        penalty += (table[batch.users.numpy()] ** 2).mean()
        if name == "visual":
            penalty += (table**2).mean()
    return bpr / len(batch.users), 0.3 * penalty


def spread(model):
    """All parameters away from zero, in float64."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.7 * rng.standard_normal(tuple(parameter.shape))))
    return model


VARIANTS = [
    {},
    {"routing": False, "n_layers": 1},
    {"pruning": False, "n_routings": 1},
    {"integration": "ensemble"},
]


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1], [2, 1], [0, 1, 2]])
@pytest.mark.parametrize("settings", VARIANTS)
def test_loss_and_scores_by_loops(chosen, settings, build, train, dense, given, batch, all_scores):
    given = [given[index] for index in chosen]
    model = spread(build("grcn", train, given, **SIZES, **settings).double())
    expected, weights = scores_by_loops(model, dense, given)
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-8, atol=1e-10)
    terms = {name: float(term.detach()) for name, term in model.training_step(batch).items()}
    bpr, penalty = losses_by_loops(expected, weights, batch, [g.modality for g in given])
    assert terms == {
        "bpr": pytest.approx(bpr, rel=1e-8),
        "regularization": pytest.approx(penalty, rel=1e-8),
    }


@pytest.mark.parametrize("chosen", [[1], [0, 1, 2]])
@pytest.mark.parametrize("settings", VARIANTS)
def test_gradients_of_all_parameters(chosen, settings, build, train, given, batch):
    given = [given[index] for index in chosen]
    model = spread(build("grcn", train, given, **SIZES, **settings).double())
    sum(model.training_step(batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for position in rng.choice(len(flat), min(6, len(flat)), replace=False):
            values = []
            for step in (1e-6, -1e-6):
                flat[position] += step
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= step
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(
                float(slope[position]), rel=1e-4, abs=1e-8
            ), name


def test_routing_changes_what_users_like_and_off_leaves_the_table(build, train, given):
    routed, left = (build("grcn", train, given[:1], routing=routing) for routing in (True, False))
    seen = {}

    def likes(model):
        # What items first receive, in the last pass, is p.
        original = model.to_items.forward

        def spy(weights, dense):
            seen.setdefault(id(model), dense.detach().clone())
            return original(weights, dense)

        model.to_items.forward = spy
        model.vectors()
        return seen[id(model)]

    table = torch.nn.functional.normalize(left.branches["visual"].preferences.detach(), dim=1)
    torch.testing.assert_close(likes(left), table)
    changed = (likes(routed) - table).abs().amax(dim=1)
    with_items = train.user_degrees > 0
    assert (changed[with_items] > 1e-3).all()
    torch.testing.assert_close(likes(routed)[~with_items], table[~with_items])


def test_off_as_yaml_reads_it_and_as_text():
    assert GRCNConfig(routing=False) == GRCNConfig(routing="off")


def test_one_modality_makes_fusion_and_ensemble_the_same(build, train, given, all_scores):
    one, two = (
        build("grcn", train, given[:1], integration=kind) for kind in ("fusion", "ensemble")
    )
    np.testing.assert_allclose(all_scores(one, train), all_scores(two, train), rtol=1e-5)


def test_the_order_of_the_interactions_does_not_matter(build, train, given, all_scores):
    mixed = torch.randperm(len(train.users), generator=torch.Generator().manual_seed(0))
    other = Interactions(train.n_users, train.n_items, train.users[mixed], train.items[mixed])
    one, two = build("grcn", train, given), build("grcn", other, given)
    np.testing.assert_allclose(all_scores(one, train), all_scores(two, train), rtol=1e-5)


def test_without_features_it_is_refused(build, train):
    with pytest.raises(ConfigError, match=r"grcn .* under `features`"):
        build("grcn", train, [])


def test_under_bfloat16_it_stays_finite(build, train, given, batch):
    model = build("grcn", train, given)
    with torch.autocast("cpu", torch.bfloat16):
        low = sum(model.training_step(batch).values())
    low.backward()
    full = sum(model.training_step(batch).values())
    assert float(low.detach()) == pytest.approx(float(full.detach()), rel=2e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
