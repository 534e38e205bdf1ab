"""Does fine-tuning raise retrieval between pictures and texts of items nobody learnt from?

Three small encoders learn from the pairs of a prepared dataset, by the very loop of `mmbench
extract --finetune`: a CLIP and a VLMo of a few small blocks with random weights, and MiniLM (real
weights) joined with a small vision network (random weights) by learnt projections. For each seed
weights, split and order are drawn anew. Pairs are split by groups of equal pictures or texts into

    learnt from | held out, by which the epoch is chosen | test, seen by neither

and retrieval is measured on the test items alone, before and after. The tested statistic is an
item's place among all test items, as a share of them (0 first, 1 last, 1/2 by chance), mean of both
directions: unlike Recall@K, which is shown beside it and tested too, it says something of every
item. Items are compared with themselves (sign flips; an item tested under several seeds counts
once, with its mean).
Figures are added to the JSON file after each run; runs that it holds are not done again.
Run `python benchmarks/finetuning.py --help`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from mmbench import console
from mmbench.data.prepared import load_dataset
from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import NeuralEncoder, Options
from mmbench.encoders.objectives import objective_of
from mmbench.encoders.pretrained import quiet
from mmbench.encoders.vlmo_model import Vlmo, VlmoShape
from mmbench.engine.contents import TextTemplate, read_contents
from mmbench.engine.device import Compute, choose
from mmbench.engine.tuning_loop import Tuner
from mmbench.engine.tuning_pairs import Pairs, hold_out, read_pairs
from mmbench.engine.tuning_settings import FineTuning
from mmbench.engine.tuning_state import StateFolder
from mmbench.metrics.alignment import TIE, recall_at
from mmbench.stats.effects import t_interval
from mmbench.stats.paired import permutation

KS = (1, 5, 10)
WAYS = ("picture to text", "text to picture")
TEST_SHARE = 0.25
SIDE, PATCH, TOKENS = 64, 16, 16
WIDTH, HEADS = 64, 4
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"epochs": 5, "learning_rate": (3e-4,)},
    "vlmo": {"epochs": 5, "learning_rate": (3e-4,)},
    "pair": {"epochs": 4, "learning_rate": (1e-4,), "tune": "top", "blocks": 1},
}
NAMES = {"clip": "tiny CLIP", "vlmo": "tiny VLMo", "pair": "MiniLM pair"}


@dataclass(frozen=True)
class Setup:
    """What every run shares."""

    dataset: str
    data_dir: Path
    minilm: Path | None
    compute: Compute
    batch_size: int
    epochs: int | None


def letters() -> list[str]:
    """The alphabet of byte pairs, with and without the end of a word."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *(f"{letter}</w>" for letter in alphabet)]


def make_clip(folder: Path, texts: list[str], seed: int) -> NeuralEncoder:
    """A CLIP of two small blocks each, with a vocabulary of its own, random weights."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.normalizer = normalizers.Lowercase()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learnt.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), level])
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learnt.train_from_iterator(texts, trainer)
    pieces, merges = letters(), []
    known = set(pieces)
    for merge in json.loads(learnt.to_str())["model"]["merges"]:
        one, two = merge if isinstance(merge, list) else merge.split(" ")
        if one in known and two in known and one + two not in known:
            merges.append((one, two))
            known.add(one + two)
            pieces.append(one + two)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    ids = {piece: number for number, piece in enumerate(pieces)}
    words = transformers.CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    shape |= {"intermediate_size": 2 * WIDTH}
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos")}
    text = {**shape, **special, "pad_token_id": words.pad_token_id, "vocab_size": len(words)}
    picture = {**shape, "image_size": SIDE, "patch_size": PATCH}
    config = transformers.CLIPConfig(
        text_config={**text, "max_position_embeddings": TOKENS},
        vision_config=picture,
        projection_dim=WIDTH,
    )
    torch.manual_seed(seed)
    with quiet():
        transformers.CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return ENCODERS.get("clip-vit-b16").obj(Options(weights=folder))


def make_vlmo(folder: Path, texts: list[str], seed: int) -> NeuralEncoder:
    """A VLMo of three small blocks, the last with a vision-language expert, random weights."""
    import transformers
    from safetensors.torch import save_file
    from tokenizers import BertWordPieceTokenizer

    learnt = BertWordPieceTokenizer(lowercase=True)
    learnt.train_from_iterator(texts, vocab_size=3000, show_progress=False)
    words = transformers.BertTokenizer(vocab=learnt.get_vocab())
    sizes = {"width": WIDTH, "blocks": 3, "heads": HEADS, "vl_from": 2, "image_size": SIDE}
    sizes |= {"patch_size": PATCH, "vocabulary": len(words), "text_length": TOKENS}
    folder.mkdir(parents=True)
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    tensors = Vlmo(VlmoShape(**sizes)).state_dict()
    plain = {name: value.contiguous() for name, value in tensors.items()}
    save_file(plain, folder / "vlmo.safetensors")
    (folder / "vlmo_config.json").write_text(json.dumps(sizes), encoding="utf-8")
    return ENCODERS.get("vlmo-base-plus").obj(Options(weights=folder))


def make_pair(folder: Path, minilm: Path, seed: int) -> NeuralEncoder:
    """MiniLM with its real weights, and a ConvNeXt of five small blocks with random ones."""
    import timm
    from safetensors.torch import save_file

    arguments = {"depths": [1, 1, 2, 1], "dims": [32, 64, 96, 128]}
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = timm.create_model("convnext_atto", pretrained=False, num_classes=0, **arguments)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    described = {"input_size": [3, SIDE, SIDE], "crop_pct": 1.0, "interpolation": "bicubic"}
    described |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": "convnext_atto", "model_args": arguments, "pretrained_cfg": described}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = f"minilm-l6={minilm}+timm={folder}"
    made = ENCODERS.get("pair").obj(Options(model=model, max_tokens=TOKENS))
    return made


def places(tuner: Tuner, items: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each item whether it is among the first K, and its place, [2 ways, K and 1, items]."""
    seen, read = [], []
    with torch.no_grad():
        for start in range(0, len(items), 128):
            texts, pictures, _ = tuner.pairs.batch(items[start : start + 128])
            one, two = tuner.objective.vectors(texts, pictures)["itc"]
            seen.append(one.float().numpy())
            read.append(two.float().numpy())
    a, b = np.concatenate(seen), np.concatenate(read)
    return np.stack([_judged(a, b), _judged(b, a)])


