import math

import numpy as np
import pytest
import torch

from mmbench.models.base import Batch

SETS = {"none": [], "v": [0], "t": [1], "va": [0, 2], "vt": [0, 1], "vta": [0, 1, 2]}
ORDER = {"visual": 0, "acoustic": 1, "textual": 2}


def randomised(model):
    """The model in double precision, all parameters away from zero; and these as arrays."""
    model, rng = model.double(), np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.5 * rng.standard_normal(tuple(parameter.shape))))
    return model, {name: p.detach().numpy() for name, p in model.named_parameters()}


def propagated(start_users, start_items, dense, n_layers):
    """The mean of levels 0 to L of the normalised graph, neighbour by neighbour."""
    levels = [(start_users, start_items)]
    d_u, d_i = dense.sum(axis=1), dense.sum(axis=0)
    for _ in range(n_layers):
        users, items = levels[-1]
        new_users, new_items = np.zeros_like(users), np.zeros_like(items)
        for u, i in zip(*np.nonzero(dense), strict=True):
            scale = 1 / math.sqrt(d_u[u] * d_i[i])
            new_users[u] += scale * items[i]
            new_items[i] += scale * users[u]
        levels.append((new_users, new_items))
    return sum(level[0] for level in levels) / len(levels), sum(level[1] for level in levels) / len(
        levels
    )


def branches(weights, given, dense, n_layers):
    """Users' and items' rows of each branch: ids, then modalities in the fixed order."""
    users, items = weights["encoder.users"], weights["encoder.items"]
    result = {"ids": propagated(users, items, dense, n_layers)}
    for features in sorted(given, key=lambda f: ORDER[f.modality]):
        raw, name = features.matrix.double().numpy(), features.modality
        start = np.zeros((len(raw), users.shape[1]))
        for i, row in enumerate(raw):
            unit = row / max(math.sqrt(row @ row), 1e-12)
            start[i] = weights[f"encoder.project.{name}.weight"] @ unit
            start[i] += weights[f"encoder.project.{name}.bias"]
        result[name] = propagated(users, start, dense, n_layers)
    return result


def read(weights, side, parts):
    joined = np.concatenate(parts, axis=1)
    return joined @ weights[f"read_{side}.maps.0.weight"].T + weights[f"read_{side}.maps.0.bias"]


def cross_entropy(anchors, others, temperature):
    total = 0.0
    for r, anchor in enumerate(anchors):
        logits = [anchor @ other / temperature for other in others]
        total += math.log(sum(math.exp(x - logits[r]) for x in logits))
    return total / len(anchors)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("which", SETS)
def test_scores_and_losses_by_loops(which, build, train, given, dense, batch, all_scores):
    chosen = [given[place] for place in SETS[which]]
    settings = {"embedding_size": 4, "n_layers": 2, "ssl_weight": 0.3, "ssl_temperature": 0.7}
    model, weights = randomised(build("slmrec", train, chosen, temperature=0.4, **settings))
    parts = branches(weights, chosen, dense, 2)
    users = read(weights, "users", [part[0] for part in parts.values()])
    items = read(weights, "items", [part[1] for part in parts.values()])
    np.testing.assert_allclose(all_scores(model, train), users @ items.T, rtol=1e-5, atol=1e-7)
    terms = model.training_step(batch)
    u, i = batch.users.numpy(), batch.positives.numpy()
    choice = cross_entropy(unit(users[u]), unit(items[i]), 0.4)
    assert float(terms["choice"].detach()) == pytest.approx(choice, rel=1e-6)
    if not chosen:
        assert set(terms) == {"choice"}
        return

    def step(place, rows):
        return rows @ weights[f"steps.{place}.weight"].T + weights[f"steps.{place}.bias"]

    def view(name):
        return parts[name][1][i] @ weights[f"views.{name}.weight"].T

    contrast, a0 = 0.0, step(0, parts["ids"][1][i])
    if "visual" in parts:
        contrast += cross_entropy(a0, view("visual"), 0.7)
    if "acoustic" in parts or "textual" in parts:
        a1 = step(1, a0)
    if "acoustic" in parts:
        contrast += cross_entropy(a1, view("acoustic"), 0.7)
    if "textual" in parts:
        contrast += cross_entropy(step(2, a1), view("textual"), 0.7)
    assert float(terms["contrast"].detach()) == pytest.approx(0.3 * contrast, rel=1e-6)


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
def test_gradients_by_central_differences(which, integration, build, train, given, batch):
    chosen = [given[place] for place in SETS[which]]
    model, _ = randomised(
        build("slmrec", train, chosen, embedding_size=2, integration=integration, ssl_weight=0.5)
    )
    sum(model.training_step(batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for place in rng.choice(len(flat), min(4, len(flat)), replace=False):
            values = []
            for change in (1e-5, -1e-5):
                flat[place] += change
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[place] -= change
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[place]), rel=1e-4, abs=1e-8), name


def test_an_ensemble_scores_by_the_mean_over_branches(
    build, train, given, dense, all_scores, batch
):
    model, weights = randomised(
        build("slmrec", train, given, embedding_size=3, integration="ensemble")
    )
    scores = np.zeros(dense.shape)
    for place, (users, items) in enumerate(branches(weights, given, dense, 3).values()):
        read_users, read_items = (
            rows @ weights[f"read_{side}.maps.{place}.weight"].T
            + weights[f"read_{side}.maps.{place}.bias"]
            for side, rows in (("users", users), ("items", items))
        )
        scores += read_users @ read_items.T / 4
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-7)
    assert set(model.training_step(batch)) == {"choice", "contrast"}


def test_without_sound_its_step_stays_and_its_head_does_not(build, train, given):
    names = [name for name, _ in build("slmrec", train, given[:2]).named_parameters()]
    assert [f"steps.{place}.weight" in names for place in range(4)] == [True, True, True, False]
    assert "views.textual.weight" in names
    assert "views.acoustic.weight" not in names
    assert build("slmrec", train, given[:2]).steps[2].out_features == 32
    only_picture = build("slmrec", train, given[:1])
    assert len(only_picture.steps) == 1


def test_negatives_are_not_used(build, train, given, batch):
    model = build("slmrec", train, given)
    other = Batch(batch.users, batch.positives, batch.negatives.flip(0) * 0)
    for term, value in model.training_step(batch).items():
        assert torch.equal(value, model.training_step(other)[term])


def test_the_order_of_the_feature_sets_does_not_matter(build, train, given, all_scores):
    one, two = build("slmrec", train, given), build("slmrec", train, given[::-1])
    np.testing.assert_array_equal(all_scores(one, train), all_scores(two, train))


def test_training_mode_and_steps_before_leave_the_ranking_alone(
    build, train, given, batch, all_scores
):
    model = build("slmrec", train, given)
    before = all_scores(model, train)
    model.train()
    model.training_step(batch)
    np.testing.assert_array_equal(all_scores(model, train), before)
    model.eval()
    np.testing.assert_array_equal(all_scores(model, train), before)


def test_a_step_in_half_precision_is_near_that_in_single(build, train, given, batch):
    model, sums = build("slmrec", train, given), []
    for half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = model.training_step(batch)
        sums.append(sum(term.float() for term in terms.values()))
    assert float(sums[1].detach()) == pytest.approx(float(sums[0].detach()), rel=0.02)
    sums[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
