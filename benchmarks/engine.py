"""Speed and memory of the engine, against MMRec and against what the machine can do.

Everything is timed in one process: ours and theirs take turns, so that a busy machine slows
both, and medians are compared. Run `python benchmarks/engine.py --help`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, for both sides

import click
import torch
from floors import floor
from machine import Machine, Part, measure_memory
from making import made_by
from public_toolbox import PublicToolbox, copy_weights, loss_difference
from rich import box
from rich.table import Table
from workload import (
    BATCH,
    MODEL_OF,
    WIDTH,
    Run,
    Workload,
    build,
    from_dataset,
    from_inter,
    prepare,
    synthetic,
)

from mmbench import console
from mmbench.engine.device import Compute, choose
from mmbench.engine.sampling import TripleSampler
from mmbench.errors import MMBenchError
from mmbench.models.base import Batch

NEEDED = {"evaluation": 5.0, "BPR-MF": 2.0, "LightGCN": 3.0, "VBPR": 1.5}
"""How many times as fast as MMRec each piece of work has to be on a CPU."""
BABY = "19445,7050,160792"


@dataclass
class Measured:
    """What was measured of one piece of work.

    Attributes:
        times_s, toolbox_times_s: seconds of each repeat; theirs are empty without a checkout.
        memory_mib, toolbox_memory_mib: growth of the peak while building and running once.
        difference: how far the two sides' results lie apart with equal weights.
    """

    work: str
    times_s: list[float] = field(default_factory=list)
    toolbox_times_s: list[float] = field(default_factory=list)
    memory_mib: float | None = None
    toolbox_memory_mib: float | None = None
    difference: float | None = None
    parts: list[Part] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Our median."""
        return statistics.median(self.times_s)

    @property
    def toolbox_median_s(self) -> float | None:
        """Their median."""
        return statistics.median(self.toolbox_times_s) if self.toolbox_times_s else None

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is."""
        theirs = self.toolbox_median_s
        return None if theirs is None else theirs / self.median_s

    @property
    def floor_s(self) -> float:
        """The arithmetic floor, in seconds."""
        return sum(part.time_s for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "work": self.work,
            "times_s": self.times_s,
            "median_s": self.median_s,
            "toolbox_times_s": self.toolbox_times_s,
            "toolbox_median_s": self.toolbox_median_s,
            "ratio": self.ratio,
            "ratio_needed_on_cpu": NEEDED[self.work],
            "floor_s": self.floor_s,
            "distance_from_floor": self.median_s / self.floor_s,
            "floor": [part.as_dict() for part in self.parts],
            "memory_mib": self.memory_mib,
            "toolbox_memory_mib": self.toolbox_memory_mib,
            "difference": self.difference,
        }


def measure(
    work: str,
    workload: Workload,
    toolbox: PublicToolbox | None,
    machine: Machine,
    repeats: int,
) -> Measured:
    """Measure one piece of work, both sides in turns; the first, untimed run warms up."""
    result, compute = Measured(work), machine.compute

    def first(make: Any) -> tuple[Run, Any]:
        run, model = make()
        run()
        compute.synchronise()
        return run, model

    (ours, model), result.memory_mib = measure_memory(
        compute, lambda: first(lambda: prepare(work, workload, compute))
    )
    theirs = None
    if toolbox is not None:
        (theirs, their_model), result.toolbox_memory_mib = measure_memory(
            compute, lambda: first(lambda: toolbox.prepare(work))
        )
        if work == "evaluation":
            copy_weights(their_model, model)
            found, expected = ours(), theirs()
            result.difference = max(abs(found[key] - expected[key]) for key in expected)
        else:
            result.difference = loss_difference(their_model, model, some_batch(workload, compute))
    for _ in range(repeats):
        result.times_s.append(seconds(ours, compute))
        if theirs is not None:
            result.toolbox_times_s.append(seconds(theirs, compute))
    result.parts = floor(work, workload, model, machine)
    return result


def seconds(run: Run, compute: Compute) -> float:
    """Seconds of one run, the device's work included."""
    compute.synchronise()
    begin = time.perf_counter()
    run()
    compute.synchronise()
    return time.perf_counter() - begin


def some_batch(workload: Workload, compute: Compute) -> Batch:
    """The first batch of an epoch."""
    triples = TripleSampler(workload.train).epoch(torch.Generator().manual_seed(0))
    first = triples.batch(slice(BATCH))
    rows = (first.users, first.positives, first.negatives)
    return Batch(*(row.to(compute.device) for row in rows))


