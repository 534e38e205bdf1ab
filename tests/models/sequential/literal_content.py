"""MMSR's equations one vector at a time, in float64, from the paper and not from the fast code.

Everything is a Python loop over items, tokens, slots and heads, on one-dimensional arrays. `p` maps
the names of parameters to arrays; a prefix names the module whose parameters are meant.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from mmbench.models.base import Interactions, ItemEncoder, ItemFeatures
from mmbench.models.sequential.base import SequenceBatch


def linear(p, prefix, v):
    out = p[f"{prefix}.weight"] @ v
    return out + p[f"{prefix}.bias"] if f"{prefix}.bias" in p else out


def norm(p, prefix, v, epsilon):
    centred = v - v.mean()
    scaled = centred / math.sqrt((centred**2).mean() + epsilon)
    return p[f"{prefix}.weight"] * scaled + p[f"{prefix}.bias"]


def relu(v):
    return np.maximum(v, 0)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def gelu(v):
    return np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in v])


def mean_of_real(tokens, real):
    kept = [token for token, there in zip(tokens, real, strict=True) if there]
    return sum(kept) / len(kept)


def attention(p, prefix, x, context, sees, heads):
    """One output for each query of `x`; sees(t, s): whether query t sees context s."""
    size = len(x[0]) // heads
    queries = [linear(p, f"{prefix}.query", v) for v in x]
    keys = [linear(p, f"{prefix}.key", v) for v in context]
    values = [linear(p, f"{prefix}.value", v) for v in context]
    out = []
    for t, query in enumerate(queries):
        joined = np.zeros_like(query)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            visible = [s for s in range(len(context)) if sees(t, s)]
            weights = [math.exp(query[part] @ keys[s][part] / math.sqrt(size)) for s in visible]
            for weight, s in zip(weights, visible, strict=True):
                joined[part] += weight / sum(weights) * values[s][part]
        out.append(linear(p, f"{prefix}.output", joined))
    return out


def bert_block(p, prefix, x, real, heads):
    looked = attention(p, f"{prefix}.attention", x, x, lambda t, s: real[s], heads)
    x = [norm(p, f"{prefix}.first_norm", a + b, 1e-12) for a, b in zip(x, looked, strict=True)]
    inner = [linear(p, f"{prefix}.outer", gelu(linear(p, f"{prefix}.inner", v))) for v in x]
    return [norm(p, f"{prefix}.second_norm", a + b, 1e-12) for a, b in zip(x, inner, strict=True)]


def sasrec(p, prefix, vectors, n_layers, heads):
    """User vectors of real slots alone; the last item is in the last slot."""
    positions = p[f"{prefix}.positions.weight"]
    first = len(positions) - len(vectors)
    x = [norm(p, f"{prefix}.norm", v + positions[first + t], 1e-6) for t, v in enumerate(vectors)]
    for layer in range(n_layers):
        block = f"{prefix}.blocks.{layer}"
        looked = attention(p, f"{block}.attention", x, x, lambda t, s: s <= t, heads)
        x = [norm(p, f"{block}.first_norm", a + b, 1e-6) for a, b in zip(x, looked, strict=True)]
        inner = [linear(p, f"{block}.outer", relu(linear(p, f"{block}.inner", v))) for v in x]
        x = [norm(p, f"{block}.second_norm", a + b, 1e-6) for a, b in zip(x, inner, strict=True)]
    return x


def coarse(p, prefix, name, vectors):
    """F.1 to F.5 of pooled vectors."""
    if name.endswith("+dnn"):
        f = coarse(p, f"{prefix}.coarse", name.removesuffix("+dnn"), vectors)
        for layer in range(3):
            f = relu(linear(p, f"{prefix}.layers.{layer}", f))
        return f
    v = [norm(p, f"{prefix}.norm", vector, 1e-6) for vector in vectors]
    if name == "sum":
        return sum(linear(p, f"{prefix}.maps.{m}", vector) for m, vector in enumerate(v))
    if name == "concat":
        return linear(p, f"{prefix}.output", np.concatenate(v))
    x, y = v
    if name == "film":
        both = linear(p, f"{prefix}.film", x)
        scale, shift = both[: len(x)], both[len(x) :]
        return linear(p, f"{prefix}.output", scale * y + shift)
    opened = sigmoid(linear(p, f"{prefix}.gate", x)) * linear(p, f"{prefix}.value", y)
    return linear(p, f"{prefix}.output", opened)


def merge_attention(p, prefix, tokens, real, n_blocks, heads):
    """F.6 of one item: tokens and masks by modality."""
    if f"{prefix}.types.weight" in p:
        types = p[f"{prefix}.types.weight"]
        tokens = [[v + types[m] for v in some] for m, some in enumerate(tokens)]
    joined = [v for some in tokens for v in some]
    there = [w for some in real for w in some]
    for block in range(n_blocks):
        joined = bert_block(p, f"{prefix}.blocks.{block}", joined, there, heads)
    return mean_of_real(joined, there)


def co_attention(p, prefix, tokens, real, heads):
    """F.7 of one item."""
    types = p[f"{prefix}.types.weight"]
    x, y = ([v + types[m] for v in some] for m, some in enumerate(tokens))

    def look(own, other, there):
        seen = attention(p, f"{prefix}.cross", own, other, lambda t, s: there[s], heads)
        return [norm(p, f"{prefix}.norm", a + b, 1e-12) for a, b in zip(own, seen, strict=True)]

    x, y = look(x, y, real[1]), look(y, x, real[0])
    x = bert_block(p, f"{prefix}.blocks.0", x, real[0], heads)
    y = bert_block(p, f"{prefix}.blocks.1", y, real[1], heads)
    pooled = [mean_of_real(x, real[0]), mean_of_real(y, real[1])]
    return linear(p, f"{prefix}.output", np.concatenate(pooled))


def loss(sequences, negatives, padding, vector, encode):
    """L.1: `vector` of an item, `encode` of the vectors of real slots."""
    positive, negative, n = 0.0, 0.0, 0
    for sequence, drawn in zip(sequences, negatives, strict=True):
        slots = [t for t, item in enumerate(sequence) if item != padding]
        hidden = encode([vector(sequence[t]) for t in slots[:-1]])
        for h, t in zip(hidden, slots[1:], strict=True):
            positive -= math.log(sigmoid(h @ vector(sequence[t])))
            negative -= math.log(1 - sigmoid(h @ vector(drawn[t])))
            n += 1
    return positive / n + negative / n


def parameters(module):
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def check_gradients(module, literal, seed=0):
    """Every parameter's gradient, along a random direction each, by central differences.

    Args:
        module: in float64, its gradients computed already.
        literal: the same scalar as a function of `p`.
    """
    rng = np.random.default_rng(seed)
    values = parameters(module)
    assert values
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        way = rng.standard_normal(parameter.shape)
        way /= np.linalg.norm(way)
        up, down = (literal({**values, name: values[name] + step * way}) for step in (1e-5, -1e-5))
        got = float((parameter.grad.numpy() * way).sum())
        np.testing.assert_allclose(got, (up - down) / 2e-5, rtol=1e-5, atol=1e-6, err_msg=name)


class WordEncoder(ItemEncoder):
    """A live encoder of the smallest kind: a vector for each word, mapped once."""

    def __init__(self, modality, words, mask, width):
        super().__init__()
        self.modality, self.width = modality, width
        self.register_buffer("words", words)
        self.register_buffer("mask", mask)
        self.table = nn.Embedding(int(words.max()) + 1, width)
        self.map = nn.Linear(width, width)
        self.asked = []

    def forward(self, items):
        self.asked.append(items.tolist())
        return torch.tanh(self.map(self.table(self.words[items]))), self.mask[items]

    def literal(self, p, prefix, item):
        """States and mask of one item."""
        states = [
            np.tanh(linear(p, f"{prefix}.map", p[f"{prefix}.table.weight"][word]))
            for word in self.words[item].tolist()
        ]
        return states, self.mask[item].tolist()


N_USERS, N_ITEMS = 4, 7


def interactions():
    """Four users with three to five items each."""
    histories = [[0, 3, 5, 1], [2, 0, 4], [6, 1, 2, 3, 5], [4, 6, 0]]
    users = torch.tensor([u for u, items in enumerate(histories) for _ in items])
    ordered = torch.tensor([item for items in histories for item in items])
    flat = torch.tensor([item for items in histories for item in sorted(items)])
    return Interactions(N_USERS, N_ITEMS, users, flat, ordered)


def batch(padding=N_ITEMS):
    """Three sequences in four input slots; an item is seen in several roles."""
    x = padding
    sequences = [[x, 0, 3, 5, 1], [x, x, 2, 0, 4], [6, 1, 2, 3, 5]]
    negatives = [[x, 2, 4, 6, 2], [x, x, 1, 3, 1], [0, 4, 4, 0, 4]]
    return SequenceBatch(torch.arange(3), torch.tensor(sequences), torch.tensor(negatives))


def pooled_features(modality, width, seed=0, n_items=N_ITEMS):
    """Stored vectors, one for each item."""
    rng = np.random.default_rng([seed, len(modality)])
    matrix = torch.from_numpy(rng.standard_normal((n_items, width)))
    return ItemFeatures(f"{modality}__made", modality, matrix, torch.ones(n_items).bool())


def token_features(modality, width, n_tokens, seed=0, n_items=N_ITEMS):
    """Stored tokens; every item has the first one, and some have all."""
    rng = np.random.default_rng([seed, len(modality), n_tokens])
    tokens = torch.from_numpy(rng.standard_normal((n_items, n_tokens, width)))
    mask = torch.from_numpy(rng.random((n_items, n_tokens)) < 0.6)
    mask[:, 0] = True
    mask[0] = True
    return ItemFeatures(
        f"{modality}__made",
        modality,
        tokens[:, 0],
        torch.ones(n_items).bool(),
        tokens * mask[:, :, None],
        mask,
    )


def live_features(modality, width, n_tokens, seed=0, n_items=N_ITEMS):
    """An encoder that learns, in place of stored states."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(6, (n_items, n_tokens), generator=generator)
    mask = torch.rand(n_items, n_tokens, generator=generator) < 0.6
    mask[:, 0] = True
    encoder = WordEncoder(modality, words, mask, width)
    none = torch.empty(n_items, 0)
    return ItemFeatures(
        f"{modality}__live", modality, none, torch.ones(n_items).bool(), encoder=encoder
    )


def states_of(features, p, item):
    """States of an item's tokens and which are real, of any of the three kinds."""
    if features.encoder is not None:
        prefix = f"states.{features.modality}.encoder"
        return features.encoder.literal(p, prefix, item)
    if features.tokens is not None:
        return list(features.tokens[item].numpy()), features.token_mask[item].tolist()
    return [features.matrix[item].numpy()], [True]
