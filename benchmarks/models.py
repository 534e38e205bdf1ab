"""Speed and memory of every multimodal model, against the same model of MMRec.

One process, both sides in turns, medians; what a step really multiplies is recorded and timed
alone, as the arithmetic floor. Run `python benchmarks/models.py --help`.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, for both sides

import click
import torch
from engine import BABY, counts, number, seconds
from floors import evaluation_floor, update_floor
from machine import Machine, Part, measure_memory
from making import made_by
from public_toolbox import PublicToolbox
from recording import Recorder, parts
from rich import box
from rich.table import Table
from workload import (
    BATCH,
    WIDTH,
    Run,
    Workload,
    build,
    build_model,
    evaluation,
    from_dataset,
    from_inter,
    recipe_of,
    synthetic,
    training_loop,
)

from mmbench import console
from mmbench.engine.device import Compute, choose
from mmbench.engine.training import TrainingLoop
from mmbench.errors import MMBenchError
from mmbench.models.base import MODELS, Batch


@dataclass(frozen=True)
class Pair:
    """One model on both sides, with settings that make both do the same.

    Attributes:
        theirs: MMRec's name of it; None where it has no such model.
        settings: of ours, beyond its defaults.
        their_settings: of theirs, single values for what its configuration lists to search.
        needed: how many times as fast as theirs an epoch of ours has to be on a CPU.
    """

    theirs: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    their_settings: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    needed: float = 2.0


_RATE = {"learning_rate": 1e-3}
PAIRS = {
    "vbpr": Pair("VBPR", {"regularization": 0.1}, {"reg_weight": 0.1}, needed=1.5),
    # Theirs leaves the vectors of users and items, and T of each modality, at random values.
    "mmgcn": Pair(
        "MMGCN",
        {"freeze_tables": True, "penalize_visual_only": True},
        {"reg_weight": 1e-3, **_RATE},
        needed=3.0,
    ),
    "grcn": Pair("GRCN", {}, {"reg_weight": 1e-3, **_RATE}),
    "dualgnn": Pair("DualGNN", {}, {"reg_weight": 1e-2, "aggr_mode": "add", **_RATE}),
    "dragon": Pair("DRAGON", {}, {"reg_weight": 1e-3, "aggr_mode": "add", **_RATE}),
    "lattice": Pair("LATTICE", {}, {"reg_weight": 1e-4, **_RATE}),
    "bm3": Pair("BM3", {}, {"n_layers": 1, "dropout": 0.5, "reg_weight": 0.1}),
    "freedom": Pair("FREEDOM", {}, {"dropout": 0.8, "reg_weight": 1e-3}),
    "mgcn": Pair("MGCN", {}, {"cl_loss": 0.01}),
    "lgmrec": Pair(
        "LGMRec",
        {},
        {
            "n_ui_layers": 2,
            "n_mm_layers": 2,
            "n_hyper_layer": 1,
            "hyper_num": 4,
            "keep_rate": 0.5,
            "alpha": 0.3,
            "cl_weight": 1e-4,
            "reg_weight": 1e-6,
        },
    ),
    "smore": Pair(
        "SMORE",
        {"n_layers": 4, "visual_k": 40, "textual_k": 15},
        {
            "n_ui_layers": 4,
            "image_knn_k": 40,
            "text_knn_k": 15,
            "reg_weight": 1e-4,
            "dropout_rate": 0.1,
        },
    ),
    "slmrec": Pair(
        "SLMRec",
        {},
        {"reg": 1e-4, "ssl_temp": 0.2, "ssl_alpha": 0.05, **_RATE},
        weight_decay=1e-4,
    ),
    "mmssl": Pair(None, {"adversary_weight": 0.0}),
}
"""A model that is not named here has no counterpart and is measured with its defaults."""
EVALUATED = {"lattice": 15.0, "micro": 15.0}
"""Models whose evaluation rebuilds graphs, and how many times as fast as theirs it has to be."""


@dataclass
class Measured:
    """What was measured of one piece of work.

    Attributes:
        times_s, toolbox_times_s: seconds of each repeat; theirs are empty without a counterpart.
        frozen_times_s: ours with `freeze_features`, where the model has that setting.
        memory_mib, toolbox_memory_mib: growth of the peak while building and running once.
        n_weights, n_toolbox_weights: trainable numbers of each side.
        absent: why theirs was not measured.
    """

    work: str
    needed: float
    times_s: list[float] = field(default_factory=list)
    toolbox_times_s: list[float] = field(default_factory=list)
    frozen_times_s: list[float] = field(default_factory=list)
    memory_mib: float | None = None
    toolbox_memory_mib: float | None = None
    n_weights: int = 0
    n_toolbox_weights: int | None = None
    absent: str = ""
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
    def frozen_median_s(self) -> float | None:
        """Our median with features that are not trained."""
        return statistics.median(self.frozen_times_s) if self.frozen_times_s else None

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is."""
        theirs = self.toolbox_median_s
        return None if theirs is None else theirs / self.median_s

    @property
    def frozen_gain(self) -> float | None:
        """How many times as fast ours is if features are not trained."""
        frozen = self.frozen_median_s
        return None if frozen is None else self.median_s / frozen

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
            "toolbox_absent": self.absent,
            "ratio": self.ratio,
            "ratio_needed_on_cpu": self.needed,
            "frozen_times_s": self.frozen_times_s,
            "frozen_median_s": self.frozen_median_s,
            "frozen_gain": self.frozen_gain,
            "floor_s": self.floor_s,
            "distance_from_floor": self.median_s / self.floor_s,
            "floor": [part.as_dict() for part in self.parts],
            "memory_mib": self.memory_mib,
            "toolbox_memory_mib": self.toolbox_memory_mib,
            "n_weights": self.n_weights,
            "n_toolbox_weights": self.n_toolbox_weights,
        }


