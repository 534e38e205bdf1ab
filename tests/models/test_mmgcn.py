"""MMGCN against its equations, written once more with loops over nodes and neighbours."""

import math

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.base import Interactions, ItemFeatures
from mmbench.models.mmgcn import MMGCNConfig

SIZES = {"embedding_size": 3, "visual_size": 5, "regularization": 0.2}


def unit(row):
    length = math.sqrt(float((row**2).sum()))
    return row / length if length > 0 else row


def leaky(row):
    return np.where(row > 0, row, 0.01 * row)


def neighbours(dense, node):
    n_users = len(dense)
    if node < n_users:
        return [n_users + i for i in np.flatnonzero(dense[node])]
    return list(np.flatnonzero(dense[:, node - n_users]))


def states_by_loops(model, dense, given):
    """x^3 of every modality, one node and one neighbour at a time."""
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    weights |= {name: b.numpy() for name, b in model.named_buffers()}
    ids, n_users = weights["nodes"], len(dense)
    finals = {}
    for features in given:
        name = f"branches.{features.modality}"
        raw = features.matrix.double().numpy()
        if features.modality == "visual":
            raw = raw @ weights[f"{name}.project.weight"].T + weights[f"{name}.project.bias"]
        start = [*weights[f"{name}.preferences"], *raw]
        state = [unit(row) for row in start]
        for layer in range(3):
            at = f"{name}.layers.{layer}"
            following = []
            for node in range(len(state)):
                near = neighbours(dense, node)
                received = np.zeros(len(state[0]))
                for other in near:
                    received += weights[f"{at}.received.weight"] @ state[other] / len(near)
                own = weights[f"{at}.own.weight"] @ state[node] + weights[f"{at}.own.bias"]
                both = np.concatenate([leaky(received), leaky(own) + ids[node]])
                following.append(
                    leaky(weights[f"{at}.join.weight"] @ both + weights[f"{at}.join.bias"])
                )
            state = following
        finals[features.modality] = np.array(state)
    assert n_users + dense.shape[1] == len(ids)
    return finals, weights


def scores_by_loops(finals, n_users, integration):
    if integration == "fusion":
        mean = sum(finals.values()) / len(finals)
        return mean[:n_users] @ mean[n_users:].T
    return sum(x[:n_users] @ x[n_users:].T for x in finals.values()) / len(finals)


def triples(batch):
    columns = (batch.users, batch.positives, batch.negatives)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def losses_by_loops(scores, weights, batch, n_users, penalised):
    bpr, of_pairs, count = 0.0, 0.0, 0
    for u, i, j in triples(batch):
        bpr += math.log(1 + math.exp(-(scores[u, i] - scores[u, j])))
        for item in (i, j):
            for column in range(weights["nodes"].shape[1]):
                of_pairs += weights["nodes"][u, column] ** 2
                of_pairs += weights["nodes"][n_users + item, column] ** 2
                count += 1
    of_tables = sum((weights[f"branches.{m}.preferences"] ** 2).mean() for m in penalised)
    return bpr / len(batch.users), 0.2 * (of_pairs / count + of_tables)


