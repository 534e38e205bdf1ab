"""What every command with `--tune` shares: its options, its progress, its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.text import Text

from mmbench import console

if TYPE_CHECKING:
    from mmbench.recipe import Recipe
    from mmbench.report.trials import SearchTable
    from mmbench.studies.training import Trained, Workplace
    from mmbench.studies.tuning import Tuned, Tuning, TuningEvents


def asked_tuning(
    tune: str | None,
    trials: int | None,
    processes: int | None,
    threads: int | None,
    ray: str | None,
) -> Tuning | None:
    """What the options of a command ask for; None without `--tune`."""
    from mmbench.errors import UnknownNameError
    from mmbench.studies.samplers import METHODS
    from mmbench.studies.tuning import Tuning

    if tune is None:
        for given, option in (
            (trials, "--trials"),
            (processes, "--processes"),
            (threads, "--threads"),
            (ray, "--ray"),
        ):
            if given is not None:
                raise click.UsageError(f"{option} belongs to --tune")
        return None
    if tune not in METHODS:
        raise UnknownNameError("way to tune", tune, METHODS)
    if ray is not None and processes is not None:
        raise click.UsageError("--processes and --ray exclude one another")
    return Tuning(tune, trials, processes or 1, threads or 1, ray)


def check_free(
    recipes: Sequence[Recipe], settings: Sequence[str], fixed: Mapping[str, str]
) -> None:
    """Refuse a key that is searched and fixed by another option.

    Args:
        settings: as `--set` was given them.
        fixed: the key that another option fixes, by option.

    Raises:
        ConfigError: there is one.
    """
    from mmbench.errors import ConfigError

    keys = [(f"--set {key}", key) for key in (text.partition("=")[0].strip() for text in settings)]
    for option, key in [*keys, *fixed.items()]:
        for recipe in recipes:
            if key in recipe.space:
                raise ConfigError(
                    f"{option} fixes {key}, which {recipe.source} searches over; leave the option "
                    "out, or take the key out of search:"
                )


def tuned(recipes: Sequence[Recipe], tuning: Tuning, place: Workplace) -> list[Tuned]:
    """Search the settings of recipes, with a progress display."""
    from mmbench.cli.training import warn_of_the_future
    from mmbench.studies.tuning import tune_recipes

    for recipe in recipes:
        without = [key for key in recipe.shape.search if key not in recipe.space]
        if without:
            console.note(
                f"{recipe.shape.label or recipe.source}: it has no {', '.join(without)} to search"
            )
    warn_of_the_future(
        [(str(r.shape.model["name"]), r.shape.dataset, r.shape.protocol.split) for r in recipes],
        place.data_dir,
    )
    with _display() as events:
        return tune_recipes(recipes, tuning, place, events)


@contextmanager
def _display() -> Iterator[TuningEvents]:
    """One bar for the runs of a round, and a line for each of them."""
    from mmbench.studies.tuning import TuningEvents

    with console.progress() as bars:
        bar = bars.add_task("runs", total=0, status="")
        state = {"done": 0, "total": 0}

        def planned(n_runs: int) -> None:
            state["total"] += n_runs
            bars.update(bar, total=state["total"])

        def retried(what: str, error: str) -> None:
            console.warn(f"{what}: {error}; trying again")

        def done(what: str, value: float | None, how: str, was_finished: bool) -> None:
            state["done"] += 1
            bars.update(bar, completed=state["done"], status=what)
            count = f"[{state['done']}/{state['total']}]"
            if value is None:
                console.warn(f"{count} {what} failed: {how}")
                return
            before = "finished before, " if was_finished else ""
            console.note(f"{count} {what}: {before}{value:.4f} on validation, {how}")

        yield TuningEvents(planned, retried, done)


def tables(results: Sequence[Tuned]) -> list[SearchTable]:
    """The trials of each search, for printing."""
    from mmbench.report.trials import SearchRow, SearchTable

    return [
        SearchTable(
            result.label,
            result.recipe.shape.training.select_by,
            result.method,
            result.seed,
            {key: dimension.describe() for key, dimension in result.space.items()},
            [
                SearchRow(t.number, t.point, t.value, t.error, t is result.chosen)
                for t in result.tried
            ],
        )
        for result in results
    ]


def tune_and_print(
    recipes: Sequence[Recipe], tuning: Tuning, place: Workplace, output: str
) -> None:
    """Search, and print all trials, the budgets, and the leaderboard of the chosen settings."""
    from mmbench.cli.training import print_trained
    from mmbench.report.trials import budget_text

    results = tuned(recipes, tuning, place)
    shown = tables(results)
    trained = [result.trained for result in results]
    if output == "table":
        for table in shown:
            console.result(table.table())
        console.result(Text(budget_text(shown)))
        print_trained(trained, output)
    else:
        print_trained(trained, output, before=[table.text(output) for table in shown])
        console.note(budget_text(shown))


def tell_searches(results: Sequence[Tuned], output: str) -> list[Trained]:
    """Print the trials and budgets of a study that goes on to its own tables.

    As a table they come before those; else they go to stderr, as the result is the study's.
    Returns the runs of the chosen settings.
    """
    from mmbench.report.trials import budget_text

    shown = tables(results)
    tell = console.result if output == "table" else console.notice
    for table in shown:
        tell(table.table())
    tell(Text(budget_text(shown)))
    return [result.trained for result in results]
