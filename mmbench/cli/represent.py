"""`mmbench represent`: export the vectors of finished runs, and picture them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbench import console
from mmbench.cli import options

if TYPE_CHECKING:
    from mmbench.engine.representations import Representations
    from mmbench.report.tsne import Geometry
    from mmbench.runs import Run


@click.command("represent")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder to make; each run gets a folder of its name in it.",
)
@click.option(
    "--tsne",
    is_flag=True,
    help="Draw items by popularity and items of users in two dimensions, PNG and SVG.",
)
@click.option(
    "--items",
    type=click.IntRange(min=5),
    default=1000,
    show_default=True,
    metavar="N",
    help="Random items in the picture.",
)
@click.option(
    "--users",
    type=click.IntRange(1, 10),
    default=10,
    show_default=True,
    metavar="N",
    help="Random users in the picture, at most 10.",
)
@click.option(
    "--perplexity",
    type=options.FiniteRange(min=1),
    default=30.0,
    show_default=True,
    metavar="P",
    help="Of t-SNE; less where there are few points.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the drawn items and users, and of t-SNE.",
)
@click.option("--force", is_flag=True, help="Replace earlier exports in DIR.")
@options.data_dir_option
@options.device_option
@options.format_option
def represent(
    runs: tuple[Path, ...],
    target: Path,
    tsne: bool,
    items: int,
    users: int,
    perplexity: float,
    seed: int,
    force: bool,
    data_dir: Path,
    device: str,
    output: str,
) -> None:
    """Export the item and user vectors of finished RUNS, and measure how they lie.

    Weights are loaded again and must rank as the run did, over the data that its manifest names.
    Two numbers are printed: how much closer two items of a user are than items of two users, and
    whether popular items have long vectors. With --tsne they are drawn, the same items and users
    for every run.

    \b
    Examples:
      mmbench represent runs/demo-vbpr-1a2b3c4d-s0 --to vectors
      mmbench represent runs/*-s0 --to vectors --tsne
    """
    # Imported here because torch takes seconds to load and --help must not wait.
    from mmbench.engine import device as devices
    from mmbench.engine.representations import (
        check_folder,
        check_vectors,
        representations,
        write_representations,
    )
    from mmbench.engine.trained import load_trained
    from mmbench.report import tsne as picture
    from mmbench.report.scatter import draw_pictures
    from mmbench.report.systems import check_comparable
    from mmbench.runs import find_runs

    opened = find_runs(runs)
    if not opened:
        raise click.UsageError("none of these folders holds a complete run")
    check_comparable(opened, "test")
    check_vectors(opened)
    compute = devices.choose(device)
    for run in opened:
        check_folder(target / run.path.name, force=force)
    vectors, owned = [], None
    with _all_or_none(target, [target / run.path.name for run in opened]):
        for run, label in zip(opened, _labels(opened), strict=True):
            trained = load_trained(run, data_dir, compute)
            found = representations(trained)
            folder = write_representations(target / run.path.name, found, trained)
            console.note(
                f"{label}: {_size(found)} in {folder}; the loaded model ranks "
                f"{trained.agreement:.1%} of the first items as the run did"
            )
            popularity = trained.inputs.popularity
            vectors.append(picture.Vectors(label, found.items, popularity))
            offsets, belong = found.owned.offsets, found.owned.items
            owned = picture.owned_matrix(offsets, belong, len(popularity))
    assert owned is not None
    numbers = [picture.geometry(each, owned, seed=seed) for each in vectors]
    if tsne:
        sample = picture.draw(owned, items=items, users=users, seed=seed)
        for file in draw_pictures(vectors, sample, target, perplexity=perplexity, seed=seed):
            console.note(f"drawn: {file}")
    _print(numbers, output)


@contextmanager
def _all_or_none(target: Path, folders: Sequence[Path]) -> Iterator[None]:
    """Take the folders that are new away again where a later run fails."""
    new = [folder for folder in folders if not folder.exists()]
    is_new = not target.exists()
    try:
        yield
    except BaseException:
        for folder in [target] if is_new else new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _labels(runs: Sequence[Run]) -> list[str]:
    """Distinct labels of runs, with the seed where a system has several."""
    from mmbench.report.systems import group_runs

    by_path = {}
    for system in group_runs(runs):
        for run in system.runs:
            several = len(system.runs) > 1
            by_path[run.path] = f"{system.label}, seed {run.seed}" if several else system.label
    return [by_path[run.path] for run in runs]


def _size(found: Representations) -> str:
    items, users = found.items.shape, found.users.shape
    return f"{items[0]:,} item and {users[0]:,} user vectors of width {items[1]}"


def _print(numbers: Sequence[Geometry], output: str) -> None:
    from mmbench.report.tsne import geometry_table, geometry_text

    if output == "table":
        console.result(geometry_table(numbers))
    else:
        console.text(geometry_text(numbers, output))
