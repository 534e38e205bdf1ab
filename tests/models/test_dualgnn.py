"""DualGNN against its equations, written once more with loops over nodes and neighbours."""

import math

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.dualgnn import DualGNNConfig

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


def scores_by_loops(model, dense, given):
    config, n_users, n_items = model.config, *dense.shape
    found, weights = representations_by_loops(model, dense, given)
    names = list(found)
    omega = weights.get("weights", np.ones((n_users, 1)))
    beta = user_weights_by_loops(dense, config.user_k)
    for_users = dict(found)
    if config.alias_bug:
        for_users[names[0]] = sum(found.values())
    scores = np.zeros((n_users, n_items))
    if config.integration == "ensemble":
        for place, name in enumerate(names):
            own = omega[:, [place]] * found[name][:n_users]
            scores += (own + beta @ own) @ found[name][n_users:].T
        return scores, weights
    own = sum(omega[:, [place]] * for_users[name][:n_users] for place, name in enumerate(names))
    for user in range(n_users):
        vector = own[user] + sum(beta[user, w] * own[w] for w in range(n_users))
        for item in range(n_items):
            scores[user, item] = vector @ sum(found[name][n_users + item] for name in names)
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
    {},
    {"user_k": 2, "n_layers": 1},
    {"alias_bug": True},
    {"integration": "ensemble"},
]


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1], [2, 1], [0, 1, 2]])
@pytest.mark.parametrize("settings", VARIANTS)
def test_loss_and_scores_by_loops(chosen, settings, build, train, dense, given, batch, all_scores):
    given = [given[index] for index in chosen]
    model = spread(build("dualgnn", train, given, **SIZES, **settings).double())
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
    model = spread(build("dualgnn", train, given, **SIZES, **settings).double())
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


@pytest.mark.parametrize("alias_bug", [False, True])
def test_the_users_visual_branch_does_not_see_the_text_but_for_the_alias(
    alias_bug, build, train, dense, given
):
    # Only the first modality counts for users, so what they see is its branch alone.
    def users(text):
        changed = type(given[1])("textual__made", "textual", text, given[1].present)
        sets = [given[0], changed]
        model = build("dualgnn", train, sets, alias_bug=alias_bug)
        with torch.no_grad():
            model.weights.copy_(torch.tensor([[1.0, 0.0]]).expand(train.n_users, 2))
            return model.user_vectors()

    same = torch.allclose(users(given[1].matrix), users(given[1].matrix + 1.0))
    assert same is not alias_bug


def test_the_users_weights_start_near_equal_and_sum_to_one(build, train, given):
    weights = build("dualgnn", train, given).weights.detach()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(train.n_users))
    assert float((weights - 1 / 3).abs().max()) < 0.3
    assert build("dualgnn", train, given[:1]).weights is None


def test_one_modality_makes_fusion_and_ensemble_the_same(build, train, given, all_scores):
    one, two = (
        build("dualgnn", train, given[:1], integration=kind) for kind in ("fusion", "ensemble")
    )
    np.testing.assert_allclose(all_scores(one, train), all_scores(two, train), rtol=1e-5)


def test_the_alias_of_an_ensemble_is_refused():
    with pytest.raises(ValueError, match="alias_bug mixes the modalities"):
        DualGNNConfig(alias_bug=True, integration="ensemble")


def test_resampled_padding_changes_by_epoch_not_by_ranking_and_is_stored(
    build, train, given, all_scores
):
    model = build("dualgnn", train, given, pad="resample")
    plain = build("dualgnn", train, given)
    np.testing.assert_array_equal(all_scores(model, train), all_scores(plain, train))
    model.on_epoch_start(1)
    drawn = all_scores(model, train)
    assert not np.allclose(drawn, all_scores(plain, train))
    np.testing.assert_array_equal(drawn, all_scores(model, train))
    other = build("dualgnn", train, given, seed=1, pad="resample")
    other.load_state(model.state_dict())
    np.testing.assert_array_equal(drawn, all_scores(other, train))
    plain.on_epoch_start(1)
    assert not [name for name in plain.state_dict() if "graph" in name]


def test_without_features_it_is_refused(build, train):
    with pytest.raises(ConfigError, match=r"dualgnn .* under `features`"):
        build("dualgnn", train, [])


def test_under_bfloat16_it_stays_finite(build, train, given, batch):
    model = build("dualgnn", train, given)
    with torch.autocast("cpu", torch.bfloat16):
        low = sum(model.training_step(batch).values())
    low.backward()
    full = sum(model.training_step(batch).values())
    assert float(low.detach()) == pytest.approx(float(full.detach()), rel=2e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
