"""Sequence encoders and losses one slot at a time, from their equations, not from the fast code.

Everything is a Python loop over users, slots, heads and candidates. `w` maps names of parameters to
float64 tensors that want gradients, so that autograd differentiates the loops as well; a prefix
names the module whose parameters are meant. A hidden slot is left out, not given a small number.
"""

from __future__ import annotations

import math

import torch


def leaves(model):
    """The parameters of a float64 model by name, detached copies that want gradients."""
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


def linear(w, prefix, x):
    out = w[f"{prefix}.weight"] @ x
    return out + w[f"{prefix}.bias"] if f"{prefix}.bias" in w else out


def norm(w, prefix, x, epsilon):
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    scaled = (x - mean) / torch.sqrt(variance + epsilon)
    return w[f"{prefix}.weight"] * scaled + w[f"{prefix}.bias"]


def relu(x):
    return torch.where(x > 0, x, 0.0)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention(w, prefix, x, sees, n_heads):
    """For each slot t that sees anything, the heads' means of the values it sees; else None."""
    size = len(x[0]) // n_heads
    query, key, value = (
        [linear(w, f"{prefix}.{name}", row) for row in x] for name in ("query", "key", "value")
    )
    out = []
    for t in range(len(x)):
        visible = [s for s in range(len(x)) if sees(t, s)]
        joined = []
        for head in range(n_heads):
            part = slice(head * size, (head + 1) * size)
            weights = [torch.exp(query[t][part] @ key[s][part] / math.sqrt(size)) for s in visible]
            joined.append(
                sum(a * value[s][part] for a, s in zip(weights, visible, strict=True))
                / sum(weights)
                if visible
                else torch.zeros(size, dtype=torch.float64)
            )
        out.append(linear(w, f"{prefix}.output", torch.cat(joined)))
    return out


def block(w, prefix, x, sees, n_heads, activation, epsilon):
    """SR block with `relu` and 1e-6, BERT block with `gelu` and 1e-12."""
    attended = attention(w, f"{prefix}.attention", x, sees, n_heads)
    middle = [
        norm(w, f"{prefix}.first_norm", row + more, epsilon)
        for row, more in zip(x, attended, strict=True)
    ]
    return [
        norm(
            w,
            f"{prefix}.second_norm",
            row + linear(w, f"{prefix}.outer", activation(linear(w, f"{prefix}.inner", row))),
            epsilon,
        )
        for row in middle
    ]


def sasrec(w, prefix, x, real, n_layers, n_heads):
    """SASRec's encoder over the slots x_1 .. x_L; rows of padding are of no account."""
    positions = w[f"{prefix}positions.weight"]
    x = [norm(w, f"{prefix}norm", row + p, 1e-6) for row, p in zip(x, positions, strict=True)]
    for k in range(n_layers):
        sees = lambda t, s: s <= t and real[s]  # noqa: E731
        x = block(w, f"{prefix}blocks.{k}", x, sees, n_heads, relu, 1e-6)
    return x


def grurec(w, prefix, x, n_layers):
    """Gated recurrent units; the stacked matrices are those of reset, update and candidate."""
    for k in range(n_layers):
        of_x = w[f"{prefix}layers.weight_ih_l{k}"].chunk(3)
        of_h = w[f"{prefix}layers.weight_hh_l{k}"].chunk(3)
        h, out = torch.zeros_like(x[0]), []
        for row in x:
            r = torch.sigmoid(of_x[0] @ row + of_h[0] @ h)
            z = torch.sigmoid(of_x[1] @ row + of_h[1] @ h)
            c = torch.tanh(of_x[2] @ row + r * (of_h[2] @ h))
            h = (1 - z) * c + z * h
            out.append(h)
        x = out
    return x


def convolution(w, prefix, x, dilation):
    out = []
    for t in range(len(x)):
        total = w[f"{prefix}.bias"]
        for j in range(3):
            if t - j * dilation >= 0:  # the framework's kernel runs from the past to the present
                total = total + w[f"{prefix}.weight"][:, :, 2 - j] @ x[t - j * dilation]
        out.append(total)
    return out


def nextitnet(w, prefix, x, n_layers):
    for k, dilation in enumerate([1, 4] * n_layers):
        here = f"{prefix}blocks.{k}"
        y = convolution(w, f"{here}.first", x, dilation)
        y = [relu(norm(w, f"{here}.first_norm", row, 1e-8)) for row in y]
        z = convolution(w, f"{here}.second", y, 2 * dilation)
        x = [
            row + relu(norm(w, f"{here}.second_norm", more, 1e-8))
            for row, more in zip(x, z, strict=True)
        ]
    return x


def cross_entropy(logits, place):
    return torch.log(sum(torch.exp(logit) for logit in logits)) - logits[place]


def loss(kind, positions, item, n_items, drawn=(), candidates=(), popularity=()):
    """A loss over positions, each (h, target, negative, own items, place of the target).

    Args:
        item: the vector of an item.
        drawn: the items of sampled-softmax.
        candidates: the items of all slots of the batch, None at padding, for in-batch.
        popularity: training rows of each item, for in-batch.
    """
    total = 0.0
    for h, target, negative, own, place in positions:
        if kind == "bce":
            total = total - torch.log(torch.sigmoid(h @ item(target)))
            total = total - torch.log(1 - torch.sigmoid(h @ item(negative)))
        elif kind == "softmax":
            total = total + cross_entropy([h @ item(i) for i in range(n_items)], target)
        elif kind == "sampled-softmax":
            others = [h @ item(i) for i in drawn if i != target]
            total = total + cross_entropy([h @ item(target), *others], 0)
        else:
            logits = {
                at: h @ item(i) - math.log(popularity[i] / sum(popularity))
                for at, i in enumerate(candidates)
                if i is not None and (at == place or i not in own)
            }
            total = total + cross_entropy(list(logits.values()), list(logits).index(place))
    return total / len(positions)
