"""Does end-to-end training lower the training loss below that of frozen encoders, step for step?

    python benchmarks/paradigms.py make small --minilm DIR --data-dir data
    python benchmarks/paradigms.py report --runs runs --runs rest --data-dir data --out FILE.md

`make` writes small networks (a CLIP, a VLMo and a vision transformer of a few blocks with random
weights; MiniLM is real), copies of recipes/movielens-100k/paradigms.yaml with them in place of the
published ones, and prints the commands that extract, fine-tune and train.

`report` trains nothing. Of finished runs it prints, for each recommender and encoder, the training
loss end to end beside each frozen one at the last epoch that all of them have, so after equally
many steps on equal batches of equal seeds:

    PT        vectors of the published weights
    FT        of weights fine-tuned on the items' pictures and texts
    at rest   the end-to-end recipe whose encoder does not learn: its own vectors at the start

and then the metrics on the test part as `mmbench compare --layout paradigms` lays them out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from making import made_by
from rich import box
from rich.table import Table
from tabulate import tabulate

from mmbench import console
from mmbench.errors import DataError
from mmbench.report.layout_text import Shown, render_layout
from mmbench.report.layouts import lay_out
from mmbench.report.paradigms import encoding_of, name_of
from mmbench.report.systems import resolved_recipe
from mmbench.runs import Run, find_runs, write_json

RECIPE = Path(__file__).parents[1] / "recipes" / "movielens-100k" / "paradigms.yaml"
TOKENS, SIDE, WIDTH = 12, 48, 48
TRAINING = {
    "epochs": 6,
    "batch_size": 16384,
    "learning_rate": 2e-2,
    "encoder_learning_rate": 2e-4,  # a hundredth, as in the recipe
    "evaluate_every": 2,
    "patience": None,
}
"""Thirty steps in the place of the recipe's four thousand, so with greater rates."""
TUNING = {"clip-vit-b16": (3, 1e-3), "vlmo-base-plus": (2, 1e-3), "pair": (2, 3e-4)}
"""Epochs and rate of fine-tuning."""
REST = "rest"


@dataclass(frozen=True)
class Loss:
    """The training loss of one run, epoch by epoch."""

    model: str
    encoder: str
    kind: str
    seed: int
    losses: tuple[float, ...]
    steps_per_epoch: int
    drift: float | None


@dataclass(frozen=True)
class Line:
    """End to end beside one kind of frozen vectors, after equally many steps.

    Attributes:
        differences: end to end less frozen, of each seed that both have.
        drift: mean cosine of the vectors with those before training, over seeds and modalities.
    """

    model: str
    encoder: str
    against: str
    steps: int
    seeds: tuple[int, ...]
    frozen: float
    learnt: float
    differences: tuple[float, ...]
    drift: float | None

    def cells(self) -> list[str]:
        """The row of a table."""
        lower = sum(difference < 0 for difference in self.differences)
        mean = math.fsum(self.differences) / len(self.differences)
        spread = f"{min(self.differences):+.4f} to {max(self.differences):+.4f}"
        return [
            self.model,
            self.encoder,
            self.against,
            f"{self.frozen:.4f}",
            f"{self.learnt:.4f}",
            f"{mean:+.4f}",
            spread if len(self.differences) > 1 else "",
            f"{lower} of {len(self.differences)}",
            "" if self.drift is None else f"{self.drift:.2f}",
        ]


SPREAD = "of seeds"
HEADS = ["model", "encoder", "frozen", "its loss", "ETE", "diff.", SPREAD, "lower", "cosine"]


