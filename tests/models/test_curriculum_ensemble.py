"""The curriculum ensemble: its ramps by hand, its loss by loops, its epochs stored and resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmbench.models.base import MODELS

SHAPE = {"embedding_size": 3, "n_layers": 1, "regularization": 0.2}


def ramps(model, epochs):
    found = []
    for epoch in epochs:
        model.on_epoch_start(epoch)
        found.append([round(value, 6) for value in model.ramps.tolist()])
    return found


def test_linear_ramps_begin_one_after_the_other(build, train, given):
    # The usual order: visual from epoch 2, textual from 3, acoustic from 4; two epochs to the top.
    model = build(
        "curriculum-ensemble", train, given, begin_epoch=2, epochs_between=1, ramp_epochs=2
    )
    assert ramps(model, range(1, 7)) == [
        [0, 0, 0],
        [0.5, 0, 0],
        [1, 0.5, 0],
        [1, 1, 0.5],
        [1, 1, 1],
        [1, 1, 1],
    ]


def test_steps_in_an_order_of_ones_own(build, train, given):
    model = build(
        "curriculum-ensemble",
        train,
        given,
        schedule="step",
        order=("acoustic", "joint", "textual"),  # joint is not given and takes no place
        begin_epoch=3,
        epochs_between=2,
    )
    assert ramps(model, [2, 3, 4, 5, 6, 7]) == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 1],
        [0, 1, 1],
        [0, 1, 1],
        [1, 1, 1],
    ]


def test_together_where_nothing_is_between(build, train, given):
    model = build(
        "curriculum-ensemble", train, given, begin_epoch=1, epochs_between=0, ramp_epochs=4
    )
    assert ramps(model, [1, 4]) == [[0.25] * 3, [1] * 3]


def test_none_is_one_always(build, train, given):
    model = build("curriculum-ensemble", train, given, schedule="none")
    assert ramps(model, [1, 100]) == [[1] * 3] * 2


def literal(model, train, given, triples, dense):
    """Loss and scores in float64, one number after the other."""
    weights = {k: v.detach().numpy() for k, v in model.branches.named_parameters()}
    n_users, levels = train.n_users, [weights["nodes"]]
    for _ in range(model.config.n_layers):
        level = np.zeros_like(levels[0])
        for user in range(n_users):
            for item in np.flatnonzero(dense[user]):
                weight = 1 / math.sqrt(dense[user].sum() * dense[:, item].sum())
                level[user] += weight * levels[-1][n_users + item]
                level[n_users + item] += weight * levels[-1][user]
        levels.append(level)
    ids = sum(levels) / len(levels)
    views = {}
    for features in given:
        rows = []
        for row in features.matrix.double().numpy():
            length = math.sqrt(sum(x * x for x in row))
            unit = row / length if length > 0 else row
            weight = weights[f"project.{features.modality}.weight"]
            rows.append(weight @ unit + weights[f"project.{features.modality}.bias"])
        views[features.modality] = np.array(rows)

    def score(user, item):
        parts = [(ids[user], ids[n_users + item], 1.0)]
        for features, ramp in zip(given, model.ramps.tolist(), strict=True):
            name = features.modality
            parts.append((weights[f"users.{name}"][user], views[name][item], ramp))
        if model.config.integration == "fusion":
            return float(sum(w * u for u, _, w in parts) @ sum(w * i for _, i, w in parts))
        return sum(w * float(u @ i) for u, i, w in parts)

    loss = squares = 0.0
    for u, i, j in triples:
        loss += math.log(1 + math.exp(score(u, j) - score(u, i)))
        for node in (u, n_users + i, n_users + j):
            squares += float(weights["nodes"][node] @ weights["nodes"][node])
        for name, view in views.items():
            for row in (weights[f"users.{name}"][u], view[i], view[j]):
                squares += float(row @ row)
    amount = model.config.regularization * squares / (2 * len(triples))
    return loss / len(triples), amount, score


@pytest.mark.parametrize("form", ["ensemble", "fusion"])
def test_loss_scores_and_gradients_by_loops(form, build, train, given, dense, batch, all_scores):
    model = build(
        "curriculum-ensemble", train, given, integration=form, begin_epoch=1, epochs_between=1,
        ramp_epochs=4, **SHAPE,
    ).double()  # fmt: skip
    model.on_epoch_start(3)
    assert model.ramps.tolist() == [0.75, 0.5, 0.25]
    columns = (batch.users, batch.positives, batch.negatives)
    triples = list(zip(*(column.tolist() for column in columns), strict=True))
    loss, amount, score = literal(model, train, given, triples, dense)
    terms = model.training_step(batch)
    assert float(terms["bpr"].detach()) == pytest.approx(loss, rel=1e-5)
    assert float(terms["regularization"].detach()) == pytest.approx(amount, rel=1e-5)
    expected = [[score(u, i) for i in range(train.n_items)] for u in range(train.n_users)]
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-7)
    sum(terms.values()).backward()
    rng = np.random.default_rng(2)
    for key, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        likely = slope.abs().argsort(descending=True)[: max(4, len(slope) // 4)].numpy()
        for position in rng.choice(likely, min(3, len(likely)), replace=False):
            values = []
            for move in (1e-5, -1e-5):
                flat[position] += move
                values.append(sum(literal(model, train, given, triples, dense)[:2]))
                flat[position] -= move
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-8), key


def test_a_modality_before_its_beginning_is_not_there(build, train, given, batch, all_scores):
    model = build("curriculum-ensemble", train, given, begin_epoch=5, **SHAPE)
    model.on_epoch_start(4)
    model.training_step(batch)["bpr"].backward()
    assert float(model.branches.project["visual"].weight.grad.abs().max()) == 0.0
    before = all_scores(model, train)
    with torch.no_grad():
        model.branches.project["visual"].weight.add_(1.0)
    np.testing.assert_array_equal(all_scores(model, train), before)


def test_ramps_are_stored_with_the_weights(build, train, given, all_scores):
    model = build("curriculum-ensemble", train, given, begin_epoch=1, **SHAPE)
    model.on_epoch_start(4)
    other = build("curriculum-ensemble", train, given, begin_epoch=1, **SHAPE)
    other.load_state(model.state_dict())
    assert other.describe_state() == model.describe_state()
    assert model.describe_state()["ramp.visual"] == pytest.approx(0.4)
    np.testing.assert_array_equal(all_scores(other, train), all_scores(model, train))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": ["visual", "smell"]}, "unknown modality 'smell'"),
        ({"order": ["visual", "visual"]}, "named twice"),
        ({"schedule": "cosine"}, "'none', 'step' or 'linear'"),
        ({"begin_epoch": 0}, "greater than 0"),
        ({"ramp_epochs": 0}, "greater than 0"),
        ({"epochs_between": -1}, "greater than or equal to 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MODELS.get("curriculum-ensemble").info["config"](**settings)
