"""The arithmetic floor of each piece of work: what it cannot avoid, at rates measured here.

U users, I items, D = 64 columns, B = 2048 rows of a batch, P weights, S steps of an epoch,
L = 2 layers, C columns of features.

    evaluation  2 U I D FLOPs of the scores, each score read once to be ranked
    every step  Adam reads weight, gradient and both moments, and writes weight and moments;
                the dense gradient is written: 32 P bytes. Rows of a batch: 3 B D floats are
                read, and their gradients added, 36 B D bytes
    LightGCN    2 L sparse products a step, forwards and backwards
    VBPR        each distinct item of a batch projected once, and the gradient of the
                projection: 4 C D FLOPs an item

What else runs (losses, sampling, Python) is not counted; its share shows as the distance from
the floor.
"""

from __future__ import annotations

import torch
from machine import Machine, Part
from workload import BATCH, DEPTH, WIDTH, Workload

from mmbench.engine.sampling import TripleSampler
from mmbench.models.base import Batch, Recommender
from mmbench.models.graph import SymmetricOperator

BLOCK = 256
"""Rows of scores in one product; about what the ranker takes on a CPU."""


def floor(work: str, workload: Workload, model: Recommender, machine: Machine) -> list[Part]:
    """The parts of the floor of one piece of work."""
    if work == "evaluation":
        return evaluation_floor(workload, machine)
    triples = TripleSampler(workload.train).epoch(torch.Generator().manual_seed(0))
    steps = -(-len(triples.users) // BATCH)
    updates = steps * sum(parameter.numel() for parameter in model.parameters())
    parts = update_floor(model, updates, len(triples.users), machine)
    if work == "LightGCN":
        assert isinstance(model.graph, SymmetricOperator)
        products = 4 * steps
        flops = products * 2 * model.graph.values.numel() * WIDTH
        rate = machine.sparse_rate(model.graph, WIDTH)
        parts.insert(0, Part(f"{products} sparse products", flops, "FLOP", rate))
    if work == "VBPR":
        parts = [*_projection(triples, steps, model, machine), *parts]
    return parts


def evaluation_floor(workload: Workload, machine: Machine) -> list[Part]:
    """All scores, and each of them read once."""
    n_scores = len(workload.target.users) * workload.n_items
    rate = machine.product_rate(BLOCK, WIDTH, workload.n_items)
    return [
        Part("scores: dense product", 2 * n_scores * WIDTH, "FLOP", rate),
        Part(
            f"top {DEPTH}: scores read once",
            4 * n_scores,
            "B",
            machine.read_rate(BLOCK * workload.n_items),
        ),
    ]


def update_floor(model: Recommender, updates: int, n_rows: int, machine: Machine) -> list[Part]:
    """Adam's updates of single weights, and the rows of the batches, of an epoch."""
    weights = [parameter.numel() for parameter in model.parameters()]
    # The vectors have the tables' size: where those fit into a cache, so does the measurement.
    rate = machine.triad_rate(max(weights))
    width = next(p.shape[1] for p in model.parameters() if p.ndim == 2)
    return [
        Part("Adam over all weights", 32 * updates, "B", rate),
        Part("rows of the batches", 36 * n_rows * width, "B", rate),
    ]


def _projection(triples: Batch, steps: int, model: Recommender, machine: Machine) -> list[Part]:
    n_columns = int(model.project.in_features)  # type: ignore[union-attr, arg-type]
    pairs = torch.stack([triples.positives, triples.negatives])
    batches = range(0, len(triples.users), BATCH)
    distinct = sum(len(torch.unique(pairs[:, start : start + BATCH])) for start in batches)
    rows = distinct // steps
    flops = 2 * distinct * n_columns * WIDTH
    return [
        Part(
            f"project {rows:,} items a step",
            flops,
            "FLOP",
            machine.product_rate(rows, n_columns, WIDTH),
        ),
        Part(
            "its gradient",
            flops,
            "FLOP",
            machine.product_rate(WIDTH, rows, n_columns),
        ),
    ]