def _judged(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    cosines = rows.astype(np.float64) @ others.T.astype(np.float64)
    own = np.diag(cosines)[:, None]
    before = (cosines > own + TIE).sum(axis=1) + (
        (np.abs(cosines - own) <= TIE).sum(axis=1) - 1
    ) / 2
    place = before / (len(rows) - 1)
    return np.stack([*(recall_at(rows, others, k) for k in KS), place])


def run(system: str, seed: int, setup: Setup) -> dict[str, Any]:
    """Fine-tune one system once, and measure it before and after."""
    began = time.monotonic(), time.process_time()
    dataset = load_dataset(setup.dataset, setup.data_dir)
    template = TextTemplate(("title", "genres"), may_lack=True)
    contents = read_contents(dataset, ("textual", "visual"), template)
    assert contents.texts is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder, texts = Path(scratch) / "weights", [text for text in contents.texts if text]
        if system == "pair":
            assert setup.minilm is not None
            encoder = make_pair(folder, setup.minilm, seed)
        else:
            make = make_clip if system == "clip" else make_vlmo
            encoder = make(folder, texts, seed)
        encoder.load()
        encoder.draw(seed)
        encoder.module.eval().to(setup.compute.device)
        settings = FineTuning(
            **{**SETTINGS[system], **({"epochs": setup.epochs} if setup.epochs else {})},
            batch_size=(setup.batch_size,),
            patience=1000,
            select_by="loss",
            held_out=0.15,
            seed=seed,
        )
        found = read_pairs(dataset, encoder, contents, settings, setup.compute)
        rest, test = hold_out(found.train, found.groups, TEST_SHARE, seed + 1000)
        pairs: Pairs = replace(found, train=rest)
        state = StateFolder(Path(scratch), "run", {})
        tuner = Tuner(
            objective_of(encoder), pairs, settings, setup.compute, state, setup.batch_size
        )
        before = places(tuner, test)
        progress = tuner.run()
        tuner.restore_best(progress)
        after = places(tuner, test)
    return {
        "system": system,
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "learns": sum(weight.numel() for weight in tuner.learning.values()),
        "n_train": len(rest),
        "n_held_out": len(found.held),
        "best_epoch": progress.best_epoch,
        "items": test.tolist(),
        "before": before.round(6).tolist(),
        "after": after.round(6).tolist(),
        "seconds": round(time.monotonic() - began[0], 1),
        "cpu_seconds": round(time.process_time() - began[1], 1),
        "peak_memory_mib": round(setup.compute.peak_memory_mib(), 1),
    }


def judge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall before and after over all runs of a system, and the test over its items."""
    before = np.concatenate([np.asarray(one["before"]) for one in runs], axis=2)
    after = np.concatenate([np.asarray(one["after"]) for one in runs], axis=2)
    items = np.concatenate([one["items"] for one in runs])
    sizes = np.array([len(one["items"]) for one in runs])
    _, owner = np.unique(items, return_inverse=True)
    counts = np.bincount(owner)

    def by_item(found: NDArray[np.float64], row: int) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.bincount(owner, weights=found[:, row].mean(axis=0))
        return means / counts

    chance = [float((sizes * np.minimum(1, k / sizes)).sum() / sizes.sum()) for k in KS]
    figures: dict[str, Any] = {
        "before": before.mean(axis=2).tolist(),
        "after": after.mean(axis=2).tolist(),
        "chance": [*chance, 0.5],
        "n_items": len(counts),
        "n_test": float(sizes.mean()),
        "n_runs": len(runs),
    }
    for name, row, by_chance in (("recall@10", 2, chance[2]), ("place", 3, 0.5)):
        ours, theirs = by_item(after, row), by_item(before, row)
        tested = permutation(ours, theirs, np.random.default_rng(0))
        above = permutation(ours, np.full(len(ours), by_chance), np.random.default_rng(0))
        low, high = t_interval(ours - theirs)
        figures[name] = {
            "difference": float((ours - theirs).mean()),
            "interval": [float(low), float(high)],
            "p": tested.p,
            "p_chance": above.p,
        }
    return figures


def shown(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table, 80 columns wide."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("encoder", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in (*(f"txt@{k}" for k in KS), *(f"pic@{k}" for k in KS), "place", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    for system, figures in found.items():
        for name in ("before", "after"):
            cells = [f"{100 * value:.1f}" for way in figures[name] for value in way[:3]]
            place = np.mean([way[3] for way in figures[name]])
            p = f"{figures['place']['p']:.4f}" if name == "after" else ""
            label = NAMES[system] if name == "before" else ""
            table.add_row(label, name, *cells, f"{100 * place:.1f}", p)
        *chance, place = figures["chance"]
        cells = [f"{100 * value:.1f}" for value in chance] * 2
        table.add_row("", "chance", *cells, f"{100 * place:.1f}", "", end_section=True)
    return table


@click.command()
@click.option("--dataset", default="movielens-100k", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"))
@click.option(
    "--minilm", type=click.Path(path_type=Path, exists=True), help="Folder of MiniLM's weights."
)
@click.option("--systems", default="clip,vlmo,pair", show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="By default each system's own number.")
@click.option("--batch-size", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Add figures to this file.")
def main(
    dataset: str,
    data_dir: Path,
    minilm: Path | None,
    systems: str,
    seeds: str,
    epochs: int | None,
    batch_size: int,
    threads: int,
    device: str,
    report: Path | None,
) -> None:
    """Fine-tune small encoders on real pairs, and test retrieval on items nobody learnt from."""
    torch.set_num_threads(threads)
    setup = Setup(dataset, data_dir, minilm, choose(device), batch_size, epochs)
    wanted = systems.split(",")
    if unknown := [name for name in wanted if name not in NAMES]:
        raise click.UsageError(f"--systems {unknown[0]}: known are {', '.join(NAMES)}")
    if "pair" in wanted and minilm is None:
        raise click.UsageError("the pair needs --minilm, the folder of MiniLM's weights")
    done: list[dict[str, Any]] = []
    if report is not None and report.exists():
        done = json.loads(report.read_text(encoding="utf-8"))["runs"]
    for seed in (int(part) for part in seeds.split(",")):
        for system in wanted:
            if any((one["system"], one["seed"]) == (system, seed) for one in done):
                continue
            done.append(run(system, seed, setup))
            last = done[-1]
            console.note(f"{system} seed {seed}: epoch {last['best_epoch']}, {last['seconds']} s")
            _write(report, done, setup, threads)
    found = {
        system: judge([one for one in done if one["system"] == system])
        for system in NAMES
        if any(one["system"] == system for one in done)
    }
    console.result(shown(found))
    for line in _sentences(found, done, dataset):
        console.text(line)
    _write(report, done, setup, threads, found)


def _sentences(
    found: Mapping[str, Mapping[str, Any]], done: list[dict[str, Any]], dataset: str
) -> list[str]:
    one = next(iter(found.values()))
    lines = [
        f"In per cent, {one['n_test']:.0f} test items of {dataset} in a run: Recall@K of texts",
        "by pictures and back; mean place of the right one; p: of the place, sign flips.",
    ]
    for system, figures in found.items():
        lines.append(f"{NAMES[system]}, {figures['n_runs']} run(s), {figures['n_items']:,} items:")
        for name in ("place", "recall@10"):
            tested = figures[name]
            low, high = (100 * value for value in tested["interval"])
            lines.append(
                f"  {name} {100 * tested['difference']:+.2f} ({low:+.2f} to {high:+.2f}), "
                f"p {tested['p']:.4f}; beside chance p {tested['p_chance']:.4f}"
            )
    total = sum(run["cpu_seconds"] for run in done)
    lines.append(f"{len(done)} runs, {total / 60:.1f} minutes of CPU in all; 95 % intervals.")
    return lines


def _write(
    report: Path | None,
    done: list[dict[str, Any]],
    setup: Setup,
    threads: int,
    found: Mapping[str, Any] | None = None,
) -> None:
    if report is None:
        return
    facts = {
        "dataset": setup.dataset,
        "environment": {**setup.compute.describe(), "threads": threads, "cores": os.cpu_count()},
        "results": dict(found or {}),
        "runs": done,
    }
    partial = report.with_name(f".{report.name}.partial")
    partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    partial.replace(report)


if __name__ == "__main__":
    main()
