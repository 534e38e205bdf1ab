"""`mmbench cold-start`: models on items that training never saw, or hardly ever."""

from __future__ import annotations

from pathlib import Path

import click

from mmbench import console
from mmbench.cli import options, reporting

DEMO = ("bpr-mf", "vbpr", "itemknn-cbf")


@click.command("cold-start")
@click.argument("recipes", nargs=-1, metavar="[MODEL|RECIPE]...")
@click.option(
    "--definition",
    type=click.Choice(["items", "sequences"]),
    default="items",
    show_default=True,
    help="items: a fifth of the items never trains. sequences: regular models, asked for items "
    "of few training rows after what stands before them in a user's history.",
)
@click.option(
    "--scope",
    type=click.Choice(["heldout", "complete", "both"]),
    help="Of --definition sequences: cases at held-out positions alone, at any, or both. "
    "[default: both]",
)
@click.option(
    "--below",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of --definition sequences: cold is an item of fewer training rows. [default: 10]",
)
@click.option(
    "--split-seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of --definition items: draws the cold items. [default: the dataset's seed]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME@K",
    help="What is compared; repeatable. [default: recall@20 and ndcg@20, of sequences hr@10 and "
    "ndcg@10]",
)
@click.option(
    "--baseline", metavar="LABEL", help="Reference system. [default: the best of each column]"
)
@reporting.study_options
@options.tuning_options
@options.training_options
def cold_start(
    recipes: tuple[str, ...],
    definition: str,
    scope: str | None,
    below: int | None,
    split_seed: int | None,
    metrics: tuple[str, ...],
    baseline: str | None,
    page: Path | None,
    folder: Path | None,
    force: bool,
    tune: str | None,
    trials: int | None,
    processes: int | None,
    threads: int | None,
    ray: str | None,
    dataset: str | None,
    seeds: tuple[int, ...],
    settings: tuple[str, ...],
    data_dir: Path,
    runs_dir: Path,
    device: str,
    deterministic: bool,
    checkpoint_every: float,
    output: str,
) -> None:
    """Measure models on cold items: warm, cold and overall side by side, beside chance.

    A model of IDs alone has vectors of items that it never trained on, and finds them by chance;
    one that reads their pictures or texts can do better. Without RECIPE it compares bpr-mf, vbpr
    and itemknn-cbf on the embedded demo dataset. Finished runs are taken as they are, and
    splits that a dataset lacks are added to it. With --tune the settings under search: are
    searched for every model on the validation part of the study's split, with equal budgets.

    \b
    Examples:
      mmbench cold-start
      mmbench cold-start bpr-mf vbpr --dataset movielens-100k --seeds 0,1,2
      mmbench cold-start sasrec --dataset movielens-100k --definition sequences
      mmbench cold-start vbpr bpr-mf --tune random --trials 10 --html cold.html
    """
    if definition == "items" and (scope or below):
        raise click.UsageError("--scope and --below belong to --definition sequences")
    if definition == "sequences" and split_seed is not None:
        raise click.UsageError("--split-seed belongs to --definition items")
    from mmbench.cli.training import (
        display,
        ensure_demo,
        load_recipes,
        warn_of_no_features,
        workplace,
    )
    from mmbench.cli.tuning import asked_tuning, check_free, tell_searches, tuned
    from mmbench.metrics.base import parse_metric
    from mmbench.report.cold_start import compare_cold
    from mmbench.report.cold_tables import ColdLeaderboard, render_cold
    from mmbench.report.html.cold_start import cold_start as section
    from mmbench.studies import cold_start as study

    tuning = asked_tuning(tune, trials, processes, threads, ray)
    reporting.check_places(page, folder, force=force)
    wanted = metrics or study.METRICS[definition]
    deepest = max(parse_metric(name).k for name in wanted)
    loaded = load_recipes(recipes or DEMO, dataset=dataset, seeds=seeds, settings=settings)
    how = study.ColdStart(
        definition=definition,  # type: ignore[arg-type]
        below=below or study.COLD_BELOW,
        scopes=study.SCOPES if scope in (None, "both") else (str(scope),),
        split_seed=split_seed,
    )
    study.check_request(loaded, baseline, deepest)
    if tuning is not None:
        check_free(loaded, settings, {})
    place = workplace(data_dir, runs_dir, device, deterministic, checkpoint_every)
    for recipe in loaded:
        warn_of_no_features(recipe)
    ensure_demo(loaded[0].shape.dataset, data_dir)
    if tuning is not None:
        planned = study.plan(loaded, how, place)
        found = study.judge_all(
            planned, how, place, tell_searches(tuned(planned, tuning, place), output)
        )
    else:
        with display(data_dir) as events:
            found = study.cold_start(loaded, how, place, events)
    table = compare_cold(
        found.runs,
        found.scopes,
        wanted,
        definition=definition,
        notes=study.notes(found, how),
        baseline=baseline,
    )
    if place.compute.ranks.is_first:
        reporting.write_study("Cold start", [section(table)], found.runs, page, folder)
    if output == "table":
        console.result(ColdLeaderboard(table))
    else:
        console.text(render_cold(table, output))
