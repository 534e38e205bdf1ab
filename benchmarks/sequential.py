"""SASRec's training and full-catalogue evaluation against RecBole's SASRec.

The same users, items, lengths, widths, layers, heads, dropout and batch; both sides take turns in
one process. A batch of RecBole holds one next item for each sequence (it makes one row of every
prefix), a batch of ours one for each of a sequence's positions: sequences a second and next items
a second are both printed. Beside them stands what RecBole would be beaten by if nothing ran but
the matrix products of ours and the optimiser's update, each at the best rate measured here: both
sides multiply alike for a sequence, so that this is the most there is to be had.
Needs RecBole importable (`pip install recbole` somewhere, and that
place on PYTHONPATH); without it ours is measured alone.
Run `python benchmarks/sequential.py --help`.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from machine import Machine, Part
from making import made_by
from recording import Recorder, parts
from rich import box
from rich.table import Table

from mmbench import console
from mmbench.engine.device import Compute, choose
from mmbench.engine.inputs import Ragged, Target
from mmbench.engine.ranking import Ranker
from mmbench.engine.training import TrainingLoop
from mmbench.models.base import MODELS, Interactions
from mmbench.recipe import Recipe

NEEDED = 2.0
"""How many times as fast as RecBole each piece of work has to be on a CPU."""
METRICS = ["hr@10", "ndcg@10"]


@dataclass(frozen=True)
class Size:
    """The work: users, items, mean length of a history, and the model."""

    users: int
    items: int
    mean_length: int
    max_length: int
    width: int
    layers: int
    heads: int
    dropout: float
    batch: int


@dataclass
class Work:
    """One piece of work: what one run of either side handles, and how long each took."""

    name: str
    unit: str
    amount: float
    their_amount: float = 0.0
    times_s: list[float] = field(default_factory=list)
    their_times_s: list[float] = field(default_factory=list)
    floor: list[Part] = field(default_factory=list)

    @property
    def floor_s(self) -> float:
        """What the products and updates take alone."""
        return sum(part.time_s for part in self.floor)

    @property
    def rate(self) -> float:
        """Ours, units a second."""
        return self.amount / statistics.median(self.times_s)

    @property
    def their_rate(self) -> float | None:
        """RecBole's, units a second."""
        if not self.their_times_s:
            return None
        return self.their_amount / statistics.median(self.their_times_s)


def histories(size: Size, seed: int = 0) -> list[np.ndarray]:
    """Random histories in the order of time: lengths about the mean, items by a power law."""
    random = np.random.default_rng(seed)
    lengths = np.maximum(5, random.poisson(size.mean_length, size.users))
    weights = 1.0 / np.arange(1, size.items + 1) ** 0.8
    return [
        random.choice(size.items, min(int(n), size.items), replace=False, p=weights / weights.sum())
        for n in lengths
    ]


