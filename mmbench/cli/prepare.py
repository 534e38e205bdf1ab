"""`mmbench prepare`: from raw files to a dataset that can be trained on."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbench import console
from mmbench.cli import options
from mmbench.cli.fetching import Consent, watching
from mmbench.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    from mmbench.data.prepare import PrepareResult
    from mmbench.data.source import Source


@click.command("prepare")
@click.argument("name", required=False)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Raw files; without it those of a known dataset lie in DATA_DIR/_raw/NAME.",
)
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
@click.option(
    "--about",
    is_flag=True,
    help="Print what is known of a dataset (files, terms, citation, sizes), or what a folder of a "
    "layout holds, for example plain.",
)
@click.option("--describe", is_flag=True, help="Print the statistics of the prepared dataset.")
@click.option(
    "--download", is_flag=True, help="Fetch missing files without asking; else a terminal is asked."
)
@click.option(
    "--with",
    "parts",
    multiple=True,
    metavar="PART",
    help="Fetch more than the interactions and texts: pictures (by the addresses in the item "
    "table, for the items that are kept), features, ...; --about names them; repeatable.",
)
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="OLD=NEW",
    help="Replace the beginning of addresses; also MMBENCH_MIRRORS='OLD=NEW;..'; repeatable.",
)
@click.option(
    "--accept-changed", is_flag=True, help="Take files whose SHA-256 is not the recorded one."
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="RULE",
    help="imported, random-per-user, random-global, leave-one-out, user-temporal, "
    "global-temporal, cold-items or cold-sequences, with parameters as in "
    "random-per-user:odd_to=valid; repeatable, the first is the default.",
)
@click.option("--as", "stored_as", metavar="NEW", help="Store the dataset as NEW, not as NAME.")
@click.option(
    "--split-seeds",
    type=options.Seeds(),
    default=(),
    metavar="N,N,..",
    help="Make each random split once per seed.",
)
@click.option(
    "--preset",
    metavar="PAPER",
    help="Settings and splits of a paper: lmm-rec, mm-eval or mmsr; other options come on top.",
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
@click.option(
    "--sample-users",
    type=options.Counts(),
    default=(),
    metavar="N,N,..",
    help="Keep N users, drawn by hash; 10K means 10,000. Several numbers make several datasets, "
    "NAME-10k and so on, each a part of the next.",
)
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
    about: bool,
    describe: bool,
    download: bool,
    parts: tuple[str, ...],
    mirrors: tuple[str, ...],
    accept_changed: bool,
    splits: tuple[str, ...],
    split_seeds: tuple[int, ...],
    preset: str | None,
    stored_as: str | None,
    sample_users: tuple[int, ...],
    data_dir: Path,
    force: bool,
    strict: bool,
    no_features: bool,
    output_format: str,
    **settings: Any,
) -> None:
    """Get, read, clean, filter, split and store a dataset; make its built-in features.

    Nothing is fetched unasked: the files and their sizes are shown first.

    \b
    Examples:
      mmbench prepare --list
      mmbench prepare demo
      mmbench prepare amazon-baby --download --with features
      mmbench prepare plain --about
      mmbench prepare mydata --source FOLDER --split leave-one-out
      mmbench prepare mydata --describe
    """
    as_json = output_format == "json"
    if listing:
        _print_list(data_dir, as_json)
        return
    if name is None:
        raise click.UsageError("name a dataset, or see what there is with --list")
    if about:
        _print_about(name, as_json)
        return
    # Imported here because polars and the image decoders take a while and --help must not wait.
    from mmbench.data.fetch.web import Web
    from mmbench.data.obtaining import Fetching
    from mmbench.data.presets import Preset, find_preset

    chosen = find_preset(preset) if preset else Preset()
    web = Web.from_environment(mirrors, accept_changed=accept_changed)
    with watching() as watch:
        fetching = Fetching(
            agree=Consent(download),
            parts=frozenset(part.strip() for given in parts for part in given.split(",")),
            web=web,
            watch=watch,
        )
        results = []
        for n_users in sample_users or (None,):
            sampled = {"sample_users": n_users} if n_users is not None else {}
            suffix = f"-{options.count_text(n_users)}" if n_users and len(sample_users) > 1 else ""
            result = _prepare_one(
                f"{stored_as or name}{suffix}",
                {**chosen.settings, **sampled, **_explicit(settings)},
                known_as=name,
                source=source,
                format=layout,
                splits=splits or chosen.splits,
                split_seeds=split_seeds,
                data_dir=data_dir,
                force=force,
                strict=strict,
                fetching=fetching,
            )
            # A look at a finished dataset must not start work.
            if not no_features and not (describe and result.status == "up-to-date"):
                _make_features(result)
            results.append(result)
    _print_results(results, describe, as_json)


def _prepare_one(name: str, settings: Mapping[str, Any], **how: Any) -> PrepareResult:
    from mmbench.data.identity import parse_config
    from mmbench.data.prepare import prepare as prepare_dataset

    result = prepare_dataset(name, config=parse_config(settings), **how)
    for note in result.notes:
        console.note(note)
    for warning in result.warnings:
        console.warn(warning)
    return result


def _make_features(result: PrepareResult) -> None:
    """Make the features that need no download, of the texts and pictures that are there."""
    if not any(result.dataset.manifest[key]["ok"] for key in ("text", "images")):
        return
    from mmbench.engine.extract import extract_builtin

    try:
        extract_builtin(result.name, result.root.parent)
    except DataError as problem:
        raise DataError(
            f"{problem}. The dataset itself is prepared in {result.root}; `mmbench extract "
            f"{result.name}` makes its features later"
        ) from None


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
    rows: list[dict[str, Any]] = []
    for name, source in sources().items():
        cards = source.cards()
        if source.layout or not cards:
            kind = "layout" if source.layout else "dataset"
            rows.append(_row(name, kind, DATASETS.summary(name), stored))
        for card in cards:
            # Where a site wants a login, the files come by hand.
            row = _row(card.name, "dataset", card.title, [*stored])
            rows.append({**row, "aliases": list(card.aliases), "by_hand": not card.files})
            if not row["prepared"]:
                rows[-1]["prepared"] = any(alias in stored for alias in card.aliases)
    known = {name for row in rows for name in (row["name"], *row.get("aliases", ()))}
    rows += [_row(n, "own", f"prepared in {data_dir}", stored) for n in stored if n not in known]
    if as_json:
        console.text(json.dumps(rows, indent=2))
        return
    from mmbench.report.datasets import listing_table

    console.result(listing_table(rows))


def _row(name: str, kind: str, about: str, stored: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "prepared": name in stored, "about": about}


def _print_about(name: str, as_json: bool) -> None:
    from dataclasses import asdict

    from mmbench.data.finding import find_known, known_names, sources

    layout = sources().get(name.replace("_", "-"))
    if layout is not None and layout.layout:
        _print_layout(name.replace("_", "-"), layout, as_json)
        return
    known = find_known(name)
    if known is None or known.card is None:
        raise UnknownNameError(
            "dataset with a card",
            name,
            known_names(),
            hint=f"For data of your own: mmbench prepare {name} --describe; what their folder may "
            "hold, mmbench prepare plain --about.",
            listing="mmbench prepare --list",
        )
    if as_json:
        console.text(json.dumps(asdict(known.card), indent=2, default=dict))
        return
    from mmbench.report.datasets import card_tables

    for table in card_tables(known.card):
        console.result(table)


def _print_results(results: Sequence[PrepareResult], describe: bool, as_json: bool) -> None:
    from mmbench.data.aligned import alignments
    from mmbench.data.statistics import describe as describe_dataset
    from mmbench.report.datasets import alignment_table, description_tables, summary_line

    if as_json:
        told = [
            {
                **describe_dataset(result.dataset),
                **({"alignment": alignments(result.dataset)} if describe else {}),
                "status": result.status,
                "warnings": list(result.warnings),
            }
            for result in results
        ]
        console.text(json.dumps(told if len(told) > 1 else told[0], indent=2, allow_nan=False))
        return
    for result in results:
        facts = describe_dataset(result.dataset)
        if describe:
            for table in description_tables(facts):
                console.result(table)
            if found := alignments(result.dataset):
                console.result(alignment_table(found))
        else:
            console.text(summary_line(facts, result.status))


def _print_layout(name: str, source: type[Source], as_json: bool) -> None:
    # Each layout is one file of `mmbench/data/sources`, which begins with what its folders hold.
    files = inspect.cleandoc(sys.modules[source.__module__].__doc__ or source.expects)
    if as_json:
        facts = {"layout": name, "expects": source.expects, "files": files}
        console.text(json.dumps(facts, indent=2))
        return
    console.text(f"{files}\n\nmmbench prepare NAME --source DIR --format {name}")
