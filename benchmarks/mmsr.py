"""Where a training step of MMSR spends its time: in the encoders, and outside them.

RoBERTa and MAE with random weights, merge-attention and SASRec, trained by the engine on random
texts and pictures; the encoders' last blocks learn, or all of them. Encoders are timed around the
calls of their models, and backwards from the moment that the gradient of their states is there to
the moment that the last of their weights has its own; the optimiser is timed around its step.
What is left is split at the reading of contents: texts, pictures and what trunks made. With the
trunk kept on disk the encoders have less to do, so that the rest is a larger share of a shorter
step. A trunk is not kept where patches are masked, as they are drawn anew. Beside the share outside
stands the least that it can be, by the products of the blocks alone.
Run `python benchmarks/mmsr.py --help`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from rich import box
from rich.table import Table
from safetensors.torch import save_file

from mmbench import console
from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.encoders.pretrained import quiet
from mmbench.engine.building import build_model
from mmbench.engine.device import Compute, choose
from mmbench.engine.inputs import load_inputs, to_device
from mmbench.engine.live import LiveItemEncoder
from mmbench.engine.sampling import make_sampler
from mmbench.engine.step import Step
from mmbench.recipe import Recipe

TOP_BLOCKS = 2
"""Blocks of an encoder that learn where its top alone does."""
MOST_OUTSIDE = 0.10
"""The share of a step that may pass outside the encoders' forward and backward."""


@dataclass(frozen=True)
class Size:
    """The work: catalogue, batch, encoders."""

    items: int
    batch: int
    max_length: int
    max_tokens: int
    width: int
    layers: int
    heads: int
    picture: int
    patch: int


@dataclass(frozen=True)
class Case:
    """A way to train: patches hidden, whether trunks are kept, and what learns."""

    mask_ratio: float
    cache: bool
    tune: str

    def __str__(self) -> str:
        """As the table names it."""
        return f"{self.tune}, {self.mask_ratio:g} masked, {'kept' if self.cache else 'run'}"


@dataclass
class Clock:
    """Seconds of the step under way, by what they went into."""

    compute: Compute
    forward: float = 0.0
    backward: float = 0.0
    reading: float = 0.0
    optimizer: float = 0.0

    def now(self) -> float:
        """The time once the device has done what it was told."""
        self.compute.synchronise()
        return time.perf_counter()

    def add(self, part: str, seconds: float) -> None:
        """Count seconds towards a part."""
        setattr(self, part, getattr(self, part) + seconds)


@dataclass
class Measured:
    """Steps of one case, in seconds: the whole of each, and its parts."""

    case: Case
    kept: str
    least: float
    """The share outside by products alone, see `least_outside`."""
    whole: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def share(self, *parts: str) -> float:
        """The median over steps of the share that parts have."""
        sums = [sum(found) for found in zip(*(self.parts[part] for part in parts), strict=True)]
        return statistics.median(s / w for s, w in zip(sums, self.whole, strict=True))

    @property
    def outside(self) -> float:
        """The share of a step outside the encoders' forward and backward."""
        return 1 - self.share("forward", "backward")


