"""FDSA and CARCA one vector at a time, in float64, from their equations and not the fast code.

Everything is a Python loop over slots, heads and items, on one-dimensional arrays. `p` maps the
names of parameters to arrays, `a` modalities to feature matrices. A history is a list of items,
oldest first, without padding; slot numbers count from the newest, whose position is the last row.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mmbench.models.base import MODELS, Interactions, ItemFeatures
from mmbench.models.sequential.base import SequenceBatch

N_ITEMS, LENGTH = 9, 5
WIDTHS = {"visual": 4, "textual": 3, "acoustic": 2}
HISTORIES = [[0, 3, 1, 7, 2, 3], [4, 0, 6], [8, 2]]  # L + 1 items, fewer, and one position
NEGATIVES = [[4, 5, 6, 8, 4, 5], [1, 5, 2], [5, 3]]  # item 5 is in no history


def train():
    users = torch.tensor([u for u, items in enumerate(HISTORIES) for _ in set(items)])
    items = torch.tensor([i for items in HISTORIES for i in sorted(set(items))])
    return Interactions(len(HISTORIES), N_ITEMS, users, items)


def given(*modalities):
    rng = np.random.default_rng(3)
    sets = []
    for modality, width in WIDTHS.items():
        matrix = torch.from_numpy(rng.standard_normal((N_ITEMS, width)).astype(np.float32))
        matrix[2] = 0.0
        if modality in modalities:
            sets.append(
                ItemFeatures(f"{modality}__made", modality, matrix, torch.ones(N_ITEMS).bool())
            )
    return sets


def padded(rows, n_slots):
    return torch.tensor([[N_ITEMS] * (n_slots - len(row)) + list(row) for row in rows])


def batch():
    n_slots = LENGTH + 1
    return SequenceBatch(
        torch.arange(len(HISTORIES)), padded(HISTORIES, n_slots), padded(NEGATIVES, n_slots)
    )


def build(name, modalities=("visual", "textual"), seed=0, **settings):
    """A model in double precision, away from the small start that would hide mistakes."""
    torch.manual_seed(seed)
    entry = MODELS.get(name)
    config = entry.info["config"](
        **{
            "embedding_size": 6,
            "max_length": LENGTH,
            "n_layers": 1,
            "n_heads": 2,
            "dropout": 0.0,
            **settings,
        }
    )
    model = entry.obj(config, train(), given(*modalities)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def arrays(model):
    """Parameters and features as plain arrays."""
    p = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    a = {features.modality: features.matrix.double().numpy() for features in given(*WIDTHS)}
    return p, a


def linear(p, prefix, v):
    return p[f"{prefix}.weight"] @ v + p[f"{prefix}.bias"]


def norm(p, prefix, v, epsilon):
    centred = v - v.mean()
    scaled = centred / math.sqrt((centred**2).mean() + epsilon)
    return p[f"{prefix}.weight"] * scaled + p[f"{prefix}.bias"]


def gelu(v):
    return np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in v])


def leaky(v):
    return np.array([x if x > 0 else 0.2 * x for x in v])


def softmax(logits):
    weights = [math.exp(x) for x in logits]
    return [weight / sum(weights) for weight in weights]


def attend(query, keys, values, heads):
    """One query over the keys that it sees."""
    size = len(query) // heads
    out = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = softmax([query[part] @ key[part] / math.sqrt(size) for key in keys])
        for weight, value in zip(weights, values, strict=True):
            out[part] += weight * value[part]
    return out


def mean_loss(positive, negative):
    """Two means over positions: - log sigmoid(s+) and - log(1 - sigmoid(s-))."""
    ups = [math.log(1 + math.exp(-s)) for s in positive]
    downs = [-math.log(1 - 1 / (1 + math.exp(-s))) for s in negative]
    return sum(ups) / len(ups) + sum(downs) / len(downs)


# FDSA


def fdsa_features(p, a, modalities, item):
    fields = [
        np.maximum(linear(p, f"fields.project.{m}", a[m][item]), 0) for m in modalities
    ]  # (1)
    if len(fields) == 1:
        return fields[0]
    weights = softmax(
        [
            float(p["fields.query.weight"][0] @ np.maximum(linear(p, "fields.hidden", f), 0))
            for f in fields
        ]
    )
    return sum(weight * field for weight, field in zip(weights, fields, strict=True))  # (2)


def fdsa_stream(p, prefix, starts, n_layers, heads):
    first = len(p["positions.weight"]) - len(starts)
    x = [
        norm(p, "norm", v + p["positions.weight"][first + t], 1e-12) for t, v in enumerate(starts)
    ]  # (3)
    for layer in range(n_layers):
        block = f"{prefix}.{layer}"
        query, key, value = (
            [linear(p, f"{block}.attention.{name}", v) for v in x]
            for name in ("query", "key", "value")
        )
        after = []
        for t in range(len(x)):
            found = attend(query[t], key[: t + 1], value[: t + 1], heads)
            middle = norm(
                p,
                f"{block}.first_norm",
                x[t] + linear(p, f"{block}.attention.output", found),
                1e-12,
            )
            inner = gelu(linear(p, f"{block}.inner", middle))
            after.append(
                norm(p, f"{block}.second_norm", middle + linear(p, f"{block}.outer", inner), 1e-12)
            )
        x = after  # (4)
    return x


def fdsa_hidden(p, a, modalities, history, n_layers=1, heads=2):
    """h after each item of a history."""
    ends = [fdsa_stream(p, "item_blocks", [p["table.weight"][i] for i in history], n_layers, heads)]
    if modalities:
        starts = [fdsa_features(p, a, modalities, i) for i in history]
        ends.append(fdsa_stream(p, "feature_blocks", starts, n_layers, heads))
    return [
        norm(p, "norm", linear(p, "join", np.concatenate([end[t] for end in ends])), 1e-12)
        for t in range(len(history))
    ]  # (5)


def fdsa_loss(p, a, modalities, **kinds):
    positive, negative = [], []
    for history, wrong in zip(HISTORIES, NEGATIVES, strict=True):
        hidden = fdsa_hidden(p, a, modalities, history[:-1], **kinds)
        for t, h in enumerate(hidden):
            positive.append(h @ p["table.weight"][history[t + 1]])  # (6)
            negative.append(h @ p["table.weight"][wrong[t + 1]])
    return mean_loss(positive, negative)


# CARCA and CARCA++


def carca_item(p, a, modalities, item, scale):
    ids = scale * p["table.weight"][item]
    if not modalities:
        return linear(p, "combine", ids)
    wide = linear(p, "project", np.concatenate([a[m][item] for m in modalities]))
    return linear(p, "combine", np.concatenate([ids, wide]))  # (1)


def carca_profile(p, x, n_layers, heads, causal):
    if "positions.weight" in p:
        first = len(p["positions.weight"]) - len(x)
        x = [v + p["positions.weight"][first + t] for t, v in enumerate(x)]  # (2)
    for layer in range(n_layers):
        block = f"blocks.{layer}"
        z = [norm(p, f"{block}.first_norm", v, 1e-8) for v in x]
        query = [leaky(linear(p, f"{block}.attention.query", v)) for v in z]
        key = [leaky(linear(p, f"{block}.attention.key", v)) for v in x]
        value = [leaky(linear(p, f"{block}.attention.value", v)) for v in x]
        after = []
        for t in range(len(x)):
            end = t + 1 if causal else len(x)
            gated = attend(query[t], key[:end], value[:end], heads) * z[t]  # (3)
            middle = norm(p, f"{block}.second_norm", gated, 1e-8)
            inner = leaky(linear(p, f"{block}.inner", middle))
            after.append(middle + linear(p, f"{block}.outer", inner))  # (4)
        x = after
    return [norm(p, "norm", v, 1e-8) for v in x]


def carca_logit(p, candidate, profile, heads, use_res):
    found = attend(
        leaky(linear(p, "cross.query", candidate)),
        [leaky(linear(p, "cross.key", v)) for v in profile],
        [leaky(linear(p, "cross.value", v)) for v in profile],
        heads,
    )
    if use_res:
        found = found * candidate
    return float(p["output.weight"][0] @ found + p["output.bias"][0])  # (5)


def carca_logits(
    p, a, modalities, history, asked, scales, n_layers=1, heads=2, causal=True, use_res=True
):
    """Logits of the items asked for at each position: asked[t] after slot t, lists of lists."""
    x = [carca_item(p, a, modalities, i, scales[0]) for i in history]
    profile = carca_profile(p, x, n_layers, heads, causal)
    return [
        [
            carca_logit(
                p,
                carca_item(p, a, modalities, i, scales[1]),
                profile[: t + 1] if causal else profile,
                heads,
                use_res,
            )
            for i in items
        ]
        for t, items in enumerate(asked)
    ]


def carca_loss(p, a, modalities, scales, regularization=0.0, **kinds):
    positive, negative = [], []
    for history, wrong in zip(HISTORIES, NEGATIVES, strict=True):
        asked = list(zip(history[1:], wrong[1:], strict=True))
        for up, down in carca_logits(p, a, modalities, history[:-1], asked, scales, **kinds):
            positive.append(up)
            negative.append(down)
    penalty = sum(float(x) ** 2 for x in p["table.weight"].ravel()) / 2
    return mean_loss(positive, negative) + regularization * penalty


def carca_sampled(p, a, modalities, scales, drawn, **kinds):
    """Cross-entropy of the target among the drawn items that are not the target."""
    losses = []
    for history in HISTORIES:
        asked = [[target, *(i for i in drawn if i != target)] for target in history[1:]]
        for logits in carca_logits(p, a, modalities, history[:-1], asked, scales, **kinds):
            losses.append(-math.log(softmax(logits)[0]))
    return sum(losses) / len(losses)


def check_gradients(model, loss, literal, n_places=2):
    """Gradients of a loss against central differences of its literal computation.

    Args:
        literal: from arrays to the loss.
    """
    p, a = arrays(model)
    model.zero_grad()
    loss.backward()
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        slope, flat = parameter.grad.view(-1).numpy(), p[name].reshape(-1)
        likely = np.abs(slope).argsort()[::-1][: max(4, len(slope) // 3)]
        for place in {int(likely[0]), *rng.choice(likely, n_places - 1).tolist()}:
            values = []
            for step in (1e-5, -1e-5):
                flat[place] += step
                values.append(literal(p, a))
                flat[place] -= step
            difference = (values[0] - values[1]) / 2e-5
            assert abs(difference - slope[place]) < 1e-5, (name, place, difference, slope[place])
