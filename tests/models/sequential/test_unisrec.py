"""UniSRec against loops over its equations; its modes, its noise and what it refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.base import ItemEncoder
from mmbench.models.sequential.unisrec import MixtureAdaptor, UniSRec, UniSRecConfig, left_out

spec = importlib.util.spec_from_file_location(
    "literal_cosine", Path(__file__).with_name("literal_cosine.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

SIZES = {
    "embedding_size": 4,
    "inner_size": 6,
    "n_layers": 1,
    "max_length": literal.LENGTH,
    "dropout": 0.0,
    "adaptor_dropout": 0.0,
    "n_experts": 3,
}
QUIET = {"gate_noise": False}
SCORES = {
    "dot": literal.dot,
    "cosine": lambda a, b: literal.cosine(a, b, 0.07),
}


def made(seed=0, given=None, **settings):
    torch.manual_seed(seed)
    return UniSRec(
        UniSRecConfig(**{**SIZES, **settings}),
        literal.world(),
        [literal.texts()] if given is None else given,
    )


def adapted(p, x, noise=None):
    """Sum of gates times experts of one vector x, by the equations."""
    n_inputs, n_experts = p["adaptor.gate"].shape
    logits = []
    for k in range(n_experts):
        logit = sum(x[a] * p["adaptor.gate"][a, k] for a in range(n_inputs))
        if noise is not None:
            spread = sum(x[a] * p["adaptor.noise"][a, k] for a in range(n_inputs))
            logit = logit + noise[k] * torch.log(1 + torch.exp(spread)) + 0.01 * noise[k]
        logits.append(logit)
    total = sum(torch.exp(z) for z in logits)
    result = 0
    for k, logit in enumerate(logits):
        shifted = x - p["adaptor.shifts"][k]
        expert = sum(shifted[a] * p["adaptor.weights"][k, a] for a in range(n_inputs))
        result = result + torch.exp(logit) / total * expert
    return result


def item_of(p, noise=None):
    x = literal.texts().matrix.double()

    def item(i):
        e = adapted(p, x[i], None if noise is None else noise[i])
        return e + p["table"][i] if "table" in p else e

    return item


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
@pytest.mark.parametrize(
    ("similarity", "loss"), [("cosine", "softmax"), ("dot", "bce"), ("dot", "softmax")]
)
def test_losses_and_gradients_equal_loops_over_the_equations(mode, similarity, loss):
    model = literal.disturbed(made(mode=mode, similarity=similarity, loss=loss, **QUIET))
    p = literal.parameters(model)
    assert ("table" in p) == (mode == "transductive")
    compute = {"bce": literal.bce_loss, "softmax": literal.softmax_loss}[loss]
    expected = compute(p, item_of(p), SCORES[similarity], 2, 1)
    literal.assert_same(model, model.training_step(literal.batch())[loss], p, expected)


def test_with_noise_in_the_gates_too(monkeypatch):
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model = literal.disturbed(made())
    p = literal.parameters(model)
    expected = literal.softmax_loss(p, item_of(p, noise), SCORES["cosine"], 2, 1)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise[: len(like)])
    loss = model.training_step(literal.batch())["softmax"]
    monkeypatch.undo()
    literal.assert_same(model, loss, p, expected)


def test_the_contrasts_equal_loops_over_the_equations(monkeypatch):
    model = literal.disturbed(
        made(objective="contrast", sequence_weight=0.5, item_drop=0.3, **QUIET)
    )
    p = literal.parameters(model)
    item = item_of(p)
    drawn = torch.tensor(
        [[0.1, 0.9, 0.2, 0.5], [0.9, 0.9, 0.9, 0.0], [0.9, 0.9, 0.9, 0.1], [0.3, 0.9, 0.9, 0.9]]
    )
    # Of 0 1 2 3 stay 1 3; of 5 1 stays 5; of 2 none would, so the newest does; all of 4 3 2.
    varied = [[1, 3], [5], [2], [4, 3, 2]]
    rows = [
        (user, slot, h, item(target), target)
        for user, slot, h, target in literal.positions(p, item, 2, 1)
    ]
    of_items = literal.contrast(rows, SCORES["cosine"])
    sequences = []
    for user, kept in enumerate(varied):
        whole = [item(i) for i in literal.HISTORIES[user][:-1]]
        h = literal.encoder(p, whole, 2, 1)[-1]
        other = literal.encoder(p, [item(i) for i in kept], 2, 1)[-1]
        sequences.append((user, 0, h, other, literal.HISTORIES[user][-1]))
    of_sequences = 0.5 * literal.contrast(sequences, SCORES["cosine"])
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: drawn)
    terms = model.training_step(literal.batch())
    monkeypatch.undo()
    torch.testing.assert_close(terms["item_contrast"], of_items, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(terms["sequence_contrast"], of_sequences, rtol=1e-6, atol=1e-8)
    literal.assert_same(model, sum(terms.values()), p, of_items + of_sequences)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_scores_equal_loops_over_the_equations(similarity):
    model = literal.disturbed(made(similarity=similarity, mode="transductive")).eval()
    p = {name: value.detach() for name, value in literal.parameters(model).items()}
    item = item_of(p)
    with torch.no_grad():
        scores = model.score(model.catalogue(), literal.batch().inputs)
    for user, items in enumerate(literal.HISTORIES):
        h = literal.encoder(p, [item(i) for i in items[:-1]], 2, 1)[-1]
        for i in range(literal.N_ITEMS):
            expected = float(SCORES[similarity](h, item(i)))
            assert float(scores[user, i]) == pytest.approx(expected, rel=1e-6)
    assert model.factors == (similarity == "dot")


def test_gates_start_equal_and_noise_is_in_training_alone():
    torch.manual_seed(0)
    adaptor = MixtureAdaptor(5, 4, 3, 0.0, noisy=True)
    x = literal.texts().matrix
    mean = sum(x @ weight for weight in adaptor.weights) / 3
    torch.testing.assert_close(adaptor.eval()(x), mean)
    adaptor.train()
    assert not torch.allclose(adaptor(x), adaptor(x))
    quiet = MixtureAdaptor(5, 4, 3, 0.0, noisy=False)
    assert torch.equal(quiet(x), quiet(x))
    # The noise at the start: normal with deviation softplus(0) + 0.01.
    seen = []
    softmax = torch.Tensor.softmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", lambda t, dim: seen.append(t) or softmax(t, dim))
        adaptor(x.repeat(2000, 1))
    assert float(seen[0].detach().std()) == pytest.approx(math.log(2) + 0.01, rel=0.02)


def test_each_expert_drops_its_own_inputs():
    torch.manual_seed(0)
    adaptor = MixtureAdaptor(400, 1, 2, 0.2, noisy=False)
    with torch.no_grad():
        adaptor.weights.fill_(1.0)
    ones = torch.ones(500, 400)
    sums = adaptor(ones).detach() * 0.8  # of 800 inputs, each kept or not, halved by the gates
    assert float(sums.mean()) == pytest.approx(0.8 * 400, rel=0.01)
    # One mask for both experts would have a variance of 400 * 0.2 * 0.8, two have half of it.
    assert float(sums.var()) == pytest.approx(32.0, rel=0.25)
    torch.testing.assert_close(adaptor.eval()(ones), torch.full((500, 1), 400.0))


def test_left_out_items_close_up_to_the_right():
    inputs = torch.arange(1.0, 13.0).view(3, 4, 1)
    real = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]).bool()
    keep = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1], [1, 1, 0, 0]]).bool()
    moved, kept = left_out(inputs * real[:, :, None], real, keep)
    assert moved[:, :, 0].tolist() == [[0, 0, 1, 3], [0, 0, 6, 8], [0, 0, 0, 12]]
    assert kept.tolist() == [[False, False, True, True]] * 2 + [[False, False, False, True]]


def test_a_new_item_is_adapted_without_a_free_vector():
    model = made(mode="transductive").eval()
    with torch.no_grad():
        new = model.new_items(literal.texts().matrix)
        torch.testing.assert_close(new + model.table, model.catalogue())


def test_a_frozen_encoder_leaves_adaptor_and_norm_to_learn():
    model = made(freeze_encoder=True)
    learns = {name for name, value in model.named_parameters() if value.requires_grad}
    adaptor = {f"adaptor.{part}" for part in ("weights", "shifts", "gate", "noise")}
    assert learns == {"encoder.norm.weight", "encoder.norm.bias"} | adaptor


def test_one_seed_one_model():
    for (name, a), b in zip(made().state_dict().items(), made().state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert "features" not in made().state_dict()


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "transductive"}, {"objective": "contrast"}, {"loss": "bce"}]
)
def test_training_lowers_the_loss(settings):
    model = made(**settings, item_drop=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = sum(model.training_step(literal.batch()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_bad_settings_and_inputs_are_refused():
    with pytest.raises(ValueError, match="does not divide into n_heads 2"):
        UniSRecConfig(embedding_size=5)
    with pytest.raises(ValueError, match="loss sampled-softmax compares by dot product"):
        UniSRecConfig(loss="sampled-softmax")
    with pytest.raises(ValueError, match="item_drop"):
        UniSRecConfig(item_drop=1.0)
    with pytest.raises(ConfigError, match=r"give features\.textual"):
        made(given=[])
    learns = dataclasses.replace(literal.texts(), matrix=torch.zeros(7, 0), encoder=ItemEncoder())
    with pytest.raises(ConfigError, match=r"in place of encoders\.textual"):
        made(given=[learns])
