"""`mmbench extract`: make feature sets of a dataset's texts and pictures, or import a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mmbench.cli import options
from mmbench.cli.finetuning import check_usage, finetuning_options


class BatchSize(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Numbers of items joined by commas, or "auto"."""

    name = "batch size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | None:
        """Read "auto" as None, "32,64" as two numbers."""
        if value is None or value == "auto":
            return None
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= 2**20 for part in parts):
            self.fail(f"{value!r} is neither auto nor a number of items from 1", param, ctx)
        return tuple(int(part) for part in parts)


@click.command("extract")
@click.argument("dataset", required=False)
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME",
    help="Encoder to run, repeatable, or any model: timm:ID, hf:ID; by default all that need no "
    "download.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Folder (or file) of the encoder's weights, in place of the hub.",
)
@click.option("--revision", metavar="NAME", help="Commit, tag or branch on the hub.")
@click.option("--download", is_flag=True, help="Fetch weights that are not here without asking.")
@click.option("--variant", metavar="NAME", help="Which vectors, for example proj or hidden.")
@click.option("--tokens", is_flag=True, help="Keep token, patch, grid or region vectors too.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Cut texts after N.")
@click.option(
    "--mask-ratio",
    type=options.FiniteRange(min=0, max=1, max_open=True),
    metavar="R",
    help="Share of the patches that a masked autoencoder does not see.",
)
@click.option(
    "--preprocess",
    type=click.Choice(["own", "pad", "mmsr"]),
    help="Pictures: as the model was published, padded and uncropped, or 224 x 224 squashed.",
)
@click.option(
    "--text-fields",
    metavar="A,B,..",
    help="Item fields that make the text, in this order; by default as prepared.",
)
@click.option("--text-preset", metavar="NAME", help="A published order: mmrec, arxiv-2310.20343.")
@click.option(
    "--batch-size",
    type=BatchSize(),
    metavar="auto|N",
    default="auto",
    show_default=True,
    help="Items at a time, halved where memory does not suffice. With --finetune: items that are "
    "told from each other in a step; several, as in 32,64, make a grid.",
)
@options.device_option
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the computation.",
)
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Decoding threads.")
@click.option(
    "--from-file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Import this .npy matrix, one row per item, instead of encoding.",
)
@click.option("--modality", metavar="NAME", help="What an imported matrix describes: visual, ...")
@click.option("--name", metavar="NAME", help="What recipes call the feature set.")
@click.option(
    "--ids",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Item id of each row of an imported matrix, one per line; by default row k is item k.",
)
@click.option(
    "--from",
    "source",
    metavar="KEY",
    help="Make a new set of this stored one, for example visual__clip-vit-b16.",
)
@click.option(
    "--whiten", type=click.Choice(["zca", "pca"]), help="With --from: remove correlations."
)
@click.option(
    "--project",
    type=click.Choice(["pca", "random"]),
    help="With --from: fewer columns; --dim tells how many.",
)
@click.option("--dim", type=click.IntRange(min=1), metavar="D", help="With --from: columns.")
@click.option("--l2", is_flag=True, help="With --from: scale rows to length 1, at last.")
@click.option(
    "--nearest", metavar="KEY", help="Print the items nearest to --item in this stored set."
)
@click.option(
    "--item", "items", multiple=True, metavar="TEXT", help="Id or title, for --nearest; repeatable."
)
@finetuning_options
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
    dataset: str | None, data_dir: Path, list_encoders: bool, output: str, **given: Any
) -> None:
    """Make feature sets of the texts and pictures of DATASET, or import a matrix as one.

    What was made before from the same inputs is not made again; what was interrupted goes on.

    \b
    Examples:
      mmbench extract mydata
      mmbench extract mydata --encoder minilm-l6 --encoder clip-vit-b16
      mmbench extract mydata --encoder clip-vit-b16 --weights FOLDER
      mmbench extract mydata --encoder timm:convnext_tiny.fb_in1k --download
      mmbench extract mydata --encoder clip-vit-b16 --finetune --batch-size 256
      mmbench extract mydata --from visual__clip-vit-b16 --whiten zca
      mmbench extract mydata --from-file x.npy --modality visual --ids items.txt
      mmbench extract mydata --nearest textual__minilm-l6 --item "Toy Story"
    """
    # Imported here because encoders take seconds to load and --help must not wait.
    from mmbench.cli import extracting

    if list_encoders:
        extracting.print_encoders(output)
        return
    if dataset is None:
        raise click.UsageError(
            "name a prepared dataset; `mmbench extract --list` shows the encoders"
        )
    items, key = given.pop("items"), given.pop("nearest")
    _check_usage(given)
    check_usage(given)
    if key is not None or items:
        if key is None or not items:
            raise click.UsageError("--nearest KEY and --item TEXT go together")
        extracting.print_nearest(dataset, data_dir, key, items, output)
        return
    done = extracting.make_sets(dataset, data_dir, given)
    if extracting.is_first_process():
        extracting.print_done(done, output)


_ENCODING = (
    "weights", "revision", "download", "variant", "tokens", "max_tokens", "mask_ratio",
    "preprocess", "text_fields", "text_preset", "batch_size", "precision", "workers",
)  # fmt: skip
_IMPORTING = ("modality", "ids")
_STEPS = ("whiten", "project", "dim", "l2")


def _check_usage(given: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing together."""

    def refuse(names: tuple[str, ...], whose: str) -> None:
        for name in names:
            if given[name] not in (None, False, (), "float32"):
                raise click.UsageError(f"--{name.replace('_', '-')} goes with {whose}")

    if given["encoders"] and given["file"] is not None:
        raise click.UsageError("--encoder and --from-file exclude each other")
    if given["source"] is not None and (given["encoders"] or given["file"] is not None):
        raise click.UsageError("--from stands alone, without --encoder and --from-file")
    if given["file"] is None:
        refuse(_IMPORTING, "--from-file")
    elif given["modality"] is None:
        raise click.UsageError("--from-file needs --modality: visual, textual, acoustic or joint")
    if given["source"] is None:
        refuse(_STEPS, "--from")
    elif not any(given[name] for name in ("whiten", "project", "l2")):
        raise click.UsageError("--from needs a step: --whiten, --project or --l2")
    if not given["encoders"]:
        refuse(_ENCODING, "--encoder")
        if given["file"] is None and given["source"] is None:
            refuse(("name",), "--encoder, --from and --from-file")
    if given["text_fields"] is not None and given["text_preset"] is not None:
        raise click.UsageError("--text-fields and --text-preset exclude each other")
    for name in ("name", "weights"):
        if given[name] is not None and len(given["encoders"]) > 1:
            raise click.UsageError(f"--{name} goes with one encoder")
