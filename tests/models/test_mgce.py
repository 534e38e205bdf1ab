import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmbench.models.mgce import _buckets, inverse_root

SETS = {"none": [], "v": [0], "t": [1], "va": [0, 2], "vt": [0, 1], "vta": [0, 1, 2]}
N_USERS, N_ITEMS, SIZE = 12, 9, 3
SETTINGS = {"embedding_size": SIZE, "n_layers": 2, "regularization": 0.2, "distance_weight": 0.9}


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


def whitened(view):
    values, vectors = np.linalg.eigh(view.T @ view / len(view))
    return view @ vectors @ np.diag(1 / np.sqrt(np.maximum(values, 0) + 1e-5)) @ vectors.T


def forward(weights, given, dense, interest_powers=(0.5, 0.5)):
    """z_m by modality, and the user and item rows of every branch."""
    content = {
        f.modality: whitened(f.matrix.double().numpy() @ weights[f"project.{f.modality}.weight"].T)
        for f in given
    }
    degrees = dense.sum(axis=0)
    low, high = degrees.min(), degrees.max()
    buckets = [min(2, math.floor(3 * (d - low) / (high - low))) for d in degrees]
    base, even = smoother(dense, 0.5, 0.4), smoother(dense, 0.5, 0.5)
    branches = {"ids": base @ base @ weights["nodes"]}
    for name, z in content.items():
        users = weights[f"interest.{name}"]
        branches[f"interest_{name}"] = smoother(dense, *interest_powers) @ np.vstack([users, z])
    for name, z in content.items():
        items = z + weights["popularity"][buckets]
        start = np.vstack([weights[f"conformity.{name}"], items])
        branches[f"conformity_{name}"] = even @ even @ start
    return content, {k: (rows[:N_USERS], rows[N_USERS:]) for k, rows in branches.items()}


def bpr(scores, triples):
    return np.mean([math.log(1 + math.exp(scores[u, j] - scores[u, i])) for u, i, j in triples])


def triples_of(batch):
    columns = (batch.users, batch.positives, batch.negatives)
    return list(zip(*(x.tolist() for x in columns), strict=True))


def l2(*blocks):
    return sum((block**2).sum() for block in blocks) / 2 / len(blocks[0])


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"distance": "released"},
        {"zca_grad": "stop"},
        {"interest_receiver_power": 0.5, "interest_sender_power": 0.3},
    ],
    ids=["plain", "released", "stop", "powers"],
)
def test_scores_and_losses_by_loops(which, settings, build, train, given, dense, batch, all_scores):
    chosen = [given[place] for place in SETS[which]]
    model, weights = randomised(
        build("mgce", train, chosen, **SETTINGS, **settings, visual_weight=0.4)
    )
    powers = (0.5, settings.get("interest_sender_power", 0.5))
    content, branches = forward(weights, chosen, dense, powers)
    each = {name: users @ items.T for name, (users, items) in branches.items()}
    scores = sum((0.4 if "visual" in name else 1) * score for name, score in each.items())
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-6)

    terms = {name: float(term.detach()) for name, term in model.training_step(batch).items()}
    triples = triples_of(batch)
    for name, score in each.items():
        scale = 1 if name == "ids" else 0.7
        assert terms.pop(f"bpr_{name}") == pytest.approx(scale * bpr(score, triples), rel=1e-5)
    u, i, j = (np.array(column) for column in zip(*triples, strict=True))
    table = weights["nodes"]
    penalty = l2(table[u], table[N_USERS + i], table[N_USERS + j])
    for name, z in content.items():
        for kind in ("interest", "conformity"):
            penalty += 0.2 * l2(weights[f"{kind}.{name}"][u], z[i], z[j])
    assert terms.pop("regularization") == pytest.approx(0.2 * penalty, rel=1e-5)
    if chosen:
        distance = 0.0
        for name in content:
            pair = branches[f"interest_{name}"], branches[f"conformity_{name}"]
            for side, rows in ((0, u), (1, i)):
                a, b = (branch[side][rows].mean(axis=0) for branch in pair)
                distance += a @ b / math.sqrt((a @ a) * (b @ b)) / len(u)
        sign = -1 if settings.get("distance") == "released" else 1
        assert terms.pop("distance") == pytest.approx(sign * 0.9 * distance, rel=1e-5)
    assert not terms