class Ours:
    """This project's engine on the histories."""

    def __init__(self, size: Size, rows: list[np.ndarray], compute: Compute) -> None:
        self.compute = compute
        train = [row[:-2] for row in rows]
        users = np.repeat(np.arange(size.users), [len(row) for row in train])
        items = np.concatenate(train)
        order = np.lexsort((items, users))
        given = Interactions(
            size.users,
            size.items,
            torch.from_numpy(users),
            torch.from_numpy(items[order]),
            torch.from_numpy(items),
        )
        recipe = Recipe(
            {
                "protocol": "mmsr",
                "model": {
                    "name": "sasrec",
                    "embedding_size": size.width,
                    "max_length": size.max_length,
                    "n_layers": size.layers,
                    "n_heads": size.heads,
                    "dropout": size.dropout,
                },
                # An epoch is only that: nothing is ranked until it is asked for.
                "training": {"batch_size": size.batch, "epochs": 10**6, "evaluate_every": 10**6},
                "evaluation": {"metrics": METRICS, "depth": 20},
            },
            "benchmark",
        ).expand()[0]
        torch.manual_seed(0)
        model = MODELS.get("sasrec").obj(recipe.settings, given, []).to(compute.device)
        before = Ragged.in_order(
            np.repeat(np.arange(size.users), [len(row) - 1 for row in rows]),
            np.concatenate([row[:-1] for row in rows]),
            size.users,
        )
        last = Ragged.group(np.arange(size.users), np.array([row[-1] for row in rows]), size.users)
        masked = Ragged.group(
            np.repeat(np.arange(size.users), before.counts), before.items, size.users
        )
        everyone = np.arange(size.users)
        self.ranker = Ranker(
            Target(everyone, last, masked, before),
            np.bincount(items, minlength=size.items),
            np.bincount(users, minlength=size.users),
            np.random.default_rng(0).permutation(size.items),
            compute.device,
        )
        moved = Interactions(
            size.users,
            size.items,
            given.users.to(compute.device),
            given.items.to(compute.device),
            torch.from_numpy(items).to(compute.device),
        )
        self.loop = TrainingLoop(recipe, model, moved, self.ranker, compute)
        self.epochs = self.loop.run()
        self.positions = int(sum(min(len(row) - 1, size.max_length) for row in train))

    def train(self) -> None:
        """One epoch: every user's sequence once."""
        next(self.epochs)

    def training_floor(self, machine: Machine) -> list[Part]:
        """Of an epoch: the products of a whole batch as often as there are rows for one."""
        model, step = self.loop.model.train(), self.loop.step
        assert step is not None
        sequences, size = self.loop.sampler.epoch(self.loop.sampling), self.loop.training.batch_size
        batch = sequences.batch(slice(0, size))
        recorder = Recorder()
        model.zero_grad(set_to_none=True)
        with recorder:
            terms = model.training_step(batch)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        n_steps = -(-len(sequences) // len(batch))
        updates = n_steps * sum(parameter.numel() for parameter in step.learning)
        rate = machine.triad_rate(max(parameter.numel() for parameter in step.learning))
        adam = Part("Adam over all weights", 32 * updates, "B", rate)
        return [*parts([(recorder, n_steps)], machine), adam]

    def ranking_floor(self, machine: Machine) -> list[Part]:
        """Of a ranking: its products."""
        recorder = Recorder()
        with recorder:
            self.ranker.rank(self.loop.model, 20)
        return parts([(recorder, 1)], machine)

    def evaluate(self) -> None:
        """All items ranked for every user, and the metrics."""
        lists = self.ranker.rank(self.loop.model, 20)
        for metric in self.loop.metrics:
            metric.values(lists).mean()


class FirstBatches:
    """The first batches of a loader, drawn anew each time it is iterated."""

    def __init__(self, loader: Any, n_batches: int) -> None:
        self.loader, self.n_batches = loader, n_batches
        self.shuffle = False

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.n_batches)


class Theirs:
    """RecBole on the same histories, loss with one negative for each next item."""

    def __init__(self, size: Size, rows: list[np.ndarray], folder: Path, n_batches: int) -> None:
        _put_back()
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.model.sequential_recommender import SASRec
        from recbole.trainer import Trainer

        place = folder / "bench"
        place.mkdir()
        with (place / "bench.inter").open("w", encoding="utf-8") as file:
            file.write("user_id:token\titem_id:token\ttimestamp:float\n")
            for user, row in enumerate(rows):
                file.writelines(f"{user}\t{item}\t{when}\n" for when, item in enumerate(row))
        settings = {
            "data_path": str(folder),
            "checkpoint_dir": str(folder),
            "state": "ERROR",
            "use_gpu": torch.cuda.is_available(),
            "show_progress": False,
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "TIME_FIELD": "timestamp",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": size.max_length,
            "train_batch_size": size.batch,
            "eval_batch_size": 4096 * 100,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "mode": "full",
                "group_by": "user",
            },
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            "loss_type": "BPR",
            "hidden_size": size.width,
            "inner_size": 4 * size.width,
            "n_layers": size.layers,
            "n_heads": size.heads,
            "hidden_dropout_prob": size.dropout,
            "attn_dropout_prob": size.dropout,
            "metrics": ["Hit", "NDCG"],
            "valid_metric": "NDCG@10",
            "topk": [10],
        }
        config = Config(model="SASRec", dataset="bench", config_dict=settings)
        dataset = create_dataset(config)
        train, _, self.test = data_preparation(config, dataset)
        self.batches = FirstBatches(train, min(n_batches, len(train)))
        self.model = SASRec(config, train.dataset).to(config["device"])
        self.trainer = Trainer(config, self.model)
        # One of its models switches this on for the whole process when it is imported.
        self.detects_anomalies = torch.is_anomaly_enabled()
        torch.autograd.set_detect_anomaly(False)

    def train(self) -> None:
        """The first batches of an epoch, as the toolbox ships."""
        with torch.autograd.set_detect_anomaly(self.detects_anomalies):
            self.trainer._train_epoch(self.batches, 0)

    def train_unchecked(self) -> None:
        """The same without the detection of anomalies."""
        self.trainer._train_epoch(self.batches, 0)

    def evaluate(self) -> None:
        """All items ranked for every user, and the metrics."""
        self.trainer.evaluate(self.test, load_best_model=False)


def _put_back() -> None:
    """Names that NumPy 2 no longer has, which RecBole 1.2.1 asks for."""
    for old, new in {
        "float_": np.float64,
        "complex_": np.complex128,
        "unicode_": np.str_,
    }.items():
        if not hasattr(np, old):
            setattr(np, old, new)


