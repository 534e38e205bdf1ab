import math

import numpy as np
import pytest
import torch

from mmbench.models.base import Interactions

SETS = {"none": [], "v": [0], "t": [1], "va": [0, 2], "vt": [0, 1], "vta": [0, 1, 2]}
N_USERS, N_ITEMS, SIZE = 12, 9, 2
SETTINGS = {"embedding_size": SIZE, "n_layers": 2, "regularization": 0.2}


def randomised(model):
    """The model in double precision, all parameters away from zero; and these as arrays."""
    model, rng = model.double(), np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.5 * rng.standard_normal(tuple(parameter.shape))))
    return model, {name: p.detach().numpy() for name, p in model.named_parameters()}


def propagated(weights, dense, a=0.5, b=0.4, n_layers=2):
    """The mean of H^0 E to H^L E, entry by entry."""
    n = N_USERS + N_ITEMS
    adjacency = np.eye(n)
    for u, i in zip(*np.nonzero(dense), strict=True):
        adjacency[u, N_USERS + i] = adjacency[N_USERS + i, u] = 1
    degrees = adjacency.sum(axis=1)
    graph = np.array(
        [
            [degrees[r] ** -a * adjacency[r, s] * degrees[s] ** -b for s in range(n)]
            for r in range(n)
        ]
    )
    total = level = weights["nodes"]
    for _ in range(n_layers):
        level = graph @ level
        total = total + level
    total = total / (n_layers + 1)
    return total[:N_USERS], total[N_USERS:]


def normalised(row, weights, name):
    centred = row - row.mean()
    scaled = centred / math.sqrt((centred**2).mean() + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attended(weights, rows, others, read, n_layers=2):
    """The branch c of a block, row by row; `others` are None for negatives."""
    width = rows.shape[1]
    for place in range(n_layers):
        name = f"attention.{place}"
        w = {
            part: weights[f"{name}.{part}.weight"].T
            for part in ("query", "key", "value", "other_query", "other_key", "output")
        }
        new = np.zeros_like(rows)
        for r, row in enumerate(rows):
            logits = []
            for s, other in enumerate(rows):
                logit = (row @ w["query"]) @ (other @ w["key"])
                if others is not None:
                    logit -= (others[r] @ w["other_query"]) @ (others[s] @ w["other_key"])
                logits.append(logit / math.sqrt(width))
            shares = np.exp(logits) / np.exp(logits).sum()
            value = sum(share * (x @ w["value"]) for share, x in zip(shares, rows, strict=True))
            mid = normalised(value @ w["output"] + row, weights, f"{name}.norm_attended")
            wide = mid @ weights[f"{name}.widen.weight"].T + weights[f"{name}.widen.bias"]
            narrow = np.maximum(wide, 0) @ weights[f"{name}.narrow.weight"].T
            narrow = np.maximum(narrow + weights[f"{name}.narrow.bias"], 0)
            new[r] = normalised(narrow + mid, weights, f"{name}.norm_fed")
        rows = new
    return np.maximum(rows @ weights[f"{read}.weight"].T, 0)


def views_of(weights, given):
    return {
        f.modality: f.matrix.double().numpy() @ weights[f"project.{f.modality}.weight"].T
        for f in given
    }


def bpr(users, positives, negatives):
    gaps = (users * (negatives - positives)).sum(axis=1)
    return np.mean([math.log(1 + math.exp(gap)) for gap in gaps])


def l2(*blocks):
    return sum((block**2).sum() for block in blocks) / 2 / len(blocks[0])


def ranking(weights, given, dense, blocks, visual_weight=1.0):
    users, ids = propagated(weights, dense)
    views = views_of(weights, given)
    joined = np.concatenate([ids, *views.values()], axis=1)
    causal = np.zeros_like(ids)
    for block in blocks:
        causal[block] = attended(weights, joined[block], joined[block], "read")
    total = ids + causal
    for name, view in views.items():
        total = total + (visual_weight if name == "visual" else 1) * view
    return users @ total.T


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("block_size", [4, 2048, "all"])
def test_scores_by_loops(which, block_size, build, train, given, dense, all_scores):
    chosen = [given[place] for place in SETS[which]]
    model, weights = randomised(
        build("mcln", train, chosen, **SETTINGS, block_size=block_size, visual_weight=0.3)
    )
    order = torch.randperm(N_ITEMS, generator=torch.Generator().manual_seed(0)).numpy()
    size = block_size if block_size == 4 else N_ITEMS
    blocks = [order[start : start + size] for start in range(0, N_ITEMS, size)]
    scores = ranking(weights, chosen, dense, blocks, visual_weight=0.3)
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"counterfactuals": "negatives"}, {"share_readout": True}, {"integration": "fusion"}],
    ids=["drawn", "negatives", "shared", "fusion"],
)
def test_losses_by_loops(which, settings, build, train, given, dense, batch):
    chosen = [given[place] for place in SETS[which]]
    model, weights = randomised(
        build("mcln", train, chosen, **SETTINGS, visual_weight=0.3, **settings)
    )
    u, i, j = (x.numpy() for x in (batch.users, batch.positives, batch.negatives))
    torch.manual_seed(3)
    terms = {name: float(term.detach()) for name, term in model.training_step(batch).items()}
    other = j
    if settings.get("counterfactuals") != "negatives":
        torch.manual_seed(3)
        draws = torch.rand(len(u)).numpy()
        free = [np.flatnonzero(dense[user] == 0) for user in u]
        other = np.array([f[int(draw * len(f))] for f, draw in zip(free, draws, strict=True)])
    users, ids = propagated(weights, dense)
    views = views_of(weights, chosen)
    joined = np.concatenate([ids, *views.values()], axis=1)
    read = "read" if settings.get("share_readout") else "read_negatives"
    causal = (
        attended(weights, joined[i], joined[other], "read"),
        attended(weights, joined[j], None, read),
    )
    branches = {"ids": (ids[i], ids[j])}
    branches |= {name: (view[i], view[j]) for name, view in views.items()}
    branches["causal"] = causal
    if settings.get("integration") == "fusion":
        scale = {"visual": 0.3}
        sums = [sum(scale.get(name, 1) * b[k] for name, b in branches.items()) for k in (0, 1)]
        assert terms.pop("bpr") == pytest.approx(bpr(users[u], *sums), rel=1e-5)
    else:
        for name, (positives, negatives) in branches.items():
            expected = bpr(users[u], positives, negatives)
            assert terms.pop(f"bpr_{name}") == pytest.approx(expected, rel=1e-5), name
    tables = weights["nodes"][u], weights["nodes"][N_USERS + i], weights["nodes"][N_USERS + j]
    rest = [rows for name, pair in branches.items() if name != "ids" for rows in pair]
    assert terms.pop("regularization") == pytest.approx(0.2 * l2(*tables, *rest), rel=1e-5)
    assert not terms


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"share_readout": True}, {"integration": "fusion"}],
    ids=["", "shared", "fusion"],
)
def test_gradients_by_central_differences(which, settings, build, train, given, batch):
    chosen = [given[place] for place in SETS[which]]
    model, _ = randomised(build("mcln", train, chosen, **SETTINGS, **settings))

    def loss():
        torch.manual_seed(6)  # the same draws each time
        return sum(model.training_step(batch).values())

    loss().backward()
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for place in rng.choice(len(flat), min(2, len(flat)), replace=False):
            values = []
            for change in (1e-6, -1e-6):
                flat[place] += change
                with torch.no_grad():
                    values.append(float(loss()))
                flat[place] -= change
            difference = (values[0] - values[1]) / 2e-6
            assert difference == pytest.approx(float(slope[place]), rel=1e-4, abs=1e-7), name


