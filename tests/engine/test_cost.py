"""What encoders cost: counted by hand on tiny models, by mode, and refused where it is too much."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from mmbench.engine import cost as costs
from mmbench.engine.cost import Cost, Item, Load, Part, amount, distinct, load_of, measure
from mmbench.engine.device import Compute
from mmbench.errors import ConfigError

CPU = Compute(torch.device("cpu"))


def test_a_tiny_clip_by_hand() -> None:
    d, m, n_layers, tokens, side, patch, shared = 16, 32, 2, 7, 32, 16, 8
    shape = {"hidden_size": d, "intermediate_size": m, "num_hidden_layers": n_layers}
    shape |= {"num_attention_heads": 2}
    text = {**shape, "vocab_size": 20, "max_position_embeddings": 10}
    text |= {"bos_token_id": 18, "eos_token_id": 19, "pad_token_id": 19}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**shape, "image_size": side, "patch_size": patch},
        projection_dim=shared,
        attn_implementation="sdpa",
    )
    model = transformers.CLIPModel(config).eval()
    ids = torch.tensor([[18, 1, 2, 3, 4, 5, 19]] * 3)
    pixels = torch.zeros(3, 3, side, side)

    def run() -> torch.Tensor:
        seen = model.get_image_features(pixel_values=pixels).pooler_output
        read = model.get_text_features(input_ids=ids).pooler_output
        return seen.sum() + read.sum()

    linear = attention = conv = 0
    for n in (tokens, (side // patch) ** 2 + 1):
        linear += n_layers * (4 * 2 * n * d * d + 2 * 2 * n * d * m)  # q, k, v, out; two of the MLP
        attention += n_layers * 2 * 2 * n * n * d  # scores, and their sums of values
        linear += 2 * d * shared
    conv = 2 * (side // patch) ** 2 * 3 * patch**2 * d
    found = measure(run, list(model.parameters()), 3)
    assert found.forward == linear + attention + conv
    # Each product has two in the backward pass; pictures need no gradient; attention is computed
    # again there, so its scores count once more.
    assert found.training == 3 * linear + 2 * conv + 3.5 * attention


def test_only_what_learns_is_differentiated() -> None:
    lower, upper = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)
    lower.weight.requires_grad_(False)
    rows = torch.ones(5, 8)
    found = measure(lambda: upper(lower(rows)).sum(), [upper.weight], 5)
    assert found.forward == 2 * 64 + 2 * 32
    assert found.training == 2 * 64 + 2 * 2 * 32  # no gradient goes below the upper one
    # Its input is kept for the gradient of its weight: 8 numbers of an item; weights are not.
    assert found.saved == 8 * 4


def test_activations_computed_again_cost_time_and_save_memory() -> None:
    from mmbench.encoders.trunks import Tower, recompute

    layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)),) * 3)
    rows = torch.ones(4, 16)

    def run() -> torch.Tensor:
        return layers(rows).sum()

    kept = measure(run, list(layers.parameters()), 4)
    recompute(layers, [Tower(r"\d")])
    again = measure(run, list(layers.parameters()), 4)
    assert again.forward == kept.forward
    # The last product of a block is not needed again: nothing behind it is kept.
    assert kept.training + kept.forward / 3 <= again.training <= kept.training + kept.forward
    assert again.saved < kept.saved / 3


@pytest.mark.parametrize(
    ("mode", "refresh", "at_once", "learnt", "read", "graph"),
    [
        ("table", None, None, 0, 0, 0),
        # 10 steps of U distinct items; then all once, for the evaluation.
        ("batch", None, None, "10U", 40, "U"),
        ("batch", None, 5, "10U", "10U + 40", 5),
        ("stale", None, None, "10U", 40, "U"),
        ("stale", 3, None, "10U", 3 * 40, "U"),
        ("accumulate", None, 8, 40, 40, 8),
        ("accumulate", 4, 8, 3 * 40, 3 * 40, 8),
        ("full", None, 8, 10 * 40, 10 * 40 + 40, 8),
    ],
)
def test_loads_by_mode(
    mode: str,
    refresh: int | None,
    at_once: int | None,
    learnt: int | str,
    read: int | str,
    graph: int | str,
) -> None:
    unique = 40 * (1 - (1 - 1 / 40) ** 24)
    worth = {"10U": 10 * unique, "10U + 40": 10 * unique + 40, "U": unique}
    found = load_of(mode, steps=10, drawn=24, n_items=40, refresh=refresh, at_once=at_once)
    for value, expected in zip(
        (found.learnt, found.read, found.at_once), (learnt, read, graph), strict=True
    ):
        wanted = worth[expected] if isinstance(expected, str) else expected
        assert value == pytest.approx(wanted), mode


def test_distinct_items_of_the_published_sizes() -> None:
    # Items of Baby, Sports and Clothing, and two draws of each of 256, 1024, 2048 rows.
    for n_items, expected in (
        (7_037, (494, 1_777, 3_105)),
        (18_287, (505, 1_938, 3_670)),
        (22_499, (506, 1_958, 3_745)),
    ):
        found = [distinct(n_items, 2 * rows) for rows in (256, 1024, 2048)]
        assert [round(value) for value in found] == list(expected)
    assert distinct(1, 5) == 1
    assert distinct(10, 0) == 0


def cost(saved: float = 1000.0) -> Cost:
    item = Item(forward=100.0, training=300.0, saved=saved)
    return Cost(7, (Part("visual: x", item, Load(50.0, 20.0, 8.0), 10, 30, 64),))


def test_sums_and_sentences() -> None:
    made = cost()
    assert made.passes == 70
    assert made.flops == 50 * 300 + 20 * 100
    assert made.weights_bytes == 16 * 10 + 4 * 30
    assert made.memory_bytes == 280 + 8 * 1000 + 64
    assert made.held_bytes == 4 * 40
    assert made.line().startswith("encoders: 70 items encoded in an epoch of 7 steps, 17 kFLOP;")
    facts = made.facts()
    assert facts["passes_per_epoch"] == 70
    assert facts["encoders"][0]["training_flops"] == 300
    assert [amount(value, "FLOP") for value in (5, 41.1e9, 123e9, 2.5e21)] == [
        "5 FLOP", "41.1 GFLOP", "123 GFLOP", "2500 EFLOP",
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_with_cheaper_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "free_memory", lambda compute: 2.0**20)
    cost().refuse_excess(CPU, ["less: 1"])
    with pytest.raises(
        ConfigError,
        match=r"E413 .* need about 76\.3 MiB more memory .*1\.0 MiB of cpu are free\. Less takes: "
        r"less: 1, or more: 2",
    ):
        cost(saved=1e7).refuse_excess(CPU, ["less: 1", "more: 2"])
    monkeypatch.setattr(costs, "free_memory", lambda compute: None)
    cost(saved=1e30).refuse_excess(CPU, ["less: 1"])  # nobody says what is free


def test_this_machine_says_what_is_free() -> None:
    free = costs.free_memory(CPU)
    assert free is None or 2**20 < free < 2**50


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown mode 'none'"):
        load_of("none", steps=1, drawn=1, n_items=2, refresh=None, at_once=None)