@click.command()
@click.option("--users", default=6040, show_default=True)
@click.option("--items", default=3416, show_default=True)
@click.option("--mean-length", default=165, show_default=True, help="Items of a history.")
@click.option("--max-length", default=50, show_default=True, help="Input items of the model.")
@click.option("--width", default=64, show_default=True)
@click.option("--layers", default=2, show_default=True)
@click.option("--heads", default=2, show_default=True)
@click.option("--dropout", default=0.2, show_default=True)
@click.option("--batch-size", default=256, show_default=True, help="Sequences.")
@click.option("--repeats", default=3, show_default=True, help="Turns of each side.")
@click.option("--threads", default=0, show_default=True, help="0: torch's own number.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write figures here.")
def main(
    users: int,
    items: int,
    mean_length: int,
    max_length: int,
    width: int,
    layers: int,
    heads: int,
    dropout: float,
    batch_size: int,
    repeats: int,
    threads: int,
    device: str,
    report: Path | None,
) -> None:
    """Measure training and evaluation of SASRec on random histories, beside RecBole's."""
    if threads:
        torch.set_num_threads(threads)
    size = Size(users, items, mean_length, max_length, width, layers, heads, dropout, batch_size)
    compute = choose(device)
    rows = histories(size)
    load = os.getloadavg()[0]
    ours = Ours(size, rows, compute)
    n_batches = -(-users // batch_size)
    work = [
        Work("training", "sequences", users, n_batches * batch_size),
        Work("training*", "sequences", users, n_batches * batch_size),
        Work("training", "next items", ours.positions, n_batches * batch_size),
        Work("evaluation", "users", users, users),
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other side
        theirs = None
        if importlib.util.find_spec("recbole"):
            logging.disable(logging.CRITICAL)
            theirs = Theirs(size, rows, Path(folder), n_batches)
        for turn in range(repeats + 1):
            trained = _seconds(ours.train, compute)
            ranked = _seconds(ours.evaluate, compute)
            if turn:  # the first one warms up
                for one in work[:3]:
                    one.times_s.append(trained)
                work[3].times_s.append(ranked)
            if theirs is not None:
                trained = _seconds(theirs.train, compute)
                unchecked = _seconds(theirs.train_unchecked, compute)
                ranked = _seconds(theirs.evaluate, compute)
                if turn:
                    work[0].their_times_s.append(trained)
                    work[1].their_times_s.append(unchecked)
                    work[2].their_times_s.append(trained)
                    work[3].their_times_s.append(ranked)
    machine = Machine(compute, 0.3)
    work[0].floor = work[1].floor = work[2].floor = ours.training_floor(machine)
    work[3].floor = ours.ranking_floor(machine)
    caption = (
        f"{users:,} users, {items:,} items, histories of {mean_length}, {max_length} inputs,\n"
        f"{width} dimensions, {layers} layers, {heads} heads, batches of {batch_size};\n"
        f"{compute.describe()['device']}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}; load before {load:.1f};\nmedians of {repeats}, in turns. "
        "*: RecBole without the anomaly detection that\nit switches on for the whole process."
    )
    console.text(caption)
    console.result(_table(work))
    if theirs is None:
        console.text("RecBole is not importable here: ours alone.")
    if report is not None:
        figures = [
            {
                "work": one.name,
                "unit": one.unit,
                "times_s": one.times_s,
                "recbole_times_s": one.their_times_s,
                "rate": one.rate,
                "recbole_rate": one.their_rate,
                "floor_s": one.floor_s,
                "floor": [part.as_dict() for part in one.floor],
            }
            for one in work
        ]
        facts = {
            **made_by("sequential.py"),
            "caption": caption,
            "environment": compute.describe(),
            "results": figures,
        }
        report.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _seconds(run: Callable[[], None], compute: Compute) -> float:
    compute.synchronise()
    begin = time.perf_counter()
    run()
    compute.synchronise()
    return time.perf_counter() - begin


def _table(work: list[Work]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("work", no_wrap=True)
    for head in ("per second", "ours", "RecBole", "ratio", "needed", "at floor"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in work:
        theirs = one.their_rate
        ratio = None if theirs is None else one.rate / theirs
        table.add_row(
            one.name,
            one.unit,
            f"{one.rate:,.0f}",
            "-" if theirs is None else f"{theirs:,.0f}",
            "-" if ratio is None else f"{ratio:.1f}",
            f"{NEEDED:.1f}" + ("" if ratio is None else " ✓" if ratio >= NEEDED else " ✗"),
            "-" if theirs is None else f"{one.amount / one.floor_s / theirs:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
