"""Options that several subcommands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mmbench.errors import ConfigError

MOST_SEEDS = 1000
Command = TypeVar("Command", bound=Callable[..., Any])


class Seeds(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Whole numbers joined by commas; ranges such as 0-4 are allowed."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read "0,1,5-7" as (0, 1, 5, 6, 7)."""
        if isinstance(value, tuple):
            return value
        seeds: list[int] = []
        for part in str(value).split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                self.fail(
                    f"{value!r} is not a list of seeds; write for example 0,1,2 or 0-4", param, ctx
                )
            count = int(last or first) - int(first) + 1
            if count < 1:
                self.fail(f"{part.strip()!r} counts down; write {last}-{first}", param, ctx)
            if len(seeds) + count > MOST_SEEDS:
                self.fail(f"{value!r} is more than {MOST_SEEDS} seeds", param, ctx)
            seeds += range(int(first), int(first) + count)
        return tuple(seeds)


class Counts(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Whole numbers from 1 joined by commas; K and M stand for thousands and millions."""

    name = "counts"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read "10K,20000" as (10000, 20000)."""
        if isinstance(value, tuple):
            return value
        from mmbench.data.cleaning import parse_count

        try:
            return tuple(parse_count(part) for part in str(value).split(","))
        except ConfigError as problem:
            self.fail(str(problem), param, ctx)


def count_text(count: int) -> str:
    """A number as it stands in names: 20000 as "20k"."""
    for unit, letter in ((10**6, "m"), (10**3, "k")):
        if count % unit == 0:
            return f"{count // unit}{letter}"
    return str(count)


class FiniteRange(click.FloatRange):
    """A number within bounds; click's own lets "nan" pass, which no bound excludes."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a finite number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data"),
    envvar="MMBENCH_DATA",
    show_default=True,
    show_envvar=True,
    help="Folder of the prepared datasets.",
)
runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    envvar="MMBENCH_RUNS",
    show_default=True,
    show_envvar=True,
    help="Folder of the runs.",
)
dataset_option = click.option("--dataset", metavar="NAME", help="Dataset in place of the recipe's.")
seeds_option = click.option(
    "--seeds",
    type=Seeds(),
    default=(),
    metavar="N,N,..",
    help="Seeds in place of the recipe's, for example 0,1,2.",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, for example model.embedding_size=32; repeatable.",
)
device_option = click.option(
    "--device", default="auto", metavar="NAME", show_default=True, help="auto, cpu, cuda or cuda:N."
)
deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    help="Bit-identical results on a GPU too, at some cost of speed.",
)
checkpoint_option = click.option(
    "--checkpoint-every",
    type=FiniteRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How often an unfinished run is saved, so that it can be resumed.",
)
format_option = click.option(
    "--format",
    "output",
    type=click.Choice(["table", "github", "latex", "csv", "json"]),
    default="table",
    show_default=True,
    help="How results are printed.",
)


def training_options(command: Command) -> Command:
    """The options of every command that trains: what to change, where to work, how to print."""
    for option in reversed(
        (
            dataset_option,
            seeds_option,
            set_option,
            data_dir_option,
            runs_dir_option,
            device_option,
            deterministic_option,
            checkpoint_option,
            format_option,
        )
    ):
        command = option(command)
    return command


def tuning_options(command: Command) -> Command:
    """The options of every command that can search settings; `cli/tuning.py` reads them."""
    for option in reversed(
        (
            click.option(
                "--tune",
                metavar="HOW",
                help="Search settings on validation first: random, grid, optuna or optuna:NAME "
                "(tpe, cmaes, gp, qmc).",
            ),
            click.option(
                "--trials",
                type=int,
                metavar="N",
                help="Trials of every system; for a grid all points unless given.",
            ),
            click.option(
                "--processes",
                type=click.IntRange(min=1),
                metavar="P",
                help="Runs of a search at the same time; moves no number.  [default: 1]",
            ),
            click.option(
                "--threads",
                type=click.IntRange(min=1),
                metavar="T",
                help="Threads of each run of a search.  [default: 1]",
            ),
            click.option(
                "--ray",
                metavar="ADDRESS",
                help="Search on a Ray cluster: auto, local or HOST:PORT.",
            ),
        )
    ):
        command = option(command)
    return command
