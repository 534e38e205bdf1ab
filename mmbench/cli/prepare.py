"""`mmbench prepare`: from raw files to a dataset that can be trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbench import console
from mmbench.cli import options
from mmbench.errors import DataError

if TYPE_CHECKING:
    from mmbench.data.prepare import PrepareResult


@click.command("prepare")
@click.argument("name", required=False)
@click.option("--source", type=click.Path(path_type=Path), metavar="DIR", help="Raw files.")
@click.option(
    "--format",
    "layout",
    default="auto",
    show_default=True,
    metavar="LAYOUT",
    help="Layout of DIR: mmrec, plain, ...; --list names them.",
)
@click.option(
    "--list", "listing", is_flag=True, help="List datasets and layouts, and what is here."
)
@click.option("--describe", is_flag=True, help="Print the statistics of the dataset.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="RULE",
    help="imported, random-per-user, random-global, leave-one-out, user-temporal or "
    "global-temporal, with parameters as in random-per-user:odd_to=valid; repeatable, the first "
    "is the default.",
)
@click.option("--min-rating", type=float, help="Drop lower ratings; the rest counts as liked.")
@click.option("--user-core", type=int, help="Interactions a user needs; usually 5, 0 for all.")
@click.option("--item-core", type=int, help="Interactions an item needs; usually 5, 0 for all.")
@click.option(
    "--dedup",
    type=click.Choice(["first", "last", "max-rating"]),
    help="Which of several interactions of a user with an item is kept.",
)
@click.option(
    "--require",
    type=click.Choice(["none", "text", "image", "any", "all"]),
    help="Content an item must have.",
)
@click.option(
    "--require-when",
    type=click.Choice(["before-core", "after-core"]),
    help="Whether --require acts before or after the core.",
)
@click.option(
    "--ties",
    type=click.Choice(["source", "hash", "item"]),
    help="Order of a user's interactions at one time.",
)
@click.option("--text-fields", metavar="A,B,..", help="Item columns that make the text, in order.")
@click.option("--sample-users", type=int, metavar="N", help="Keep N users, drawn by hash.")
@click.option("--seed", type=int, help="Seed of random splits, samples and ties; usually 42.")
@options.data_dir_option
@click.option("--force", is_flag=True, help="Replace the dataset, its features included.")
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@click.option("--no-features", is_flag=True, help="Leave the built-in features out.")
@click.option(
    "--output-format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How results are printed.",
)
def prepare(
    name: str | None,
    source: Path | None,
    layout: str,
    listing: bool,
    describe: bool,
    splits: tuple[str, ...],
    data_dir: Path,
    force: bool,
    strict: bool,
    no_features: bool,
    output_format: str,
    **settings: Any,
) -> None:
    """Read, clean, filter, split and store a dataset; make its built-in features.

    \b
    Examples:
      mmbench prepare --list
      mmbench prepare demo
      mmbench prepare mydata --source FOLDER --split leave-one-out
      mmbench prepare mydata --describe
    """
    as_json = output_format == "json"
    if listing:
        _print_list(data_dir, as_json)
        return
    if name is None:
        raise click.UsageError("name a dataset, or see what there is with --list")
    # Imported here because polars and the image decoders take a while and --help must not wait.
    from mmbench.data import prepare as preparing
    from mmbench.data.identity import parse_config

    result = preparing.prepare(
        name,
        source=source,
        format=layout,
        config=parse_config(_explicit(settings)),
        splits=splits,
        data_dir=data_dir,
        force=force,
        strict=strict,
    )
    for note in result.notes:
        console.note(note)
    for warning in result.warnings:
        console.warn(warning)
    # A look at a finished dataset must not start work.
    content = (result.dataset.manifest[key]["ok"] for key in ("text", "images"))
    if any(content) and not no_features and not (describe and result.status == "up-to-date"):
        from mmbench.engine.extract import extract_builtin

        try:
            extract_builtin(name, data_dir)
        except DataError as problem:
            raise DataError(
                f"{problem}. The dataset itself is prepared in {result.root}; `mmbench extract "
                f"{name}` makes its features later"
            ) from None
    _print_result(result, describe, as_json)


def _explicit(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, under the names of `PrepareConfig`."""
    names = {"user_core": "user_min", "item_core": "item_min", "require_when": "when"}
    given = {names.get(key, key): value for key, value in settings.items() if value is not None}
    for key in ("dedup", "when"):
        if key in given:
            given[key] = given[key].replace("-", "_")
    if "text_fields" in given:
        fields = (field.strip() for field in given["text_fields"].split(","))
        given["text_fields"] = tuple(field for field in fields if field)
    return given


def _print_list(data_dir: Path, as_json: bool) -> None:
    from mmbench.data.finding import sources
    from mmbench.data.source import DATASETS

    stored = sorted(path.parent.name for path in data_dir.glob("*/manifest.json"))
    rows = [
        {
            "name": name,
            "kind": "layout" if source.layout else "dataset",
            "needs_source": source.needs_source,
            "prepared": name in stored,
            "about": DATASETS.summary(name),
        }
        for name, source in sources().items()
    ]
    known = {row["name"] for row in rows}
    rows += [
        {
            "name": name,
            "kind": "own",
            "needs_source": False,
            "prepared": True,
            "about": f"prepared in {data_dir}",
        }
        for name in stored
        if name not in known
    ]
    if as_json:
        console.text(json.dumps(rows, indent=2))
        return
    from mmbench.report.datasets import listing_table

    console.result(listing_table(rows))


def _print_result(result: PrepareResult, describe: bool, as_json: bool) -> None:
    from mmbench.data.statistics import describe as describe_dataset

    facts = describe_dataset(result.dataset)
    if as_json:
        extra = {"status": result.status, "warnings": list(result.warnings)}
        console.text(json.dumps({**facts, **extra}, indent=2, allow_nan=False))
        return
    from mmbench.report.datasets import description_tables, summary_line

    if describe:
        for table in description_tables(facts):
            console.result(table)
    else:
        console.text(summary_line(facts, result.status))
