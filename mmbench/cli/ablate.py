"""`mmbench ablate`: a recipe with and without some of its modalities, compared."""

from __future__ import annotations

from pathlib import Path

import click

from mmbench import console
from mmbench.cli import options


@click.command("ablate")
@click.argument("recipe", required=False, metavar="[MODEL|RECIPE]")
@click.option(
    "--drop",
    "drops",
    multiple=True,
    metavar="MODALITY",
    help="Modality to leave out: visual, textual, acoustic or joint; repeatable. Join several by "
    "commas to leave them out together. Without it, each one in turn.",
)
@options.training_options
def ablate(
    recipe: str | None,
    drops: tuple[str, ...],
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
    """Train a recipe with and without some modalities and test the difference.

    Without RECIPE it runs VBPR on the embedded demo dataset, whose tastes are planted: texts
    and pictures matter, the acoustic features are noise. A modality is dropped by training
    the model without that branch, with equal settings and seeds.

    \b
    Examples:
      mmbench ablate --drop visual
      mmbench ablate tiktok/vbpr --drop visual --drop acoustic --seeds 0,1,2
    """
    from mmbench.cli.training import display, ensure_demo, workplace
    from mmbench.recipe import load_recipe
    from mmbench.report.comparison import compare
    from mmbench.report.leaderboard import leaderboard, render
    from mmbench.studies.ablation import ablations
    from mmbench.studies.training import train_recipes

    loaded = load_recipe(recipe or "vbpr", dataset=dataset, seeds=seeds, settings=settings)
    variants = ablations(loaded, drops)
    place = workplace(data_dir, runs_dir, device, deterministic, checkpoint_every)
    ensure_demo(loaded.shape.dataset, data_dir, loaded.shape.protocol.split)
    with display() as events:
        trained = train_recipes(variants, place, events)
    runs = [run for result in trained for run in result.chosen.runs]
    comparison = compare(
        runs, metrics=loaded.shape.evaluation.metrics, baseline=trained[0].chosen.label
    )
    if output == "table":
        console.result(leaderboard(comparison))
    else:
        console.text(render(comparison, output))
