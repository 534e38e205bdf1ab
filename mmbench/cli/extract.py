"""`mmbench extract`: make feature sets of a dataset's texts and pictures, or import a matrix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbench import console
from mmbench.cli import options

if TYPE_CHECKING:
    from mmbench.engine.extract import Extraction


@click.command("extract")
@click.argument("dataset", required=False)
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME",
    help="Encoder to run, repeatable; by default all that need no download.",
)
@click.option(
    "--from-file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Import this .npy matrix, one row per item, instead of encoding.",
)
@click.option("--modality", metavar="NAME", help="What an imported matrix describes: visual, ...")
@click.option("--name", metavar="NAME", help="What recipes call an imported matrix.")
@click.option(
    "--ids",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Item id of each row of an imported matrix, one per line; by default row k is item k.",
)
@click.option("--list", "list_encoders", is_flag=True, help="List the encoders, and stop.")
@click.option("--force", is_flag=True, help="Make again what is there already.")
@options.data_dir_option
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How results are printed.",
)
def extract(
    dataset: str | None,
    encoders: tuple[str, ...],
    file: Path | None,
    modality: str | None,
    name: str | None,
    ids: Path | None,
    list_encoders: bool,
    force: bool,
    data_dir: Path,
    output: str,
) -> None:
    """Make feature sets of the texts and pictures of DATASET, or import a matrix as one.

    What was made before from the same inputs is not made again.

    \b
    Examples:
      mmbench extract mydata
      mmbench extract mydata --encoder tfidf-svd --encoder colour-edge
      mmbench extract mydata --from-file x.npy --modality visual --ids items.txt
    """
    if list_encoders:
        _print_encoders(output)
        return
    if dataset is None:
        raise click.UsageError(
            "name a prepared dataset; `mmbench extract --list` shows the encoders"
        )
    _check_usage(encoders, file, modality, name, ids)
    # Imported here because encoders take seconds to load and --help must not wait.
    from mmbench.engine.extract import (
        Extraction,
        extract_builtin_once,
        extract_once,
        import_features,
    )

    if file is not None and modality is not None:
        imported = import_features(dataset, file, modality, name, data_dir, ids=ids, force=force)
        done = [Extraction(imported, is_new=True)]
    elif encoders:
        done = [extract_once(dataset, encoder, data_dir, force=force) for encoder in encoders]
    else:
        done = extract_builtin_once(dataset, data_dir, force=force)
    _print_done(done, output)


def _check_usage(
    encoders: Sequence[str],
    file: Path | None,
    modality: str | None,
    name: str | None,
    ids: Path | None,
) -> None:
    if file is None:
        for option, value in (("--modality", modality), ("--name", name), ("--ids", ids)):
            if value is not None:
                raise click.UsageError(f"{option} goes with --from-file")
    elif encoders:
        raise click.UsageError("--encoder and --from-file exclude each other")
    elif modality is None:
        raise click.UsageError("--from-file needs --modality: visual, textual, acoustic or joint")


def _print_encoders(output: str) -> None:
    from mmbench.encoders.base import ENCODERS

    found = {name: ENCODERS.summary(name) for name in ENCODERS.names()}
    if output == "json":
        console.text(json.dumps(found, indent=2))
        return
    width = max(map(len, found), default=0)
    for name, summary in found.items():
        console.text(f"{name:<{width}}  {summary}")


def _print_done(done: Sequence[Extraction], output: str) -> None:
    rows = [
        {
            "features": result.features.key,
            "items": int(result.features.mask.sum()),
            "of": len(result.features.mask),
            "dim": int(result.features.matrix.shape[1]),
            "repeated_rows": result.features.manifest["repeated_rows"],
            "is_new": result.is_new,
        }
        for result in done
    ]
    if output == "json":
        console.text(json.dumps(rows, indent=2))
        return
    for row in rows:
        state = "stored" if row["is_new"] else "up to date"
        console.text(
            f"{row['features']}: {state}, {row['items']} of {row['of']} items, "
            f"{row['dim']} columns, {row['repeated_rows']} repeated rows"
        )
