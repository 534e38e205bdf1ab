import math

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("visual_bias", [False, True])
def test_loss_and_scores_by_loops(visual_bias, build, train, given, batch, all_scores):
    settings = {"embedding_size": 3, "regularization": 0.2, "visual_bias": visual_bias}
    model = build("vbpr", train, given[:2], **settings).double()
    rng = np.random.default_rng(0)
    with torch.no_grad():  # all parameters away from zero
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    raw = np.concatenate([g.matrix.double().numpy() for g in given[:2]], axis=1)
    scores = np.zeros((train.n_users, train.n_items))
    vectors = np.zeros((train.n_items, 6))
    for i in range(train.n_items):
        view = [
            weights["project.weight"][d] @ raw[i] + weights["project.bias"][d] for d in range(3)
        ]
        vectors[i] = [*weights["items"][i], *view]
        for u in range(train.n_users):
            scores[u, i] = weights["users"][u] @ vectors[i]
            if visual_bias:
                scores[u, i] += weights["item_bias"][i] + weights["feature_bias"] @ raw[i]
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-9)
    loss, squares = 0.0, [0.0, 0.0, 0.0]
    triples = list(
        zip(*(x.tolist() for x in (batch.users, batch.positives, batch.negatives)), strict=True)
    )
    for u, i, j in triples:
        loss += math.log(1 + math.exp(-(scores[u, i] - scores[u, j])))
        for place, vector in enumerate((weights["users"][u], vectors[i], vectors[j])):
            squares[place] += vector @ vector
    terms = model.training_step(batch)
    assert float(terms["bpr"].detach()) == pytest.approx(loss / len(triples), rel=1e-9)
    penalty = 0.2 * sum(map(math.sqrt, squares)) / len(triples)
    assert float(terms["regularization"].detach()) == pytest.approx(penalty, rel=1e-9)


def test_projecting_distinct_items_changes_nothing(build, train, given, batch):
    model = build("vbpr", train, given).double()
    sum(model.training_step(batch).values()).backward()
    sparse = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    vectors, users = model.item_vectors(), model.users[batch.users]  # every item projected
    positives, negatives = vectors[batch.positives], vectors[batch.negatives]
    loss = -torch.nn.functional.logsigmoid((users * (positives - negatives)).sum(1)).mean()
    norms = sum(torch.linalg.norm(x) for x in (users, positives, negatives))
    (loss + 0.1 * norms / len(batch.users)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, sparse[name], msg=name)


def test_the_order_of_feature_sets_is_that_of_the_columns_only(build, train, given):
    one, two = (build("vbpr", train, sets) for sets in (given[:2], given[1::-1]))
    assert one.project.weight.shape == two.project.weight.shape
    assert torch.equal(one.features[:, :4], two.features[:, 3:])


def test_without_features_it_is_bpr_mf_that_starts_uniform(build, train, batch):
    model, plain = build("vbpr", train, []), build("bpr-mf", train, [])
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in plain.named_parameters()
    }
    plain.load_state(model.state_dict())
    ours, theirs = model.training_step(batch), plain.training_step(batch)
    assert {n: float(t.detach()) for n, t in ours.items()} == {
        n: float(t.detach()) for n, t in theirs.items()
    }
    limit = math.sqrt(6 / (train.n_users + 64))
    assert 0.9 * limit < float(model.users.detach().abs().max()) <= limit


def test_features_are_frozen_and_not_stored(build, train, given):
    model = build("vbpr", train, given)
    assert "features" not in model.state_dict()
    assert not model.features.requires_grad


def test_accumulating_two_steps_over_one_gathering_is_refused_not_wrong(build, train, given, batch):
    model = build("vbpr", train, given)
    first = sum(model.training_step(batch).values())
    sum(model.training_step(batch).values()).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()