def test_a_fusion_scores_by_the_mean_of_the_branches(build, train, given, dense, batch, all_scores):
    model, weights = randomised(build("mgce", train, given, **SETTINGS, integration="fusion"))
    _, branches = forward(weights, given, dense)
    users = sum(branch[0] for branch in branches.values()) / 7
    items = sum(branch[1] for branch in branches.values()) / 7
    np.testing.assert_allclose(all_scores(model, train), users @ items.T, rtol=1e-5, atol=1e-6)
    terms = model.training_step(batch)
    assert set(terms) == {"bpr", "distance", "regularization"}
    expected = bpr(users @ items.T, triples_of(batch))
    assert float(terms["bpr"].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"interest_sender_power": 0.3}, {"integration": "fusion"}],
    ids=["plain", "powers", "fusion"],
)
def test_gradients_by_central_differences(which, settings, build, train, given, batch):
    chosen = [given[place] for place in SETS[which]]
    model, _ = randomised(build("mgce", train, chosen, **SETTINGS, **settings))
    sum(model.training_step(batch).values()).backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for place in rng.choice(len(flat), min(4, len(flat)), replace=False):
            values = []
            for change in (1e-6, -1e-6):
                flat[place] += change
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[place] -= change
            difference = (values[0] - values[1]) / 2e-6
            assert difference == pytest.approx(float(slope[place]), rel=1e-4, abs=1e-7), name


def test_whitening_held_still_keeps_the_gradient_of_what_it_whitens(build, train, given, batch):
    model, _ = randomised(build("mgce", train, given[:1], **SETTINGS, zca_grad="stop"))
    sum(model.training_step(batch).values()).backward()
    held = model.project["visual"].weight.grad
    # By hand: the power as a constant, and the loss as a function of y alone.
    view = given[0].matrix.double() @ model.project["visual"].weight.detach().T
    power = torch.linalg.inv(torch.from_numpy(_root(view.numpy())))
    model.zero_grad()
    model._content = lambda: [given[0].matrix.double() @ model.project["visual"].weight.T @ power]
    sum(model.training_step(batch).values()).backward()
    torch.testing.assert_close(held, model.project["visual"].weight.grad, rtol=1e-5, atol=1e-8)
    flowing, _ = randomised(build("mgce", train, given[:1], **SETTINGS))
    sum(flowing.training_step(batch).values()).backward()
    assert not torch.allclose(held, flowing.project["visual"].weight.grad, rtol=1e-2)
    assert held.abs().max() > 1e-3


def _root(view):
    values, vectors = np.linalg.eigh(view.T @ view / len(view))
    return vectors @ np.diag(np.sqrt(values + 1e-5)) @ vectors.T


def test_the_inverse_root_and_its_gradient_also_where_eigenvalues_meet():
    torch.manual_seed(0)
    square = torch.randn(2, 5, 5, dtype=torch.float64)
    matrices = square @ square.mT
    power = inverse_root(matrices, 1e-5)
    unit = power @ power @ (matrices + 1e-5 * torch.eye(5))
    torch.testing.assert_close(unit, torch.eye(5, dtype=torch.float64).expand(2, 5, 5))

    def of_factor(factor):
        return inverse_root(factor @ factor.mT, 0.1)

    assert torch.autograd.gradcheck(of_factor, square.requires_grad_())
    equal = torch.eye(4, dtype=torch.float64).requires_grad_()  # one eigenvalue four times
    assert torch.autograd.gradcheck(of_factor, equal)
    lacking = torch.zeros(3, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(of_factor, lacking)


def test_whitened_columns_are_uncorrelated(build, train, given):
    model, _ = randomised(build("mgce", train, given[:1], embedding_size=2))
    (content,) = model._content()
    torch.testing.assert_close(
        content.mT @ content / N_ITEMS, torch.eye(2, dtype=torch.float64), rtol=1e-3, atol=1e-3
    )


def test_popularity_buckets_are_three_and_the_most_popular_is_in_the_last():
    assert _buckets(torch.tensor([1, 2, 3, 4, 10, 7])).tolist() == [0, 0, 0, 1, 2, 2]
    assert _buckets(torch.tensor([5, 5])).tolist() == [0, 0]


def test_features_of_zeros_stay_finite(build, train, given, batch):
    empty = replace(given[0], matrix=torch.zeros_like(given[0].matrix))
    model = build("mgce", train, [empty])
    terms = model.training_step(batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_steps_before_and_training_mode_leave_the_ranking_alone(
    build, train, given, batch, all_scores
):
    model = build("mgce", train, given)
    before = all_scores(model, train)
    model.train().training_step(batch)
    np.testing.assert_array_equal(all_scores(model, train), before)
    model.eval()
    np.testing.assert_array_equal(all_scores(model, train), before)


def test_a_step_in_half_precision_is_near_that_in_single(build, train, given, batch):
    model, sums = build("mgce", train, given), []
    for half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = model.training_step(batch)
        sums.append(sum(term.float() for term in terms.values()))
    assert float(sums[1].detach()) == pytest.approx(float(sums[0].detach()), rel=0.02)
    sums[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
