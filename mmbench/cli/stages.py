"""`mmbench stages`: where in a pipeline systems differ, and what they do as two stages of one."""

from __future__ import annotations

from pathlib import Path

import click

from mmbench import console
from mmbench.cli import options


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
@click.option(
    "--out",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write figures (SVG, PNG) and tables (LaTeX, CSV) into a folder.",
)
@click.option("--force", is_flag=True, help="Replace an earlier --out folder.")
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
      mmbench stages runs/* --rerank 100 --out report
    """
    if force and folder is None:
        raise click.UsageError("--force belongs to --out")
    # Imported here because torch takes seconds to load and --help must not wait.
    from mmbench.cli.ablate import show, write
    from mmbench.engine import device as devices
    from mmbench.report.html.exporting import check_targets
    from mmbench.runs import find_runs
    from mmbench.studies.pipelines import pipelines, stage_findings
    from mmbench.studies.two_stage import ceilings, two_stages

    check_targets(None, folder, force=force)
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
    if folder is not None:
        write(found, folder)
    show(found, output)
