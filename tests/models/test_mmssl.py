"""MMSSL against its equations, computed one number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmbench.models.base import Batch, Interactions, ItemFeatures

SETTINGS = {
    "embedding_size": 8,
    "edge_rate": 0.3,
    "dropout": 0.0,
    "regularization": 0.01,
    "feature_regularization": 0.1,
    "contrast_weight": 0.5,
    "adversary_weight": 0.0,
}
SETS = [["visual"], ["visual", "textual"], ["visual", "textual", "acoustic"]]
ALL = SETS[-1]


def chosen(given, names):
    return [features for features in given if features.modality in names]


def weights(model):
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return row / length if length > 0 else row * 0.0


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def one_sided(matrix):
    """D^-1/2 of the rows times a matrix, entry by entry."""
    result = np.zeros(matrix.shape)
    for r in range(matrix.shape[0]):
        for c in range(matrix.shape[1]):
            if matrix[r, c]:
                result[r, c] = matrix[r, c] / math.sqrt(matrix[r].sum())
    return result


def content(w, dense, given):
    """fu_m and fi_m of equation 1, without dropout."""
    result = {}
    for features in given:
        key = f"project.{features.modality}"
        f = features.matrix.numpy().astype(float) @ w[f"{key}.weight"].T + w[f"{key}.bias"]
        fu = one_sided(dense) @ f
        result[features.modality] = (fu, one_sided(dense.T) @ fu)
    return result


def unit_scores(users, items, dense):
    scores = users @ items.T
    scores[dense > 0] = 0.0
    return np.stack([unit(row) for row in scores])


def drawn(w, dense, given, k):
    """A_m of equation 7, dense, not normalised."""
    result = {}
    for modality, (fu, fi) in content(w, dense, given).items():
        scores, edges = unit_scores(fu, fi, dense), np.zeros(dense.shape)
        for u, row in enumerate(scores):
            for item in sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k]:
                edges[u, item] = float(row[item] != 0.0)
        result[modality] = edges
    return result


def attended(w, views, n_heads):
    """z of equation 3 for one kind of node; views is a list of [n, D]."""
    n, size = views[0].shape
    z = np.zeros((n, size))
    for node in range(n):
        for m in range(len(views)):
            joined = []
            for head in range(n_heads):
                part = slice(head * size // n_heads, (head + 1) * size // n_heads)
                logits = np.zeros(len(views))
                for other in range(len(views)):
                    if len(views) > 1:
                        query = (views[m][node] @ w["to_query"])[part]
                        key = (views[other][node] @ w["to_key"])[part]
                        logits[other] = query @ key / math.sqrt(size / n_heads)
                shares = softmax(logits)
                joined.append(sum(shares[o] * views[o][node] for o in range(len(views))))
            z[node] += np.concatenate(joined) @ w["to_joined"] / len(views)
    return z


def forward(w, dense, given, edges, n_layers=2, n_heads=4, integration="fusion"):
    """Scored vectors, fused vectors, content and eu_m, by equations 1 to 6."""
    n_users = dense.shape[0]
    users, items = w["nodes"][:n_users], w["nodes"][n_users:]
    suggested = {}
    if edges:
        suggested = {m: (one_sided(a) @ items, one_sided(a.T) @ users) for m, a in edges.items()}
        z_users = attended(w, [eu for eu, _ in suggested.values()], n_heads)
        z_items = attended(w, [ei for _, ei in suggested.values()], n_heads)
        users = users + 0.36 * np.stack([unit(row) for row in z_users])
        items = items + 0.36 * np.stack([unit(row) for row in z_items])
    user_levels, item_levels = [users], [items]
    for layer in range(1, n_layers + 1):
        users = one_sided(dense) @ item_levels[-1]
        if layer == n_layers:
            users = np.stack([softmax(row) for row in users])
        items = one_sided(dense.T) @ users
        if layer == n_layers:
            items = np.stack([softmax(row) for row in items])
        user_levels.append(users)
        item_levels.append(items)
    base = [sum(levels) / (n_layers + 1) for levels in (user_levels, item_levels)]
    views = content(w, dense, given)
    parts = [
        [0.55 * np.stack([unit(row) for row in views[m][side]]) for m in views] for side in (0, 1)
    ]
    fused = [base[side] + sum(parts[side]) for side in (0, 1)]
    scored = fused
    if integration == "ensemble":
        scored = [np.concatenate([base[side], *parts[side]], axis=1) for side in (0, 1)]
    return scored, fused, views, {m: eu for m, (eu, _) in suggested.items()}


def contrast(a, b, temperature=0.5):
    def f(x, y):
        return math.exp(unit(x) @ unit(y) / temperature)

    total = 0.0
    for r in range(len(a)):
        below = sum(f(a[r], b[s]) for s in range(len(b)))
        below += sum(f(a[r], a[s]) for s in range(len(a)) if s != r)
        total += -math.log(f(a[r], b[r]) / below)
    return total / len(a)


def expected_terms(scored, fused, views, suggested, batch, n_items):
    u, i, j = (rows.numpy() for rows in (batch.users, batch.positives, batch.negatives))
    users, items = scored
    gaps = [users[a] @ items[b] - users[a] @ items[c] for a, b, c in zip(u, i, j, strict=True)]
    squares = sum((block**2).sum() for block in (users[u], items[i], items[j]))
    terms = {
        "bpr": np.mean([math.log1p(math.exp(-gap)) for gap in gaps]),
        "regularization": 0.01 * squares / (2 * len(u)),
    }
    if views:
        total = sum((fu**2).sum() + (fi**2).sum() for fu, fi in views.values())
        terms["feature_regularization"] = 0.1 * total / (2 * n_items)
    if suggested:
        terms["contrast"] = 0.5 * sum(contrast(eu[u], fused[0][u]) for eu in suggested.values())
    return terms


@pytest.mark.parametrize("integration", ["fusion", "ensemble"])
@pytest.mark.parametrize("names", [[], *SETS])
@pytest.mark.parametrize("edges", ["epoch", "released"])
def test_scores_edges_and_losses_by_the_equations(
    edges, names, integration, build, train, dense, given, batch
):
    given = chosen(given, names)
    model = build("mmssl", train, given, edges=edges, integration=integration, **SETTINGS).double()
    w = weights(model)
    generated = drawn(w, dense, given, k=3) if edges == "epoch" else {}
    for view, adjacency in enumerate(generated.values()):
        for u, row in enumerate(adjacency):
            assert set(model.generated[view, u].tolist()) - {-1} == set(np.flatnonzero(row))
    scored, fused, views, suggested = forward(w, dense, given, generated, integration=integration)
    with torch.no_grad():
        scores = model.scores(torch.arange(train.n_users))
        terms = model.training_step(batch)
    np.testing.assert_allclose(scores.numpy(), scored[0] @ scored[1].T, rtol=1e-5, atol=1e-7)
    expected = expected_terms(scored, fused, views, suggested, batch, train.n_items)
    assert set(terms) == set(expected)
    for key, value in expected.items():
        assert float(terms[key]) == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("settings", [{"n_layers": 1}, {"n_layers": 3, "n_heads": 2}])
def test_other_depths_and_heads(settings, build, train, dense, given):
    given = chosen(given, ALL)
    model = build("mmssl", train, given, **SETTINGS, **settings).double()
    w = weights(model)
    scored, *_ = forward(w, dense, given, drawn(w, dense, given, k=3), **settings)
    with torch.no_grad():
        users, items = model.vectors()
    np.testing.assert_allclose(users.numpy(), scored[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(items.numpy(), scored[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "settings",
    [{"edges": "released"}, {"integration": "ensemble"}, {"edge_rate": 0.6}],
    ids=["released", "ensemble", "more edges"],
)
@pytest.mark.parametrize("names", SETS[:2])
def test_gradients_of_variants_equal_central_differences(
    names, settings, build, train, given, batch
):
    model = build("mmssl", train, chosen(given, names), **{**SETTINGS, **settings}).double()
    sum(model.training_step(batch).values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, key
        check_slope(
            key, parameter, parameter.grad, lambda: sum(model.training_step(batch).values())
        )


def check_slope(key, parameter, slope, value, n=5):
    flat, slope = parameter.detach().view(-1), slope.view(-1)
    likely = slope.abs().argsort(descending=True)[: max(10, len(slope) // 4)].numpy()
    for position in np.random.default_rng(0).choice(likely, min(n, len(likely)), replace=False):
        values = []
        for step in (1e-5, -1e-5):
            flat[position] += step
            with torch.no_grad():
                values.append(float(value()))
            flat[position] -= step
        difference = (values[0] - values[1]) / 2e-5
        assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-9), key


# The adversary.


def judge(w, rows):
    """Disc, without dropout: one number for each row."""
    for layer, norm in ((0, 2), (4, 6)):
        rows = rows @ w[f"discriminator.{layer}.weight"].T + w[f"discriminator.{layer}.bias"]
        rows = np.where(rows > 0, rows, 0.01 * rows)
        rows = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
        rows = rows * w[f"discriminator.{norm}.weight"] + w[f"discriminator.{norm}.bias"]
    logits = rows @ w["discriminator.8.weight"].T + w["discriminator.8.bias"]
    return 100.0 / (1.0 + np.exp(-logits[:, 0]))


def suggested_rows(w, dense, given, users):
    views = content(w, dense, given)
    return np.concatenate([unit_scores(fu[users], fi, dense[users]) for fu, fi in views.values()])


def wasserstein(w, dense, given, users, fused, seed):
    """What the discriminator minimises; the noise is drawn as the model draws it."""
    torch.manual_seed(seed)
    uniform = torch.rand(len(users), dense.shape[1], dtype=torch.float64).numpy()
    fake = suggested_rows(w, dense, given, users)
    share = torch.rand(len(fake), 1, dtype=torch.float64).numpy()
    final = unit_scores(fused[0][users], fused[1], dense[users])
    real = []
    for row, noise, score in zip(dense[users], uniform, final, strict=True):
        gumbel = -np.log(-np.log(noise))
        real.append(unit(softmax((row + 1e-5 * gumbel) / 0.005) + 100.0 * score))
    real = np.concatenate([np.stack(real)] * len(given))
    between = share * real + (1.0 - share) * fake
    slopes = np.zeros(between.shape)
    for place in np.ndindex(*between.shape):
        values = []
        for step in (1e-6, -1e-6):
            moved = between.copy()
            moved[place] += step
            values.append(judge(w, moved).sum())
        slopes[place] = (values[0] - values[1]) / 2e-6
    penalty = np.mean((np.sqrt((slopes**2).sum(axis=1)) - 1.0) ** 2)
    return judge(w, fake).mean() - judge(w, real).mean() + 0.3 * penalty


@pytest.fixture
def adversarial(build, train, given):
    settings = {**SETTINGS, "adversary_weight": 0.7}
    model = build("mmssl", train, chosen(given, ALL[:2]), **settings).double()
    for layer in model.discriminator:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    # Half the width of nine items is tiny; larger weights make every slope count.
    torch.manual_seed(3)
    for parameter in model.discriminator.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def adversary_of(model, batch, seed=11):
    torch.manual_seed(seed)
    return model.training_step(batch)["adversary"]


def test_the_adversary_by_its_equation(adversarial, dense, given, batch):
    given, w = chosen(given, ALL[:2]), weights(adversarial)
    _, fused, *_ = forward(w, dense, given, drawn(w, dense, given, k=3))
    expected = wasserstein(w, dense, given, batch.users.numpy(), fused, seed=11)
    found = float(adversary_of(adversarial, batch).detach())
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_follows_its_own_loss(adversarial, batch):
    adversary_of(adversarial, batch).backward()
    for key, parameter in adversarial.discriminator.named_parameters():
        check_slope(key, parameter, parameter.grad, lambda: adversary_of(adversarial, batch))


def test_all_others_follow_the_opposite_of_its_judgement(adversarial, dense, given, batch):
    adversary_of(adversarial, batch).backward()
    assert adversarial.nodes.grad.abs().max() == 0.0  # s_m is made of content alone
    pair, users = chosen(given, ALL[:2]), batch.users.numpy()
    for key, parameter in adversarial.project.named_parameters():

        def minus_judgement():
            w = weights(adversarial)
            return -0.7 * judge(w, suggested_rows(w, dense, pair, users)).mean()

        check_slope(key, parameter, parameter.grad, minus_judgement)


def test_twenty_steps_lower_what_the_discriminator_minimises(adversarial, batch):
    optimizer = torch.optim.Adam(adversarial.discriminator.parameters(), lr=0.01)
    before = float(adversary_of(adversarial, batch).detach())
    for _ in range(20):
        optimizer.zero_grad()
        adversary_of(adversarial, batch).backward()
        optimizer.step()
    assert float(adversary_of(adversarial, batch).detach()) < before


def test_rows_for_the_discriminator(adversarial, build, train, given, batch):
    settings = {**SETTINGS, "adversary_weight": 0.7, "adversary_rows": 3}
    fewer = build("mmssl", train, chosen(given, ALL[:2]), **settings).double()
    fewer.load_state_dict(adversarial.state_dict())
    for layer in fewer.discriminator:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    first = Batch(batch.users[:3], batch.positives[:3], batch.negatives[:3])
    assert torch.equal(adversary_of(fewer, batch), adversary_of(adversarial, first))


def test_a_batch_of_one_row_and_no_gradient_mode(adversarial, batch):
    one = Batch(batch.users[:1], batch.positives[:1], batch.negatives[:1])
    terms = adversarial.training_step(one)
    assert torch.equal(terms["adversary"], torch.zeros((), dtype=torch.float64))
    assert torch.isfinite(sum(terms.values()))
    with torch.no_grad():
        assert torch.isfinite(adversarial.training_step(batch)["adversary"])


# What is kept between steps, and what is not.


def test_edges_are_drawn_from_the_weights_at_the_start_of_an_epoch(build, train, dense, given):
    model = build("mmssl", train, given, **SETTINGS).double()
    with torch.no_grad():
        for layer in model.project.values():
            layer.weight.mul_(-1.0).add_(0.3)
    before = model.generated.clone()
    model.on_epoch_start(1)
    assert not torch.equal(before, model.generated)
    for view, adjacency in enumerate(drawn(weights(model), dense, given, k=3).values()):
        for u, row in enumerate(adjacency):
            assert set(model.generated[view, u].tolist()) - {-1} == set(np.flatnonzero(row))


def test_stored_edges_come_back_with_the_weights(build, fit, train, given):
    model = build("mmssl", train, given, **SETTINGS)
    model = fit(model, train, epochs=3)
    model.on_epoch_start(2)
    other = build("mmssl", train, given, seed=1, **SETTINGS)
    other.load_state(model.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, model.vectors(), other.vectors()))


def test_ranking_ignores_training_mode_and_the_last_step(build, train, given, batch):
    settings = {**SETTINGS, "dropout": 0.5, "adversary_weight": 1e-4}
    model = build("mmssl", train, given, **settings)
    with torch.no_grad():
        expected = model.eval().vectors()
        state = torch.get_rng_state()
        model.train().training_step(batch)
        torch.set_rng_state(state)
        again = model.vectors()
    assert all(map(torch.equal, expected, again))
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_drawn_in_training(build, train, given, batch):
    model = build("mmssl", train, given, **{**SETTINGS, "dropout": 0.5}).eval()
    one, two = (model.training_step(batch)["feature_regularization"] for _ in range(2))
    assert not torch.equal(one, two)


# Options leave nothing behind, and odd data are defined.


@pytest.mark.parametrize(
    ("names", "settings", "absent"),
    [
        (ALL, {"edges": "released"}, ["to_query", "to_key", "to_joined", "generated"]),
        (["visual"], {}, ["to_query", "to_key"]),
        (ALL, {"adversary_weight": 0.0}, ["discriminator"]),
        ([], {"adversary_weight": 1e-4}, ["discriminator", "to_joined", "generated", "project"]),
    ],
)
def test_what_an_option_leaves_out_has_no_weights(names, settings, absent, build, train, given):
    model = build("mmssl", train, chosen(given, names), **{**SETTINGS, **settings})
    assert not [key for key in model.state_dict() if key.startswith(tuple(absent))]


def test_isolated_nodes_zero_rows_and_few_items_stay_finite(build, batch):
    train = Interactions(3, 2, torch.tensor([0, 1]), torch.tensor([0, 0]))
    zeros = torch.zeros(2, 4)
    given = [
        ItemFeatures("visual__made", "visual", zeros, torch.ones(2).bool()),
        ItemFeatures("textual__made", "textual", torch.eye(2), torch.ones(2).bool()),
    ]
    settings = {**SETTINGS, "edge_rate": 7.0, "adversary_weight": 1e-4}
    model = build("mmssl", train, given, **settings)
    assert model.generated.shape == (2, 3, 2)
    # Item 0 is known to both users, item 1 and user 2 have no interaction: no score, no edge.
    assert (model.generated == -1).all()
    rows = Batch(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]))
    total = sum(model.training_step(rows).values())
    total.backward()
    assert torch.isfinite(total)
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key
    with torch.no_grad():
        assert torch.isfinite(model.scores(torch.arange(3))).all()


def test_heads_must_share_the_columns_evenly(build, train, given):
    with pytest.raises(ValueError, match="n_heads 3 does not divide embedding_size 64"):
        build("mmssl", train, given, n_heads=3)
