"""Is the significance test honest? One recipe against itself, trained with other seeds.

    python benchmarks/calibration.py --data-dir data --trainings 20

Under this null no difference of systems exists. The test over users and seeds should reject it
about as often as its level; the test over users alone asks a narrower question and rejects more
often, because two trainings of one recipe do differ. Real trainings: many random ways to deal
the seeds to two sides of three or five. They share trainings, so they are not independent and
the rate has no binomial error; it is shown beside a simulation whose rate has one.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import click
import numpy as np
from making import made_by
from rich.table import Table

from mmbench import console
from mmbench.engine.device import choose
from mmbench.errors import MMBenchError
from mmbench.metrics.base import parse_metric
from mmbench.recipe import load_recipe
from mmbench.stats.paired import paired_t
from mmbench.stats.system import system_test
from mmbench.studies.training import Events, Workplace, train_recipes

ALPHA = 0.05


def rates(
    values: np.ndarray, sides: int, deals: int, rng: np.random.Generator
) -> tuple[float, float, int]:
    """Share of deals of the seeds to two sides that each test rejects, and how many were dealt.

    Args:
        values: one value per seed and user [S, U].
        sides: seeds on each side.
    """
    n_seeds, users, systems = len(values), 0, 0
    every = list(combinations(range(n_seeds), 2 * sides)) if n_seeds <= 8 else []
    n = min(deals, len(every)) if every else deals
    for _ in range(n):
        chosen = rng.permutation(n_seeds)[: 2 * sides]
        one, two = values[chosen[:sides]], values[chosen[sides:]]
        users += paired_t(one.mean(axis=0), two.mean(axis=0)).p < ALPHA
        systems += system_test(one, two).p < ALPHA
    return users / n, systems / n, n


def simulated(
    seed_sd: float, sides: int, repeats: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Rejection rates of independent nulls: users differ, a seed shifts all, the rest is noise."""
    users = systems = 0
    for _ in range(repeats):
        taste = rng.standard_normal(300)
        values = (
            taste
            + seed_sd * rng.standard_normal((2 * sides, 1))
            + 0.5 * rng.standard_normal((2 * sides, 300))
        )
        users += paired_t(values[:sides].mean(axis=0), values[sides:].mean(axis=0)).p < ALPHA
        systems += system_test(values[:sides], values[sides:]).p < ALPHA
    return users / repeats, systems / repeats


@click.command()
@click.option("--recipe", default="demo/vbpr", show_default=True)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=Path("data"), show_default=True
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True
)
@click.option("--trainings", default=20, show_default=True, help="Seeds to train.")
@click.option("--deals", default=2000, show_default=True, help="Random deals of the seeds.")
@click.option("--repeats", default=2000, show_default=True, help="Simulated nulls.")
@click.option("--metric", default="recall@20", show_default=True)
@click.option(
    "--json", "file", type=click.Path(path_type=Path), help="Also write the figures here."
)
def main(
    recipe: str,
    data_dir: Path,
    runs_dir: Path,
    trainings: int,
    deals: int,
    repeats: int,
    metric: str,
    file: Path | None,
) -> None:
    """Measure how often a true null is rejected at 5 %."""
    rng = np.random.default_rng(0)
    compute = choose("cpu")
    try:
        loaded, measured = load_recipe(recipe, seeds=range(trainings)), parse_metric(metric)
        (trained,) = train_recipes([loaded], Workplace(data_dir, runs_dir, compute), Events())
        values = np.stack([run.values(measured) for run in trained.chosen.runs])
    except MMBenchError as problem:
        console.error(str(problem))
        sys.exit(2)
    table = Table(title=f"Rejected at 5 %: {recipe} against itself, {metric}", title_justify="left")
    for head in ("null", "seeds a side", "users alone", "users and seeds", "cases"):
        table.add_column(head, justify="left" if head == "null" else "right")
    figures = []
    for sides in (3, 5):
        users, systems, n = rates(values, sides, deals, rng)
        figures.append((f"{trainings} real trainings", sides, users, systems, n))
    for seed_sd in (0.0, 0.02, 0.1):
        for sides in (3, 5):
            users, systems = simulated(seed_sd, sides, repeats, rng)
            figures.append((f"simulated, seed sd {seed_sd}", sides, users, systems, repeats))
    for name, sides, users, systems, n in figures:
        table.add_row(name, str(sides), f"{users:.1%}", f"{systems:.1%}", str(n))
    console.result(table)
    means = values.mean(axis=1)
    told = f"mean over seeds {means.mean():.4f}, sd over seeds {means.std(ddof=1):.4f}"
    console.text(told)
    if file:
        keys = ("null", "seeds_a_side", "users", "users_and_seeds", "cases")
        facts = {
            **made_by("calibration.py"),
            "caption": f"{recipe} against itself, {metric}, {trainings} trainings: {told}.\n"
            f"Share of true nulls rejected at {ALPHA:.0%}.",
            "level": ALPHA,
            "environment": compute.describe(),
            "results": [dict(zip(keys, f, strict=True)) for f in figures],
        }
        file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
