"""The shared objective against loops over its equations, and padding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmbench.models.base import MODELS
from mmbench.models.sequential.base import (
    ItemTable,
    SequenceBatch,
    bert_normal_,
    binary_cross_entropy,
    masked_mean,
    pad_sequences,
    xavier_normal_,
)

LOSSES = ["bce", "softmax", "sampled-softmax", "in-batch"]
SMALL = {"embedding_size": 4, "max_length": 5, "dropout": 0.0}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("content", [False, True])
def test_each_loss_equals_its_loops(
    loss, content, build, train, batch, literal, positions, monkeypatch
):
    """Free user vectors in place of an encoder, so that the loss alone is looked at."""
    model = build("sasrec", train, [], loss=loss, n_negatives=7, **SMALL).double()
    monkeypatch.setattr(type(model), "content", content)
    hidden = torch.randn(5, 5, 4, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(model, "encode", lambda inputs, real: hidden)
    torch.manual_seed(3)
    value = model.training_step(batch)
    assert list(value) == [loss]
    value[loss].backward()

    torch.manual_seed(3)
    drawn = torch.randint(10, (7,)).tolist()
    assert set(drawn) & set(batch.targets.flatten().tolist())  # some are targets: left out there
    table = model.table.weight.detach().clone().requires_grad_()
    free = hidden.detach().clone().requires_grad_()
    expected = literal.loss(
        loss,
        positions(batch, free),
        lambda item: table[item],
        10,
        drawn,
        [None if item == 10 else item for item in batch.sequences.flatten().tolist()],
        train.item_degrees.tolist(),
    )
    expected.backward()
    torch.testing.assert_close(value[loss], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(hidden.grad, free.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(model.table.weight.grad, table.grad, rtol=1e-5, atol=1e-7)


def test_two_means_are_added_and_padding_has_no_part():
    real = torch.tensor([[False, True, True]])
    positive = torch.tensor([[float("nan"), 2.0, -1.0]])
    negative = torch.tensor([[float("inf"), 0.5, 3.0]])
    expected = -(_log_sigmoid(2.0) + _log_sigmoid(-1.0)) / 2
    expected -= (_log_sigmoid(-0.5) + _log_sigmoid(-3.0)) / 2
    found = binary_cross_entropy(positive, negative, real)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    zeros = torch.zeros(1, 3)
    assert float(binary_cross_entropy(zeros, zeros, real)) == pytest.approx(2 * math.log(2))


def test_a_mean_over_nothing_is_zero():
    assert float(masked_mean(torch.ones(2, 3), torch.zeros(2, 3).bool())) == 0


def test_extreme_logits_have_finite_losses_and_gradients():
    logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    value = binary_cross_entropy(logits, -logits, torch.ones(1, 2).bool())
    value.backward()
    assert float(value.detach()) == pytest.approx(1e4)
    assert torch.isfinite(logits.grad).all()


def test_what_a_step_encodes_once_is_what_it_would_encode_at_each_slot(build, train, batch):
    """Values and gradients, with all noise off; no padding is ever encoded."""
    found = []
    for content in (False, True):
        model = build("sasrec", train, [], **SMALL).double()
        model.__class__ = type("Once", (type(model),), {"content": content})
        asked, of_table = [], model.table.forward
        model.table.forward = lambda items: (asked.append(items), of_table(items))[1]  # noqa: B023
        value = model.training_step(batch)["bce"]
        value.backward()
        assert all(int(items.max()) < 10 for items in asked)
        if content:
            (items,) = asked
            assert len(items) == len(items.unique())
        found.append((value.detach(), *(p.grad for p in model.parameters())))
    for slot_by_slot, once in zip(*found, strict=True):
        torch.testing.assert_close(slot_by_slot, once, rtol=1e-12, atol=1e-14)


def test_a_batch_without_padding_is_encoded_once_too(build, train):
    model = build("sasrec", train, [], **SMALL)
    full = torch.tensor([[3, 1, 4, 1, 5, 2]])
    batch = SequenceBatch(torch.tensor([0]), full, (full + 4) % 10)
    assert torch.equal(model._encoded_once(full), model._at_slots(full))
    assert torch.isfinite(model.training_step(batch)["bce"])


def test_the_loss_is_computed_in_full_precision(build, train, batch):
    model = build("sasrec", train, [], **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        value = model.training_step(batch)["bce"]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, model.training_step(batch)["bce"], rtol=0.02, atol=0.02)


def test_a_sequential_model_scores_sequences_alone(build, train):
    model = build("sasrec", train, [], **SMALL)
    with pytest.raises(TypeError, match="scores sequences, not users"):
        model.scores(torch.tensor([0]))
    torch.testing.assert_close(model.item_vectors(), model.catalogue())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length"),
        ({"loss": "hinge"}, "bce"),
        ({"n_negatives": 0}, "n_negatives"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MODELS.get("sasrec").info["config"](**settings)


def test_histories_are_cut_to_their_last_items_and_padded_on_the_left():
    items = torch.tensor([7, 8, 9, 5, 1, 2, 3, 4])  # of three users: 3, 1 and 4 items
    ends, lengths = torch.tensor([3, 4, 4, 8]), torch.tensor([3, 1, 0, 4])
    expected = [[7, 8, 9], [99, 99, 5], [99, 99, 99], [2, 3, 4]]
    assert pad_sequences(items, ends, lengths, 3, 99).tolist() == expected
    nothing = torch.empty(0, dtype=torch.int64)
    zero = torch.tensor([0])
    assert pad_sequences(nothing, zero, zero, 2, 99).tolist() == [[99, 99]]


def test_initialisation_has_the_stated_deviation():
    torch.manual_seed(0)
    table = ItemTable(3000, 50).weight  # Xavier normal of 3001 x 50, the padding row counted
    assert float(table.detach().std()) == pytest.approx(math.sqrt(2 / 3051), rel=0.02)
    linear = torch.nn.Sequential(torch.nn.Linear(300, 100))
    xavier_normal_(linear)
    assert float(linear[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.03)
    assert not linear[0].bias.any()
    bert_normal_(linear)
    assert float(linear[0].weight.detach().std()) == pytest.approx(0.02, rel=0.03)


def _log_sigmoid(x: float) -> float:
    return float(F.logsigmoid(torch.tensor(x, dtype=torch.float64)))