def test_a_block_with_its_rows_permuted_gives_the_same_vectors_permuted(build, train, given):
    model, _ = randomised(build("mcln", train, given, **SETTINGS))
    rows, others = torch.randn(2, 6, 4 * SIZE, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        plain = model._attended(rows, others, model.read)
        permuted = model._attended(rows[order], others[order], model.read)
    torch.testing.assert_close(permuted, plain[order])
    assert plain.std() > 0.01


def test_the_permutation_is_a_setting_and_not_a_draw(build, train, given, batch, all_scores):
    settings = {**SETTINGS, "block_size": 4}
    one, other = (
        randomised(build("mcln", train, given, **settings, permutation_seed=seed))[0]
        for seed in (0, 1)
    )
    state = torch.get_rng_state()
    before = all_scores(one, train)
    one.train().training_step(batch)
    assert not torch.equal(torch.get_rng_state(), state)  # a step draws counterfactual items
    state = torch.get_rng_state()
    np.testing.assert_array_equal(all_scores(one, train), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.allclose(all_scores(other, train), before)
    whole = [
        randomised(build("mcln", train, given, **SETTINGS, permutation_seed=seed))[0]
        for seed in (0, 1)
    ]
    np.testing.assert_allclose(
        all_scores(whole[0], train), all_scores(whole[1], train), rtol=1e-5, atol=1e-7
    )


def test_ranking_by_few_rows_at_a_time_is_the_same(build, train, given, all_scores, monkeypatch):
    model, _ = randomised(build("mcln", train, given, **SETTINGS))
    before = all_scores(model, train)
    monkeypatch.setattr("mmbench.models.mcln._BLOCK_LOGITS", 20)
    np.testing.assert_allclose(all_scores(model, train), before, rtol=1e-9)


def test_counterfactual_items_are_uniform_among_those_a_user_lacks(build, train, dense):
    model = build("mcln", train, [])
    torch.manual_seed(0)
    n_draws = 3000
    for user in range(N_USERS):
        drawn = model._counterfactuals(torch.full((n_draws,), user))
        counts = np.bincount(drawn.numpy(), minlength=N_ITEMS)
        assert (counts[dense[user] == 1] == 0).all()
        expected = n_draws / (dense[user] == 0).sum()
        assert abs(counts[dense[user] == 0] - expected).max() < 5 * math.sqrt(expected)


def test_a_user_with_every_item_gets_one_all_the_same(build):
    full = Interactions(1, 3, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    model = build("mcln", full, [])
    assert model._counterfactuals(torch.zeros(5, dtype=torch.int64)).tolist() == [2] * 5


def test_a_step_in_half_precision_is_near_that_in_single(build, train, given, batch):
    model, sums = build("mcln", train, given), []
    for half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = model.training_step(batch)
        sums.append(sum(term.float() for term in terms.values()))
    assert float(sums[1].detach()) == pytest.approx(float(sums[0].detach()), rel=0.02)
    sums[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