def spread(model):
    """All parameters away from zero, in float64."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.7 * rng.standard_normal(tuple(parameter.shape))))
    return model


def compare(model, train, dense, given, batch, all_scores, penalised, integration="fusion"):
    finals, weights = states_by_loops(model, dense, given)
    expected = scores_by_loops(finals, len(dense), integration)
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-7)
    terms = {name: float(term.detach()) for name, term in model.training_step(batch).items()}
    bpr, penalty = losses_by_loops(expected, weights, batch, len(dense), penalised)
    assert terms.pop("bpr") == pytest.approx(bpr, rel=1e-5)
    if penalised is not None and not model.config.freeze_tables:
        assert terms.pop("regularization") == pytest.approx(penalty, rel=1e-5)
    assert not terms


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
def test_loss_and_scores_by_loops(
    chosen, integration, build, train, dense, given, batch, all_scores
):
    given = [given[index] for index in chosen]
    model = spread(build("mmgcn", train, given, **SIZES, integration=integration).double())
    penalised = [g.modality for g in given]
    compare(model, train, dense, given, batch, all_scores, penalised, integration)


def test_with_fewer_users_than_items_the_other_order_gives_the_same(
    build, dense, given, batch, all_scores
):
    few = dense[:6]
    users, items = (torch.from_numpy(x) for x in np.nonzero(few))
    train = Interactions(6, few.shape[1], users, items)
    model = spread(build("mmgcn", train, given, **SIZES).double())
    batch = type(batch)(batch.users % 6, batch.positives, batch.negatives)
    compare(model, train, few, given, batch, all_scores, [g.modality for g in given])


def test_as_the_authors_code_the_image_alone_is_penalised(
    build, train, dense, given, batch, all_scores
):
    model = spread(build("mmgcn", train, given, **SIZES, penalize_visual_only=True).double())
    compare(model, train, dense, given, batch, all_scores, ["visual"])
    model = spread(build("mmgcn", train, given[1:], **SIZES, penalize_visual_only=True).double())
    compare(model, train, dense, given[1:], batch, all_scores, [])


def test_frozen_tables_stay_at_their_start_and_are_stored(
    build, fit, train, dense, given, batch, all_scores
):
    model = build("mmgcn", train, given, **SIZES, freeze_tables=True)
    assert not [n for n, _ in model.named_parameters() if "nodes" in n or "preferences" in n]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, train, epochs=3)
    after = model.state_dict()
    for name in ("nodes", "branches.visual.preferences", "branches.textual.preferences"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(
        before["branches.textual.layers.0.own.weight"],
        after["branches.textual.layers.0.own.weight"],
    )
    other = build("mmgcn", train, given, seed=1, **SIZES, freeze_tables=True)
    other.load_state(after)
    np.testing.assert_array_equal(all_scores(model, train), all_scores(other, train))
    compare(model.double(), train, dense, given, batch, all_scores, [])
    few = Interactions(4, 9, train.users[train.users < 4], train.items[train.users < 4])
    small = build("mmgcn", few, given, **SIZES, freeze_tables=True).double()
    finals, _ = states_by_loops(small, dense[:4], given)
    np.testing.assert_allclose(
        all_scores(small, few), scores_by_loops(finals, 4, "fusion"), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1, 2]])
@pytest.mark.parametrize("settings", [{}, {"freeze_tables": True}, {"integration": "ensemble"}])
def test_gradients_of_all_parameters(chosen, settings, build, train, given, batch):
    given = [given[index] for index in chosen]
    model = spread(build("mmgcn", train, given, **SIZES, **settings).double())
    sum(model.training_step(batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for position in rng.choice(len(flat), min(3, len(flat)), replace=False):
            values = []
            for step in (1e-6, -1e-6):
                flat[position] += step
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= step
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(
                float(slope[position]), rel=1e-4, abs=1e-8
            ), name


def test_one_modality_makes_fusion_and_ensemble_the_same(build, train, given, all_scores):
    one, two = (
        build("mmgcn", train, given[:1], integration=kind) for kind in ("fusion", "ensemble")
    )
    np.testing.assert_allclose(all_scores(one, train), all_scores(two, train), rtol=1e-5)


def test_tables_start_xavier_normal_over_all_nodes(build, checkerboard):
    train, _ = checkerboard
    features = [of_modality(name, torch.randn(12, 300)) for name in ("textual", "visual")]
    model = build("mmgcn", train, features, embedding_size=400)
    assert float(model.nodes.detach().std()) == pytest.approx(math.sqrt(2 / 432), rel=0.05)
    for name, width in (("textual", 300), ("visual", 256)):
        table = model.branches[name].preferences.detach()
        assert table.shape == (20, width)
        assert float(table.std()) == pytest.approx(math.sqrt(2 / (20 + width)), rel=0.05)


def of_modality(modality, matrix):
    return ItemFeatures(f"{modality}__x", modality, matrix, torch.ones(len(matrix)).bool())


def test_without_features_it_is_refused(build, train):
    with pytest.raises(ConfigError, match=r"mmgcn .* under `features`"):
        build("mmgcn", train, [])


def test_features_are_not_stored_and_three_layers_are_no_setting(build, train, given):
    assert not [name for name in build("mmgcn", train, given).state_dict() if "features" in name]
    assert "n_layers" not in MMGCNConfig.model_fields


def test_under_bfloat16_it_stays_finite(build, train, given, batch):
    model = build("mmgcn", train, given)
    with torch.autocast("cpu", torch.bfloat16):
        low = sum(model.training_step(batch).values())
    low.backward()
    full = sum(model.training_step(batch).values())
    assert float(low.detach()) == pytest.approx(float(full.detach()), rel=2e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
