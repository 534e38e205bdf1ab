"""`mmbench ablate`: models with and without some of their modalities, compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mmbench import console
from mmbench.cli import options, reporting

if TYPE_CHECKING:
    from mmbench.runs import Run
    from mmbench.studies.ablation import Asked
    from mmbench.studies.findings import Finding
    from mmbench.studies.training import Trained

Command = TypeVar("Command", bound=Callable[..., Any])
MODALITIES = "MODALITY"


class Shares(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Shares above 0 and up to 1, joined by commas."""

    name = "shares"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Read "0.25,1" as (0.25, 1.0)."""
        if isinstance(value, tuple):
            return value
        try:
            shares = tuple(sorted({float(part) for part in str(value).split(",")}))
        except ValueError:
            shares = ()
        if not shares or not all(0 < share <= 1 for share in shares):
            self.fail(f"{value!r} is no list of shares; write for example 0.25,0.5,1.0", param, ctx)
        return shares


def _condition(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(
        f"--{name}",
        f"{name}s",
        multiple=True,
        metavar=MODALITIES,
        help=f"{text}; repeatable. Join several by commas, or give each.",
    )


@click.command("ablate")
@click.argument("recipes", nargs=-1, metavar="[MODEL|RECIPE]...")
@_condition("drop", "Modality to leave out")
@_condition("keep", "Modality to keep alone")
@_condition("shuffle", "Modality whose features are exchanged among items")
@_condition("noise", "Modality whose features become noise of the same moments")
@click.option("--id-only", is_flag=True, help="Also the models without any modality.")
@click.option(
    "--ladder",
    "ladders",
    multiple=True,
    metavar="KIND[:MODALITY]",
    help="Spoil a growing share of the items: missing, noise or shuffle, of each modality or of "
    "those named; repeatable.",
)
@click.option(
    "--shares",
    type=Shares(),
    metavar="S,S,..",
    help="Rungs of --ladder.  [default: 0.25,0.5,0.75,1.0]",
)
@click.option(
    "--integration",
    "forms",
    metavar="FORM,FORM",
    help="Each model in several forms, for example fusion,ensemble.",
)
@click.option(
    "--sizes",
    type=options.Counts(),
    default=(),
    metavar="N,N,..",
    help="Each model with vectors of several sizes (model.embedding_size).",
)
@click.option("--stages", is_flag=True, help="Gains as a function of K, with deep lists.")
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    metavar="K",
    help="Length of the lists for --stages.  [default: 1000]",
)
@click.option(
    "--cutoff",
    "cutoffs",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="K",
    help="What the printed table of --stages holds; repeatable.",
)
@click.option(
    "--between",
    is_flag=True,
    help="Also each model against the first one under the same condition, ladder rung by rung.",
)
@click.option("--sparsity", is_flag=True, help="Gains by user activity and item popularity.")
@reporting.study_options
@options.tuning_options
@options.training_options
def ablate(
    recipes: tuple[str, ...],
    drops: tuple[str, ...],
    keeps: tuple[str, ...],
    shuffles: tuple[str, ...],
    noises: tuple[str, ...],
    id_only: bool,
    ladders: tuple[str, ...],
    shares: tuple[float, ...] | None,
    forms: str | None,
    sizes: tuple[int, ...],
    stages: bool,
    depth: int | None,
    cutoffs: tuple[int, ...],
    between: bool,
    sparsity: bool,
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
    """Train models under several conditions and test the differences.

    Without RECIPE it runs VBPR on the embedded demo dataset, whose tastes are planted: texts
    and pictures matter, the acoustic features are noise. Modalities are visual, textual,
    acoustic and joint. Without a condition each modality is dropped in turn. A modality is
    dropped by training the model without that branch, with equal settings and seeds. Every table
    is one family of tests. With --tune the settings under search: are searched on validation for
    every condition, with equal budgets.

    \b
    Examples:
      mmbench ablate --drop visual
      mmbench ablate tiktok/vbpr tiktok/mgcn --keep each --id-only --seeds 0,1,2
      mmbench ablate --ladder missing:visual --shares 0.5,1 --out ladder
      mmbench ablate adaptive-modalities/demo-static demo/gated-ensemble --between
        --ladder noise
      mmbench ablate demo/mgcn --drop each --integration fusion,ensemble
      mmbench ablate --sizes 16,32,64
      mmbench ablate --drop each --stages --sparsity --html ablation.html
      mmbench ablate my-recipe.yaml --drop each --tune optuna --trials 20
    """
    for given, option, owner, there in (
        (shares, "--shares", "--ladder", ladders),
        (depth, "--depth", "--stages", stages),
        (cutoffs, "--cutoff", "--stages", stages),
    ):
        if given and not there:
            raise click.UsageError(f"{option} belongs to {owner}")
    if between and len(set(recipes)) < 2:
        raise click.UsageError("--between compares models; name two or more MODEL|RECIPE")
    if cutoffs and max(cutoffs) > (depth or 1000):
        raise click.UsageError(f"--cutoff {max(cutoffs)} needs --depth {max(cutoffs)} or more")
    from mmbench.cli.training import display, ensure_demo, load_recipes, workplace
    from mmbench.cli.tuning import asked_tuning, check_free, tell_searches, tuned
    from mmbench.report.learned import LearnedTable, learned
    from mmbench.report.systems import group_runs
    from mmbench.studies.ablation import FORM, SIZE, Asked, design
    from mmbench.studies.findings import STAGE_DEPTH, findings
    from mmbench.studies.questions import questions
    from mmbench.studies.training import train_recipes

    tuning = asked_tuning(tune, trials, processes, threads, ray)
    reporting.check_places(page, folder, force=force)
    names = list(dict.fromkeys(recipes or ("vbpr",)))
    loaded = load_recipes(names, dataset=dataset, seeds=seeds, settings=settings)
    asked = [Asked("drop", text) for text in drops]
    asked += [Asked("keep", text) for text in keeps]
    asked += [Asked("shuffle", text) for text in shuffles]
    asked += [Asked("noise", text) for text in noises]
    asked += [Asked("id-only")] if id_only else []
    asked += [rung for ladder in ladders for rung in _rungs(ladder, shares)]
    if not asked and not forms and not sizes:
        asked = [Asked("drop", "each")]
    if tuning is not None:
        fixed = {"--sizes": f"model.{SIZE}"} if sizes else {}
        fixed |= {"--integration": f"model.{FORM}"} if forms else {}
        check_free(loaded, settings, fixed)
    plan = design(
        loaded,
        asked,
        forms=[part.strip() for part in forms.split(",")] if forms else (),
        sizes=sizes,
        depth=(depth or STAGE_DEPTH) if stages else None,
    )
    for note in plan.notes:
        console.note(note)
    place = workplace(data_dir, runs_dir, device, deterministic, checkpoint_every)
    for name, split in {(r.shape.dataset, r.shape.protocol.split): None for r in loaded}:
        ensure_demo(name, data_dir, split)
    if tuning is not None:
        trained = tell_searches(tuned(plan.recipes, tuning, place), output)
    else:
        with display(data_dir) as events:
            trained = train_recipes(plan.recipes, place, events)
    asked_of = questions(plan, trained, between=between)
    found = findings(asked_of, stages=stages, sparsity=sparsity, cutoffs=cutoffs)
    if place.compute.ranks.is_first:
        sections = [finding.section for finding in found]
        runs = [run for result in trained for run in result.chosen.runs]
        reporting.write_study("Ablation", sections, runs, page, folder)
    show(found, output)
    if output == "table" and (rows := learned(group_runs(_each_once(trained)))):
        console.result(LearnedTable(tuple(rows)))


def _each_once(trained: Sequence[Trained]) -> list[Run]:
    return list({run.path: run for result in trained for run in result.chosen.runs}.values())


def _rungs(ladder: str, shares: Sequence[float] | None) -> list[Asked]:
    from mmbench.errors import UnknownNameError
    from mmbench.studies.ablation import EACH, LADDERS, Asked

    kind, _, modalities = (part.strip() for part in ladder.partition(":"))
    if kind not in LADDERS:
        raise UnknownNameError("ladder", kind, LADDERS)
    return [
        Asked(kind, modalities or EACH, share, in_ladder=True)  # type: ignore[arg-type]
        for share in shares or (0.25, 0.5, 0.75, 1.0)
    ]


def show(found: Sequence[Finding], output: str) -> None:
    """Print findings, one after the other; as JSON one document, a list if there are several."""
    from rich.text import Text

    from mmbench.report.comparison import Comparison
    from mmbench.report.leaderboard import leaderboard, render

    texts = []
    for number, finding in enumerate(found):
        shown = finding.shown
        if output != "table":
            if isinstance(shown, Comparison):
                texts.append(render(shown, output))
            else:
                texts.append(shown.text(output))
            continue
        if len(found) > 1:
            console.result(Text(("\n" if number else "") + finding.title, style="bold underline"))
        console.result(leaderboard(shown) if isinstance(shown, Comparison) else shown)
    if output == "json" and len(texts) > 1:
        texts = [json.dumps([json.loads(text) for text in texts], indent=2)]
    for text in texts:
        console.text(text)
