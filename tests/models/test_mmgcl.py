import math

import numpy as np
import pytest
import torch

SETS = {"none": [], "v": [0], "t": [1], "va": [0, 2], "vt": [0, 1], "vta": [0, 1, 2]}
ORDER = {"visual": 0, "acoustic": 1, "textual": 2}
N_USERS, N_ITEMS, SIZE = 12, 9, 3


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
    return sum(x[0] for x in levels) / len(levels), sum(x[1] for x in levels) / len(levels)


def starts(weights, given):
    result = {"ids": weights["encoder.items"]}
    for features in sorted(given, key=lambda f: ORDER[f.modality]):
        raw, name = features.matrix.double().numpy(), features.modality
        unit = np.array([row / max(math.sqrt(row @ row), 1e-12) for row in raw])
        project = weights[f"encoder.project.{name}.weight"]
        result[name] = unit @ project.T + weights[f"encoder.project.{name}.bias"]
    return result


def branches(weights, given, dense, n_layers=2):
    return {
        name: propagated(weights["encoder.users"], start, dense, n_layers)
        for name, start in starts(weights, given).items()
    }


def read(weights, side, parts):
    joined = np.concatenate(parts, axis=1)
    return joined @ weights[f"read_{side}.maps.0.weight"].T + weights[f"read_{side}.maps.0.bias"]


def cosine(a, b):
    return a @ b / math.sqrt((a @ a) * (b @ b))


def nce(anchors, others, temperature, extra=None):
    total = 0.0
    for r, anchor in enumerate(anchors):
        logits = [cosine(anchor, other) / temperature for other in others]
        below = sum(map(math.exp, logits))
        if extra is not None:
            below += math.exp(cosine(anchor, extra[r]) / temperature)
        total += math.log(below) - logits[r]
    return total / len(anchors)


def draw(dense, rate, given, masking):
    """The draws of one step, in its order: edges, then the modality, then nodes."""
    users, items = np.nonzero(dense)
    n_dropped = len(users) - math.floor((1 - rate) * len(users))
    without_edges = dense.copy()
    gone = torch.randperm(len(users))[:n_dropped].numpy()
    without_edges[users[gone], items[gone]] = 0
    if not given:
        return without_edges, None, None
    names = sorted((f.modality for f in given), key=ORDER.get)
    chances = torch.tensor([masking[name] for name in names])
    masked = names[int(torch.multinomial(chances, 1))]
    without_nodes = dense.copy()
    without_nodes[torch.randperm(N_USERS)[: math.floor(rate * N_USERS)].numpy()] = 0
    without_nodes[:, torch.randperm(N_ITEMS)[: math.floor(rate * N_ITEMS)].numpy()] = 0
    return without_edges, masked, without_nodes


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("seed", [3, 4])
def test_scores_and_losses_by_loops(which, seed, build, train, given, dense, batch, all_scores):
    chosen = [given[place] for place in SETS[which]]
    settings = {"embedding_size": SIZE, "n_layers": 2, "ssl_weight": 0.3, "temperature": 0.6}
    model, weights = randomised(build("mmgcl", train, chosen, dropout=0.3, **settings))
    parts = branches(weights, chosen, dense)
    users = read(weights, "users", [part[0] for part in parts.values()])
    items = read(weights, "items", [part[1] for part in parts.values()])
    scores = users @ items.T
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-7)
    u, i, j = (x.numpy() for x in (batch.users, batch.positives, batch.negatives))
    torch.manual_seed(seed)
    terms = model.training_step(batch)
    bpr = np.mean(
        [
            math.log(1 + math.exp(scores[a, c] - scores[a, b]))
            for a, b, c in zip(u, i, j, strict=True)
        ]
    )
    assert float(terms["bpr"].detach()) == pytest.approx(bpr, rel=1e-6)

    torch.manual_seed(seed)
    masking = {"visual": 0.4, "textual": 0.4, "acoustic": 0.2}
    without_edges, masked, without_nodes = draw(dense, 0.3, chosen, masking)
    one = branches(weights, chosen, without_edges)
    a1 = read(weights, "users", [part[0][u] for part in one.values()])
    b1 = read(weights, "items", [part[1][i] for part in one.values()])
    challenge = None
    two = dict(parts)
    if masked:
        two[masked] = branches(weights, chosen, without_nodes)[masked]
        swapped = [part[1][j] if name == masked else part[1][i] for name, part in two.items()]
        challenge = read(weights, "items", swapped)
    a2 = read(weights, "users", [part[0][u] for part in two.values()])
    b2 = read(weights, "items", [part[1][i] for part in two.values()])
    contrast = 0.3 * (nce(a1, a2, 0.6) + nce(b1, b2, 0.6, challenge))
    assert float(terms["contrast"].detach()) == pytest.approx(contrast, rel=1e-6)


