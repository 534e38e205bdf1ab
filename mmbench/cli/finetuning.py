"""The options of `mmbench extract --finetune`, and what is shown of a fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mmbench import console
from mmbench.cli import options

if TYPE_CHECKING:
    from mmbench.engine.extraction import Extraction, How
    from mmbench.engine.tuning import Tuned

Command = TypeVar("Command", bound=Callable[..., Any])
NAMES = (
    "preset", "epochs", "learning_rate", "new_learning_rate", "tune", "blocks", "objective",
    "optimizer", "weight_decay", "schedule", "warmup", "clip_norm", "patience", "select_by",
    "held_out", "warm", "seed", "chunk_size", "recompute",
)  # fmt: skip
"""The options that go with --finetune alone; --batch-size means another thing with it."""


class Rates(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Numbers joined by commas."""

    name = "rates"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Read "1e-5,3e-5" as two numbers."""
        if isinstance(value, tuple):
            return value
        one = options.FiniteRange(min=0, min_open=True)
        return tuple(one.convert(part, param, ctx) for part in str(value).split(","))


_OPTIONS = (
    click.option(
        "--finetune",
        is_flag=True,
        help="First fine-tune the encoder on the items that have a picture and a text.",
    ),
    click.option(
        "--preset", metavar="PAPER", help="With --finetune: settings of arxiv-2310.20343."
    ),
    click.option(
        "--epochs", type=click.IntRange(min=1), metavar="N", help="With --finetune: most."
    ),
    click.option(
        "--learning-rate",
        type=Rates(),
        metavar="R[,R..]",
        help="With --finetune: of the encoder; several make a grid.",
    ),
    click.option(
        "--new-learning-rate",
        type=options.FiniteRange(min=0, min_open=True),
        metavar="R",
        help="With --finetune: of projections that no published weights hold.",
    ),
    click.option(
        "--objective",
        metavar="A,B,..",
        help="With --finetune: some of the encoder's losses: itc; of VLMo itc, itc-vl, itm, mlm.",
    ),
    click.option(
        "--tune",
        type=click.Choice(["full", "top"]),
        help="With --finetune: all of the encoder, or its last blocks.",
    ),
    click.option(
        "--blocks", type=click.IntRange(min=1), metavar="K", help="With --tune top: how many."
    ),
    click.option("--optimizer", type=click.Choice(["adamw", "adam"]), help="With --finetune."),
    click.option(
        "--weight-decay", type=options.FiniteRange(min=0), metavar="W", help="With --finetune."
    ),
    click.option(
        "--schedule",
        type=click.Choice(["linear", "cosine", "constant"]),
        help="With --finetune: of the learning rate.",
    ),
    click.option(
        "--warmup",
        type=options.FiniteRange(min=0, max=1, max_open=True),
        metavar="SHARE",
        help="With --finetune: of all steps, in which the rate rises.",
    ),
    click.option(
        "--clip-norm",
        type=options.FiniteRange(min=0, min_open=True),
        metavar="NORM",
        help="With --finetune: most that a gradient is long.",
    ),
    click.option(
        "--patience",
        type=click.IntRange(min=1),
        metavar="N",
        help="With --finetune: epochs without a better result on held-out items.",
    ),
    click.option(
        "--select-by",
        type=click.Choice(["recall", "loss"]),
        help="With --finetune: retrieval or loss of held-out items.",
    ),
    click.option(
        "--held-out",
        type=options.FiniteRange(min=0, max=1, min_open=True, max_open=True),
        metavar="SHARE",
        help="With --finetune: of the pairs; by default 5 %, 256 at least, a fifth at most.",
    ),
    click.option(
        "--warm",
        metavar="SPLIT",
        help="With --finetune: learn only from items with training interactions in this split.",
    ),
    click.option("--seed", type=click.IntRange(min=0), metavar="N", help="With --finetune."),
    click.option(
        "--chunk-size",
        type=click.IntRange(min=1),
        metavar="N",
        help="With --finetune: items computed at a time, where memory is short.",
    ),
    click.option(
        "--recompute",
        is_flag=True,
        help="With --finetune: compute activations twice, to save memory.",
    ),
)


def finetuning_options(command: Command) -> Command:
    """Give a command the options of a fine-tuning."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_usage(given: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing together."""
    if not given["finetune"]:
        for name in NAMES:
            if given[name] not in (None, False):
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --finetune")
        if given["batch_size"] is not None and len(given["batch_size"]) > 1:
            raise click.UsageError("several numbers of --batch-size go with --finetune")
    elif not given["encoders"]:
        raise click.UsageError("--finetune goes with --encoder")


