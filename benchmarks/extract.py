"""Throughput of `mmbench extract` against the bare forward pass of the same model.

Ours is the whole way: pictures read and decoded, texts tokenised, batches, forward, vectors stored
and hashed. The other side is the library's model alone on tensors that lie ready, in batches of
the same items. Both take turns in one process. Models have their real size and random weights:
what a forward pass costs does not depend on them. Run `python benchmarks/extract.py --help`.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from making import made_by
from PIL import Image
from rich import box
from rich.table import Table

from mmbench import console
from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.data.prepared import PreparedDataset
from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import NeuralEncoder, Options
from mmbench.engine.device import choose
from mmbench.engine.extraction import How, extract_neural

NEEDED = 0.9
"""Share of the bare forward's throughput that extraction has to reach."""
SHARD = 1024  # items among which texts are sorted by length, as the engine does
SHAPES: dict[str, dict[str, Any]] = {
    "minilm-l6": {"layers": 6, "width": 384, "heads": 12, "inner": 1536},
    "bert": {"layers": 12, "width": 768, "heads": 12, "inner": 3072},
    "resnet50": {"timm": "resnet50"},
    "vit-b16": {"timm": "vit_base_patch16_224"},
}
"""Two text and two vision encoders; hidden layers, width, heads and inner width of the former."""


@click.command()
@click.option("--items", default=256, show_default=True, help="Items to encode.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Turns of each side.")
@click.option("--threads", default=0, show_default=True, help="0: torch's own number.")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--encoder", "names", multiple=True, type=click.Choice(list(SHAPES)))
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write figures here.")
def main(
    items: int,
    batch_size: int,
    repeats: int,
    threads: int,
    device: str,
    precision: str,
    names: tuple[str, ...],
    report: Path | None,
) -> None:
    """Measure what extraction adds to the forward pass of two text and two vision encoders."""
    if threads:
        torch.set_num_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mmbench-extract-") as folder:
        root = Path(folder)
        dataset = make_dataset(root, items)
        for name in names or SHAPES:
            console.note(f"measuring {name} ...")
            how = How(batch_size=batch_size, device=device, precision=precision, force=True)
            rows.append(measure(dataset, name, save_model(name, root / name), how, repeats))
    table = Table(title="Extraction and the bare forward pass", box=box.SIMPLE_HEAD)
    for head in ("encoder", "items", "ours /s", "bare /s", "ratio", f"needed {NEEDED}"):
        table.add_column(head, justify="left" if head == "encoder" else "right")
    for row in rows:
        met = "met" if row["ratio"] >= NEEDED else "missed"
        speeds = [f"{items / row[key]:.1f}" for key in ("ours_s", "bare_s")]
        table.add_row(row["encoder"], str(items), *speeds, f"{row['ratio']:.3f}", met)
    compute = choose(device)
    table.caption = (
        f"{compute.device.type}, {torch.get_num_threads()} threads, {precision}, batches of "
        f"{batch_size}, medians of {repeats} turns"
    )
    console.result(table)
    if report is not None:
        facts = {
            **made_by("extract.py"),
            "machine": compute.describe(),
            "items": items,
            "precision": precision,
            "batch_size": batch_size,
            "rows": rows,
        }
        report.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def make_dataset(root: Path, n_items: int) -> PreparedDataset:
    """Items with texts of 5 to 200 words and JPEG pictures of 500 x 500 pixels."""
    rng = np.random.default_rng(0)
    raw = root / "raw"
    (raw / "images").mkdir(parents=True)
    words = ["".join(chr(97 + letter) for letter in row) for row in rng.integers(0, 26, (2000, 6))]
    with (raw / "items.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["item_id", "title"])
        for item in range(n_items):
            length = int(np.clip(rng.lognormal(4.0, 0.6), 5, 200))
            table.writerow([f"i{item}", " ".join(rng.choice(words, length))])
            small = rng.integers(0, 256, (25, 25, 3), dtype=np.uint8)
            Image.fromarray(small).resize((500, 500)).save(raw / f"images/i{item}.jpg", quality=90)
    with (raw / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "item_id"])
        table.writerows([f"u{user}", f"i{item}"] for user in range(3) for item in range(n_items))
    config = PrepareConfig(user_min=0, item_min=0)
    return prepare("made", source=raw, config=config, data_dir=root / "data").dataset


