"""LGMRec against its equations, written out in loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmbench.models.base import Batch, Interactions, ItemFeatures

SMALL = {
    "embedding_size": 4,
    "n_groups": 3,
    "regularization": 0.3,
    "contrast_weight": 0.7,
    "n_modality_layers": 3,
}
CHOICES = [[], [0], [1, 2], [0, 1, 2]]
PUBLISHED_ORDER = ("visual", "acoustic", "textual")


def numbers(model):
    """All parameters, away from zero and from each other, as float64."""
    model.double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            start = 0.5 * rng.standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(start))
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def in_order(given):
    return sorted(given, key=lambda features: PUBLISHED_ORDER.index(features.modality))


def unit(x):
    return x / max(np.linalg.norm(x), 1e-12)


def draw(given, config, n_users, n_items):
    """Gumbel noise and dropout of users and items, as a step draws them after `manual_seed(5)`."""
    torch.manual_seed(5)
    drawn = {}
    for features in in_order(given):
        for kind, n in (("users", n_users), ("items", n_items)):
            shape = (n, config.n_groups)
            noise = np.zeros(shape)
            if config.noise != "never":
                noise = -torch.empty(shape, dtype=torch.float64).exponential_().log().numpy()
            ones = torch.ones(shape, dtype=torch.float64)
            drawn[features.modality, kind] = noise, F.dropout(ones, config.dropout).numpy()
    return drawn


def literal(weights, dense, given, config, drawn=None):
    """C, and loc and glob of each modality in the published order; rows of users, then items."""
    n_users = len(dense)
    nodes = weights["nodes"]
    block = np.zeros(dense.shape)
    for u, i in np.argwhere(dense):
        block[u, i] = 1 / math.sqrt(dense[u].sum() * dense[:, i].sum())

    def smoothed(rows):
        return np.concatenate([block @ rows[n_users:], block.T @ rows[:n_users]])

    layers = [nodes]
    for _ in range(config.n_layers):
        layers.append(smoothed(layers[-1]))
    behaviour = sum(layers) / len(layers)
    near, far = {}, {}
    for features in in_order(given):
        name, raw = features.modality, features.matrix.double().numpy()
        content = raw @ weights[f"project.{name}"]
        start = np.zeros((n_users, content.shape[1]))
        for u in range(n_users):
            if dense[u].any():
                start[u] = np.mean([content[i] for i in np.flatnonzero(dense[u])], axis=0)
        rows = np.concatenate([start, content])
        for _ in range(config.n_modality_layers):
            rows = smoothed(rows)
        near[name] = rows
        logits = {"items": raw @ weights[f"group.{name}"]}
        logits["users"] = dense @ logits["items"]
        assigned = {}
        for kind, values in logits.items():
            noise, mask = (0.0, 1.0) if drawn is None else drawn[name, kind]
            shares = np.exp((values + noise) / config.assignment_temperature)
            assigned[kind] = shares / shares.sum(axis=1, keepdims=True) * mask
        z = behaviour[n_users:]
        for _ in range(config.n_group_layers):
            lat = assigned["items"].T @ z
            z, u = assigned["items"] @ lat, assigned["users"] @ lat
        far[name] = np.concatenate([u, z])
    return behaviour, near, far


def finals(behaviour, near, far, config):
    """`final`, or one of each modality of an ensemble."""
    if config.integration == "ensemble" and near:
        return [
            np.array(
                [
                    behaviour[n] + unit(near[name][n]) + config.global_weight * unit(far[name][n])
                    for n in range(len(behaviour))
                ]
            )
            for name in near
        ]
    final = behaviour.copy()
    for n in range(len(behaviour)):
        for rows in near.values():
            final[n] += unit(rows[n])
        if far:
            final[n] += config.global_weight * unit(sum(rows[n] for rows in far.values()))
    return [final]


def hypergraph_contrast(one, two, chosen, temperature):
    """A sum over the chosen rows, against all rows."""
    total = 0.0
    for row in chosen:
        shares = [math.exp(unit(one[row]) @ unit(other) / temperature) for other in two]
        total -= math.log(shares[row] / sum(shares))
    return total


def step(model, batch):
    torch.manual_seed(5)
    return model.training_step(batch)


@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
@pytest.mark.parametrize(
    ("noise", "dropout", "n_group_layers", "n_groups"),
    [("never", 0.0, 1, 3), ("training", 0.3, 3, 3), ("training", 0.0, 2, 6)],
)
@pytest.mark.parametrize("chosen", CHOICES)
def test_scores_and_terms_by_loops(
    chosen,
    noise,
    dropout,
    n_group_layers,
    n_groups,
    integration,
    build,
    train,
    dense,
    given,
    batch,
    all_scores,
):
    given = [given[place] for place in chosen]
    settings = {**SMALL, "n_groups": n_groups, "n_group_layers": n_group_layers}
    settings |= {"noise": noise, "dropout": dropout, "integration": integration}
    model = build("lgmrec", train, given, **settings)
    config, n_users = model.config, train.n_users
    weights = numbers(model)
    ranked = finals(*literal(weights, dense, given, config), config)
    expected = sum(final[:n_users] @ final[n_users:].T for final in ranked) / len(ranked)
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-6)

    drawn = draw(given, config, n_users, train.n_items)
    behaviour, near, far = literal(weights, dense, given, config, drawn)
    trained = finals(behaviour, near, far, config)
    n, squares, ranking = len(batch.users), np.zeros(3), 0.0
    triples = (batch.users.tolist(), batch.positives.tolist(), batch.negatives.tolist())
    for u, i, j in zip(*triples, strict=True):
        margin = 0.0
        for final in trained:
            margin += final[u] @ (final[n_users + i] - final[n_users + j]) / len(trained)
            rows = (final[u], final[n_users + i], final[n_users + j])
            squares += [row @ row / len(trained) for row in rows]
        ranking += math.log1p(math.exp(-margin)) / n
    terms = {"bpr": ranking, "regularization": 0.3 * np.sqrt(squares).sum() / n}
    if len(given) > 1:
        total = 0.0
        for one, two in itertools.combinations(far, 2):
            pairs = ((slice(n_users), triples[0]), (slice(n_users, None), triples[1]))
            for part, rows in pairs:
                total += hypergraph_contrast(far[one][part], far[two][part], rows, 0.2)
        terms["contrast"] = 0.7 * total
    computed = {name: float(t.detach()) for name, t in step(model, batch).items()}
    assert computed == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
@pytest.mark.parametrize("chosen", CHOICES)
def test_gradients_by_differences(chosen, integration, build, train, given, batch):
    given = [given[place] for place in chosen]
    settings = {**SMALL, "n_group_layers": 2, "dropout": 0.2, "integration": integration}
    model = build("lgmrec", train, given, **settings)
    numbers(model)
    sum(step(model, batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        assert slope.abs().max() > 0, name
        for position in rng.choice(len(slope), min(4, len(slope)), replace=False):
            values = []
            for change in (1e-6, -1e-6):
                flat[position] += change
                with torch.no_grad():
                    values.append(float(sum(step(model, batch).values())))
                flat[position] -= change
            difference = (values[0] - values[1]) / 2e-6
            assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("noise", ["training", "always", "never"])
def test_two_rankings_are_equal_and_draw_nothing(noise, build, train, given, batch, all_scores):
    model = build("lgmrec", train, given, noise=noise, **SMALL)
    before, state = all_scores(model, train), torch.get_rng_state()
    np.testing.assert_array_equal(all_scores(model.eval(), train), before)
    assert torch.equal(state, torch.get_rng_state())
    model.training_step(batch)
    np.testing.assert_array_equal(all_scores(model, train), before)


def test_noise_falls_where_it_is_told_to(build, train, given, batch, all_scores):
    scores, losses = {}, {}
    for noise in ("training", "always", "never"):
        model = build("lgmrec", train, given, noise=noise, dropout=0.0, **SMALL)
        scores[noise] = all_scores(model, train)
        losses[noise] = [float(model.training_step(batch)["bpr"].detach()) for _ in range(2)]
    np.testing.assert_array_equal(scores["training"], scores["never"])
    assert not np.allclose(scores["always"], scores["never"])
    assert losses["never"][0] == losses["never"][1]
    assert losses["training"][0] != losses["training"][1]
    assert losses["always"][0] != losses["always"][1]


def test_the_order_in_which_features_are_given_does_not_matter(build, train, given, batch):
    one, two = (build("lgmrec", train, sets, **SMALL) for sets in (given, given[::-1]))
    assert list(one.state_dict()) == list(two.state_dict())
    computed = [{n: float(t.detach()) for n, t in step(m, batch).items()} for m in (one, two)]
    assert computed[0] == computed[1]


def test_the_contrast_grows_with_the_batch_and_needs_two_modalities(build, train, given, batch):
    model = build("lgmrec", train, given, noise="never", dropout=0.0, **SMALL)
    twice = Batch(*(torch.cat([x, x]) for x in (batch.users, batch.positives, batch.negatives)))
    one, two = model.training_step(batch), model.training_step(twice)
    assert float(two["contrast"].detach()) == pytest.approx(2 * float(one["contrast"].detach()))
    assert float(two["bpr"].detach()) == pytest.approx(float(one["bpr"].detach()))
    assert "contrast" not in build("lgmrec", train, given[:1], **SMALL).training_step(batch)


def test_features_stay_and_are_not_stored(build, train, given):
    model = build("lgmrec", train, given, **SMALL)
    kinds = {name.partition(".")[0] for name in model.state_dict()}
    assert kinds == {"nodes", "project", "group"}
    assert not model.features["visual"].requires_grad


def test_without_modalities_it_is_lightgcn_with_a_penalty_on_final(build, train, batch):
    model = build("lgmrec", train, [], embedding_size=4, n_layers=2)
    plain = build("lightgcn", train, [], embedding_size=4, n_layers=2)
    plain.load_state(model.state_dict())
    torch.testing.assert_close(model.vectors(), plain.vectors())
    assert set(model.training_step(batch)) == {"bpr", "regularization"}


def test_isolated_nodes_zero_rows_and_lost_groups_give_numbers(build):
    lonely = Interactions(3, 4, torch.tensor([0]), torch.tensor([1]))
    given = [
        ItemFeatures(f"{name}__x", name, torch.zeros(4, 2), torch.ones(4).bool())
        for name in ("visual", "textual")
    ]
    # With one group in ten kept, most rows of H are all zeros.
    model = build("lgmrec", lonely, given, dropout=0.9, n_groups=2, regularization=0.1)
    one = torch.tensor([0])
    for _ in range(5):
        model.zero_grad()
        terms = model.training_step(Batch(one, one + 1, one + 2))
        sum(terms.values()).backward()
        assert all(torch.isfinite(term) for term in terms.values())
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(model.scores(torch.arange(3))).all()


def test_under_bfloat16_autocast_the_terms_are_close(build, train, given, batch):
    model = build("lgmrec", train, given)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(model, batch)
    sum(low.values()).backward()
    for name, term in step(model, batch).items():
        assert float(low[name].detach()) == pytest.approx(float(term.detach()), rel=0.1, abs=1e-3)
