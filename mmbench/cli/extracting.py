"""What `mmbench extract` shows and asks before and while an encoder works."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress, TaskID

from mmbench import console
from mmbench.cli import finetuning
from mmbench.data.aligned import alignments
from mmbench.data.fetch.web import size_text
from mmbench.data.prepared import load_dataset
from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Options
from mmbench.engine.contents import TextTemplate, preset
from mmbench.engine.encoding import Watch
from mmbench.engine.extract import extract_builtin_once, extract_sets, import_features
from mmbench.engine.extraction import Extraction, How
from mmbench.engine.post_processing import Steps, post_process
from mmbench.errors import ConfigError

if TYPE_CHECKING:
    from mmbench.encoders.hub import Remote
    from mmbench.engine.tuning import Tuned


LINE = 80
"""Columns of the list of encoders."""


def somebody_can_answer() -> bool:
    """Whether a question would reach a person."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class Consent:
    """Shows what would be fetched from the hub, and asks where somebody can answer.

    Args:
        given: the user has agreed already, with --download.
        licence: of the weights, as far as known.
    """

    def __init__(self, given: bool, licence: str) -> None:
        self.given, self.licence = given, licence

    def __call__(self, remote: Remote) -> bool:
        """Whether to fetch `remote`."""
        total = f": {len(remote.sizes)} files, {size_text(remote.n_bytes)}" if remote.sizes else ""
        commit = f", commit {remote.commit[:12]}" if remote.commit else ""
        # Not a note: what is to be read before an answer is shown under --quiet too.
        licence = self.licence or "see its page"
        console.err.print(f"{remote.id}{commit}{total}; licence: {licence}", soft_wrap=True)
        for name, size in sorted(remote.sizes.items()):
            console.note(f"  {name}  {size_text(size)}")
        if self.given:
            return True
        return click.confirm("Fetch these files?", default=False, err=True)


class Bars(Watch):
    """Draws a bar for each feature set, with items per second, or epochs of a fine-tuning."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._began = 0.0
        self._done = self._now = self._total = 0
        self._unit = "items"

    def begin(self, what: str, done: int, total: int, unit: str = "items") -> None:
        """Begin a bar."""
        self._unit = unit
        if done:
            console.note(f"{what}: going on after {done:,} of {total:,} {unit}")
        self._task = self._bars.add_task(what, total=total, completed=done, status="")
        self._began, self._done, self._now, self._total = time.monotonic(), done, 0, total

    def advance(self, n_items: int) -> None:
        """Move it on."""
        if self._task is None:
            return
        self._now += n_items
        rate = self._now / max(1e-6, time.monotonic() - self._began)
        status = f"{self._done + self._now:,} of {self._total:,}, {rate:,.1f} {self._unit}/s"
        self._bars.update(self._task, completed=self._done + self._now, status=status)

    def say(self, message: str) -> None:
        """Print a remark above the bars."""
        console.note(message)


@contextmanager
def watching() -> Iterator[Watch]:
    """A `Watch` that draws on the terminal."""
    with console.progress() as bars:
        yield Bars(bars)


def is_first_process() -> bool:
    """Whether this process prints; torchrun starts several."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Done:
    """What `mmbench extract` did: feature sets, how they agree, and fine-tunings before them."""

    sets: list[Extraction]
    alignments: list[dict[str, Any]] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)


def make_sets(dataset: str, data_dir: Path, given: Mapping[str, Any]) -> Done:
    """Do what the options of `mmbench extract` say."""
    if given["encoders"]:
        tuned, sets = _encode(dataset, data_dir, given)
        keys = [one.features.key for one in sets]
        found = alignments(load_dataset(dataset, data_dir), keys) if is_first_process() else []
        return Done(sets, [one for one in found if one["one_encoder"]], tuned)
    return Done(_make_others(dataset, data_dir, given))


def _make_others(dataset: str, data_dir: Path, given: Mapping[str, Any]) -> list[Extraction]:
    force = given["force"]
    if given["file"] is not None:
        imported = import_features(
            dataset,
            given["file"],
            given["modality"],
            given["name"],
            data_dir,
            ids=given["ids"],
            force=force,
        )
        return [Extraction(imported, is_new=True)]
    if given["source"] is not None:
        steps = Steps(given["whiten"], given["project"], given["dim"], given["l2"])
        return [post_process(dataset, given["source"], steps, data_dir, given["name"], force=force)]
    return extract_builtin_once(dataset, data_dir, force=force)


def _encode(
    dataset: str, data_dir: Path, given: Mapping[str, Any]
) -> tuple[list[Tuned], list[Extraction]]:
    done: list[Extraction] = []
    tuned: list[Tuned] = []
    with watching() as watch:
        how = How(
            options=_options(given),
            texts=_template(given),
            name=given["name"],
            batch_size=given["batch_size"][0] if given["batch_size"] else None,
            device=given["device"],
            precision=given["precision"],
            workers=given["workers"],
            fetch=given["download"] or somebody_can_answer(),
            force=given["force"],
            watch=watch,
        )
        for encoder in given["encoders"]:
            entry = ENCODERS.get(encoder.partition(":")[0])
            hub = getattr(entry.obj, "hub", None)
            consent = Consent(given["download"], "" if hub is None else hub.licence)
            how = replace(how, agree=consent)
            if given["finetune"]:
                one, sets = finetuning.fine_tune(dataset, encoder, data_dir, how, given)
                tuned.append(one)
                done += sets
            else:
                done += extract_sets(dataset, encoder, data_dir, how)
    return tuned, done


