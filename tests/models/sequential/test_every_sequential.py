"""What every registered sequential model must do, whichever it is.

A new model is found by listing. Where its settings are called otherwise, where it takes other
modalities, or where its equations say something else, a line in the tables below says so.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from mmbench.engine.inputs import Ragged, Target
from mmbench.engine.ranking import Ranker
from mmbench.errors import ConfigError, DataError
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS
from mmbench.models.sequential.base import SequenceBatch, SequentialRecommender

NAMES = [name for name in MODELS.names() if MODELS.get(name).obj.family == "sequential"]
SIZE, LENGTH, N_ITEMS = 8, 5, 10  # as in conftest.py
COMMON = {"embedding_size": SIZE, "max_length": LENGTH}
SETTINGS: dict[str, dict[str, object]] = {
    "sasrec": {"dropout": 0.1},
    "grurec": {"n_layers": 2},
    "bert4rec": {"mask_ratio": 0.4, "dropout": 0.0},
    # Its own way, where a target stands in the profile it is sought in, has no order to learn.
    "carca": {"n_heads": 2, "n_layers": 2, "dropout": 0.0, "causal": True},
    "carca-pp": {"dropout": 0.0},
    "fdsa": {"dropout": 0.0},
    # Without what is drawn; the published dropout of a half is too much for ten items.
    "unisrec": {"dropout": 0.0, "adaptor_dropout": 0.0, "gate_noise": False},
    "vqrec": {"dropout": 0.0, "n_parts": 4, "n_centroids": 8, "rotation_rounds": 3},
}
"""Settings beyond COMMON."""
GIVEN: dict[str, list[str]] = {
    "morec": ["textual"],  # exactly one
    "unisrec": ["textual"],
    "vqrec": ["textual"],
}
"""Modalities that a model is given, where that is not both texts and pictures."""
ONE_STEP: dict[str, dict[str, object]] = {"bert4rec": {"last_only": 1.0}}
"""Settings under which a sequence of two items is one prediction: from the first the second."""
PADDING_MATTERS = {"nextitnet"}
"""Models whose scores depend on how many slots of padding stand before the history."""
BIDIRECTIONAL = {"bert4rec"}
"""Models without a causal `encode`."""
DRAWS = {"bert4rec"}
"""Models whose training step draws numbers even in evaluation mode."""
LOSSES = {
    "carca": ["bce", "sampled-softmax"],
    "carca-pp": ["bce", "sampled-softmax"],
    "unisrec": ["bce", "softmax"],  # of the cosine
}
"""The losses of models that do not know all four."""
STEPS = {"bert4rec": 200, "carca": 100}
"""Steps to learn an order, where that takes more than 50."""
UNCHECKED_GRADIENT: set[str] = set()
"""Models whose loss is not the function whose gradient they follow."""


def modalities(name):
    usable = MODELS.get(name).obj.modalities
    return GIVEN.get(name, [m for m in ("textual", "visual") if m in usable])


@pytest.fixture
def make(build, train, given):
    """`make(name, seed=0, train=train, **settings)`: a small model with what it needs."""

    def making(name, seed=0, train=train, **settings):
        known = MODELS.get(name).info["config"].model_fields
        common = {key: value for key, value in COMMON.items() if key in known}
        features = given(modalities(name), train.n_items)
        return build(name, train, features, seed, **common, **SETTINGS.get(name, {}), **settings)

    return making


def scores_of(model, sequences):
    model.eval()
    with torch.no_grad():
        return model.score(model.catalogue(), sequences)


def step(model, batch, seed=7):
    torch.manual_seed(seed)
    return sum(model.training_step(batch).values())


def learn(model, next_batch, n_steps, rate=0.01):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        sum(model.training_step(next_batch()).values()).backward()
        optimizer.step()
    return model


def test_the_lists_above_hold_models_alone():
    assert set(NAMES) >= {"sasrec", "grurec", "nextitnet", "bert4rec"}
    for table in (SETTINGS, GIVEN, ONE_STEP, PADDING_MATTERS, BIDIRECTIONAL, DRAWS):
        assert set(table) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_states_its_kind_and_its_source(name):
    entry = MODELS.get(name)
    assert issubclass(entry.obj, SequentialRecommender)
    assert (entry.obj.integration == "none") == (not entry.obj.modalities)
    assert entry.obj.modalities <= set(MODALITIES)
    assert entry.obj.fitting == "gradient"
    assert len(entry.info["citation"]) > 20
    assert (entry.info["config"].__doc__ or "").strip()
    with pytest.raises(ValueError, match="no_such_setting"):
        entry.info["config"](no_such_setting=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_finite_gradient(name, make, batch):
    model = make(name)
    terms = model.training_step(batch)
    assert all(term.shape == () for term in terms.values())
    sum(terms.values()).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", sorted(set(NAMES) - UNCHECKED_GRADIENT))
def test_gradients_equal_central_differences(name, make, batch):
    model = make(name).double().eval()
    rng = np.random.default_rng(0)
    step(model, batch).backward()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        for position in rng.choice(slope.abs().argsort(descending=True)[:9].numpy(), 1):
            values = []
            for change in (1e-6, -2e-6, 1e-6):
                flat[position] += change
                with torch.no_grad():
                    values.append(float(step(model, batch)))
            difference = (values[0] - values[1]) / 2e-6
            assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("name", NAMES)
def test_the_scores_are_what_the_loss_is_made_of(name, make):
    """Of sequences of two items: one prediction each, from the first item the second."""
    known = MODELS.get(name).info["config"].model_fields
    settings = {"loss": "bce"} if "loss" in known else {}
    model = make(name, **settings, **ONE_STEP.get(name, {})).eval()
    pairs = torch.tensor([[3, 1], [0, 2], [7, 7]])
    negatives = torch.tensor([4, 9, 5])
    padding = torch.full((3, LENGTH - 1), N_ITEMS)
    slots = torch.cat([padding, torch.stack([negatives, negatives], dim=1)], dim=1)
    batch = SequenceBatch(torch.arange(3), torch.cat([padding, pairs], dim=1), slots)
    scores = scores_of(model, torch.cat([padding, pairs[:, :1]], dim=1))
    expected = 0.0
    for row in range(3):
        wanted, other = (float(scores[row, i]) for i in (pairs[row, 1], negatives[row]))
        expected += math.log1p(math.exp(-wanted)) + math.log1p(math.exp(other))
    terms = model.training_step(batch)
    assert float(terms["bce"].detach()) == pytest.approx(expected / 3, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_factors_multiply_to_the_scores(name, make, sequences):
    model = make(name).eval()
    scores = scores_of(model, sequences)
    assert scores.shape == (7, N_ITEMS)
    assert scores.dtype == torch.float32
    if model.factors:
        catalogue = model.catalogue()
        users = model.represent(catalogue, sequences)
        assert len(catalogue) == N_ITEMS
        torch.testing.assert_close(scores, users @ catalogue.T)
        torch.testing.assert_close(model.item_vectors(), catalogue)


@pytest.mark.parametrize("name", NAMES)
def test_scores_depend_on_the_sequence_alone(name, make, batch, sequences):
    """Not on its neighbours, their number or order, nor on the last training step."""
    model = make(name)
    together = scores_of(model, sequences)
    alone = torch.cat([scores_of(model, row[None]) for row in sequences])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    torch.testing.assert_close(
        scores_of(model, sequences[order]), together[order], rtol=1e-4, atol=1e-5
    )
    model.train()
    step(model, batch).backward()
    assert torch.equal(scores_of(model, sequences), together)


@pytest.mark.parametrize("name", NAMES)
def test_a_shuffled_batch_has_the_same_loss(name, make, batch):
    model = make(name, **ONE_STEP.get(name, {})).eval()
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = SequenceBatch(batch.users[order], batch.sequences[order], batch.negatives[order])
    torch.testing.assert_close(step(model, batch), step(model, shuffled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_ranker_is_not_misled_by_training_mode(name, make, sequences):
    model = make(name)
    counts = (sequences != N_ITEMS).sum(dim=1).numpy()
    histories = Ragged(
        np.concatenate([[0], np.cumsum(counts)]), sequences[sequences != N_ITEMS].numpy()
    )
    nothing = Ragged(np.zeros(8, np.int64), np.empty(0, np.int64))
    target = Target(np.arange(7), Ragged(np.arange(8), np.full(7, 4)), nothing, histories)
    expected = scores_of(model, sequences).sort(dim=1, descending=True).values
    for training in (True, False):
        model.train(training)
        ranker = Ranker(
            target, np.ones(N_ITEMS), counts, np.arange(N_ITEMS), torch.device("cpu"), 200
        )
        listed, _ = ranker.top(model, N_ITEMS)
        assert model.training == training
        found = scores_of(model, sequences).gather(1, listed)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(NAMES) - BIDIRECTIONAL))
def test_no_slot_sees_a_later_one(name, make, batch):
    """The gradient of an early prediction with respect to later inputs is nothing."""
    model = make(name).double().eval()
    if not model.factors and type(model).encode is SequentialRecommender.encode:
        pytest.fail(f"{name} has no encode: say above how its causality is tested")
    inputs = torch.randn(2, LENGTH, _width(model, batch)).double().requires_grad_()
    real = torch.arange(LENGTH) >= torch.tensor([0, 2])[:, None]
    hidden = model.encode(inputs * real[:, :, None], real)
    for slot in range(LENGTH):
        (slope,) = torch.autograd.grad(
            hidden[:, slot][real[:, slot]].sum(), inputs, retain_graph=True
        )
        assert not slope[:, slot + 1 :].any()
        assert not slope[~real].any()


def _width(model, batch):
    """The width of `encode`'s inputs, from what a training step hands it."""
    seen = []
    original = model.encode
    model.encode = lambda inputs, real: (seen.append(inputs.shape[2]), original(inputs, real))[1]
    model.training_step(batch)
    del model.encode
    return seen[0]


