"""BM3 against its equations, written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmbench.models.base import Batch, Interactions, ItemFeatures

SMALL = {"embedding_size": 4, "regularization": 0.3, "n_layers": 2}


def numbers(model):
    """All parameters, away from zero and from each other, as float64."""
    model.double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def propagated(weights, dense, n_layers):
    """U and I of equation 2."""
    n_users, nodes = len(dense), weights["nodes"]
    layers = [nodes]
    for _ in range(n_layers):
        layer = np.zeros_like(nodes)
        for u, i in np.argwhere(dense):
            weight = 1 / np.sqrt(dense[u].sum() * dense[:, i].sum())
            layer[u] += weight * layers[-1][n_users + i]
            layer[n_users + i] += weight * layers[-1][u]
        layers.append(layer)
    mean = sum(layers) / len(layers)
    return mean[:n_users], mean[n_users:] + nodes[n_users:]


def predicted(weights, vector):
    return weights["predictor.weight"] @ vector + weights["predictor.bias"]


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norms if norms else 0.0


def literal_terms(weights, dense, given, batch, config, masks, targets_of=None):
    """Every term of equation 7; the targets come from the weights `targets_of`."""
    held = weights if targets_of is None else targets_of
    users, items = propagated(weights, dense, config.n_layers)
    user_targets, item_targets = propagated(held, dense, config.n_layers)

    def content(source, name, item):
        raw = source.get(f"features.{name}")
        if raw is None:
            raw = next(g.matrix.double().numpy() for g in given if g.modality == name)
        return source[f"project.{name}.weight"] @ raw[item] + source[f"project.{name}.bias"]

    n = len(batch.users)
    first = second = 0.0
    parts = {g.modality: [0.0, 0.0] for g in given}
    for row in range(n):
        u, i = int(batch.users[row]), int(batch.positives[row])
        user_target = user_targets[u] * masks["user"][row]
        item_target = item_targets[i] * masks["item"][row]
        first += cosine(predicted(weights, users[u]), item_target) / n
        second += cosine(predicted(weights, items[i]), user_target) / n
        for name in parts:
            online = predicted(weights, content(weights, name, i))
            target = content(held, name, i) * masks[name][row]
            parts[name][0] += cosine(online, item_target) / n
            parts[name][1] += cosine(online, target) / n
    terms = {"interaction": 2 - first - second}
    for name, (alignment, own) in parts.items():
        terms[f"alignment_{name}"] = config.content_weight * (1 - alignment)
        terms[f"self_{name}"] = config.content_weight * (1 - own)
    norms = np.sqrt((users**2).sum()) + np.sqrt((items**2).sum())
    terms["regularization"] = config.regularization * norms / len(items)
    return terms


def drawn_masks(given, batch, config):
    """What a step draws after `manual_seed(5)`: users, items, then modalities as given."""
    torch.manual_seed(5)
    shape = (len(batch.users), config.embedding_size)
    return {
        name: F.dropout(torch.ones(shape, dtype=torch.float64), config.dropout).numpy()
        for name in ("user", "item", *(g.modality for g in given))
    }


def step(model, batch):
    torch.manual_seed(5)
    return model.training_step(batch)


@pytest.mark.parametrize("chosen", [[], [1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_scores_and_terms_by_loops(chosen, dropout, build, train, dense, given, batch, all_scores):
    given = [given[place] for place in chosen]
    model = build("bm3", train, given, dropout=dropout, **SMALL)
    weights = numbers(model)
    users, items = propagated(weights, dense, 2)
    expected = [[predicted(weights, u) @ predicted(weights, i) for i in items] for u in users]
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-7)
    masks = drawn_masks(given, batch, model.config)
    terms = {name: float(term.detach()) for name, term in step(model, batch).items()}
    literal = literal_terms(weights, dense, given, batch, model.config, masks)
    assert terms == pytest.approx(literal, rel=1e-6)


@pytest.mark.parametrize("freeze", [False, True])
def test_gradients_with_targets_held_still(freeze, build, train, dense, given, batch):
    model = build("bm3", train, given, dropout=0.3, freeze_features=freeze, **SMALL)
    weights = numbers(model)
    masks = drawn_masks(given, batch, model.config)
    sum(step(model, batch).values()).backward()

    def loss(moved):
        config = model.config
        terms = literal_terms(moved, dense, given, batch, config, masks, targets_of=weights)
        return sum(terms.values())

    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        slope = parameter.grad.view(-1).numpy()
        for position in rng.choice(len(slope), min(6, len(slope)), replace=False):
            values = []
            for change in (1e-5, -1e-5):
                moved = {key: value.copy() for key, value in weights.items()}
                moved[name].reshape(-1)[position] += change
                values.append(loss(moved))
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(slope[position], rel=1e-5, abs=1e-9), name


def test_content_reaches_no_vector_of_users_or_items(build, train, given, batch):
    model = build("bm3", train, given, **SMALL)
    terms = step(model, batch)
    content = [t for name, t in terms.items() if name.startswith(("alignment", "self"))]
    assert len(content) == 6
    sum(content).backward()
    assert model.nodes.grad is None or not model.nodes.grad.any()
    assert model.predictor.weight.grad.abs().max() > 0
    for name in ("visual", "textual", "acoustic"):
        assert model.project[name].weight.grad.abs().max() > 0
        assert model.features[name].grad.abs().max() > 0


def test_negatives_are_not_used(build, train, given, batch):
    model = build("bm3", train, given, **SMALL)
    other = Batch(batch.users, batch.positives, (batch.negatives + 1) % train.n_items)
    one, two = step(model, batch), step(model, other)
    assert {n: float(t.detach()) for n, t in one.items()} == {
        n: float(t.detach()) for n, t in two.items()
    }


def test_dropout_is_that_of_a_step_and_not_of_the_mode(build, train, given, batch, all_scores):
    model = build("bm3", train, given, **SMALL)
    trained, scores = step(model, batch), all_scores(model, train)
    model.eval()
    still = step(model, batch)
    assert float(trained["interaction"].detach()) == float(still["interaction"].detach())
    state = torch.get_rng_state()
    np.testing.assert_array_equal(all_scores(model, train), scores)
    assert torch.equal(state, torch.get_rng_state())


def test_frozen_features_are_no_weights_and_trained_ones_move_a_copy(build, train, given, batch):
    frozen = build("bm3", train, given, freeze_features=True, **SMALL)
    assert not [name for name in frozen.state_dict() if name.startswith("features")]
    before = given[1].matrix.clone()
    model = build("bm3", train, given, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sum(step(model, batch).values()).backward()
    optimizer.step()
    assert not torch.equal(model.features["textual"], before)
    assert torch.equal(given[1].matrix, before)


def test_dropped_modalities_leave_no_term_and_none_leaves_the_graph_alone(
    build, train, given, batch
):
    assert not [n for n in step(build("bm3", train, given[:1]), batch) if "textual" in n]
    assert set(step(build("bm3", train, []), batch)) == {"interaction", "regularization"}
    without = build("bm3", train, given, content_weight=0.0)
    assert set(step(without, batch)) == {"interaction", "regularization"}


def test_isolated_nodes_and_rows_of_zeros_give_numbers():
    from mmbench.models.bm3 import BM3, BM3Config

    lonely = Interactions(3, 4, torch.tensor([0]), torch.tensor([1]))
    zeros = ItemFeatures("visual__x", "visual", torch.zeros(4, 2), torch.ones(4).bool())
    model = BM3(BM3Config(dropout=0.9), lonely, [zeros])
    with torch.no_grad():  # rows whose targets and views are all zeros
        model.nodes.zero_()
        model.project["visual"].bias.zero_()
        model.predictor.bias.zero_()
    one = torch.tensor([0])
    terms = model.training_step(Batch(one, one + 1, one + 2))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(model.scores(torch.arange(3))).all()


def test_under_bfloat16_autocast_the_terms_are_close(build, train, given, batch):
    model = build("bm3", train, given, dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(model, batch)
    sum(low.values()).backward()
    for name, term in step(model, batch).items():
        assert float(low[name].detach()) == pytest.approx(float(term.detach()), abs=0.05)
