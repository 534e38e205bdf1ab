"""The equations of UniSRec and VQ-Rec one slot, head and expert at a time, in float64.

Written from the equations: vectors are one-dimensional tensors, sums are Python loops, and the
gradient is that of these loops. `p` maps the names of parameters to tensors.
"""

from __future__ import annotations

import math

import torch

from mmbench.models.base import Interactions, ItemFeatures
from mmbench.models.sequential.base import SequenceBatch

N_USERS, N_ITEMS, LENGTH, WIDTH = 4, 7, 4, 5
HISTORIES = [[0, 1, 2, 3, 4], [5, 1, 0], [2, 4], [4, 3, 2, 4]]  # item 6 is in none


def world():
    """Training interactions of four users; user 3 has item 4 twice, item 6 is nobody's."""
    pairs = sorted((user, item) for user, items in enumerate(HISTORIES) for item in items)
    users, items = torch.tensor(pairs).T
    order = torch.tensor([item for items in HISTORIES for item in items])
    return Interactions(N_USERS, N_ITEMS, users.contiguous(), items.contiguous(), order)


def texts(width=WIDTH, modality="textual", seed=3, n_items=N_ITEMS):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n_items, width, generator=generator)
    return ItemFeatures(f"{modality}__made", modality, matrix, torch.ones(n_items).bool())


def batch():
    """The four sequences with L = 4, padded with item 7; users 0 and 3 share the last target."""
    pad = N_ITEMS
    rows = [[pad] * (LENGTH + 1 - len(items)) + items for items in HISTORIES]
    sequences = torch.tensor(rows)
    drawn = torch.tensor([[5, 6, 5, 6, 5], [2, 3, 6, 4, 6], [0, 1, 3, 5, 6], [6, 0, 1, 5, 0]])
    negatives = torch.where(sequences == pad, pad, drawn)
    return SequenceBatch(torch.arange(N_USERS), sequences, negatives)


def disturbed(model, seed=9):
    """The model in float64, away from zero biases, zero gates and unit gains."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return model


def parameters(model):
    """Copies of the parameters that the literal loss is differentiated by."""
    return {
        name: value.detach().clone().requires_grad_(True)
        for name, value in model.named_parameters()
    }


def linear(p, name, v):
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    return torch.stack(
        [sum(weight[o, i] * v[i] for i in range(len(v))) + bias[o] for o in range(len(bias))]
    )


def norm(p, name, v):
    mean = sum(v) / len(v)
    variance = sum((x - mean) ** 2 for x in v) / len(v)
    return (v - mean) / (variance + 1e-12).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(v):
    return torch.stack([0.5 * x * (1 + torch.erf(x / math.sqrt(2))) for x in v])


def encoder(p, vectors, n_heads, n_layers, length=LENGTH):
    """h of the real slots of one sequence, whose newest item is in slot L: a list of [d]."""
    first = length - len(vectors)
    states = [
        norm(p, "encoder.norm", v + p["encoder.positions.weight"][first + t])
        for t, v in enumerate(vectors)
    ]
    for layer in range(n_layers):
        name = f"encoder.blocks.{layer}"
        q, k, v = (
            [linear(p, f"{name}.attention.{part}", x) for x in states]
            for part in ("query", "key", "value")
        )
        after = []
        for t, state in enumerate(states):
            size = len(state) // n_heads
            heads = []
            for h in range(n_heads):
                part = slice(h * size, (h + 1) * size)
                seen = [(q[t][part] * k[s][part]).sum() / math.sqrt(size) for s in range(t + 1)]
                total = sum(torch.exp(x) for x in seen)
                heads.append(sum(torch.exp(x) / total * v[s][part] for s, x in enumerate(seen)))
            attended = linear(p, f"{name}.attention.output", torch.cat(heads))
            x = norm(p, f"{name}.first_norm", state + attended)
            inner = linear(p, f"{name}.outer", gelu(linear(p, f"{name}.inner", x)))
            after.append(norm(p, f"{name}.second_norm", x + inner))
        states = after
    return states


def dot(a, b, temperature=None):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b, temperature):
    return dot(a, b) / (dot(a, a) * dot(b, b)).sqrt() / temperature


def positions(p, item, n_heads, n_layers, histories=HISTORIES):
    """(user, slot, h, target) of every position of the training sequences."""
    for user, items in enumerate(histories):
        hidden = encoder(p, [item(i) for i in items[:-1]], n_heads, n_layers)
        for t, h in enumerate(hidden):
            yield user, LENGTH - len(hidden) + t, h, items[t + 1]


def softmax_loss(p, item, score, n_heads, n_layers):
    losses = []
    vectors = [item(i) for i in range(N_ITEMS)]
    for _, _, h, target in positions(p, item, n_heads, n_layers):
        logits = [score(h, e) for e in vectors]
        losses.append(-torch.log(torch.exp(logits[target]) / sum(torch.exp(x) for x in logits)))
    return sum(losses) / len(losses)


def bce_loss(p, item, score, n_heads, n_layers):
    losses, negatives = [], batch().negatives
    for user, slot, h, target in positions(p, item, n_heads, n_layers):
        right = score(h, item(target))
        wrong = score(h, item(int(negatives[user, slot + 1])))
        losses.append(-torch.log(torch.sigmoid(right)) - torch.log(1 - torch.sigmoid(wrong)))
    return sum(losses) / len(losses)


def contrast(rows, score, fake=None):
    """The in-batch contrast of rows (user, slot, h, key, target); fake(user, slot) adds a key."""
    losses = []
    for user, slot, h, key, target in rows:
        total = 0
        for other, place, _, their_key, their_target in rows:
            if place != slot:
                continue
            if other != user and their_target == target:
                total = total + 1.0  # exp(0)
            else:
                total = total + torch.exp(score(h, their_key))
        if fake is not None:
            total = total + torch.exp(score(h, fake(user, slot)))
        losses.append(-torch.log(torch.exp(score(h, key)) / total))
    return sum(losses) / len(losses)


def assert_same(model, loss, p, expected):
    """The model's loss and gradients are the literal ones."""
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    model.zero_grad()
    loss.backward()
    names = list(p)
    slopes = torch.autograd.grad(expected, list(p.values()), allow_unused=True)
    for name, slope in zip(names, slopes, strict=True):
        found = model.get_parameter(name).grad
        slope = torch.zeros_like(p[name]) if slope is None else slope
        found = torch.zeros_like(p[name]) if found is None else found
        torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: n + m)