class Stopwatch:
    """Times one epoch of which only the first steps run, and says what all would take.

    What comes before the second step (whatever happens once per epoch, and the first step, in
    which some models build graphs) counts once; the mean of the other steps counts for all others.
    """

    def __init__(self, n_timed: int, n_steps: int, compute: Compute) -> None:
        self.n_timed, self.n_steps, self.compute = min(n_timed, n_steps), n_steps, compute
        self.seen, self.second_began = 0, 0.0

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same step, which also tells the watch that it begins."""

        def watched(*arguments: Any) -> Any:
            self.seen += 1
            if self.seen == 2:
                self.compute.synchronise()
                self.second_began = time.perf_counter()
            return step(*arguments)

        return watched

    def epoch_s(self, run: Run) -> float:
        """Seconds that a whole epoch takes, judged by one run of its first steps."""
        self.seen = 0
        self.compute.synchronise()
        begin = time.perf_counter()
        run()
        self.compute.synchronise()
        end = time.perf_counter()
        if self.n_timed == self.n_steps:
            return end - begin
        once, others = self.second_began - begin, end - self.second_began
        return once + others / (self.n_timed - 1) * (self.n_steps - 1)


class FirstTriples:
    """A sampler that draws a whole epoch and hands over its first rows."""

    def __init__(self, sampler: Any, n_rows: int) -> None:
        self.sampler, self.n_rows = sampler, min(n_rows, len(sampler))

    def __len__(self) -> int:
        return self.n_rows

    def epoch(self, generator: torch.Generator) -> Batch:
        """The first triples of an epoch."""
        first: Batch = self.sampler.epoch(generator).batch(slice(self.n_rows))
        return first


class FirstBatches:
    """The first batches of one of MMRec's loaders, which starts anew each time."""

    def __init__(self, loader: Any, n_batches: int) -> None:
        self.loader, self.n_batches = loader, n_batches

    def __iter__(self) -> Iterator[Any]:
        # Its iterator is the loader itself: left half way, it would go on from there.
        self.loader.pr = self.loader.inter_pr = 0
        return islice(iter(self.loader), self.n_batches)


