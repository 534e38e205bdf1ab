"""What end-to-end training of CLIP ViT-B/16 costs: foreseen, and measured where it can be.

The model is built of the published sizes with random weights. A step encodes the distinct items of
a batch (two draws of each row), pictures of 224 x 224 and texts of 77 tokens, by way of the mode
that is asked for, and is followed by Adam. Foreseen are FLOPs and memory by `mmbench.engine.cost`;
on a GPU (or with --steps on a CPU, where one takes minutes) seconds and peak memory are measured.
Run `python benchmarks/end_to_end.py --help`.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench import console
from mmbench.encoders.trunks import learning_names, recompute, towers_of
from mmbench.engine.cost import (
    Cost,
    Part,
    amount,
    bytes_text,
    distinct,
    free_memory,
    load_of,
    measure,
    weights_of,
)
from mmbench.engine.device import Compute, choose

SIZES = {"width": (768, 512), "layers": 12, "tokens": 77, "side": 224, "patch": 16, "shared": 512}
TINY = {"width": (32, 32), "layers": 2, "tokens": 8, "side": 32, "patch": 16, "shared": 16}
MODES = ["batch", "stale", "accumulate", "full"]
DATASETS = {"amazon-baby": (7_037, 128_417), "amazon-sports": (18_287, 236_292)}
"""Items and training interactions of the datasets that arXiv 2310.20343 uses."""


def build(sizes: dict[str, Any]) -> Any:
    """CLIP with random weights; 149.6 million of them at the published sizes."""
    import transformers

    (seen, read), layers = sizes["width"], sizes["layers"]
    shape = {"num_hidden_layers": layers}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    heads = {768: 12, 512: 8}
    config = transformers.CLIPConfig(
        text_config={
            **shape, **special, "hidden_size": read, "intermediate_size": 4 * read,
            "num_attention_heads": heads.get(read, 2), "max_position_embeddings": sizes["tokens"],
            "vocab_size": 49_408 if read == 512 else 50,
        },
        vision_config={
            **shape, "hidden_size": seen, "intermediate_size": 4 * seen,
            "num_attention_heads": heads.get(seen, 2), "patch_size": sizes["patch"],
            "image_size": sizes["side"],
        },
        projection_dim=sizes["shared"],
        attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.CLIPModel(config).eval()


class Pairs:
    """Random pictures and texts, and their vectors."""

    def __init__(self, model: Any, sizes: dict[str, Any], compute: Compute, bfloat16: bool) -> None:
        self.model, self.sizes, self.compute, self.bfloat16 = model, sizes, compute, bfloat16

    def vectors(self, n: int) -> Tensor:
        """Unit vectors of `n` pictures beside those of `n` texts."""
        device, side = self.compute.device, self.sizes["side"]
        pixels = torch.rand(n, 3, side, side, device=device)
        ids = torch.full((n, self.sizes["tokens"]), 5, device=device)
        ids[:, -1] = 1
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            seen = self.model.get_image_features(pixel_values=pixels).pooler_output
            read = self.model.get_text_features(input_ids=ids).pooler_output
        return torch.cat([F.normalize(seen.float(), dim=1), F.normalize(read.float(), dim=1)], 1)

    def step(self, n: int, at_once: int | None, optimizer: torch.optim.Optimizer) -> None:
        """One step over `n` items, by gradient caching where they are not encoded at once."""
        optimizer.zero_grad(set_to_none=True)
        size = at_once or n
        if n <= size:
            self._loss(self.vectors(n)).backward()  # type: ignore[no-untyped-call]
        else:
            sizes = [min(size, n - start) for start in range(0, n, size)]
            with torch.no_grad():
                rows = torch.cat([self.vectors(part) for part in sizes])
            rows.requires_grad_()
            self._loss(rows).backward()  # type: ignore[no-untyped-call]
            assert rows.grad is not None
            for part, gradient in zip(sizes, rows.grad.split(sizes), strict=True):
                torch.autograd.backward([self.vectors(part)], [gradient])
        optimizer.step()

    def _loss(self, rows: Tensor) -> Tensor:
        users = torch.ones(rows.shape[1], device=rows.device) / rows.shape[1]
        half = len(rows) // 2
        return -F.logsigmoid((rows[:half] - rows[half : 2 * half]) @ users).mean()


@click.command()
@click.option("--batch-size", default=256, show_default=True, help="Rows of user and two items.")
@click.option("--dataset", type=click.Choice(list(DATASETS)), default="amazon-baby")
@click.option(
    "--mode", type=click.Choice(["batch", "stale", "accumulate", "full"]), default="batch"
)
@click.option("--tune", type=click.Choice(["full", "top"]), default="full", show_default=True)
@click.option("--checkpointing", is_flag=True, help="Compute activations again.")
@click.option("--at-once", type=click.IntRange(min=1), help="Items with their graph in memory.")
@click.option("--bfloat16", is_flag=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--steps", type=click.IntRange(min=0), help="Measured; by default 5 on a GPU, else 0."
)
@click.option("--tiny", is_flag=True, help="A CLIP of two small blocks, to try this out.")
@click.option("--json", "report", type=click.Path(path_type=Path, dir_okay=False))
def main(
    batch_size: int,
    dataset: str,
    mode: str,
    tune: str,
    checkpointing: bool,
    at_once: int | None,
    bfloat16: bool,
    device: str,
    steps: int | None,
    tiny: bool,
    report: Path | None,
) -> None:
    """Foresee, and where possible measure, a step of CLIP ViT-B/16 inside a recommender."""
    compute = choose(device)
    sizes = TINY if tiny else SIZES
    model: nn.Module = build(sizes).to(compute.device)
    towers = [tower for kind in ("visual", "textual") for tower in towers_of(model, kind)]
    names = set(learning_names(model, towers, tune))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in names)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    if checkpointing:
        recompute(model, towers)
    pairs = Pairs(model, sizes, compute, bfloat16)
    item = measure(lambda: pairs.vectors(1).sum(), learning, 1)
    n_items, n_rows = DATASETS[dataset]
    n_steps = -(-n_rows // batch_size)
    load = load_of(
        mode, steps=n_steps, drawn=2 * batch_size, n_items=n_items, refresh=None, at_once=at_once
    )
    table = 2 * n_items * sizes["shared"] * 4
    n_learning, resting = weights_of(model.parameters(), learning)
    part = Part("CLIP", item, load, n_learning, resting, table)
    cost = Cost(n_steps, (part,))
    unique = round(distinct(n_items, 2 * batch_size))
    again = unique * item.forward if at_once is not None and at_once < unique else 0.0
    flops = unique * item.training + again
    measured = None
    if steps is None:
        steps = 5 if compute.is_cuda else 0
    if steps and mode in ("batch", "stale"):
        measured = _measured(pairs, unique, at_once, learning, compute, steps)
    console.result(_table(cost, flops, unique, measured, compute))
    if report is not None:
        facts = {"cost": cost.facts(), "flops_per_step": flops, "unique": unique}
        facts |= {"measured": measured, "environment": compute.describe()}
        report.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _measured(
    pairs: Pairs,
    unique: int,
    at_once: int | None,
    learning: list[Any],
    compute: Compute,
    steps: int,
) -> dict[str, float]:
    optimizer = torch.optim.Adam(learning, lr=1e-5)
    times = []
    compute.reset_peak_memory()
    for turn in range(steps + 1):
        compute.synchronise()
        began = time.perf_counter()
        pairs.step(unique, at_once, optimizer)
        compute.synchronise()
        if turn:  # the first one warms up
            times.append(time.perf_counter() - began)
    return {
        "seconds_per_step": statistics.median(times),
        "peak_memory_mib": compute.peak_memory_mib(),
    }


def _table(
    cost: Cost, flops: float, unique: int, measured: dict[str, float] | None, compute: Compute
) -> Table:
    (part,) = cost.parts
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("end-to-end CLIP", no_wrap=True)
    table.add_column("foreseen", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    rows = [
        ("weights that learn, of all", f"{part.learning:,} of {part.learning + part.resting:,}"),
        ("forward of a picture and a text", amount(part.item.forward, "FLOP")),
        ("forward and backward of them", amount(part.item.training, "FLOP")),
        ("distinct items of a step", f"{unique:,}"),
        ("of a step", amount(flops, "FLOP")),
        ("items encoded in an epoch", f"{cost.passes:,.0f}"),
        ("of an epoch", amount(cost.flops, "FLOP")),
        ("weights, gradients, moments", bytes_text(cost.weights_bytes)),
        ("kept for backward passes", bytes_text(cost.graph_bytes)),
    ]
    for name, value in rows:
        table.add_row(name, value, "")
    free = free_memory(compute)
    peak = "" if measured is None else bytes_text(measured["peak_memory_mib"] * 2**20)
    table.add_row("memory in all", bytes_text(cost.memory_bytes), peak)
    if free is not None:
        table.add_row(f"free on {compute.device}", "", bytes_text(free))
    if measured is not None:
        seconds = measured["seconds_per_step"]
        table.add_row("seconds of a step", "", f"{seconds:.3f}")
        table.add_row("sustained", "", f"{flops / seconds / 1e12:.1f} TFLOP/s")
    return table


if __name__ == "__main__":
    main()
