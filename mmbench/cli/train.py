"""`mmbench train`: train recipes, once per trial and seed, and report their test metrics."""

from __future__ import annotations

from pathlib import Path

import click

from mmbench import console
from mmbench.cli import options


@click.command("train")
@click.argument("recipes", nargs=-1, metavar="[MODEL|RECIPE]...")
@click.option(
    "--list", "list_models", is_flag=True, help="List models and shipped recipes, and stop."
)
@options.tuning_options
@options.training_options
def train(
    recipes: tuple[str, ...],
    dataset: str | None,
    seeds: tuple[int, ...],
    settings: tuple[str, ...],
    list_models: bool,
    tune: str | None,
    trials: int | None,
    processes: int | None,
    threads: int | None,
    ray: str | None,
    data_dir: Path,
    runs_dir: Path,
    device: str,
    deterministic: bool,
    checkpoint_every: float,
    output: str,
) -> None:
    """Train models or recipe files, once per seed, and report their test metrics.

    RECIPE is a YAML file, a shipped recipe such as amazon-baby/vbpr, or a model's name, which
    takes the shipped recipe for --dataset or else the model's defaults. Epochs and grid points
    are chosen on the validation split alone. A finished run is not repeated; an interrupted
    one goes on where it stopped. Under torchrun several GPUs (or, with --device cpu, processes)
    share each run; the batch size is that of all together.

    With --tune the settings under search: (and grid:) of each recipe are searched with the first
    seed, an equal number of trials for each; the best on validation is trained with all seeds.

    \b
    Examples:
      mmbench train vbpr --dataset demo --seeds 0,1,2
      mmbench train my-recipe.yaml --set model.embedding_size=32
      mmbench train amazon-baby/bpr-mf amazon-baby/lightgcn
      mmbench train my-recipe.yaml --tune random --trials 20 --processes 4
      torchrun --standalone --nproc-per-node 4 -m mmbench train my-recipe.yaml
    """
    # Imported here because torch takes seconds to load and --help must not wait.
    from mmbench.cli.training import (
        display,
        ensure_demo,
        load_recipes,
        print_trained,
        warn_of_no_features,
        workplace,
    )
    from mmbench.cli.tuning import asked_tuning, check_free, tune_and_print
    from mmbench.models.base import MODELS
    from mmbench.recipe_files import shipped_recipes
    from mmbench.report.listing import models_table
    from mmbench.studies.training import train_recipes

    if list_models:
        summaries = {name: MODELS.summary(name) for name in MODELS.names()}
        console.result(models_table(summaries, shipped_recipes()))
        return
    if not recipes:
        raise click.UsageError(
            "name a model or a recipe; `mmbench train --list` shows what there is"
        )
    loaded = load_recipes(recipes, dataset=dataset, seeds=seeds, settings=settings)
    tuning = asked_tuning(tune, trials, processes, threads, ray)
    if tuning is not None:
        check_free(loaded, settings, {})
    place = workplace(data_dir, runs_dir, device, deterministic, checkpoint_every)
    for recipe in loaded:
        warn_of_no_features(recipe)
        ensure_demo(recipe.shape.dataset, data_dir, recipe.shape.protocol.split)
    if tuning is not None:
        tune_and_print(loaded, tuning, place, output)
        return
    with display(data_dir) as events:
        trained = train_recipes(loaded, place, events)
    print_trained(trained, output)
