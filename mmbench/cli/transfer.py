"""`mmbench transfer`: models pre-trained on one dataset, used in another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mmbench import console
from mmbench.cli import options, reporting

if TYPE_CHECKING:
    from mmbench.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])
SOURCE, TARGET = "demo-source", "demo"
OF_MODELS = ("model", "features", "encoders", "corruptions", "search", "grid")
"""Sections of a recipe whose --set is for the models, not for the baseline."""


def _working_options(command: Command) -> Command:
    """As `options.training_options`, but for --dataset, of which there are two here."""
    for option in reversed(
        (
            options.seeds_option,
            options.set_option,
            options.data_dir_option,
            options.runs_dir_option,
            options.device_option,
            options.deterministic_option,
            options.checkpoint_option,
            options.format_option,
        )
    ):
        command = option(command)
    return command


@click.command("transfer")
@click.argument("recipes", nargs=-1, metavar="[MODEL|RECIPE]...")
@click.option("--from", "source", metavar="SOURCE", help="Dataset to pre-train on.")
@click.option(
    "--to", "target", metavar="TARGET", help="Dataset to use it in.  [default: the recipe's]"
)
@click.option(
    "--source-users",
    type=options.Counts(),
    default=(),
    metavar="N,N,..",
    help="Pre-train on so many users, nested, for example 1K,5K.  [default: all]",
)
@click.option(
    "--target-users",
    type=options.Counts(),
    default=(),
    metavar="N,N,..",
    help="Fine-tune on so many users, nested; tested are the same on every rung.  [default: all]",
)
@click.option(
    "--users-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Draws these users.",
)
@click.option(
    "--baseline",
    metavar="MODEL|RECIPE",
    help="Model of IDs on the target; none for none.  [default: sasrec beside sequential models, "
    "bpr-mf beside general ones]",
)
@click.option(
    "--same-space",
    "same_space",
    multiple=True,
    metavar="MODALITY",
    help="Say that imported vectors of both datasets come from one encoder; repeatable.",
)
@click.option(
    "--source-set",
    "source_settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="As --set, for pre-training alone, for example model.objective=contrast; repeatable.",
)
@reporting.study_options
@_working_options
def transfer(
    recipes: tuple[str, ...],
    source: str | None,
    target: str | None,
    source_users: tuple[int, ...],
    target_users: tuple[int, ...],
    users_seed: int,
    baseline: str | None,
    same_space: tuple[str, ...],
    source_settings: tuple[str, ...],
    page: Path | None,
    folder: Path | None,
    force: bool,
    seeds: tuple[int, ...],
    settings: tuple[str, ...],
    data_dir: Path,
    runs_dir: Path,
    device: str,
    deterministic: bool,
    checkpoint_every: float,
    output: str,
) -> None:
    """Pre-train models on SOURCE, fine-tune them on TARGET, and test what that gains.

    Beside each model stand the same one from scratch, a model of IDs, and, where no weight
    belongs to users or items, zero-shot: the pre-trained weights as they are. Features of both
    datasets must come from one encoder of fixed weights; tfidf-svd is fitted to each dataset and
    is refused. Without arguments it goes from one embedded demo shop to another by the looks
    of their items, with few and with all users. --set of model, features and encoders is for the
    models, all other keys are for the baseline too.

    \b
    Examples:
      mmbench transfer
      mmbench transfer --target-users 60,120,240,480 --seeds 0-4 --out found
      mmbench transfer mmsr unisrec --from books --to films \\
          --set features.textual=minilm-l6
      mmbench transfer my-recipe.yaml --from books --source-users 1K,10K,100K
    """
    from mmbench.cli.ablate import show
    from mmbench.cli.training import display, ensure_demo, workplace
    from mmbench.errors import UnknownNameError
    from mmbench.modality import MODALITIES
    from mmbench.models.base import MODELS
    from mmbench.recipe import Recipe, load_recipe
    from mmbench.recipe_files import apply_settings, section_of
    from mmbench.studies import transfer as study
    from mmbench.studies.transferred import findings, rung_notes

    reporting.check_places(page, folder, force=force)
    for modality in same_space:
        if modality not in MODALITIES:
            raise UnknownNameError("modality", modality, MODALITIES)
    if recipes:
        loaded = [
            load_recipe(name, dataset=target, seeds=seeds, settings=settings)
            for name in dict.fromkeys(recipes)
        ]
    else:
        raw = {**study.DEMO, "dataset": target or TARGET}
        raw = {**raw, "seeds": list(seeds)} if seeds else raw
        loaded = [Recipe(apply_settings(raw, settings), f"{target or TARGET}/mmsr")]
    target = _one_target(loaded)
    if source is None and target != TARGET:
        raise click.UsageError(f"name the dataset to pre-train on, to go to {target}: --from NAME")
    is_demo = not recipes and source in (None, SOURCE) and target == TARGET
    if is_demo and not source_users and not target_users:
        target_users = study.DEMO_USERS
    asked = study.Asked(
        source or SOURCE,
        target,
        tuple(sorted(set(source_users))),
        tuple(sorted(set(target_users))),
        users_seed,
        tuple(dict.fromkeys(same_space)),
        source_settings,
    )
    for recipe in loaded:
        study.check_recipe(recipe)
    families = {MODELS.get(str(recipe.shape.model["name"])).obj.family for recipe in loaded}
    shared = [setting for setting in settings if section_of(setting) not in OF_MODELS]
    baselines: dict[str, Recipe] = {}
    if baseline != "none":
        baselines = {
            family: load_recipe(
                baseline or study.BASELINES[family], dataset=target, seeds=seeds, settings=shared
            )
            for family in sorted(families)
        }
    place = workplace(data_dir, runs_dir, device, deterministic, checkpoint_every)
    for name, split in {(n, r.shape.protocol.split): None for r in loaded for n in
                        (asked.source, asked.target)}:  # fmt: skip
        ensure_demo(name, data_dir, split)
    plan = study.design(loaded, baselines, asked, place)
    for note in plan.notes:
        console.note(note)
    with display(data_dir) as events:
        done = study.transfer(plan, place, events)
    found = findings(done, asked)
    if place.compute.ranks.is_first:
        runs = [run for each in done for run in each.runs]
        title = f"Transfer from {asked.source} to {asked.target}"
        reporting.write_study(title, [f.section for f in found], runs, page, folder)
    show(found, output)
    for note in rung_notes(asked):
        console.note(note)


def _one_target(recipes: Sequence[Recipe]) -> str:
    from mmbench.errors import ConfigError

    (name, *others) = dict.fromkeys(recipe.shape.dataset for recipe in recipes)
    if others:
        raise ConfigError(
            f"the recipes are of several datasets ({name}, {', '.join(others)}); name one with --to"
        )
    return name
