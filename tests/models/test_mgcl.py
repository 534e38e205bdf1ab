import math

import numpy as np
import pytest
import torch

from mmbench.models.losses import info_nce
from mmbench.models.mgcl import _mutual_nce

SETS = {"none": [], "v": [0], "t": [1], "va": [0, 2], "vt": [0, 1], "vta": [0, 1, 2]}
N_USERS, N_ITEMS, SIZE = 12, 9, 3
SETTINGS = {
    "embedding_size": SIZE,
    "n_layers": 2,
    "regularization": 0.2,
    "contrast_weight": 0.3,
    "temperature": 0.5,
}


def randomised(model):
    """The model in double precision, all parameters away from zero; and these as arrays."""
    model, rng = model.double(), np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.5 * rng.standard_normal(tuple(parameter.shape))))
    return model, {name: p.detach().numpy() for name, p in model.named_parameters()}


def smoother(dense, a, b):
    """(D + I)^-a (A + I) (D + I)^-b, entry by entry."""
    n = N_USERS + N_ITEMS
    adjacency = np.eye(n)
    for u, i in zip(*np.nonzero(dense), strict=True):
        adjacency[u, N_USERS + i] = adjacency[N_USERS + i, u] = 1
    degrees = adjacency.sum(axis=1)
    return np.array(
        [
            [degrees[r] ** -a * adjacency[r, s] * degrees[s] ** -b for s in range(n)]
            for r in range(n)
        ]
    )


def starts(weights, given):
    """User and item rows that each branch starts from."""
    result = {"ids": (weights["nodes"][:N_USERS], weights["nodes"][N_USERS:])}
    for features in given:
        name = features.modality
        view = features.matrix.double().numpy() @ weights[f"project.{name}.weight"].T
        result[name] = (weights[f"users.{name}"], view)
    return result


def final(first, graph, n_layers=2):
    result = {}
    for name, (users, items) in first.items():
        rows = np.concatenate([users, items])
        for _ in range(n_layers if name == "ids" else 1):
            rows = graph @ rows
        result[name] = rows[:N_USERS], rows[N_USERS:]
    return result


def bpr(scores, triples):
    return np.mean([math.log(1 + math.exp(scores[u, j] - scores[u, i])) for u, i, j in triples])


def triples_of(batch):
    columns = (batch.users, batch.positives, batch.negatives)
    return list(zip(*(x.tolist() for x in columns), strict=True))


def l2(*blocks):
    return sum(x * x for block in blocks for row in block for x in row) / 2 / len(blocks[0])


def cosine(a, b):
    return a @ b / max(math.sqrt(a @ a), 1e-12) / max(math.sqrt(b @ b), 1e-12)


def contrast(views, temperature, slip=False):
    """Loss B of one side; with `slip` the released denominators of the text rows."""
    total = 0.0
    for a in views:
        for b in views:
            if a == b:
                continue
            below = b
            if slip and a == "textual" and "visual" in views:
                below = {"ids": "visual", "visual": "textual"}.get(b, b)
            rows = views[a]
            for r, row in enumerate(rows):
                logits = [cosine(row, other) / temperature for other in views[below]]
                above = cosine(row, views[b][r]) / temperature
                total += (math.log(sum(map(math.exp, logits))) - above) / len(rows)
    return total


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("released", [False, True])
def test_scores_and_losses_by_loops(which, released, build, train, given, dense, batch, all_scores):
    chosen = [given[place] for place in SETS[which]]
    settings = {"contrast": "released" if released else "paper", "visual_weight": 0.7}
    model, weights = randomised(build("mgcl", train, chosen, **SETTINGS, **settings))
    first = starts(weights, chosen)
    branches = final(first, smoother(dense, 0.5, 0.4))
    each = {name: users @ items.T for name, (users, items) in branches.items()}
    scores = sum((0.7 if name == "visual" else 1) * score for name, score in each.items())
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-7)

    terms = {name: float(term.detach()) for name, term in model.training_step(batch).items()}
    triples = triples_of(batch)
    for name, score in each.items():  # without the weight of ranking
        assert terms.pop(f"bpr_{name}") == pytest.approx(bpr(score, triples), rel=1e-6)
    u, i, j = (np.array(column) for column in zip(*triples, strict=True))
    penalty = sum(
        (1 if name == "ids" else 0.1) * l2(users[u], items[i], items[j])
        for name, (users, items) in first.items()
    )
    assert terms.pop("regularization") == pytest.approx(0.2 * penalty, rel=1e-6)
    if chosen:
        loss = contrast({name: users[u] for name, (users, _) in first.items()}, 0.5)
        loss += contrast({name: items[i] for name, (_, items) in first.items()}, 0.5, released)
        assert terms.pop("contrast") == pytest.approx(0.3 * loss, rel=1e-6)
    assert not terms


