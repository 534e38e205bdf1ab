"""The gated ensemble against loops in float64, and its gates on planted noise and signal."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from mmbench.models.base import MODELS, Batch, Interactions, ItemFeatures

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SMALL = {"embedding_size": 3, "n_layers": 2, "regularization": 0.3, "gate_weight": 0.2}
LEARNS = {**SMALL, "gate_from": 2, "gate_until": 4}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def hard(share):
    return min(1.0, max(0.0, share * (ZETA - GAMMA) + GAMMA))


def final_by_loops(edges, start, n_users, n_layers):
    """Mean of the levels, over one edge at a time."""
    degree = [0] * len(start)
    for user, item in edges:
        degree[user] += 1
        degree[n_users + item] += 1
    total, level = start.copy(), start
    for _ in range(n_layers):
        after = np.zeros_like(start)
        for user, item in edges:
            weight = 1 / math.sqrt(degree[user] * degree[n_users + item])
            after[user] += weight * level[n_users + item]
            after[n_users + item] += weight * level[user]
        total, level = total + after, after
    return total / (n_layers + 1)


class Literal:
    """Equations 1 to 4 and the branches, one number after the other."""

    def __init__(self, model, train, given, batch, noise):
        self.model, self.config, self.given = model, model.config, given
        self.n_users, self.noise = train.n_users, noise
        self.edges = list(zip(train.users.tolist(), train.items.tolist(), strict=True))
        held = model.held_out.tolist() if model.holds_out else [False] * len(self.edges)
        self.held = {edge for edge, out in zip(self.edges, held, strict=True) if out}
        columns = (batch.users, batch.positives, batch.negatives)
        self.triples = list(zip(*(column.tolist() for column in columns), strict=True))

    def branches(self):
        """E^0 and E of every branch, by modality, over the graph of the phase."""
        weights = {k: v.detach().numpy() for k, v in self.model.branches.named_parameters()}
        edges = self.edges
        if self.model.is_split:
            edges = [edge for edge in edges if edge not in self.held]
        content = []
        for features in self.given:
            name, rows = features.modality, []
            for row in features.matrix.double().numpy():
                length = math.sqrt(sum(x * x for x in row))
                unit = row / length if length > 0 else row
                rows.append(weights[f"project.{name}.weight"] @ unit)
                rows[-1] = rows[-1] + weights[f"project.{name}.bias"]
            content.append(np.concatenate([weights[f"users.{name}"], rows]))
        start = weights["nodes"]
        final = final_by_loops(edges, start, self.n_users, self.config.n_layers)
        return [start, *content], [final, *content]

    def gates(self, row):
        """The gates of a row: drawn while they learn, z^ otherwise."""
        if not self.model.learns:
            return [1.0] * len(self.given)
        found = []
        for place, value in enumerate(self.model.gate.detach().tolist()):
            log_a = self.config.gate_start + self.config.gate_rate * value
            if self.model.searches and row is not None:
                v = self.noise[row][place]
                found.append(hard(sigmoid((math.log(v) - math.log(1 - v) + log_a) / BETA)))
            else:
                found.append(hard(sigmoid(log_a)))
        return found

    def score(self, finals, gates, user, item):
        item += self.n_users
        if self.config.integration == "fusion":
            left, right = (
                finals[0][node] + sum(g * f[node] for g, f in zip(gates, finals[1:], strict=True))
                for node in (user, item)
            )
            return float(left @ right)
        return float(finals[0][user] @ finals[0][item]) + sum(
            g * float(f[user] @ f[item]) for g, f in zip(gates, finals[1:], strict=True)
        )

    def terms(self):
        starts, finals = self.branches()
        bpr = gates = squares = 0.0
        for row, (u, i, j) in enumerate(self.triples):
            z = self.gates(row)
            gap = self.score(finals, z, u, i) - self.score(finals, z, u, j)
            loss = math.log(1 + math.exp(-gap))
            share = self.config.gate_share
            if self.model.is_split and (u, i) in self.held:
                gates += loss / share
            elif self.model.is_split:
                bpr += loss / (1 - share)
            else:
                bpr += loss
                gates += loss
            for node in (u, self.n_users + i, self.n_users + j):
                squares += sum(float(start[node] @ start[node]) for start in starts)
        n_rows = len(self.triples)
        terms = {"bpr": bpr / n_rows}
        if self.model.searches:
            terms["gates"] = gates / n_rows
            opened = [
                sigmoid(
                    self.config.gate_start
                    + self.config.gate_rate * value
                    - BETA * math.log(-GAMMA / ZETA)
                )
                for value in self.model.gate.detach().tolist()
            ]
            terms["open"] = self.config.gate_weight * sum(opened)
        terms["regularization"] = self.config.regularization * squares / (2 * n_rows)
        return terms


def step(model, batch, seed=5):
    torch.manual_seed(seed)
    return model.training_step(batch)


def noise_of(n_rows, n_gates, seed=5):
    torch.manual_seed(seed)
    return torch.rand(n_rows, n_gates).double().tolist()


@pytest.fixture
def wide_batch(train, dense):
    """Every training interaction once, so that some rows are held out and some are not."""
    rng = np.random.default_rng(3)
    negatives = [rng.choice(np.flatnonzero(dense[user] == 0)) for user in train.users.tolist()]
    return Batch(train.users, train.items, torch.tensor(negatives))


def prepared(build, train, given, gate, form, epoch):
    settings = LEARNS if gate != "fixed" else SMALL
    model = build(
        "gated-ensemble", train, given, gate=gate, integration=form, gate_start=0.4, **settings
    )
    model.on_epoch_start(epoch)
    model = model.double()
    if model.learns:  # one gate far open, one half, one nearly closed; none at a bound
        with torch.no_grad():
            model.gate.copy_(torch.tensor([0.12, 0.0, -0.2])[: len(given)])
    return model


CASES = [
    (gate, form, epoch)
    for gate, epochs in (("learned", (1, 2, 5)), ("training-loss", (2, 5)), ("fixed", (2,)))
    for form in ("ensemble", "fusion")
    for epoch in epochs
]


@pytest.mark.parametrize(("gate", "form", "epoch"), CASES)
def test_terms_and_scores_by_loops(gate, form, epoch, build, train, given, wide_batch, all_scores):
    model = prepared(build, train, given, gate, form, epoch)
    literal = Literal(model, train, given, wide_batch, noise_of(len(wide_batch), 3))
    expected = literal.terms()
    terms = step(model, wide_batch)
    assert list(terms) == list(expected)
    for name, value in expected.items():
        assert float(terms[name].detach()) == pytest.approx(value, rel=1e-5), name
    model.is_split = False  # ranking uses the whole graph in every phase
    _, finals = literal.branches()
    gates = literal.gates(None)
    scores = [
        [literal.score(finals, gates, user, item) for item in range(train.n_items)]
        for user in range(train.n_users)
    ]
    np.testing.assert_allclose(all_scores(model, train), scores, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("gate", "form", "epoch"), [c for c in CASES if c[2] == 2])
def test_gradients_by_central_differences_of_the_loops(
    gate, form, epoch, build, train, given, batch
):
    """Weights follow equation 3 with gates held still, gates equation 4 with all else still."""
    given = given[:2]
    model = prepared(build, train, given, gate, form, epoch)
    sum(step(model, batch).values()).backward()
    literal = Literal(model, train, given, batch, noise_of(len(batch), 2))
    rng = np.random.default_rng(1)
    for key, parameter in model.named_parameters():
        sides = ("gates", "open") if key == "gate" else ("bpr", "regularization")
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        likely = slope.abs().argsort(descending=True)[: max(6, len(slope) // 4)].numpy()
        for position in rng.choice(likely, min(4, len(likely)), replace=False):
            values = []
            for move in (1e-5, -1e-5):
                flat[position] += move
                terms = literal.terms()
                values.append(sum(terms[side] for side in sides))
                flat[position] -= move
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-8), key


def test_every_parameter_has_a_gradient_while_gates_learn(build, train, given, wide_batch):
    model = build("gated-ensemble", train, given, **LEARNS)
    model.on_epoch_start(2)
    sum(step(model, wide_batch).values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


def test_a_share_is_held_out_of_rows_and_graph_and_comes_back(build, train, given):
    model = build("gated-ensemble", train, given, gate_share=0.25, **LEARNS)
    n_held = round(0.25 * len(train.users))
    assert int(model.held_out.sum()) == n_held
    kept = model.kept_graph.values.numel()
    assert kept == model.branches.graph.values.numel() - 2 * n_held
    splits = []
    for epoch in range(1, 7):
        model.on_epoch_start(epoch)
        splits.append((model.is_split, model.searches))
    assert splits == [(True, False), *[(True, True)] * 3, *[(False, False)] * 2]


def test_pairs_that_are_no_training_interactions_are_kept(build, train, given, dense):
    model = build("gated-ensemble", train, given, gate_share=0.99, **LEARNS)
    users, items = (torch.from_numpy(x) for x in np.nonzero(dense == 0))
    assert not model._held_out(Batch(users, items, items)).any()
    rows = Batch(train.users, train.items, train.items)
    assert torch.equal(model._held_out(rows), model.held_out)


def test_weights_start_anew_once_when_gates_are_found(build, train, given):
    model = build("gated-ensemble", train, given, **LEARNS)
    with torch.no_grad():
        model.gate.fill_(-0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for epoch in (1, 2, 3, 4):
        model.on_epoch_start(epoch)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.on_epoch_start(5)
    anew = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {key for key, value in anew.items() if not torch.equal(before[key], value)}
    assert changed == {key for key in before if key != "gate" and not key.endswith("bias")}
    model.on_epoch_start(6)
    assert all(torch.equal(anew[key], value) for key, value in model.state_dict().items())


def test_outside_the_search_a_step_draws_nothing(build, train, given, batch):
    model = build("gated-ensemble", train, given, **LEARNS)
    for epoch, draws in ((1, False), (2, True), (4, True), (6, False)):
        model.on_epoch_start(epoch)
        before = torch.get_rng_state()
        terms = model.training_step(batch)
        assert torch.equal(before, torch.get_rng_state()) != draws
        assert ("gates" in terms) == draws


def test_fixed_gates_are_ones_and_the_static_curriculum_is_the_same_model(
    build, train, given, batch, all_scores
):
    shape = {"embedding_size": 4, "n_layers": 2}
    static = build("gated-ensemble", train, given, gate="fixed", **shape)
    other = build("curriculum-ensemble", train, given, schedule="none", **shape)
    assert static.describe_state() == other.describe_state() == {}
    np.testing.assert_array_equal(all_scores(static, train), all_scores(other, train))
    for name, term in static.training_step(batch).items():
        assert torch.equal(term, other.training_step(batch)[name])


def test_a_closed_gate_takes_its_modality_out(build, train, given, batch, all_scores):
    model = build("gated-ensemble", train, given, **LEARNS)
    model.on_epoch_start(5)
    with torch.no_grad():
        model.gate.copy_(torch.tensor([0.0, -1.0, 0.0]))
    assert model.describe_state() == {
        "gate.visual": pytest.approx(1, abs=1e-3),
        "gate.textual": 0.0,
        "gate.acoustic": pytest.approx(1, abs=1e-3),
    }
    before = all_scores(model, train)
    with torch.no_grad():
        model.branches.project["textual"].weight.add_(1.0)
    np.testing.assert_array_equal(all_scores(model, train), before)
    (model.training_step(batch)["bpr"]).backward()
    assert float(model.branches.project["textual"].weight.grad.abs().max()) == 0.0


def test_parts_of_a_batch_add_up(build, train, given, wide_batch):
    model = build("gated-ensemble", train, given, **LEARNS).double()
    model.on_epoch_start(1)
    whole, n_rows = model.training_step(wide_batch), len(wide_batch)
    parts = [slice(0, 5), slice(5, 20), slice(20, n_rows)]
    for name, term in whole.items():
        total = sum(
            float(model.training_step(wide_batch.batch(p))[name].detach())
            * len(wide_batch.batch(p))
            for p in parts
        )
        assert total / n_rows == pytest.approx(float(term.detach()), rel=1e-9), name


def test_a_step_in_half_precision_is_near_that_in_single(build, train, given, wide_batch):
    model, sums = build("gated-ensemble", train, given, **LEARNS), []
    model.on_epoch_start(2)
    for half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = model.training_step(wide_batch)
        sums.append(sum(term.float() for term in terms.values()))
    assert float(sums[1].detach()) == pytest.approx(float(sums[0].detach()), rel=0.02)
    sums[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_extreme_draws_stay_finite(build, train, given, batch, monkeypatch):
    model = build("gated-ensemble", train, given, **LEARNS)
    model.on_epoch_start(2)
    for value in (0.0, 1.0):
        monkeypatch.setattr(torch, "rand", lambda *n, v=value, **_: torch.full(n, v))
        model.zero_grad()
        sum(model.training_step(batch).values()).backward()
        assert torch.isfinite(model.gate.grad).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate_from": 9, "gate_until": 8}, "gate_until=8 is before gate_from=9"),
        ({"gate_share": 1.0}, "less than 1"),
        ({"gate_share": 0.0}, "greater than 0"),
        ({"gate": "open"}, "'learned', 'training-loss' or 'fixed'"),
        ({"gate_weight": -1.0}, "greater than or equal to 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MODELS.get("gated-ensemble").info["config"](**settings)


# What was planted: items of six kinds, which the textual features tell; the visual ones are noise.


def planted(seed, n_users=100, n_items=90, n_kinds=6):
    rng = np.random.default_rng([seed, 77])
    kind, taste = np.arange(n_items) % n_kinds, np.arange(n_users) % n_kinds
    liked = kind[None, :] == taste[:, None]
    chosen = rng.random((n_users, n_items)) < np.where(liked, 0.6, 0.04)
    users, items = np.nonzero(chosen)
    train = Interactions(n_users, n_items, torch.from_numpy(users), torch.from_numpy(items))
    told = np.eye(n_kinds)[kind] + 0.1 * rng.standard_normal((n_items, n_kinds))
    noise = rng.standard_normal((n_items, 4))  # many more would tell items apart, as ids do
    sets = [
        ItemFeatures(
            f"{name}__made",
            name,
            torch.from_numpy(matrix.astype(np.float32)),
            torch.ones(n_items).bool(),
        )
        for name, matrix in (("textual", told), ("visual", noise))
    ]
    return train, sets, chosen


def searched(build, seed, gate, epochs=40):
    train, sets, chosen = planted(seed)
    model = build(
        "gated-ensemble",
        train,
        sets,
        seed=seed,
        embedding_size=8,
        n_layers=1,
        gate=gate,
        gate_until=None,
        gate_weight=0.03,
        regularization=1e-3,
    )
    generator = torch.Generator().manual_seed(seed)
    disliked = torch.from_numpy(~chosen).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for epoch in range(1, epochs + 1):
        model.on_epoch_start(epoch)
        order = torch.randperm(len(train.users), generator=generator)
        for rows in torch.split(order, 320):
            negatives = torch.multinomial(disliked[train.users[rows]], 1, generator=generator)
            batch = Batch(train.users[rows], train.items[rows], negatives[:, 0])
            terms = model.training_step(batch)
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
    return model.describe_state()


@pytest.mark.parametrize("seed", range(5))
def test_the_gate_closes_on_planted_noise_and_stays_open_on_planted_signal(seed, build):
    found = searched(build, seed, "learned")
    assert found["gate.visual"] == 0.0
    assert found["gate.textual"] > 0.9


@pytest.mark.parametrize("seed", range(2))
def test_a_gate_taught_by_the_training_loss_stays_open_on_noise(seed, build):
    assert searched(build, seed, "training-loss")["gate.visual"] > 0.9


def test_the_same_seed_finds_the_same_gates(build):
    assert searched(build, 1, "learned", 8) == searched(build, 1, "learned", 8)


def test_copies_keep_their_phase(build, train, given):
    model = build("gated-ensemble", train, given, **LEARNS)
    model.on_epoch_start(2)
    assert copy.deepcopy(model).searches
