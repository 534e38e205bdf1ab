"""`mmbench export`: a prepared dataset in the layout of another toolbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbench import console
from mmbench.cli import options

if TYPE_CHECKING:
    from mmbench.data.exporting import Exported


@click.command("export")
@click.argument("dataset")
@click.argument("layout")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder to make; the files are called like it.",
)
@click.option("--split", metavar="NAME", help="Split to write; the default one if not given.")
@click.option(
    "--features",
    multiple=True,
    metavar="KEY",
    help="Feature set to write, as visual=clip, repeatable; none for none. Without it, all that "
    "the layout has a place for.",
)
@options.data_dir_option
@click.option("--force", is_flag=True, help="Replace an earlier export in DIR.")
@click.option(
    "--output-format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How results are printed.",
)
def export(
    dataset: str,
    layout: str,
    target: Path,
    split: str | None,
    features: tuple[str, ...],
    data_dir: Path,
    force: bool,
    output_format: str,
) -> None:
    """Write a prepared dataset in another toolbox's LAYOUT: mmrec or recbole.

    The split, ids, times, ratings and feature sets are written; `mmbench prepare --source DIR`
    reads them again, identical.

    \b
    Examples:
      mmbench export amazon-baby mmrec --to MMRec/data/baby
      mmbench export ml recbole --to dataset/ml --split leave-one-out
      mmbench export ml mmrec --to ml --features visual=clip
    """
    # Imported here because polars takes a while and --help must not wait.
    from mmbench.data.exporting import export_dataset
    from mmbench.data.prepared import load_dataset

    done = export_dataset(
        load_dataset(dataset, data_dir),
        layout,
        target,
        split=split,
        features=features,
        force=force,
    )
    for warning in done.warnings:
        console.warn(warning)
    if output_format == "json":
        console.text(json.dumps(_facts(done), indent=2))
        return
    train, valid, test, excluded = done.rows
    left_out = f"; {excluded:,} excluded rows left out" if excluded else ""
    console.text(
        f"{dataset}: split {done.split} written to {done.folder} ({train:,} train, {valid:,} "
        f"valid, {test:,} test rows{left_out})"
    )
    for file in done.files:
        console.text(f"  {file.name}")
    for line in done.usage:
        console.text(line)


def _facts(done: Exported) -> dict[str, object]:
    return {
        "folder": str(done.folder),
        "files": [file.name for file in done.files],
        "split": done.split,
        "rows": dict(zip(("train", "valid", "test", "excluded"), done.rows, strict=True)),
        "features": list(done.features),
        "warnings": list(done.warnings),
        "usage": list(done.usage),
    }
