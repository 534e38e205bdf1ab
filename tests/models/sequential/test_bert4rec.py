"""BERT4Rec: the corruption, the head, the loss at masked slots, and MASK at evaluation."""

from __future__ import annotations

import math

import pytest
import torch

SMALL = {"embedding_size": 4, "max_length": 5, "dropout": 0.0}


def noisy(model):
    """In float64, with norms that are not the identity and biases that are not zero."""
    for key, parameter in model.double().named_parameters():
        if "norm" in key or key.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
        else:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def outputs(literal, w, items, n_layers, head):
    """o_t at each slot, and logit(o, i); items may be 10, padding, or "MASK"."""
    table, positions = w["table.weight"], w["positions.weight"][-len(items) :]
    real = [item != 10 for item in items]
    x = [
        literal.norm(w, "norm", p + (table[10] if item == "MASK" else table[min(item, 9)]), 1e-12)
        for item, p in zip(items, positions, strict=True)
    ]
    for k in range(n_layers):
        x = literal.block(w, f"blocks.{k}", x, lambda t, s: real[s], 2, literal.gelu, 1e-12)
    if not head:
        return x
    return [
        literal.norm(w, "head_norm", literal.gelu(literal.linear(w, "head", row)), 1e-12)
        for row in x
    ]


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("loss", ["bce", "softmax", "in-batch"])
def test_loss_and_gradients_equal_the_loops(head, loss, build, train, batch, literal):
    settings = {"n_layers": 2, "mask_ratio": 0.5, "head": head, "loss": loss}
    model = noisy(build("bert4rec", train, [], **settings, **SMALL))
    w = literal.leaves(model)
    torch.manual_seed(11)
    masked = model._corruption(batch.sequences != 10)
    torch.manual_seed(11)
    found = model.training_step(batch)[loss]
    found.backward()

    # The bias of an item is one more number of its vector, and one of o's is 1.
    def item(i):
        vector = w["table.weight"][i]
        return torch.cat([vector, w["bias"][i : i + 1]]) if head else vector

    one = torch.ones(1, dtype=torch.float64)
    hidden = []
    for row, items in enumerate(batch.sequences.tolist()):
        shown = ["MASK" if masked[row, t] else i for t, i in enumerate(items)]
        out = outputs(literal, w, shown, 2, head)
        for t, i in enumerate(items):
            if masked[row, t]:
                h = torch.cat([out[t], one]) if head else out[t]
                own = {i for i in items if i != 10}
                hidden.append((h, i, int(batch.negatives[row, t]), own, row * 6 + t))
    candidates = [None if i == 10 else i for i in batch.sequences.flatten().tolist()]
    expected = literal.loss(loss, hidden, item, 10, (), candidates, train.item_degrees.tolist())
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)  # float32 popularity
    for key, parameter in model.named_parameters():
        wanted = torch.zeros_like(w[key]) if w[key].grad is None else w[key].grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-6, atol=1e-8, msg=key)


@pytest.mark.parametrize("head", [True, False])
def test_scores_are_those_of_a_mask_behind_the_history(head, build, train, sequences, literal):
    model = noisy(build("bert4rec", train, [], n_layers=1, head=head, **SMALL)).eval()
    w = literal.leaves(model)
    scores = model.score(model.catalogue(), sequences)
    assert scores.shape == (7, 10)  # MASK is no candidate
    for row, items in enumerate(sequences.tolist()):
        last = outputs(literal, w, [*items, "MASK"], 1, head)[-1]
        expected = w["table.weight"][:10] @ last + (w["bias"] if head else 0)
        torch.testing.assert_close(scores[row], expected, rtol=1e-9, atol=1e-10)


def test_the_corruption_has_the_stated_shares(build, train):
    model = build("bert4rec", train, [], mask_ratio=0.3, max_length=9)
    real = torch.arange(10) >= 10 - torch.tensor([1, 4, 10])[:, None]
    real = real.repeat(20_000, 1)
    torch.manual_seed(0)
    masked = model._corruption(real)
    assert not (masked & ~real).any()
    assert masked.any(dim=1).all()  # each sequence has something to be found
    alone = 1 / 11
    for row, n in enumerate((1, 4, 10)):
        of_kind = masked[row::3].double()
        none = (1 - alone) * 0.7**n
        last = alone + (1 - alone) * 0.3 + none
        assert float(of_kind[:, -1].mean()) == pytest.approx(last, abs=0.01)
        if n > 1:
            others = float(of_kind[:, 10 - n : -1].mean())
            assert others == pytest.approx((1 - alone) * 0.3, abs=0.01)


def test_the_corruption_at_its_ends(build, train):
    real = torch.arange(6) >= torch.tensor([0, 3, 5])[:, None]
    last = torch.zeros(3, 6).bool()
    last[:, -1] = True
    for ratio, last_only, expected in ((1.0, 0.0, real), (0.5, 1.0, last), (1e-12, 0.0, last)):
        model = build("bert4rec", train, [], mask_ratio=ratio, last_only=last_only)
        assert torch.equal(model._corruption(real), expected)


def test_the_corruption_follows_the_global_generator(build, train, batch):
    model = build("bert4rec", train, [], mask_ratio=0.5, **SMALL)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(float(model.training_step(batch)["bce"].detach()))
    assert values[0] == values[1] != values[2]


def test_it_sees_both_sides(build, train):
    """With all but the first item masked, a change of the last input reaches earlier slots."""
    model = noisy(build("bert4rec", train, [], **SMALL)).eval()
    inputs = torch.randn(1, 6, 4).double()
    real = torch.ones(1, 6).bool()
    before = model.encode(inputs, real)
    inputs[0, 5] += torch.randn(4)
    assert not torch.isclose(before[0, 0], model.encode(inputs, real)[0, 0]).all()


def test_padding_is_seen_by_nobody(build, train):
    model = noisy(build("bert4rec", train, [], **SMALL)).eval()
    inputs, real = torch.randn(1, 6, 4).double(), torch.arange(6)[None] >= 3
    before = model.encode(inputs, real)
    inputs[:, :3] += torch.randn(4)
    torch.testing.assert_close(before[:, 3:], model.encode(inputs, real)[:, 3:])


def test_it_starts_as_published(build, train):
    model = build("bert4rec", train, [], embedding_size=128)
    for weight in (model.blocks[0].inner.weight, model.head.weight, model.positions.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not model.bias.any()
    assert not model.blocks[0].attention.query.bias.any()


@pytest.mark.parametrize(
    "wrong", [{"mask_ratio": 0.0}, {"mask_ratio": 1.1}, {"last_only": -0.1}, {"dropout": math.inf}]
)
def test_settings_that_cannot_be(wrong, build, train):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build("bert4rec", train, [], **wrong)