def save_model(name: str, folder: Path) -> Path:
    """A folder as the hub would have it: real shape, random weights, and a small vocabulary."""
    folder.mkdir()
    shape = SHAPES[name]
    if "timm" in shape:
        import timm
        from safetensors.torch import save_file

        model = timm.create_model(shape["timm"], pretrained=False)
        weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        config = {"architecture": shape["timm"], "num_classes": 1000}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [chr(97 + k) for k in range(26)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    pairs = [f"{mark}{a}{b}" for mark in ("", "##") for a in letters for b in letters]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *pairs])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    model = BertModel(
        BertConfig(
            vocab_size=30522,
            hidden_size=shape["width"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            intermediate_size=shape["inner"],
        ),
        add_pooling_layer=False,
    )
    model.save_pretrained(folder)
    return folder


def measure(
    dataset: PreparedDataset, name: str, folder: Path, how: How, repeats: int
) -> dict[str, Any]:
    """Seconds of both sides, the medians of turns taken one after the other."""
    encoder = ENCODERS.get(name).obj(Options(weights=folder))
    assert isinstance(encoder, NeuralEncoder)
    ours: list[float] = []
    bare: list[float] = []
    extract_neural(dataset, name, encoder, how)  # loads the model; what comes first is slower
    forward = bare_forward(dataset, encoder, how)
    forward()
    for _ in range(repeats):
        begin = time.perf_counter()
        forward()
        bare.append(time.perf_counter() - begin)
        (made,) = extract_neural(dataset, name, encoder, how)
        ours.append(made.time_s)
    medians = statistics.median(ours), statistics.median(bare)
    return {
        "encoder": name,
        "ours_s": medians[0],
        "bare_s": medians[1],
        "ratio": medians[1] / medians[0],
        "ours_all_s": ours,
        "bare_all_s": bare,
    }


def bare_forward(dataset: PreparedDataset, encoder: NeuralEncoder, how: How) -> Callable[[], None]:
    """The library's model on batches that lie ready on its device."""
    compute = choose(how.device)
    size = how.batch_size or 1
    if encoder.modalities == ("textual",):
        tokens = encoder.tokenize(dataset.texts)
        batches = [
            encoder.text_batch([tokens[row] for row in rows])
            for start in range(0, len(tokens), SHARD)
            for rows in blocks(by_length(tokens, start), size)
        ]
    else:
        pictures = [
            encoder.read_picture(Image.open(path).convert("RGB"), item)
            for path, item in zip(dataset.image_paths, dataset.item_ids, strict=True)
            if path is not None
        ]
        batches = [encoder.picture_batch(block) for block in blocks(pictures, size)]
    ready = [{key: part.to(compute.device) for key, part in batch.items()} for batch in batches]
    module = encoder.module.to(compute.device)
    precision = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(how.precision)
    takes_names = encoder.modalities == ("textual",)

    def forward() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(compute.device.type, precision, enabled=precision is not None),
        ):
            for batch in ready:
                module(**batch) if takes_names else module(*batch.values())
        compute.synchronise()

    return forward


def by_length(tokens: Sequence[Any], start: int) -> list[int]:
    """Rows of one shard, short texts first."""
    rows = range(start, min(start + SHARD, len(tokens)))
    return sorted(rows, key=lambda row: len(tokens[row].ids))


def blocks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Consecutive parts of at most `size`."""
    return [values[start : start + size] for start in range(0, len(values), size)]


if __name__ == "__main__":
    sys.exit(main())
