"""`mmbench compare`: put runs side by side, with significance tests, and fail on a regression."""

from __future__ import annotations

from pathlib import Path

import click

from mmbench import console
from mmbench.cli import laying_out, options, reporting
from mmbench.errors import ConfigError

REGRESSION = 1


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--baseline", metavar="LABEL", help="Reference system. [default: the best of each column]"
)
@click.option(
    "--against",
    multiple=True,
    metavar="RUNS",
    type=click.Path(path_type=Path),
    help="A run or a folder of runs for the reference side, paired by label; repeatable.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME@K",
    help="What is compared, for example recall@20; repeatable. [default: what all runs recorded]",
)
@click.option(
    "--part",
    type=click.Choice(["test", "valid"]),
    default="test",
    show_default=True,
    help="The ranked lists that are read.",
)
@click.option(
    "--by",
    type=click.Choice(
        ["user-activity", "item-popularity", "k", "modality-presence", "history-presence"]
    ),
    help="Break every metric down by a kind of user or item, or by cut-off. The last two read the "
    "prepared dataset: items by the modalities that they lack, users by those that the items of "
    "their history lack.",
)
@click.option(
    "--cutoff",
    "cutoffs",
    multiple=True,
    metavar="K",
    type=click.IntRange(min=1),
    help="Cut-off for --by k; repeatable. [default: 1, 5, 10, 20, 50, 100]",
)
@click.option(
    "--test",
    type=click.Choice(["t-test", "wilcoxon", "permutation", "bootstrap"]),
    default="t-test",
    show_default=True,
    help="Paired test over users, each user's value averaged over the seeds.",
)
@click.option(
    "--correction",
    type=click.Choice(["holm", "bonferroni", "bh", "none"]),
    default="holm",
    show_default=True,
    help="Correction for multiple testing; bh is Benjamini-Hochberg.",
)
@click.option(
    "--family",
    type=click.Choice(["metric", "table"]),
    default="metric",
    show_default=True,
    help="Correct the comparisons of each metric together, or all of the table.",
)
@click.option(
    "--alpha",
    type=options.FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Level below which an adjusted p counts as significant.",
)
@click.option(
    "--details",
    is_flag=True,
    help="Print intervals, effect sizes, raw p, wins/ties/losses and seed spread.",
)
@click.option(
    "--cost",
    is_flag=True,
    help="Print seconds, epochs, peak memory and parameters of each system as well.",
)
@click.option(
    "--published",
    is_flag=True,
    help="Print the numbers that papers report for these models and data, and what differs.",
)
@click.option(
    "--fail-on-regression",
    is_flag=True,
    help="Exit with status 1 if a system is worse than its reference.",
)
@click.option(
    "--margin",
    type=options.FiniteRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Loss that --fail-on-regression tolerates, as a share of the reference (0.01 is 1 %).",
)
@click.option(
    "--level",
    type=click.Choice(["users", "systems"]),
    default="users",
    show_default=True,
    help="Whether --fail-on-regression tests over users, or over users and (3 or more) seeds.",
)
@click.option(
    "--over-datasets",
    is_flag=True,
    help="Rank systems of equal label over several datasets: average ranks, Friedman test, Holm.",
)
@click.option(
    "--tsne",
    is_flag=True,
    help="Of --html and --out: load the weights, and draw item vectors in two dimensions.",
)
@laying_out.alignment_option
@laying_out.layout_option
@reporting.report_options
@options.format_option
@click.pass_context
def compare(
    ctx: click.Context,
    runs: tuple[Path, ...],
    baseline: str | None,
    against: tuple[Path, ...],
    metrics: tuple[str, ...],
    part: str,
    by: str | None,
    cutoffs: tuple[int, ...],
    test: str,
    correction: str,
    family: str,
    alpha: float,
    details: bool,
    cost: bool,
    published: bool,
    fail_on_regression: bool,
    margin: float,
    level: str,
    over_datasets: bool,
    tsne: bool,
    alignment: bool,
    layout: str | None,
    page: Path | None,
    folder: Path | None,
    force: bool,
    data_dir: Path,
    output: str,
) -> None:
    """Compare runs: means, differences, and adjusted p-values over the same users.

    RUNS are run folders or folders that hold some. Runs that differ only in seed are one
    system. Runs that cannot be compared fairly (other data, split, candidates or users) are
    refused. With --fail-on-regression the exit status is 1 if a system is significantly worse,
    by more than --margin, than --baseline or its partner in --against.

    \b
    Examples:
      mmbench compare runs/*
      mmbench compare runs/* --baseline vbpr --metric ndcg@20 --format latex
      mmbench compare runs/* --cost --published --alignment
      mmbench compare runs/* --by item-popularity --metric recall@20
      mmbench compare runs/* --by modality-presence --baseline lightgcn
      mmbench compare runs/* --html report.html --out report --tsne
      mmbench compare runs/* --layout paradigms --published
      mmbench compare runs/new --against runs/main --fail-on-regression
    """
    if against and baseline:
        raise click.UsageError("--against and --baseline both name the reference; give one of them")
    if fail_on_regression and not (against or baseline not in (None, "best")):
        raise click.UsageError(
            "--fail-on-regression needs a reference: give --against RUNS or --baseline LABEL"
        )
    if cutoffs and by != "k":
        raise click.UsageError("--cutoff belongs to --by k")
    if margin and not fail_on_regression:
        raise click.UsageError("--margin belongs to --fail-on-regression")
    further = details or cost or published or alignment or fail_on_regression
    if over_datasets and (against or by or further):
        raise click.UsageError(
            "--over-datasets goes with --baseline, --metric, --part and --format alone"
        )
    laying_out.check(
        layout,
        {
            "--against": against,
            "--by": by,
            "--details": details,
            "--cost": cost,
            "--fail-on-regression": fail_on_regression,
            "--over-datasets": over_datasets,
            "--html": page,
            "--out": folder,
        },
    )
    reporting.check(page, folder, force=force, alone=bool(by) or over_datasets)
    if tsne and page is None and folder is None:
        raise click.UsageError("--tsne belongs to --html and --out")
    if published and (by or part == "valid"):
        raise click.UsageError(
            "papers report the whole test part, so --published goes without --by and --part valid"
        )
    # Imported here because scipy takes a second to load and --help must not wait.
    from mmbench.report import comparison as comparing
    from mmbench.report.aligning import alignment_beside
    from mmbench.report.beside import published_beside
    from mmbench.report.breakdown import CUTOFFS, OF_PRESENCE
    from mmbench.report.cost import costs
    from mmbench.report.leaderboard import leaderboard, render
    from mmbench.report.presence import presence_of
    from mmbench.report.regression import regressions
    from mmbench.runs import find_runs

    ours, theirs = find_runs(runs), find_runs(against)
    if layout is not None:
        laying_out.print_layout(
            ours,
            layout,  # type: ignore[arg-type]
            output,
            data_dir,
            published=published,
            alignment=alignment,
            metrics=metrics,
            baseline=baseline,
            part=part,
            test=test,
            correction=correction,
            family=family,
            alpha=alpha,
        )
        return
    if over_datasets:
        from mmbench.report.across import rank_over_datasets, ranking_tables, ranking_text

        ranked = rank_over_datasets(ours, metrics, baseline=baseline, part=part)  # type: ignore[arg-type]
        if output == "table":
            console.result(ranking_tables(ranked))
        else:
            console.text(ranking_text(ranked, output))
        return
    both = {run.path.resolve() for run in ours} & {run.path.resolve() for run in theirs}
    if both:
        raise ConfigError(
            f"{sorted(both)[0]} is on both sides; name other RUNS, or another --against"
        )
    presence = None
    if by in OF_PRESENCE:
        presence = presence_of([*ours, *theirs], data_dir, part)  # type: ignore[arg-type]
    compared = comparing.compare(
        ours,
        metrics=metrics,
        baseline=baseline,
        against=theirs,
        part=part,  # type: ignore[arg-type]
        test=test,
        correction=correction,
        family=family,  # type: ignore[arg-type]
        by=by,  # type: ignore[arg-type]
        cutoffs=cutoffs or CUTOFFS,
        presence=presence,
        alpha=alpha,
    )
    # Before anything is printed, so that bad input prints no result.
    worse = regressions(compared, margin=margin, level=level) if fail_on_regression else []  # type: ignore[arg-type]
    spent = costs(compared) if cost else []
    if page is not None or folder is not None:
        from mmbench.report.html.evidence import Request

        request = Request(
            runs=ours,
            against=theirs,
            metrics=metrics,
            baseline=baseline,
            part=part,  # type: ignore[arg-type]
            test=test,
            correction=correction,
            family=family,  # type: ignore[arg-type]
            alpha=alpha,
            data_dir=data_dir,
            command=reporting.command_line(),
        )
        panels = None
        if tsne:
            from mmbench.engine import device as devices
            from mmbench.studies.vectors import lay_out

            panels = lay_out([*ours, *theirs], data_dir, devices.choose("auto"))
        reporting.write(request, compared, page, folder, panels=panels)
    papers = published_beside(compared) if published else None
    aligned = alignment_beside(compared.systems, data_dir) if alignment else None
    if output == "table":
        console.result(
            leaderboard(compared, details=details, cost=spent, published=papers, aligned=aligned)
        )
    else:
        console.text(render(compared, output, cost=spent, published=papers, aligned=aligned))
    for regression in worse:
        console.error(f"regression: {regression}")
    if worse:
        ctx.exit(REGRESSION)
    if fail_on_regression:
        console.note(f"no regression beyond a margin of {margin:.2%} at adjusted p < {alpha:g}")