def loss_of(run: Run) -> Loss:
    """The first term of a run's loss, which is the recommender's own without penalties."""
    records = [
        json.loads(line)
        for line in (run.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    encoding = encoding_of(run)
    kind = encoding.paradigm
    how = resolved_recipe(run)["training"]
    if kind == "ete" and (how.get("encoder") or {}).get("warmup_epochs", 0) >= len(records):
        kind = REST
    drifts = list((records[-1].get("encoder") or {}).get("drift", {}).values())
    return Loss(
        str(run.manifest["model"]["name"]),
        encoding.encoder,
        kind,
        int(run.manifest["seed"]),
        tuple(float(next(iter(record["losses"].values()))) for record in records),
        int(run.manifest["training"]["steps_per_epoch"]),
        sum(drifts) / len(drifts) if drifts else None,
    )


def lines_of(found: Sequence[Loss]) -> Iterator[Line]:
    """Every comparison that the runs allow, by model and encoder.

    Raises:
        DataError: two runs have one place, so their settings differ.
    """
    by_place = {(one.model, one.encoder, one.kind, one.seed): one for one in found}
    if len(by_place) < len(found):
        raise DataError(
            "two runs are of one model, encoder, paradigm and seed, so their settings differ; "
            "report on the runs of one recipe"
        )
    for model, encoder in dict.fromkeys((one.model, one.encoder) for one in found):
        for kind in ("pt", "ft", REST):
            pairs = [
                (by_place[model, encoder, kind, one.seed], one)
                for one in found
                if (one.model, one.encoder, one.kind) == (model, encoder, "ete")
                and (model, encoder, kind, one.seed) in by_place
            ]
            if not pairs:
                continue
            pairs.sort(key=lambda pair: pair[1].seed)
            last = min(len(one.losses) for pair in pairs for one in pair)
            frozen = [still.losses[last - 1] for still, _ in pairs]
            learnt = [moved.losses[last - 1] for _, moved in pairs]
            drifts = [moved.drift for _, moved in pairs if moved.drift is not None]
            yield Line(
                model,
                encoder,
                "at rest" if kind == REST else name_of(kind),
                last * pairs[0][0].steps_per_epoch,
                tuple(moved.seed for _, moved in pairs),
                sum(frozen) / len(frozen),
                sum(learnt) / len(learnt),
                tuple(b - a for a, b in zip(frozen, learnt, strict=True)),
                sum(drifts) / len(drifts) if drifts else None,
            )


@click.group()
def main() -> None:
    """The grid of paradigms on MovieLens-100K with small networks, and what it shows."""


@main.command()
@click.option(
    "--runs",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="A run or a folder of runs; repeatable.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="FILE.md.")
def report(runs: tuple[Path, ...], data_dir: Path, out: Path | None) -> None:
    """Print the training losses at equal steps, frozen and end to end, and write both tables."""
    found = find_runs(runs)
    losses = [loss_of(run) for run in found]
    lines = list(lines_of(losses))
    if not lines:
        raise click.UsageError("no run is end to end with a frozen one of its encoder beside it")
    console.result(_table(lines))
    notes = list(_notes(lines))
    for note in notes:
        console.text(note)
    if out is None:
        return
    known = {id(run) for run, one in zip(found, losses, strict=True) if one.kind != REST}
    laid = lay_out([run for run in found if id(run) in known], "paradigms", data_dir=data_dir)
    made = made_by("paradigms.py report")
    parts = [
        "# Pre-trained, fine-tuned and end to end on MovieLens-100K, small networks",
        f"Made on {made['date']} by `{made['command']}`.",
        "## Training loss at equal steps",
        tabulate([line.cells() for line in lines], HEADS, tablefmt="github", disable_numparse=True),
        "\n".join(f"- {note}" for note in notes),
        "## Metrics on the test part",
        render_layout(Shown(laid), "github").strip(),
    ]
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    facts = [asdict(one) for one in losses]
    environments = [run.manifest["environment"] for run in found]
    facts_of = {"lines": [asdict(one) for one in lines], "runs": facts}
    write_json(out.with_suffix(".json"), {**made, **facts_of, "environment": environments[0]})


def _table(lines: Sequence[Line]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    shown = [place for place, head in enumerate(HEADS) if head != SPREAD]  # which takes much room
    for place in shown:
        table.add_column(HEADS[place], justify="left" if place < 3 else "right", no_wrap=True)
    for line in lines:
        cells = line.cells()
        table.add_row(*(cells[place] for place in shown))
    return table


def _notes(lines: Sequence[Line]) -> Iterator[str]:
    seeds = sorted({seed for line in lines for seed in line.seeds})
    steps = sorted({line.steps for line in lines})
    yield (
        f"Mean loss of the last epoch over seeds {', '.join(map(str, seeds))}, after "
        f"{' or '.join(map(str, steps))} steps; diff.: end to end less frozen; of seeds: the least "
        "and the greatest of theirs; lower: in how many of them it is."
    )
    yield (
        "Cosine: of the vectors of the end with those of the start. At rest: the end-to-end recipe "
        "whose encoder does not learn. PT of a pair is its two encoders by themselves, whose "
        "vectors are not those that the pair begins with; these are at rest."
    )


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--minilm", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"))
def make(folder: Path, minilm: Path, data_dir: Path) -> None:
    """Write small networks, copies of the recipe, and print the commands that use them."""
    import finetuning

    from mmbench.data.prepared import load_dataset
    from mmbench.engine.contents import read_contents

    folder, minilm = folder.resolve(), minilm.resolve()
    contents = read_contents(load_dataset("movielens-100k", data_dir), ("textual", "visual"))
    texts = [text for text in contents.texts or () if text]
    # As small as thirty steps over all items on two processors allow.
    finetuning.TOKENS, finetuning.SIDE, finetuning.WIDTH = TOKENS, SIDE, WIDTH
    folder.mkdir(parents=True)
    finetuning.make_clip(folder / "clip", texts, 0)
    finetuning.make_vlmo(folder / "vlmo", texts, 0)
    _make_vision(folder / "tiny-vit")
    pair = f"pair:minilm-l6={minilm}+timm={folder / 'tiny-vit'}"
    for name, resting in (("paradigms", False), ("rest", True)):
        text = yaml.safe_dump(copied(folder, pair, resting=resting), sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    for command in commands(folder, minilm, pair):
        console.text(command)


def _make_vision(folder: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    arguments = {"img_size": SIDE, "embed_dim": WIDTH, "depth": 2, "num_heads": 4}
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **arguments)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    described = {"input_size": [3, SIDE, SIDE], "crop_pct": 1.0, "interpolation": "bicubic"}
    described |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"model_args": arguments, "pretrained_cfg": described}
    config = {"architecture": "vit_tiny_patch16_224", **config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def copied(folder: Path, pair: str, *, resting: bool) -> dict[str, Any]:
    """The recipe with small networks; or of it the pair alone, whose encoders never learn.

    Args:
        pair: its name, with the folders of its two encoders.
    """
    values: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    values["training"] |= TRAINING
    (axis,) = (key for key in values["grid"] if "features" in key)
    rows = []
    for stored, encoders, how in values["grid"][axis]:
        stored = {
            modality: name.replace("pair-minilm-l6-resnet50", "pair-minilm-l6-timm-tiny-vit")
            for modality, name in stored.items()
        }
        stored = {
            modality: "timm" if name == "resnet50" else name for modality, name in stored.items()
        }
        for modality, encoder in encoders.items():
            if encoder["name"].startswith("pair:"):
                encoder["name"] = pair
                if modality == "textual":  # of MiniLM the last block
                    encoder |= {"tune": "top", "blocks": 1}
            else:
                encoder["weights"] = str(folder / encoder["name"].partition("-")[0])
            if modality == "textual":
                encoder["max_tokens"] = TOKENS
        if how is not None:
            how = {key: value for key, value in how.items() if key != "at_once"}
        rows.append([stored, encoders, how])
    if resting:
        still = {**rows[-1][2], "warmup_epochs": TRAINING["epochs"]}
        rows = [[*rows[-1][:2], still]]
    values["grid"][axis] = rows
    return values


def commands(folder: Path, minilm: Path, pair: str) -> Iterator[str]:
    """What extracts, fine-tunes, trains and reports, in this order."""
    extract = f"mmbench extract movielens-100k --max-tokens {TOKENS} --encoder"
    yield f"{extract} minilm-l6 --weights {minilm}"
    yield f"mmbench extract movielens-100k --encoder timm --weights {folder / 'tiny-vit'}"
    for name, (epochs, rate) in TUNING.items():
        encoder = pair if name == "pair" else f"{name} --weights {folder / name.partition('-')[0]}"
        top = " --tune top --blocks 1" if name == "pair" else ""
        if name != "pair":
            yield f"{extract} {encoder}"
        yield (
            f"{extract} {encoder} --finetune --batch-size 64 --select-by loss "
            f"--epochs {epochs} --learning-rate {rate}{top}"
        )
    yield f"mmbench train {folder / 'paradigms.yaml'} --runs-dir runs"
    yield f"mmbench train {folder / 'rest.yaml'} --runs-dir rest"
    yield "python benchmarks/paradigms.py report --runs runs --runs rest --out FILE.md"


if __name__ == "__main__":
    main()
