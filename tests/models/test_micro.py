"""MICRO against its equations, written out with dense matrices and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmbench.models import micro
from mmbench.models.base import Batch, ItemFeatures
from mmbench.models.micro import contrast

K = 4
SETTINGS = {
    "embedding_size": 3,
    "k": K,
    "regularization": 0.2,
    "contrast_weight": 0.7,
    "temperature": 0.5,
}


def kept(matrix):
    """K(X): cosines of the k nearest, normalised by row sums on both sides; dense."""
    norms = matrix.norm(dim=1)
    products = norms[:, None] * norms[None, :]
    cosines = matrix @ matrix.T / torch.where(products > 0, products, 1.0)
    keep = torch.zeros_like(cosines, dtype=torch.bool)
    for i, row in enumerate(cosines.tolist()):
        for j in sorted(range(len(row)), key=lambda j: (-row[j], j))[:K]:
            keep[i, j] = True
    weights = torch.where(keep, cosines, 0.0)
    sums = weights.sum(dim=1)
    scale = torch.where(sums > 0, torch.where(sums > 0, sums, 1.0) ** -0.5, 0.0)
    return scale[:, None] * weights * scale[None, :]


def walk(train, nodes):
    """Mean of X, T X, T T X with T = (D + I)^-1 (A + I)."""
    adjacency = torch.eye(len(nodes), dtype=torch.float64)
    for u, i in zip(train.users.tolist(), train.items.tolist(), strict=True):
        adjacency[u, train.n_users + i] = adjacency[train.n_users + i, u] = 1.0
    step = adjacency / adjacency.sum(dim=1, keepdim=True)
    return (nodes + step @ nodes + step @ step @ nodes) / 3


def literal_contrast(view, fused, temperature, rows):
    """C_m by its sums, one item after the other."""

    def f(a, b):
        return torch.exp(a @ b / (a.norm() * b.norm()) / temperature)

    n, total = len(view), 0.0
    for i in rows:
        below = sum(f(view[i], fused[j]) for j in range(n))
        below = below + sum(f(view[i], view[j]) for j in range(n) if j != i)
        total = total - torch.log(f(view[i], fused[i]) / below)
    return total / len(rows)


def literal(model, raw, train, batch, *, layers=1, share=0.9, ensemble=False, rows="all"):
    """Scores [U, I] and loss terms, from the parameters and equations 1-9 alone."""
    n_users, terms = train.n_users, {}
    cf = walk(train, model.nodes)
    users, items, q = cf[:n_users], cf[n_users:], model.nodes[n_users:]
    views = []
    for name, matrix in raw.items():
        layer = model.project[name]
        learned = kept(model.features[name] @ layer.weight.T + layer.bias)
        graph = (1 - share) * learned + share * kept(matrix)
        view = q
        for _ in range(layers):
            view = graph @ view
        views.append(view)
    if len(views) > 1:
        hidden, query = model.attention.hidden, model.attention.query.weight[0]
        logits = torch.stack(
            [torch.tanh(view @ hidden.weight.T + hidden.bias) @ query for view in views]
        )
        weights = logits.exp() / logits.exp().sum(dim=0)  # [M, I]
    elif views:
        weights = torch.ones(1, train.n_items, dtype=torch.float64)
    if views:
        fused = sum(w[:, None] * view for w, view in zip(weights, views, strict=True))
        if ensemble:
            for w, view in zip(weights, views, strict=True):
                items = items + w[:, None] * view / view.norm(dim=1, keepdim=True)
        else:
            items = items + fused / fused.norm(dim=1, keepdim=True)
    scores = users @ items.T
    triples = list(
        zip(*(x.tolist() for x in (batch.users, batch.positives, batch.negatives)), strict=True)
    )
    bpr = sum(-torch.log(torch.sigmoid(scores[u, i] - scores[u, j])) for u, i, j in triples)
    squares = sum(
        users[u].square().sum() + items[i].square().sum() + items[j].square().sum()
        for u, i, j in triples
    )
    terms["bpr"] = bpr / len(triples)
    terms["regularization"] = SETTINGS["regularization"] * squares / (2 * len(triples))
    if len(views) > 1:
        anchors = batch.positives.tolist() if rows == "batch" else range(train.n_items)
        terms["contrast"] = SETTINGS["contrast_weight"] * sum(
            literal_contrast(view, fused, SETTINGS["temperature"], anchors) for view in views
        )
    return scores, terms


@pytest.fixture
def make(build, train, given):
    def world(n_modalities, **settings):
        sets = given[:n_modalities]
        model = build("micro", train, sets, **{**SETTINGS, **settings}).double()
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
                raw = name.startswith("features")
                parameter.add_(0.05 * noise) if raw else parameter.copy_(noise)
            for layer in model.project.values():
                layer.bias.add_(3.0)  # cosines of the views are positive, so are their sums
        return model, {g.modality: g.matrix.double() for g in sets}

    return world


@pytest.mark.parametrize("n_modalities", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"n_item_layers": 2, "raw_weight": 0.3},
        {"integration": "ensemble"},
        {"contrast_rows": "batch"},
    ],
    ids=str,
)
def test_scores_terms_and_gradients_against_the_equations(
    n_modalities, variant, make, train, batch, all_scores
):
    model, raw = make(n_modalities, **variant)
    scores, terms = literal(
        model,
        raw,
        train,
        batch,
        layers=variant.get("n_item_layers", 1),
        share=variant.get("raw_weight", 0.9),
        ensemble="integration" in variant,
        rows=variant.get("contrast_rows", "all"),
    )
    np.testing.assert_allclose(all_scores(model, train), scores.detach().numpy(), rtol=1e-5)
    model.on_epoch_start(1)
    mine = model.training_step(batch)
    assert set(mine) == set(terms)
    for name, term in terms.items():
        assert float(mine[name].detach()) == pytest.approx(float(term.detach()), rel=1e-6), name
    sum(mine.values()).backward()
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(sum(terms.values()), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_gradients_of_the_first_batch_by_central_differences(make, batch):
    model, _ = make(3)
    model.on_epoch_start(1)
    sum(model.training_step(batch).values()).backward()
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for position in slope.abs().argsort(descending=True)[:4].tolist():
            values = []
            for step in (1e-5, -1e-5):
                flat[position] += step
                model.on_epoch_start(1)
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= step
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4), name


@pytest.mark.parametrize("rows", [None, [2, 2, 5]])
@pytest.mark.parametrize("block_bytes", [1, 500, 10**6])
def test_the_contrast_in_blocks_of_any_height(rows, block_bytes, monkeypatch):
    monkeypatch.setattr(micro, "CONTRAST_BYTES", block_bytes)
    view, fused = (torch.randn(7, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    chosen = None if rows is None else torch.tensor(rows)
    value = contrast(view, fused, 0.3, chosen)
    expected = literal_contrast(view, fused, 0.3, rows or range(7))
    torch.testing.assert_close(value, expected)
    mine = torch.autograd.grad(value, [view, fused])
    theirs = torch.autograd.grad(expected, [view, fused])
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two)
    assert torch.autograd.gradcheck(lambda a, b: contrast(a, b, 0.3, chosen), (view, fused))


def test_the_contrast_at_the_lowest_temperature_and_of_zero_rows_is_finite():
    view = torch.randn(300, 4, requires_grad=True)
    fused = view.detach().clone()
    with torch.no_grad():
        view[:3] = 0.0
    value = contrast(view, fused, micro.TEMPERATURE_LOWEST)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(view.grad).all()
    half = contrast(view.bfloat16(), fused.bfloat16(), 0.5)
    assert half.dtype == torch.float32


def test_only_the_first_batch_of_an_epoch_moves_the_graphs(make, batch):
    model, _ = make(2)
    learning = ["project.visual.weight", "project.textual.bias", "features.textual"]
    for epoch in (1, 2):
        model.on_epoch_start(epoch)
        for step in range(3):
            model.zero_grad(set_to_none=True)
            sum(model.training_step(batch).values()).backward()
            gradients = {name: p.grad for name, p in model.named_parameters()}
            for name in learning:
                assert (gradients[name] is None) == (step > 0), name
            assert gradients["nodes"] is not None
            assert gradients["attention.query.weight"] is not None


def test_ranking_sees_the_weights_as_they_are_whatever_training_kept(
    make, train, batch, all_scores
):
    model, raw = make(2)
    model.on_epoch_start(1)
    before = model.training_step(batch)
    with torch.no_grad():
        model.project["textual"].weight.neg_()
    after = model.training_step(batch)
    torch.testing.assert_close(before["contrast"], after["contrast"])  # kept for the epoch
    scores, _ = literal(model, raw, train, batch)
    for mode in (True, False):
        model.train(mode)
        np.testing.assert_allclose(all_scores(model, train), scores.detach().numpy(), rtol=1e-5)


def test_one_modality_has_neither_attention_nor_contrast(build, train, given, batch):
    model = build("micro", train, given[1:2])
    assert not [name for name, _ in model.named_parameters() if "attention" in name]
    assert set(model.training_step(batch)) == {"bpr", "regularization"}


def test_frozen_features_are_no_parameters(build, train, given, all_scores):
    trained, frozen = (
        build("micro", train, given, freeze_features=freeze) for freeze in (False, True)
    )
    np.testing.assert_array_equal(all_scores(trained, train), all_scores(frozen, train))
    assert not [name for name, _ in frozen.named_parameters() if name.startswith("features")]


def test_a_temperature_whose_powers_overflow_is_refused(build, train, given):
    with pytest.raises(ValueError, match="temperature"):
        build("micro", train, given, temperature=0.01)


def test_zero_rows_isolated_nodes_and_k_beyond_the_items_are_defined(build, fit, train):
    rng = np.random.default_rng(3)
    matrix = torch.from_numpy(rng.standard_normal((train.n_items, 3)).astype(np.float32))
    matrix[:4] = 0.0
    present = torch.ones(train.n_items).bool()
    sets = [
        ItemFeatures("visual__made", "visual", matrix, present),
        ItemFeatures("textual__made", "textual", -matrix, present),
    ]
    model = fit(build("micro", train, sets, k=50, rebuild="batch"), train, epochs=5)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(torch.isfinite(v).all() for v in model.vectors())
    terms = model.training_step(Batch(train.users, train.items, train.items.flip(0)))
    assert all(torch.isfinite(term) for term in terms.values())