def summary(results: list[Measured]) -> Table:
    """Times, ratios, floors and memory, one line per piece of work."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("work", no_wrap=True)
    for head in ("ours", "MMRec", "ratio", "needed", "floor", "/floor", "MiB", "MMRec MiB"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in results:
        met = "" if one.ratio is None else " ✓" if one.ratio >= NEEDED[one.work] else " ✗"
        table.add_row(
            one.work,
            f"{one.median_s:.3f}",
            number(one.toolbox_median_s, 3),
            number(one.ratio, 2),
            f"{NEEDED[one.work]:.1f}{met}",
            f"{one.floor_s:.3f}",
            f"{one.median_s / one.floor_s:.2f}",
            number(one.memory_mib, 0),
            number(one.toolbox_memory_mib, 0),
        )
    return table


def floors_table(results: list[Measured]) -> Table:
    """What each floor is made of."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in ("floor of", "what it cannot avoid"):
        table.add_column(head)
    for head in ("amount", "rate here", "s"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in results:
        for index, part in enumerate(one.parts):
            table.add_row(
                one.work if index == 0 else "",
                part.what,
                f"{part.amount / 1e9:.2f} G{part.unit}",
                f"{part.rate / 1e9:.1f} G{part.unit}/s",
                f"{part.time_s:.3f}",
            )
    return table


def number(value: float | None, digits: int) -> str:
    """A figure for a table; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def caption(
    workload: Workload, compute: Compute, load: float, repeats: int, results: list[Measured]
) -> str:
    """What was measured, where, and whether both sides did the same."""
    place = f"{torch.get_num_threads()} CPU thread(s)"
    if compute.is_cuda:
        place = torch.cuda.get_device_name(compute.device)
    lines = [
        f"Data: {workload.source}; {workload.n_users:,} users, {workload.n_items:,} items,",
        f"      {len(workload.train.users):,} training pairs, {len(workload.target.users):,} users"
        " ranked (top 50, 16 metrics).",
        f"Here: {place}, torch {torch.__version__};",
        f"      load before {load:.1f}; medians of {repeats}, in turns.",
        f"Work: {WIDTH} dimensions, batches of {BATCH}, LightGCN with 2 layers; models: one epoch",
        "      with its sampling. Times in seconds. MiB: how far the peak of memory rises",
        "      while all is built and run once. /floor: ours over the arithmetic floor.",
    ]
    if any(one.difference is not None for one in results):
        lines.append("Same: with equal weights, metrics (absolute; MMRec rounds to 4")
        lines.append("      decimals) and losses of a batch (relative) differ by at most:")
        told = ", ".join(f"{one.work} {one.difference or 0:.0e}" for one in results)
        lines.append(f"      {told}.")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", help="A prepared dataset, for example amazon-baby.")
@click.option("--data-dir", type=click.Path(path_type=Path), default="data", envvar="MMBENCH_DATA",
              show_default=True, help="Where prepared datasets lie.")  # fmt: skip
@click.option("--inter", type=click.Path(path_type=Path), help="A .inter file as MMRec has them.")
@click.option("--size", default=BABY, show_default=True, metavar="USERS,ITEMS,PAIRS",
              help="Size of the synthetic dataset, used if no other is named.")  # fmt: skip
@click.option("--widths", default="4096,384", show_default=True, metavar="VISUAL,TEXTUAL",
              help="Columns of VBPR's random features.")  # fmt: skip
@click.option("--mmrec", type=click.Path(path_type=Path), metavar="DIR",
              help="A local checkout of MMRec to time in turns; it is only read.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(list(MODEL_OF)), help="Just this work.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch, for both sides.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--rate-seconds", type=click.FloatRange(0, min_open=True), default=1.0,
              show_default=True, help="How long each rate of the floors is tried for.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write this file.")
def main(
    dataset: str | None,
    data_dir: Path,
    inter: Path | None,
    size: str,
    widths: str,
    mmrec: Path | None,
    only: tuple[str, ...],
    repeats: int,
    threads: int | None,
    device: str,
    rate_seconds: float,
    json_file: Path | None,
) -> None:
    """Time evaluation and training epochs on data of the size of Amazon Baby.

    Without --dataset or --inter the data are synthetic. Features are random, since speed does
    not depend on their values.
    """
    if dataset and inter:
        raise click.UsageError("give --dataset or --inter, not both")
    cores = os.cpu_count() or 1
    torch.set_num_threads(threads or cores)
    load = os.getloadavg()[0]
    if load + torch.get_num_threads() > cores + 0.5:
        console.warn(
            f"other programs keep {load:.1f} of {cores} cores busy: threads then wait for one "
            "another, and times say little; free the machine, or use --threads 1"
        )
    try:
        compute = choose(device)
        if inter:
            data = from_inter(inter)
        else:
            data = from_dataset(dataset, data_dir) if dataset else synthetic(*counts(size, 3))
        visual, textual = counts(widths, 2)
        with tempfile.TemporaryDirectory(prefix="mmbench-benchmark-") as folder:
            workload = build(*data, (visual, textual), Path(folder))
            toolbox = None
            if mmrec:
                toolbox = PublicToolbox(mmrec, Path(folder) / "mmrec", workload, compute)
            machine, results = Machine(compute, rate_seconds), []
            for work in only or MODEL_OF:
                console.note(f"measuring {work} ...")
                results.append(measure(work, workload, toolbox, machine, repeats))
    except MMBenchError as problem:
        console.error(str(problem))
        sys.exit(2)
    said = caption(workload, compute, load, repeats, results)
    console.text(said)
    if toolbox:
        console.text("Gone from current libraries, put back for MMRec:")
        for shim in toolbox.shims or ["nothing"]:
            console.text(f"      {shim}")
    console.text("")
    console.result(summary(results))
    console.text("")
    console.result(floors_table(results))
    if json_file:
        facts = {
            **made_by("engine.py"),
            "caption": said,
            "environment": compute.describe(),
            "shims": toolbox.shims if toolbox else [],
            "load_before": load,
            "repeats": repeats,
            "results": [one.as_dict() for one in results],
        }
        json_file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def counts(text: str, n: int) -> tuple[int, ...]:
    """The n positive numbers in a text such as 4096,384; raises `click.UsageError`."""
    parts = text.split(",")
    if len(parts) != n or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.UsageError(f"{text!r} is not {n} positive numbers with commas between")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    main()