@pytest.mark.parametrize("name", NAMES)
def test_more_padding(name, make, sequences):
    """Of no account, but for the models that say so."""
    model = make(name)
    few = sequences[1:4]  # two items, none, one
    long, short = scores_of(model, few)[[0, 2]], scores_of(model, few[:, -2:])[[0, 2]]
    same = torch.allclose(long, short, rtol=1e-4, atol=1e-6)
    assert same == (name not in PADDING_MATTERS)


@pytest.mark.parametrize("name", NAMES)
def test_odd_sequences_have_finite_scores_and_losses(name, make):
    """Items that nobody has in training, no history, one item, one item again and again."""
    model = make(name)
    odd = torch.tensor([[9] * 5, [10] * 5, [10] * 4 + [9], [2] * 5, [10] * 3 + [0, 9]])
    assert torch.isfinite(scores_of(model, odd)).all()
    model.train()
    sequences = torch.tensor([[9] * 6, [10] * 4 + [9, 9], [2] * 6])
    negatives = torch.where(sequences == 10, 10, 5)
    loss = step(model, SequenceBatch(torch.arange(3), sequences, negatives))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_without_opinions_the_loss_is_two_logarithms_of_two(name, make, batch):
    known = MODELS.get(name).info["config"].model_fields
    model = make(name, **({"loss": "bce"} if "loss" in known else {}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    terms = model.training_step(batch)
    assert float(terms["bce"].detach()) == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["bce", "softmax", "sampled-softmax", "in-batch"])
def test_every_loss_falls(name, loss, make, batch):
    if loss not in LOSSES.get(name, [loss]):
        with pytest.raises((ValueError, ConfigError), match="loss"):
            make(name, loss=loss)
        return
    model = make(name, loss=loss, n_negatives=6)
    before = float(step(model.eval(), batch).detach())
    learn(model, lambda: batch, 15)
    assert float(step(model.eval(), batch).detach()) < before


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seeds_give_the_same_weights_and_they_can_be_stored(name, make, batch, sequences):
    one, two = (learn(make(name), lambda: batch, 2) for _ in range(2))
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[key]), key
    other = make(name, seed=1)
    assert not torch.equal(scores_of(other, sequences), scores_of(one, sequences))
    other.load_state(load(save({k: v.contiguous() for k, v in one.state_dict().items()})))
    assert torch.equal(scores_of(other, sequences), scores_of(one, sequences))