def fine_tune(
    dataset: str, encoder: str, data_dir: Any, how: How, given: Mapping[str, Any]
) -> tuple[Tuned, list[Extraction]]:
    """Fine-tune and extract as the options say."""
    from mmbench.engine.tuning import extract_tuned
    from mmbench.engine.tuning_settings import fine_tuning
    from mmbench.report.tuning_curves import NAME, draw_curves

    chosen = {
        name: given[name] for name in NAMES if name not in ("preset", "chunk_size", "recompute")
    }
    if given["objective"] is not None:
        chosen["objective"] = tuple(part.strip() for part in given["objective"].split(","))
    settings = fine_tuning(given["preset"], **chosen, batch_size=given["batch_size"])
    tuned, sets = extract_tuned(
        dataset,
        encoder,
        data_dir,
        how,
        settings,
        chunk=given["chunk_size"],
        recomputes=given["recompute"],
    )
    if tuned.history and (tuned.is_new or not (tuned.folder / f"{NAME}.svg").is_file()):
        draw_curves(tuned.history, tuned.facts, tuned.folder)
    return tuned, sets


def print_tuned(done: Sequence[Tuned]) -> None:
    """A few lines for each fine-tuning."""
    for tuned in done:
        facts = tuned.facts
        counts, state = facts["data"]["counts"], "stored" if tuned.is_new else "up to date"
        (size,) = facts["settings"]["batch_size"]
        console.text(
            f"{tuned.name}: {state}, epoch {facts['chosen_epoch']} of {facts['epochs']} "
            f"({facts['steps']:,} steps of {size:,} pairs), learnt from {counts['train']:,} pairs, "
            f"{counts['held_out']:,} held out"
        )
        for line in _judgement(facts):
            console.text(f"  {line}")
        for remark in _remarks(tuned):
            console.note(f"  {remark}")


def row(tuned: Tuned) -> dict[str, Any]:
    """What --format json tells of a fine-tuning."""
    return {
        "finetuned": tuned.name,
        "weights": str(tuned.folder),
        "is_new": tuned.is_new,
        "seconds": round(tuned.time_s, 1),
        **{key: tuned.facts[key] for key in ("chosen_epoch", "epochs", "steps", "helped")},
        "counts": tuned.facts["data"]["counts"],
        "before": tuned.facts["before"],
        "after": tuned.facts["after"],
        "grid": list(tuned.grid) if len(tuned.grid) > 1 else [],
        "cost": tuned.facts.get("cost", {}),
    }


def _judgement(facts: Mapping[str, Any]) -> Iterator[str]:
    before, after = facts["before"], facts["after"]
    for way, key in (
        ("recall@K, picture to text", "recall_first"),
        ("recall@K, text to picture", "recall_second"),
    ):
        steps = [
            f"@{k} {before[key][k]:.3f} -> {after[key][k]:.3f}"
            for k in sorted(before[key], key=int)
        ]
        yield f"{way}: {', '.join(steps)}  (of {after['n_items']:,} held-out items)"
    yield "; ".join(
        f"{what} {before[key]:.3f} -> {after[key]:.3f}"
        for what, key in (
            ("cosine of pairs", "paired"),
            ("of others", "unpaired"),
            ("modality gap", "gap"),
        )
    )


def _remarks(tuned: Tuned) -> Iterator[str]:
    from mmbench.engine.cost import amount

    counts = tuned.facts["data"]["counts"]
    lone = counts["text_only"] + counts["picture_only"]
    if lone:
        yield (
            f"{lone:,} items with one modality only were not learnt from ({counts['text_only']:,} "
            f"without a picture, {counts['picture_only']:,} without a text); they are encoded"
        )
    if not tuned.facts["helped"]:
        yield (
            "no epoch was better on held-out items than the published weights, which are kept; "
            "try another --learning-rate"
        )
    for point in tuned.grid if len(tuned.grid) > 1 else ():
        name = f"learning rate {point['learning_rate']:g}, batch size {point['batch_size']}"
        if "diverged" in point:
            yield f"{name}: diverged"
        else:
            held = point["held_out"]
            yield (
                f"{name}: epoch {point['epoch']}, mean recall {held['recall']:.3f}, "
                f"loss {held['losses']['itc']:.4f}"
            )
    if cost := tuned.facts.get("cost"):
        yield (
            f"cost: {cost['seconds']:,.1f} s on {tuned.facts['device']}, peak memory "
            f"{cost['peak_memory_mib']:,.0f} MiB; foreseen for the encoder "
            f"{cost['memory_mib']:,.0f} MiB and {amount(cost['flops_per_epoch'], 'FLOP')} an epoch"
        )
    for one in tuned.history:
        yield from (f"epoch {one['epoch']}: {warning}" for warning in one.get("warnings", ()))
    yield f"weights: {tuned.folder}"
    if (tuned.folder / "curves.svg").is_file():
        yield f"curves: {tuned.folder / 'curves.svg'} and .png"