def least_outside(size: Size, case: Case, kept: set[str]) -> float:
    """The share of a step outside the encoders, if every transformer block took the same a token.

    The encoders run their blocks forwards (those that learn alone, where the trunk is kept) and
    twice as much backwards through those that learn; the merge-attention of text and patches is
    one block of the same width over the tokens of both, forwards and backwards. Nothing else is
    counted, so that no implementation with these parts has less outside.
    """
    patches = (size.picture // size.patch) ** 2
    tokens = {"textual": size.max_tokens, "visual": 1 + round((1 - case.mask_ratio) * patches)}
    learning = size.layers if case.tune == "full" else min(TOP_BLOCKS, size.layers)
    inside = 0
    for modality, count in tokens.items():
        forward = learning if modality in kept else size.layers
        inside += count * (forward + 2 * learning)
    outside = 3 * sum(tokens.values())
    return outside / (outside + inside)


def write_encoders(size: Size, folder: Path) -> dict[str, Path]:
    """RoBERTa and MAE with random weights, as their published folders are."""
    import timm
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    torch.manual_seed(0)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    words = transformers.RobertaTokenizer(vocab={p: n for n, p in enumerate(pieces)}, merges=[])
    # A table of letters in place of 50,265 pieces: rows that are looked up cost the same.
    config = transformers.RobertaConfig(
        vocab_size=len(words),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    places = {"textual": folder / "roberta", "visual": folder / "mae"}
    with quiet():
        transformers.RobertaModel(config).save_pretrained(places["textual"])
        words.save_pretrained(places["textual"])
    shape = {
        "embed_dim": size.width,
        "depth": size.layers,
        "num_heads": size.heads,
        "img_size": size.picture,
        "patch_size": size.patch,
    }
    model = timm.create_model("vit_base_patch16_224", num_classes=0, **shape)
    places["visual"].mkdir()
    save_file(model.state_dict(), places["visual"] / "model.safetensors")
    seen = {"input_size": [3, size.picture, size.picture], "crop_pct": 0.9}
    described = {"architecture": "vit_base_patch16_224", "model_args": shape}
    (places["visual"] / "config.json").write_text(
        json.dumps({**described, "pretrained_cfg": seen}), encoding="utf-8"
    )
    return places


def write_dataset(size: Size, n_users: int, folder: Path) -> Path:
    """Random histories, texts longer than any limit, and noise for pictures, prepared."""
    random = np.random.default_rng(0)
    raw = folder / "raw"
    (raw / "images").mkdir(parents=True)
    length = min(size.max_length + 3, size.items)
    rows = [
        f"u{user},i{item},{1_600_000_000 + when}"
        for user in range(n_users)
        for when, item in enumerate(random.choice(size.items, length, replace=False))
    ]
    (raw / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    texts = [f"i{item},{''.join(random.choice(letters, 120))}" for item in range(size.items)]
    (raw / "items.csv").write_text("\n".join(["item_id,title", *texts]) + "\n")
    for item in range(size.items):
        noise = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        noise.resize((size.picture, size.picture)).save(raw / "images" / f"i{item}.png")
    config = PrepareConfig(text_fields=("title",), user_min=0, item_min=0)
    prepare("bench", source=raw, data_dir=folder / "data", config=config, splits=["leave-one-out"])
    return folder / "data"


def recipe_of(size: Size, case: Case, places: dict[str, Path]) -> Recipe:
    """MMSR as published: merge-attention with one block, SASRec, AdamW."""
    common = {"tune": case.tune, "cache": case.cache}
    text = {"name": "roberta", "weights": str(places["textual"]), "max_tokens": size.max_tokens}
    seen = {"name": "mae-b16", "weights": str(places["visual"]), "mask_ratio": case.mask_ratio}
    return Recipe(
        {
            "dataset": "bench",
            "protocol": "mmsr",
            "encoders": {"textual": {**text, **common}, "visual": {**seen, **common}},
            "model": {
                "name": "mmsr",
                "embedding_size": size.width,
                "max_length": size.max_length,
                "fusion": "merge-attention",
                "fusion_heads": size.heads,
                "n_heads": 2,
                "dropout": 0.1,
            },
            "training": {
                "batch_size": size.batch,
                "optimizer": "adamw",
                "learning_rate": 1e-4,
                "encoder_learning_rate": 1e-4,
                "weight_decay": 0.1,
                "encoder_weight_decay": 0.0,
            },
        },
        "benchmark",
    )


class _Arrival(torch.autograd.Function):
    """States as they are; tells when their gradient has come."""

    @staticmethod
    def forward(context: Any, states: torch.Tensor, arrived: Callable[[], None]) -> torch.Tensor:
        """The states."""
        context.arrived = arrived
        return states.view_as(states)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Their gradient."""
        context.arrived()
        return gradients[0], None


class Timed:
    """Times one encoder: its model, what is read for it, and its backward pass."""

    def __init__(self, encoder: LiveItemEncoder, clock: Clock) -> None:
        self.clock = clock
        self.began = self.ended = 0.0
        run, encoded = encoder._run, encoder._encoded

        def timed_run(*contents: Any) -> Any:
            begin = clock.now()
            found = run(*contents)
            spent = clock.now() - begin
            clock.add("forward", spent)
            clock.add("reading", -spent)  # it is inside of what is timed there
            if found.tokens is None or not found.tokens.requires_grad:
                return found
            tokens: Any = _Arrival.apply(found.tokens, self._arrived)  # type: ignore[no-untyped-call]
            return type(found)(found.pooled, tokens, found.mask)

        def timed_encoded(items: torch.Tensor) -> Any:
            begin = clock.now()
            found = encoded(items)
            clock.add("reading", clock.now() - begin)
            return found

        encoder._run = timed_run  # type: ignore[method-assign]
        encoder._encoded = timed_encoded  # type: ignore[method-assign]
        for weight in encoder.parameters():
            weight.register_post_accumulate_grad_hook(self._gone_through)

    def _arrived(self) -> None:
        self.began = self.clock.now()

    def _gone_through(self, _: torch.Tensor) -> None:
        self.ended = self.clock.now()

    def take(self) -> None:
        """Count the backward pass of the step that is over."""
        self.clock.add("backward", max(0.0, self.ended - self.began))
        self.began = self.ended = 0.0


def measure(
    size: Size, case: Case, places: dict[str, Path], data: Path, steps: int, compute: Compute
) -> Measured:
    """Train some steps of one case; the first one, which warms up, is not counted."""
    recipe = recipe_of(size, case, places).expand()[0]
    inputs = load_inputs(recipe, data)
    model = build_model(recipe, inputs, compute)
    encoders = [part for part in model.modules() if isinstance(part, LiveItemEncoder)]
    clock = Clock(compute)
    timed = [Timed(encoder, clock) for encoder in encoders]
    step = Step(model, recipe.training, compute)
    stepping = {"begin": 0.0}

    def begin_stepping(*_: Any) -> None:
        stepping["begin"] = clock.now()

    def end_stepping(*_: Any) -> None:
        clock.add("optimizer", clock.now() - stepping["begin"])

    step.optimizer.register_step_pre_hook(begin_stepping)
    step.optimizer.register_step_post_hook(end_stepping)
    train = to_device(inputs.train, compute.device)
    sampler = make_sampler(model, train, recipe.protocol.negatives)
    drawn = sampler.epoch(torch.Generator(compute.device).manual_seed(0))
    modalities = [one.modality for one in encoders if one.is_kept]
    kept = " and ".join(modalities) or "none"
    found = Measured(case, kept, least_outside(size, case, set(modalities)))
    names = ("forward", "backward", "reading", "optimizer")
    found.parts = {name: [] for name in names}
    model.train()
    for number in range(steps + 1):
        for name in names:
            setattr(clock, name, 0.0)
        begin = clock.now()
        step(drawn.batch(slice(number * size.batch, (number + 1) * size.batch)))
        whole = clock.now() - begin
        for one in timed:
            one.take()
        if number:
            found.whole.append(whole)
            for name in names:
                found.parts[name].append(getattr(clock, name))
    return found


@click.command()
@click.option("--items", default=200, show_default=True)
@click.option("--batch-size", default=8, show_default=True, help="Sequences.")
@click.option("--max-length", default=20, show_default=True, help="Input items of a sequence.")
@click.option("--max-tokens", default=50, show_default=True, help="Of a text.")
@click.option("--width", default=768, show_default=True)
@click.option("--layers", default=12, show_default=True, help="Of each encoder.")
@click.option("--heads", default=12, show_default=True)
@click.option("--picture", default=224, show_default=True, help="Pixels of a side.")
@click.option("--patch", default=16, show_default=True, help="Pixels of a side.")
@click.option("--mask-ratios", default="0.75,0", show_default=True)
@click.option("--tune", type=click.Choice(["top", "full"]), default="top", show_default=True)
@click.option("--steps", default=3, show_default=True, help="Measured ones.")
@click.option("--threads", default=0, show_default=True, help="0: torch's own number.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write figures here.")
def main(
    items: int,
    batch_size: int,
    max_length: int,
    max_tokens: int,
    width: int,
    layers: int,
    heads: int,
    picture: int,
    patch: int,
    mask_ratios: str,
    tune: str,
    steps: int,
    threads: int,
    device: str,
    report: Path | None,
) -> None:
    """Measure the share of MMSR's training step that passes outside its encoders."""
    if threads:
        torch.set_num_threads(threads)
    try:
        ratios = [float(ratio) for ratio in mask_ratios.split(",")]
    except ValueError:
        raise click.BadParameter(f"{mask_ratios!r} is no list of numbers like 0.75,0") from None
    if not all(0 <= ratio < 1 for ratio in ratios):
        raise click.BadParameter(f"{mask_ratios!r}: a share of hidden patches is from 0 to below 1")
    size = Size(items, batch_size, max_length, max_tokens, width, layers, heads, picture, patch)
    compute = choose(device)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = write_encoders(size, folder)
        data = write_dataset(size, batch_size * (steps + 1), folder)
        # A full one has no trunk that rests.
        kept = (False, True) if tune == "top" else (False,)
        cases = [Case(ratio, cache, tune) for ratio in ratios for cache in kept]
        found = [measure(size, case, places, data, steps, compute) for case in cases]
    caption = (
        f"{items:,} items, batches of {batch_size} sequences with {max_length} inputs, "
        f"texts of {max_tokens};\nencoders of {layers} layers, {width} columns, pictures of "
        f"{picture} in patches of {patch};\n{compute.describe()['device']}, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}; "
        f"load before {load:.1f};\nmedians of {steps} steps, shares in percent."
    )
    console.text(caption)
    console.result(_table(found))
    if report is not None:
        figures = [
            {
                **asdict(one.case),
                "trunks_kept": one.kept,
                "step_s": one.whole,
                "parts_s": one.parts,
                "share_outside": one.outside,
                "least_share_outside": one.least,
            }
            for one in found
        ]
        facts = {"caption": caption, "environment": compute.describe(), "results": figures}
        report.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _table(found: list[Measured]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("tune, patches, trunk", no_wrap=True)
    heads = ("step s", "forw.", "back.", "read", "adam", "rest", "out", "least")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for one in found:
        shares = [one.share(part) for part in ("forward", "backward", "reading", "optimizer")]
        rest = 1 - one.share("forward", "backward", "reading", "optimizer")
        mark = "✓" if one.outside <= MOST_OUTSIDE else "✗"
        table.add_row(
            str(one.case),
            f"{statistics.median(one.whole):.2f}",
            *(f"{100 * share:.1f}" for share in [*shares, rest]),
            f"{100 * one.outside:.1f} {mark}",
            f"{100 * one.least:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