def test_a_fusion_scores_by_the_mean_of_the_branches(build, train, given, dense, batch, all_scores):
    model, weights = randomised(
        build("mgcl", train, given, **SETTINGS, integration="fusion", sender_power=0.3)
    )
    branches = final(starts(weights, given), smoother(dense, 0.5, 0.3)).values()
    users = sum(branch[0] for branch in branches) / 4
    items = sum(branch[1] for branch in branches) / 4
    scores = users @ items.T
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-7)
    terms = model.training_step(batch)
    assert set(terms) == {"bpr", "regularization", "contrast"}
    assert float(terms["bpr"].detach()) == pytest.approx(bpr(scores, triples_of(batch)), rel=1e-6)


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("settings", [{}, {"contrast": "released"}, {"integration": "fusion"}])
def test_gradients_by_central_differences(which, settings, build, train, given, batch):
    chosen = [given[place] for place in SETS[which]]
    model, _ = randomised(build("mgcl", train, chosen, **SETTINGS, **settings))
    sum(model.training_step(batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for place in rng.choice(len(flat), min(5, len(flat)), replace=False):
            values = []
            for change in (1e-5, -1e-5):
                flat[place] += change
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[place] -= change
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[place]), rel=1e-4, abs=1e-8), name


def test_the_weight_of_pictures_acts_in_ranking_alone(build, train, given, batch, all_scores):
    one, two = (build("mgcl", train, given, visual_weight=weight) for weight in (0.4, 2.0))
    for term, value in one.training_step(batch).items():
        assert torch.equal(value, two.training_step(batch)[term])
    assert not np.allclose(all_scores(one, train), all_scores(two, train))


def test_the_published_temperature_does_not_overflow(build, train, given, batch):
    model = build("mgcl", train, given)
    assert model.config.temperature == pytest.approx(0.04)
    terms = model.training_step(batch)
    assert all(torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("temperature", [0.04, 0.02])  # the second does not fit one exponent
def test_both_directions_at_once_are_two_contrasts(temperature):
    torch.manual_seed(0)
    one, other = (
        torch.nn.functional.normalize(torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    )
    loss = _mutual_nce(one, other, temperature)
    expected = info_nce(one, other, temperature) + info_nce(other, one, temperature)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.gradcheck(lambda a, b: _mutual_nce(a, b, temperature), (one, other))
    far = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # every cosine is -1
    assert torch.isfinite(_mutual_nce(far, -far, temperature))


def test_steps_before_and_training_mode_leave_the_ranking_alone(
    build, train, given, batch, all_scores
):
    model = build("mgcl", train, given)
    before = all_scores(model, train)
    model.train().training_step(batch)
    np.testing.assert_array_equal(all_scores(model, train), before)
    model.eval()
    np.testing.assert_array_equal(all_scores(model, train), before)


def test_a_step_in_half_precision_is_near_that_in_single(build, train, given, batch):
    model, sums = build("mgcl", train, given), []
    for half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = model.training_step(batch)
        sums.append(sum(term.float() for term in terms.values()))
    assert float(sums[1].detach()) == pytest.approx(float(sums[0].detach()), rel=0.02)
    sums[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
