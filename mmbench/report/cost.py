"""What each system cost: seconds, memory and parameters, mean over its seeds.

The figures stand in every run's manifest. Seconds and memory depend on the machine, so devices
are named wherever they differ; parameters and epochs do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from rich.text import Text

from mmbench.errors import DataError
from mmbench.report.blocks import Block
from mmbench.report.comparison import Comparison
from mmbench.report.numbers import MISSING, count, significant
from mmbench.report.systems import System
from mmbench.runs import Run

SHORT_HEADS = ("train s", "valid s", "epochs", "s/epoch", "peak MiB", "parameters")
LONG_HEADS = (
    "training s", "validation s", "epochs", "s per epoch", "peak memory MiB", "parameters",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one system cost, mean over its seeds.

    Attributes:
        label: of the system.
        train_seconds: of training alone.
        valid_seconds: of ranking the validation users while training.
        epochs: trained, those after the best one included; None for a closed form.
        seconds_per_epoch: of training alone; None for a closed form.
        peak_memory_mib: on a GPU what its tensors took; on a CPU what the whole process took.
        parameters: trained weights.
        devices: where its runs were trained, each once.
        encoder_passes: items that encoders encode in an epoch, as was foreseen; None where no
            encoder learns.
        encoder_flops: of the encoders in an epoch, likewise.
        encoder_memory_mib: of the encoders, likewise.
    """

    label: str
    train_seconds: float
    valid_seconds: float
    epochs: float | None
    seconds_per_epoch: float | None
    peak_memory_mib: float
    parameters: float
    devices: tuple[str, ...]
    encoder_passes: float | None = None
    encoder_flops: float | None = None
    encoder_memory_mib: float | None = None


def costs(comparison: Comparison) -> list[Cost]:
    """The cost of each system of a comparison, in its order.

    Raises:
        DataError: a manifest lacks a figure, as one of another version may.
    """
    return [_cost(system) for system in comparison.systems]


def _cost(system: System) -> Cost:
    def mean(section: str, key: str) -> float:
        return float(np.mean([_figure(run, section, key) for run in system.runs]))

    def foreseen(key: str) -> float | None:
        """Of runs in which encoders learn; older manifests do not have it."""
        if not all(_section(run, "encoder_cost") for run in system.runs):
            return None
        return mean("encoder_cost", key)

    train, epochs = mean("training", "train_seconds"), mean("training", "epochs")
    return Cost(
        label=system.label,
        train_seconds=train,
        valid_seconds=max(0.0, mean("training", "seconds") - train),
        epochs=epochs or None,
        seconds_per_epoch=mean("training", "seconds_per_epoch") if epochs else None,
        peak_memory_mib=mean("training", "peak_memory_mib"),
        parameters=mean("model", "parameters"),
        devices=tuple(dict.fromkeys(_device(run) for run in system.runs)),
        encoder_passes=foreseen("passes_per_epoch"),
        encoder_flops=foreseen("flops_per_epoch"),
        encoder_memory_mib=foreseen("memory_mib"),
    )


def _section(run: Run, name: str) -> Mapping[str, Any]:
    section = run.manifest.get(name)
    return section if isinstance(section, Mapping) else {}


def _figure(run: Run, section: str, key: str) -> float:
    value = _section(run, section).get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(
            f"{run.path / 'manifest.json'} lacks {section}.{key}, so its cost is not known; leave "
            "--cost out, or train it again"
        )
    return float(value)


def _device(run: Run) -> str:
    """A device as tables call it, for example "CPU, 2 threads"."""
    facts = _section(run, "environment")
    if facts.get("device") != "cpu":
        return str(facts.get("gpu") or facts.get("device") or "unknown device")
    threads = facts.get("threads")
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}" if threads else "CPU"


def cells(cost: Cost) -> list[str]:
    """The figures as texts, in the order of the heads."""
    epochs = None if cost.epochs is None else f"{cost.epochs:,.4g}"
    figures = (cost.train_seconds, cost.valid_seconds, epochs, cost.seconds_per_epoch)
    return [
        *(
            MISSING
            if figure is None
            else figure
            if isinstance(figure, str)
            else significant(figure)
            for figure in figures
        ),
        count(round(cost.peak_memory_mib)),
        count(round(cost.parameters)),
    ]


def block(rows: Sequence[Cost]) -> Block:
    """The figures as columns for the terminal."""
    return Block((), SHORT_HEADS, tuple(tuple(map(Text, cells(cost))) for cost in rows))


def notes(rows: Sequence[Cost]) -> list[str]:
    """The sentences below the table, the devices among them."""
    lines = [
        "Cost: mean over seeds. Seconds per epoch are of training alone; validation (valid) is the "
        "ranking of its users in between."
    ]
    if any(cost.epochs is None for cost in rows):
        lines.append(f"{MISSING} a closed form has no epochs.")
    devices = list(dict.fromkeys(device for cost in rows for device in cost.devices))
    if len(devices) == 1:
        lines.append(f"Device: {devices[0]}.")
    else:
        parts = (
            f"{device}: {', '.join(cost.label for cost in rows if device in cost.devices)}"
            for device in devices
        )
        lines.append(
            f"The devices differ, so seconds and memory do not compare. {'; '.join(parts)}."
        )
    for cost in rows:
        if cost.encoder_passes is None or cost.encoder_flops is None:
            continue
        lines.append(
            f"{cost.label}: its encoders were foreseen to encode {cost.encoder_passes:,.0f} items "
            f"in an epoch, {cost.encoder_flops / 1e12:,.4g} TFLOP, in "
            f"{count(round(cost.encoder_memory_mib or 0.0))} MiB."
        )
    if any(device.startswith("CPU") for device in devices):
        lines.append(
            "Peak memory on a CPU is that of the whole process, earlier runs of the same command "
            "included."
        )
    return lines


def records(rows: Sequence[Cost]) -> list[dict[str, Any]]:
    """One flat record per system at full precision."""
    return [{**asdict(cost), "devices": list(cost.devices)} for cost in rows]


FIELDS = tuple(field.name for field in fields(Cost) if field.name != "label")
