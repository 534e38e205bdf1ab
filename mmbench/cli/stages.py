"""`mmbench stages`: where in a pipeline systems differ, and what they do as two stages of one."""

from __future__ import annotations

from pathlib import Path

import click

from mmbench import console
from mmbench.cli import options, reporting


@click.command("stages")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--baseline", metavar="LABEL", help="Reference system.  [default: the first run's]")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="What is looked at over K, for example recall; repeatable.  [default: recall, ndcg]",
)
@click.option(
    "--cutoff",
    "cutoffs",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="K",
    help="What the printed table holds; repeatable.",
)
@click.option(
    "--rerank",
    "sizes",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Re-rank the first N items of each system by each other one; repeatable.",
)
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs-two-stage"),
    show_default=True,
    metavar="DIR",
    help="Where re-ranked lists are stored, as runs.",
)
@reporting.study_options
@options.data_dir_option
@options.device_option
@options.format_option
def stages(
    runs: tuple[Path, ...],
    baseline: str | None,
    metrics: tuple[str, ...],
    cutoffs: tuple[int, ...],
    sizes: tuple[int, ...],
    target: Path,
    page: Path | None,
    folder: Path | None,
    force: bool,
    data_dir: Path,
    device: str,
    output: str,
) -> None:
    """Compare finished RUNS from the re-ranking stage (small K) to the recall stage (large K).

    Lists must be deep to say something of recall: train with --set evaluation.depth=1000. With
    --rerank N two systems make a pipeline, for every ordered pair: the first one's N best items,
    in the order of the second one's scores. Re-ranked lists are stored as runs, which `mmbench
    compare` takes like any others.

    \b
    Examples:
      mmbench stages runs/* --baseline bpr-mf --cutoff 10 --cutoff 100
      mmbench stages runs/* --rerank 100 --html stages.html
    """
    # Imported here because torch takes seconds to load and --help must not wait.
    from mmbench.cli.ablate import show
    from mmbench.engine import device as devices
    from mmbench.runs import find_runs
    from mmbench.studies.pipelines import pipelines, stage_findings
    from mmbench.studies.two_stage import ceilings, two_stages

    reporting.check_places(page, folder, force=force)
    opened = find_runs(runs)
    if not opened:
        raise click.UsageError("none of these folders holds a complete run")
    found = stage_findings(opened, baseline=baseline, metrics=metrics, cutoffs=cutoffs)
    if sizes:
        pairs = two_stages(
            opened,
            list(dict.fromkeys(sizes)),
            data_dir=data_dir,
            folder=target,
            compute=devices.choose(device),
            done=lambda run, was_there: console.note(
                f"{run.label} seed {run.seed}: {'there already' if was_there else 'stored'}, "
                f"{run.path}"
            ),
        )
        for label, n, share in ceilings(pairs):
            console.note(f"{label}: its first {n} items hold {share:.1%} of the held-out items")
        found += pipelines(pairs)
    sections = [finding.section for finding in found]
    reporting.write_study("Stages of a pipeline", sections, opened, page, folder)
    show(found, output)