@pytest.mark.parametrize("name", ["sasrec", "grurec", "nextitnet", "bert4rec"])
def test_weights_of_another_dataset_are_refused(name, make, cycle):
    with pytest.raises(DataError, match="do not fit this"):
        make(name).load_state(make(name, train=cycle[0]).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_trains(name, make, batch):
    model = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = step(model, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_the_order_which_popularity_cannot(name, make, cycle):
    """Each item is followed by the one after it; all are equally popular."""
    train, fixed = cycle
    owned = torch.zeros(len(fixed), 13).scatter(1, fixed.sequences, 1.0)[:, :12]

    def next_batch():
        drawn = torch.multinomial(1 - owned, 6, replacement=True)
        negatives = torch.where(fixed.sequences == 12, 12, drawn)
        return SequenceBatch(fixed.users, fixed.sequences, negatives)

    model = learn(make(name, train=train), next_batch, STEPS.get(name, 50), rate=0.02)
    inputs = fixed.sequences[:, 1:]
    following = (inputs[:, -1] + 1) % 12
    scores = scores_of(model, inputs).masked_fill(owned > 0, -torch.inf)
    hits = (scores.argmax(dim=1) == following).float().mean()
    assert hits > 0.6
    assert len(train.item_degrees.unique()) == 1  # so popularity finds one of six at best