def test_released_contrasts_users_with_items_of_one_view(build, train, given, dense, batch):
    model, weights = randomised(
        build("mmgcl", train, given, embedding_size=SIZE, n_layers=2, ssl="released", dropout=0.3)
    )
    torch.manual_seed(5)
    terms = model.training_step(batch)
    torch.manual_seed(5)
    without_edges, _, _ = draw(dense, 0.3, [], {})
    one = branches(weights, given, without_edges)
    a = read(weights, "users", [part[0][batch.users.numpy()] for part in one.values()])
    b = read(weights, "items", [part[1][batch.positives.numpy()] for part in one.values()])
    assert float(terms["contrast"].detach()) == pytest.approx(0.4 * 2 * nce(a, b, 0.2), rel=1e-6)


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"ssl": "released"}, {"integration": "ensemble"}],
    ids=["paper", "released", "ensemble"],
)
def test_gradients_by_central_differences(which, settings, build, train, given, batch):
    chosen = [given[place] for place in SETS[which]]
    model, _ = randomised(build("mmgcl", train, chosen, embedding_size=2, dropout=0.3, **settings))

    def loss():
        torch.manual_seed(6)  # the same draws each time
        return sum(model.training_step(batch).values())

    loss().backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for place in rng.choice(len(flat), min(3, len(flat)), replace=False):
            values = []
            for change in (1e-5, -1e-5):
                flat[place] += change
                with torch.no_grad():
                    values.append(float(loss()))
                flat[place] -= change
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[place]), rel=1e-4, abs=1e-8), name


def test_modalities_are_masked_as_often_as_said(build, train, given):
    model = build("mmgcl", train, given[:2], masking={"visual": 0.1, "textual": 0.3})
    torch.testing.assert_close(model._masking, torch.tensor([0.1, 0.3]))
    # None of those given has a chance: all have the same.
    model = build("mmgcl", train, given[1:], masking={"visual": 1.0})
    torch.testing.assert_close(model._masking, torch.ones(2))


def test_a_modality_that_does_not_exist_is_refused(build, train, given):
    with pytest.raises(ValueError, match="smell: no such modality; known: visual, textual"):
        build("mmgcl", train, given, masking={"smell": 1.0})


def test_ranking_draws_nothing_and_does_not_depend_on_steps_before(
    build, train, given, batch, all_scores
):
    model = build("mmgcl", train, given, dropout=0.3)
    before = all_scores(model, train)
    model.train()
    state = torch.get_rng_state()
    np.testing.assert_array_equal(all_scores(model, train), before)
    assert torch.equal(state, torch.get_rng_state())
    model.training_step(batch)
    assert not torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(all_scores(model, train), before)
    model.eval()
    np.testing.assert_array_equal(all_scores(model, train), before)


def test_a_step_in_half_precision_is_near_that_in_single(build, train, given, batch):
    model, sums = build("mmgcl", train, given), []
    for half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = model.training_step(batch)
        sums.append(sum(term.float() for term in terms.values()))
    assert float(sums[1].detach()) == pytest.approx(float(sums[0].detach()), rel=0.02)
    sums[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