class Bench:
    """Measures models on one workload.

    Args:
        toolbox: the other side, or None.
        n_timed: batches that are run of each epoch; None runs all.
    """

    def __init__(
        self,
        workload: Workload,
        toolbox: PublicToolbox | None,
        machine: Machine,
        repeats: int,
        n_timed: int | None,
    ) -> None:
        self.workload, self.toolbox, self.machine = workload, toolbox, machine
        self.compute, self.repeats = machine.compute, repeats
        self.n_steps = -(-len(workload.train.users) // BATCH)
        self.n_timed = min(n_timed or self.n_steps, self.n_steps)

    def measure(self, name: str) -> list[Measured]:
        """An epoch of a model and, for some, its evaluation."""
        pair = PAIRS.get(name, Pair())
        recipe = recipe_of(name, pair.settings, pair.weight_decay)
        epoch = Measured(name, pair.needed)

        def ours(settings: dict[str, Any]) -> tuple[TrainingLoop, Callable[[], float]]:
            own = recipe_of(name, settings, pair.weight_decay)
            model = build_model(own, self.workload, self.compute)
            loop = training_loop(own, model, self.workload, self.compute)
            timed = self._our_epoch(loop)
            timed()
            return loop, timed

        (loop, timed), epoch.memory_mib = measure_memory(self.compute, lambda: ours(pair.settings))
        epoch.n_weights = _n_weights(loop.model)
        sides = {"ours": (timed, epoch.times_s)}
        frozen = None
        if "freeze_features" in type(recipe.settings).model_fields:
            frozen = ours({**pair.settings, "freeze_features": True})
            sides["frozen"] = (frozen[1], epoch.frozen_times_s)
        theirs = self._their_side(pair, epoch)
        if theirs is not None:
            sides["theirs"] = (theirs[1], epoch.toolbox_times_s)
        for _ in range(self.repeats):
            for run, times_s in sides.values():
                times_s.append(run())
        results = [epoch]
        if name in EVALUATED:
            results.append(self._evaluation(name, loop, theirs[0] if theirs else None, epoch))
        epoch.parts = self._floor(loop)
        return results

    def _our_epoch(self, loop: TrainingLoop) -> Callable[[], float]:
        watch = Stopwatch(self.n_timed, self.n_steps, self.compute)
        loop.sampler = FirstTriples(loop.sampler, self.n_timed * BATCH)  # type: ignore[assignment]
        step = loop.model.training_step
        loop.model.training_step = watch.watch(step)  # type: ignore[method-assign]
        return lambda: watch.epoch_s(lambda: dict(loop._epoch(1)["losses"]))

    def _their_side(
        self, pair: Pair, result: Measured
    ) -> tuple[tuple[Any, Any], Callable[[], float]] | None:
        """Their model and trainer, and what times an epoch; None, and why, if it does not run."""
        toolbox = self.toolbox
        if toolbox is None or pair.theirs is None or not toolbox.has(pair.theirs):
            result.absent = "" if toolbox is None else "MMRec has no such model"
            return None
        name, settings = pair.theirs, pair.their_settings

        def first() -> tuple[tuple[Any, Any], Callable[[], float]]:
            model, trainer, loader = toolbox.build(name, settings)
            watch = Stopwatch(self.n_timed, self.n_steps, self.compute)
            batches = FirstBatches(loader, self.n_timed)
            model.calculate_loss = watch.watch(model.calculate_loss)

            def epoch() -> dict[str, float]:
                model.pre_epoch_processing()
                trainer._train_epoch(batches, 0)
                return {}

            def timed() -> float:
                return watch.epoch_s(epoch)

            timed()
            return (model, trainer), timed

        try:
            side, result.toolbox_memory_mib = measure_memory(self.compute, first)
        except Exception as problem:  # noqa: BLE001 - whatever a foreign program may raise
            result.absent = f"{type(problem).__name__}: {problem}".partition("\n")[0]
            console.warn(f"MMRec's {name} does not run here: {result.absent}")
            return None
        result.n_toolbox_weights = _n_weights(side[0][0])
        return side

    def _evaluation(
        self, name: str, loop: TrainingLoop, theirs: tuple[Any, Any] | None, epoch: Measured
    ) -> Measured:
        result = Measured(f"{name}, evaluation", EVALUATED[name], absent=epoch.absent)
        result.n_weights, result.n_toolbox_weights = epoch.n_weights, epoch.n_toolbox_weights
        ours = evaluation(loop.model, loop.ranker)
        _, result.memory_mib = measure_memory(self.compute, ours)
        run = None
        if theirs is not None and self.toolbox is not None:
            trainer, valid = theirs[1], self.toolbox.valid

            def run() -> dict[str, float]:
                return dict(trainer.evaluate(valid))

            _, result.toolbox_memory_mib = measure_memory(self.compute, run)
        for _ in range(self.repeats):
            result.times_s.append(seconds(ours, self.compute))
            if run is not None:
                result.toolbox_times_s.append(seconds(run, self.compute))
        recorder = Recorder()
        loop.model.eval()
        with recorder, torch.no_grad():
            loop.model.vectors()
        result.parts = parts([(recorder, 1)], self.machine)
        result.parts += evaluation_floor(self.workload, self.machine)
        return result

    def _floor(self, loop: TrainingLoop) -> list[Part]:
        """Products of the first step once, of the second for all others, and the updates."""
        model, recorded, updates = loop.model.train(), [], 0
        triples = copy.copy(loop.sampler).epoch(loop.sampling)
        model.on_epoch_start(1)
        for index, times in ((0, 1), (1, self.n_steps - 1)):
            rows = slice(index * BATCH, (index + 1) * BATCH)
            batch = Batch(triples.users[rows], triples.positives[rows], triples.negatives[rows])
            if not len(batch.users):
                continue
            recorder = Recorder()
            model.zero_grad(set_to_none=True)
            with recorder:
                terms = model.training_step(batch)
                torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            recorded.append((recorder, times))
            # What has no gradient stands still: LATTICE's features move once per epoch.
            updates += times * sum(p.numel() for p in model.parameters() if p.grad is not None)
        n_rows = len(self.workload.train.users)
        return parts(recorded, self.machine) + update_floor(model, updates, n_rows, self.machine)


def _n_weights(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def models() -> list[str]:
    """Registered models that use features and are trained by gradient."""
    kinds = {name: MODELS.get(name).obj for name in MODELS.names()}
    return [n for n, kind in kinds.items() if kind.modalities and kind.fitting == "gradient"]


def summary(results: list[Measured]) -> Table:
    """Times, ratios and floors, one line per piece of work."""
    table = _table("work", "ours", "MMRec", "ratio", "needed", "floor", "/floor")
    for one in results:
        met = "" if one.ratio is None else " ✓" if one.ratio >= one.needed else " ✗"
        table.add_row(
            one.work,
            f"{one.median_s:.2f}",
            number(one.toolbox_median_s, 2),
            number(one.ratio, 1),
            "-" if one.ratio is None else f"{one.needed:.1f}{met}",
            f"{one.floor_s:.2f}",
            f"{one.median_s / one.floor_s:.1f}",
        )
    return table


def sizes_table(results: list[Measured]) -> Table:
    """What `freeze_features` gains, and memory and trainable weights of both sides."""
    table = _table("work", "frozen", "gain", "MiB", "MMRec MiB", "weights", "MMRec weights")
    for one in results:
        theirs = one.n_toolbox_weights
        table.add_row(
            one.work,
            number(one.frozen_median_s, 2),
            number(one.frozen_gain, 2),
            number(one.memory_mib, 0),
            number(one.toolbox_memory_mib, 0),
            f"{one.n_weights / 1e6:.2f} M",
            "-" if theirs is None else f"{theirs / 1e6:.2f} M",
        )
    return table


def _table(first: str, *heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def floors_table(results: list[Measured]) -> Table:
    """The largest parts of each floor; all of them are in the JSON file."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in ("floor of", "what is timed alone"):
        table.add_column(head)
    for head in ("amount", "rate here", "s"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in results:
        largest = sorted(one.parts, key=lambda part: -part.time_s)
        shown = [part for part in largest if part.time_s >= one.floor_s / 20][:5]
        for index, part in enumerate(shown):
            table.add_row(
                one.work if index == 0 else "",
                part.what,
                f"{part.amount / 1e9:.1f} G{part.unit}",
                f"{part.rate / 1e9:.0f} G{part.unit}/s",
                f"{part.time_s:.3f}",
            )
    return table


def caption(bench: Bench, widths: tuple[int, ...], load: float) -> str:
    """What was measured, and where."""
    workload, compute = bench.workload, bench.compute
    place = f"{torch.get_num_threads()} CPU thread(s)"
    if compute.is_cuda:
        place = torch.cuda.get_device_name(compute.device)
    timed = f"all {bench.n_steps} batches of it"
    if bench.n_timed < bench.n_steps:
        timed = f"judged by {bench.n_timed} of its {bench.n_steps} batches"
    return "\n".join(
        [
            f"Data: {workload.source}; {workload.n_users:,} users, {workload.n_items:,} items,",
            f"      {len(workload.train.users):,} training pairs; random features of"
            f" {' + '.join(map(str, widths))} columns.",
            f"Here: {place}, torch {torch.__version__};",
            f"      load before {load:.1f}; medians of {bench.repeats}, in turns.",
            f"Work: one epoch, {timed}; {WIDTH} dimensions, batches of {BATCH}.",
            "      Times in seconds. /floor: ours over what its products and updates take",
            "      alone. frozen: ours with freeze_features; gain: how many times as fast.",
            "      MiB: how far the peak of memory rises while all is built and run once.",
        ]
    )


def load_data(
    dataset: str | None, data_dir: Path, inter: Path | None, size: str
) -> tuple[str, Any]:
    """The interactions that the options name; raises `DataError`."""
    if inter:
        return from_inter(inter)
    return from_dataset(dataset, data_dir) if dataset else synthetic(*counts(size, 3))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", help="A prepared dataset, for example amazon-baby.")
@click.option("--data-dir", type=click.Path(path_type=Path), default="data", envvar="MMBENCH_DATA",
              show_default=True, help="Where prepared datasets lie.")  # fmt: skip
@click.option("--inter", type=click.Path(path_type=Path), help="A .inter file as MMRec has them.")
@click.option("--size", default=BABY, show_default=True, metavar="USERS,ITEMS,PAIRS",
              help="Size of the synthetic dataset, used if no other is named.")  # fmt: skip
@click.option("--widths", default="4096,384", show_default=True, metavar="VISUAL,TEXTUAL",
              help="Columns of the random features.")  # fmt: skip
@click.option("--mmrec", type=click.Path(path_type=Path), metavar="DIR",
              help="A local checkout of MMRec to time in turns; it is only read.")  # fmt: skip
@click.option("--model", "chosen", multiple=True, metavar="NAME", help="Just this model.")
@click.option("--steps", type=click.IntRange(2), metavar="N",
              help="Run N batches of each epoch and judge the epoch by them.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch, for both sides.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--rate-seconds", type=click.FloatRange(0, min_open=True), default=0.5,
              show_default=True, help="How long each rate of the floors is tried for.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write this file.")
def main(
    dataset: str | None,
    data_dir: Path,
    inter: Path | None,
    size: str,
    widths: str,
    mmrec: Path | None,
    chosen: tuple[str, ...],
    steps: int | None,
    repeats: int,
    threads: int | None,
    device: str,
    rate_seconds: float,
    json_file: Path | None,
) -> None:
    """Time training epochs of every multimodal model on data of the size of Amazon Baby.

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
        for name in chosen:
            if MODELS.get(name).obj.fitting != "gradient":
                raise click.UsageError(f"{name} is not trained by gradient: it has no epochs")
        data = load_data(dataset, data_dir, inter, size)
        columns = counts(widths, 2)
        with tempfile.TemporaryDirectory(prefix="mmbench-benchmark-") as folder:
            workload = build(*data, (columns[0], columns[1]), Path(folder))
            toolbox = None
            if mmrec:
                toolbox = PublicToolbox(mmrec, Path(folder) / "mmrec", workload, compute)
            bench = Bench(workload, toolbox, Machine(compute, rate_seconds), repeats, steps)
            results: list[Measured] = []
            for name in chosen or models():
                console.note(f"measuring {name} ...")
                results += bench.measure(name)
                if json_file:  # after every model: a long run that is cut short keeps its figures
                    facts = {
                        **made_by("models.py"),
                        "caption": caption(bench, columns, load),
                        "environment": compute.describe(),
                        "shims": toolbox.shims if toolbox else [],
                        "load_before": load,
                        "repeats": repeats,
                        "steps_timed": bench.n_timed,
                        "steps": bench.n_steps,
                        "results": [one.as_dict() for one in results],
                    }
                    json_file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except MMBenchError as problem:
        console.error(str(problem))
        sys.exit(2)
    console.text(caption(bench, columns, load))
    if toolbox:
        console.text("Gone from current libraries, put back for MMRec:")
        for shim in toolbox.shims or ["nothing"]:
            console.text(f"      {shim}")
        for one in results:
            if one.absent:
                console.text(f"Not there: {one.work}: {one.absent}")
    console.text("")
    console.result(summary(results))
    console.text("")
    console.result(sizes_table(results))
    console.text("")
    console.result(floors_table(results))


if __name__ == "__main__":
    main()
