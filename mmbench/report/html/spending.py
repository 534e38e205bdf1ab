"""What quality cost: convergence while training, and seconds, weights and memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure as Drawing

from mmbench.metrics.base import parse_metric
from mmbench.report.cost import LONG_HEADS, Cost, cells, notes
from mmbench.report.html import drawing
from mmbench.report.html.content import Cell, Column, Figure, Gallery, Section, Table, Text
from mmbench.report.html.evidence import Epoch, Evidence
from mmbench.report.numbers import fixed, significant
from mmbench.runs import Run

KINDS: tuple[tuple[str, str, Callable[[Cost], float]], ...] = (
    ("seconds", "training time (s)", lambda cost: cost.train_seconds),
    ("parameters", "trained weights", lambda cost: cost.parameters),
    ("memory", "peak memory (MiB)", lambda cost: cost.peak_memory_mib),
)


def convergence(evidence: Evidence) -> Section | None:
    """The validation metric of every run over epochs and over seconds."""
    metric = _validation_metric(evidence)
    if metric is None:
        return None
    label = parse_metric(metric).label
    told = _told(evidence, metric)
    figures = tuple(
        Figure(
            f"convergence-{kind}",
            f"Validation {label} over {kind}",
            told,
            partial(_curves, evidence, metric, kind),
        )
        for kind in ("epochs", "seconds")
    )
    closed = [s.label for s in evidence.main.systems if not any(map(evidence.curve, s.runs))]
    said = (
        "One line per run; the large mark is the epoch whose weights were kept. Seconds are those "
        "of training and of ranking the validation users.",
        *([f"Without epochs, hence without a curve: {', '.join(closed)}."] if closed else []),
    )
    return Section("convergence", "Convergence", (Text((" ".join(said),)), Gallery(figures)))


def spending(evidence: Evidence) -> Section | None:
    """Quality against what it cost, and every figure of the cost."""
    if not evidence.spent:
        return Section("cost", "Cost", (Text((evidence.no_cost,)),))
    column = evidence.main.columns[0]
    figures = tuple(
        Figure(
            f"cost-{name}",
            f"{column.head} against {what.partition(' (')[0]}",
            "; ".join(
                f"{cost.label}: {significant(of(cost))}, {fixed(_quality(evidence, i), 4)}"
                for i, cost in enumerate(evidence.spent)
            )
            + ".",
            partial(_scatter, evidence, what, of),
        )
        for name, what, of in KINDS
    )
    rows = []
    for index, cost in enumerate(evidence.spent):
        values = (
            cost.train_seconds,
            cost.valid_seconds,
            cost.epochs,
            cost.seconds_per_epoch,
            cost.peak_memory_mib,
            cost.parameters,
        )
        quality = _quality(evidence, index)
        rows.append(
            (
                Cell(cost.label, cost.label),
                Cell(fixed(quality, 4), quality),
                *(Cell(text, value) for text, value in zip(cells(cost), values, strict=True)),
                Cell(", ".join(cost.devices), ", ".join(cost.devices)),
            )
        )
    table = Table(
        "cost",
        "What each system cost, mean over its seeds",
        (
            Column("System", numeric=False),
            Column(column.head),
            *(Column(head) for head in LONG_HEADS),
            Column("device", numeric=False),
        ),
        tuple(rows),
        tuple(notes(evidence.spent)),
    )
    return Section("cost", "Cost against quality", (Gallery(figures), table))


def _quality(evidence: Evidence, system: int) -> float:
    return evidence.main.cells[system][0].mean


def _validation_metric(evidence: Evidence) -> str | None:
    """What all curves can show: the metric that epochs were chosen by, or another in common."""
    curves = [epochs for epochs in evidence.histories.values() if epochs]
    if not curves:
        return None
    common = set.intersection(*(set(epoch.valid) for epochs in curves for epoch in epochs))
    training = evidence.main.systems[0].runs[0].manifest.get("training") or {}
    chosen = str(training.get("select_by", ""))
    if chosen in common:
        return chosen
    return min(common, default=None)


def _told(evidence: Evidence, metric: str) -> str:
    parts = []
    for system in evidence.main.systems:
        for run in system.runs:
            if epochs := evidence.curve(run):
                best = _kept(run, epochs)
                parts.append(
                    f"{system.label}, seed {run.seed}: {fixed(best.valid[metric], 4)} at epoch "
                    f"{best.number} of {epochs[-1].number}, {significant(epochs[-1].seconds)} s"
                )
    return "; ".join(parts) + "."


def _kept(run: Run, epochs: tuple[Epoch, ...]) -> Epoch:
    best = (run.manifest.get("training") or {}).get("best_epoch")
    return next((epoch for epoch in epochs if epoch.number == best), epochs[-1])


def _curves(evidence: Evidence, metric: str, kind: str) -> Drawing:
    figure, axes = drawing.canvas()
    series, reached = [], []
    for index, system in enumerate(evidence.main.systems):
        seen = drawing.look(index)
        for run in system.runs:
            epochs = evidence.curve(run)
            if not epochs:
                continue
            along = [e.number if kind == "epochs" else e.seconds for e in epochs]
            reached += along
            kept = _kept(run, epochs)
            axes.plot(
                along,
                [epoch.valid[metric] for epoch in epochs],
                color=seen.color,
                linestyle=seen.dashes,
                linewidth=1.3,
                alpha=0.9,
            )
            axes.plot(
                [kept.number if kind == "epochs" else kept.seconds],
                [kept.valid[metric]],
                color=seen.color,
                marker=seen.marker,
                markersize=7,
            )
        if any(map(evidence.curve, system.runs)):
            series.append((system.label, index))
    # Trainings that differ tenfold in length: the short ones would be a line at the left.
    drawing.logarithmic(axes, reached)
    axes.set_xlabel("epoch" if kind == "epochs" else "seconds of training and validation")
    axes.set_ylabel(f"validation {parse_metric(metric).label}")
    drawing.legend(figure, series)
    return figure


def _scatter(evidence: Evidence, what: str, of: Callable[[Cost], float]) -> Drawing:
    figure, axes = drawing.canvas()
    for index, cost in enumerate(evidence.spent):
        seen, cell = drawing.look(index), evidence.main.cells[index][0]
        axes.errorbar(
            [of(cost)],
            [cell.mean],
            yerr=[cell.seed_sd or 0.0],
            color=seen.color,
            marker=seen.marker,
            markersize=8,
            linestyle="none",
        )
    drawing.logarithmic(axes, [of(cost) for cost in evidence.spent])
    axes.margins(0.12)
    axes.set_xlabel(what)
    axes.set_ylabel(evidence.main.columns[0].head)
    series = [(cost.label, index) for index, cost in enumerate(evidence.spent)]
    drawing.legend(figure, series, lines=False)
    return figure