def _options(given: Mapping[str, Any]) -> Options:
    chosen = {
        name: given[name]
        for name in (
            "weights", "revision", "variant", "tokens", "max_tokens", "mask_ratio", "preprocess",
        )
        if given[name] is not None
    }  # fmt: skip
    return Options(**chosen)


def _template(given: Mapping[str, Any]) -> TextTemplate | None:
    if given["text_preset"] is not None:
        return preset(given["text_preset"])
    if given["text_fields"] is None:
        return None
    fields = tuple(name.strip() for name in given["text_fields"].split(",") if name.strip())
    if not fields:
        raise ConfigError("--text-fields names no field; write for example title,overview")
    return TextTemplate(fields)


def print_encoders(output: str) -> None:
    """One line per encoder: name, modalities, dimension, licence, what it is."""
    found = {name: _about(name) for name in ENCODERS.names()}
    if output == "json":
        console.text(json.dumps(found, indent=2))
        return
    rows = [
        [name, "+".join(facts["modalities"]), facts["dim"], _cut(facts["licence"], 14)]
        for name, facts in found.items()
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    for row, facts in zip(rows, found.values(), strict=True):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        # Most begin with the name once more: "MiniLM-L6: the sentence encoder ...".
        summary = facts["summary"].partition(": ")[2] or facts["summary"]
        console.text(_cut(f"{line}  {summary}", LINE))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3].rstrip()}..."


def _about(name: str) -> dict[str, Any]:
    made = ENCODERS.get(name).obj
    hub = getattr(made, "hub", None)
    # The one sentence of an encoder's class ends with its dimension, as in "... [384]".
    dims = re.findall(r"\[(\d[\d, /+]*)\]", made.__doc__ or "")
    return {
        "modalities": made.modalities,
        "dim": str(getattr(made, "dim", "")) or (dims[0] if dims else "-"),
        "licence": "built in" if made.builtin else (getattr(hub, "licence", "") or "see hub"),
        "hub": getattr(hub, "id", ""),
        "summary": ENCODERS.summary(name).rstrip("."),
    }


def print_done(done: Done, output: str) -> None:
    """A line per feature set, and what fine-tunings and the sets' agreement come to."""
    if output == "json":
        told = [finetuning.row(tuned) for tuned in done.tuned]
        rows = [_row(result) for result in done.sets]
        for row in rows:
            if mine := [one for one in done.alignments if row["features"] == one["first"]]:
                row["alignment"] = mine
        console.text(json.dumps([*told, *rows], indent=2))
        return
    finetuning.print_tuned(done.tuned)
    for result in done.sets:
        row = _row(result)
        state = "stored" if row["is_new"] else "up to date"
        line = (
            f"{row['features']}: {state}, {row['items']} of {row['of']} items, "
            f"{row['dim']} columns, {row['repeated_rows']} repeated rows"
        )
        if result.features.tokens is not None:
            line += f", {result.features.tokens.shape[1]} tokens of {row['tokens'][2]}"
        console.text(line)
        for remark in _remarks(result):
            console.note(f"  {remark}")
    for one in done.alignments:
        console.text(_alignment_line(one))


def _alignment_line(one: Mapping[str, Any]) -> str:
    recall = ", ".join(
        f"@{k} {one['recall_first'][k]:.3f} (back {one['recall_second'][k]:.3f})"
        for k in one["recall_first"]
    )
    return (
        f"{one['first']} and {one['second']}, {one['n_items']:,} items with both:\n"
        f"  recall {recall}\n"
        f"  cosine {one['paired']:.3f} of pairs, {one['unpaired']:.3f} of others; gap "
        f"{one['gap']:.3f}; uniformity {one['uniformity_first']:.2f}, "
        f"{one['uniformity_second']:.2f}"
    )


def _row(result: Extraction) -> dict[str, Any]:
    features = result.features
    row: dict[str, Any] = {
        "features": features.key,
        "items": int(features.mask.sum()),
        "of": len(features.mask),
        "dim": int(features.matrix.shape[1]),
        "repeated_rows": features.manifest["repeated_rows"],
        "is_new": result.is_new,
    }
    if features.tokens is not None:
        row["tokens"] = list(features.tokens.shape)
    if "origin" in features.manifest:
        row["without"] = features.manifest["origin"]["without"]
    return row


def _remarks(result: Extraction) -> Iterator[str]:
    """What there is to know of a set beside its size."""
    origin = result.features.manifest.get("origin", {})
    if without := origin.get("without"):
        listed = ", ".join(
            f"{count:,} with {why}" if why.startswith("no ") else f"{count:,} that {why}"
            for why, count in without.items()
        )
        yield f"masked: {listed} (see problems.jsonl in the folder of the set)"
    if cut := origin.get("texts_cut"):
        yield f"{cut:,} texts were cut to the encoder's limit"
    if result.is_new and result.n_encoded:
        rate = result.n_encoded / max(1e-6, result.time_s)
        yield f"{result.time_s:,.1f} s, {rate:,.1f} items/s, loading and writing included"


def print_nearest(
    dataset: str, data_dir: Path, key: str, texts: Sequence[str], output: str
) -> None:
    """Print the five items nearest to each of some items."""
    from dataclasses import asdict

    from mmbench.engine.nearest import nearest

    found = nearest(load_dataset(dataset, data_dir), key, texts, k=5)
    if output == "json":
        console.text(json.dumps([asdict(one) for one in found], indent=2))
        return
    for one in found:
        console.text(f"{one.title or one.item}  ({key})")
        for item, title, cosine in one.near:
            console.text(f"  {cosine:6.3f}  {title or item}")
