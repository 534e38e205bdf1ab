"""From an ablation's questions to what is shown: tables, each one family, and their pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmbench.errors import ConfigError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.report.breakdown import By
from mmbench.report.comparison import Comparison
from mmbench.report.convergence import Convergence
from mmbench.report.gains import GainTable, Place, gains
from mmbench.report.html import drawing
from mmbench.report.html.content import Details, Figure, Gallery, Part, Section
from mmbench.report.html.gains import section as gain_section
from mmbench.report.html.leaderboard import leaderboard_table
from mmbench.report.html.naming import slug
from mmbench.report.numbers import fixed
from mmbench.runs import Run
from mmbench.studies.ablation import SPOILT
from mmbench.studies.questions import Answered, Question

STAGE_DEPTH = 1000
STAGE_CUTOFFS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
STAGES = "Small K is the re-ranking stage, large K the recall stage."


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        title: one line.
        shown: what is printed.
        section: what is written to files.
    """

    title: str
    shown: Comparison | GainTable | Convergence
    section: Section


def findings(
    asked: Sequence[Question],
    *,
    stages: bool = False,
    sparsity: bool = False,
    cutoffs: Sequence[int] = (),
) -> list[Finding]:
    """Compare, break down, and say it.

    Args:
        asked: the questions.
        stages: also ask at every cut-off, from re-ranking to recall.
        sparsity: also ask by activity of users and popularity of items.
        cutoffs: those that the printed table of stages holds; all unless given.

    Raises:
        ConfigError: the runs are not comparable, or a cut-off is deeper than their lists.
        DataError: a run folder is damaged.
    """
    found: list[Finding] = []
    taken: Counter[str] = Counter()
    datasets = {q.members[0].variant.recipe.shape.dataset for q in asked}
    for question in asked:
        name: str = question.name
        if len(datasets) > 1:
            name += f"-{slug(question.members[0].variant.recipe.shape.dataset)}"
        taken[name] += 1
        if taken[name] > 1:  # the same question under another split or protocol
            name += f"-{taken[name]}"
        in_ladder = question.name in ("ladder", "between-ladder")
        found.append(_ladder(question, name) if in_ladder else _of(question, name))
        if in_ladder:
            continue
        if stages:
            found += [
                over_k(
                    question.compare([str(metric)], by="k", cutoffs=grid),
                    name=f"stages-{name}-{metric.name}",
                    depth=depth,
                    of_reference=question.name == "conditions",
                    over=question.references.named,
                    cutoffs=cutoffs,
                )
                for depth in [shallowest([r for m in question.members for r in m.runs])]
                for grid in [stage_grid(depth, cutoffs)]
                for metric in _deepest_of_each(question.metrics)
            ]
        if sparsity:
            metrics = [str(metric) for metric in _deepest_of_each(question.metrics)]
            kinds: tuple[By, ...] = ("user-activity", "item-popularity")
            found += [
                by_group(
                    question.compare(metrics, by=kind),
                    name=f"{kind}-{name}",
                    of_reference=question.name == "conditions",
                    over=question.references.named,
                )
                for kind in kinds
            ]
    return found


def over_k(
    c: Comparison,
    *,
    name: str,
    depth: int,
    of_reference: bool,
    over: str,
    cutoffs: Sequence[int] = (),
) -> Finding:
    """The gain at every cut-off of a comparison by K.

    Args:
        c: of one metric.
        name: of the files.
        depth: of the stored lists.
        of_reference: whether it is the reference that gains.
        over: what the references are, in words.
        cutoffs: those that the printed table holds; all unless given.
    """
    table = GainTable(
        heading=_heading(of_reference, over, "by K"),
        series="Gain over" if of_reference else "Gain of",
        axis="K",
        comparison=c,
        rows=tuple(gains(c, of_reference=of_reference)),
        notes=(f"Lists are {depth:,} items deep. {STAGES}",),
        shown=tuple(str(k) for k in cutoffs),
    )
    menu = f"Stages: {c.columns[0].metric.name}"
    section = gain_section(name, table, "K (items recommended)", kind="k", menu=menu)
    return Finding("Stage analysis", table, section)


def by_group(c: Comparison, *, name: str, of_reference: bool, over: str) -> Finding:
    """The gain in every group of users or items of a comparison."""
    items = c.by == "item-popularity"
    kind = "item popularity" if items else "user activity"
    table = GainTable(
        heading=_heading(of_reference, over, f"by {kind}"),
        series="Gain over" if of_reference else "Gain of",
        axis="items" if items else "group",
        comparison=c,
        rows=tuple(gains(c, of_reference=of_reference)),
    )
    axis = f"training interactions per {'item' if items else 'user'}"
    section = gain_section(name, table, axis, kind="groups", menu=f"Sparsity: {kind}")
    return Finding("Sparsity analysis", table, section)


def shallowest(runs: Sequence[Run]) -> int:
    """The depth of the shortest stored lists among some runs, or the number of items."""
    every = (run.lists("test") for run in runs)
    return min(min(lists.depth, len(lists.popularity)) for lists in every)


def stage_grid(depth: int, cutoffs: Sequence[int] = ()) -> tuple[int, ...]:
    """The cut-offs at which stages are tested: the usual ones, those asked for, and the depth.

    Raises:
        ConfigError: one that is asked for is deeper than the lists.
    """
    if cutoffs and max(cutoffs) > depth:
        raise ConfigError(
            f"lists are {depth:,} items deep, so there is no cut-off {max(cutoffs):,}; choose a "
            f"smaller one, or train with evaluation.depth={max(cutoffs)} where there are as many "
            "items"
        )
    usual = {k for k in STAGE_CUTOFFS if k <= depth}
    return tuple(sorted(usual | set(cutoffs) | {min(depth, STAGE_DEPTH)}))


def _heading(of_reference: bool, over: str, by: str) -> str:
    if of_reference:
        return f"What {over} gains over each condition, {by}"
    return f"Gain over {over}, {by}"


def _of(question: Question, name: str) -> Finding:
    """A question answered by a leaderboard; its files hold the same in long form."""
    c = question.compare()
    table = GainTable(
        heading=question.title,
        series="System",
        axis="K",
        comparison=c,
        rows=tuple(gains(c)),
        notes=(f"gain: over {question.references.named}.",),
    )
    section = gain_section(name, table, "", kind="none")
    figures = _size_figures(question, c, name) if question.name == "size" else ()
    parts: tuple[Part, ...] = (Gallery(figures),) if figures else ()
    parts += (leaderboard_table(c, f"{name}-means"), Details("Gains in numbers", section.parts))
    return Finding(question.title, c, replace(section, parts=parts))


def _ladder(question: Question, name: str) -> Finding:
    c = question.compare()
    places = {each.system: _rung(each) for each in question.members}
    if question.name == "between-ladder":
        places |= _first_rungs(question.members, places)
    table = GainTable(
        heading=f"{question.title}: difference from {question.references.named}",
        series="Spoilt",
        axis="share",
        comparison=c,
        rows=tuple(gains(c, places=places)),
        notes=("share: of the items that have the modality, the same ones for every model.",),
    )
    axis = "share of items that are spoilt"
    section = gain_section(name, table, axis, kind="share", what="difference")
    return Finding(question.title, table, section)


def _rung(each: Answered) -> Place:
    condition, label = each.variant.condition, each.variant.label
    if condition.kind not in SPOILT:
        return Place(label, "0%", 0.0)
    base = label.removesuffix(condition.name)
    series = f"{base}{'+'.join(condition.modalities)} {SPOILT[condition.kind]}"
    return Place(series, f"{condition.share:.0%}", condition.share)


def _first_rungs(members: Sequence[Answered], places: Mapping[str, Place]) -> dict[str, Place]:
    """Of full models that are spoilt in one way alone, the place at the foot of that ladder."""
    found = {}
    for each in members:
        own = each.variant.model, each.variant.form, each.variant.size
        lines = {
            places[m.system].series
            for m in members
            if m.variant.condition.in_ladder
            and (m.variant.model, m.variant.form, m.variant.size) == own
        }
        if each.variant.condition.kind == "full" and len(lines) == 1:
            found[each.system] = Place(lines.pop(), "0%", 0.0)
    return found


def _deepest_of_each(metrics: Sequence[str]) -> list[Metric]:
    """Of each metric that users have a value of, the largest cut-off."""
    found: dict[str, Metric] = {}
    for metric in map(parse_metric, metrics):
        if metric.per_user and metric.higher_is_better is not None:
            before = found.get(metric.name)
            found[metric.name] = metric if before is None or metric.k > before.k else before
    return list(found.values())


def _size_figures(question: Question, c: Comparison, name: str) -> tuple[Figure, ...]:
    """The mean of each metric over the size of the vectors, a line per model and form."""
    lines: dict[str, dict[int, str]] = {}
    for each in question.members:
        size = each.variant.size
        if size is not None:
            series = each.variant.label.removesuffix(f" d={size}")
            lines.setdefault(series, {})[size] = each.system
    rows = {system.hash: row for system, row in zip(c.systems, c.cells, strict=True)}
    figures = []
    for index, column in enumerate(c.columns):
        points = {
            series: {size: rows[system][index] for size, system in sorted(sizes.items())}
            for series, sizes in lines.items()
        }
        means = {s: {size: cell.mean for size, cell in p.items()} for s, p in points.items()}
        spread = {s: {size: cell.seed_means for size, cell in p.items()} for s, p in points.items()}
        said = "; ".join(
            f"{series}: " + ", ".join(f"{fixed(mean, 4)} at {size}" for size, mean in p.items())
            for series, p in means.items()
        )
        title = f"{column.metric.label} by size of the vectors"
        draw = partial(_sizes, means, spread, column.metric.label)
        figures.append(Figure(f"{name}-{slug(str(column.metric))}", title, f"{said}.", draw))
    return tuple(figures)


def _sizes(
    means: dict[str, dict[int, float]],
    spread: dict[str, dict[int, tuple[float, ...]]],
    label: str,
) -> Drawing:
    figure, axes = drawing.canvas()
    every = sorted({size for line in means.values() for size in line})
    for number, (series, line) in enumerate(means.items()):
        seen = drawing.look(number)
        axes.plot(
            list(line), list(line.values()), color=seen.color, marker=seen.marker,
            linestyle=seen.dashes,
        )  # fmt: skip
        for size, values in spread[series].items():  # each seed by itself, faintly
            axes.plot([size] * len(values), values, color=seen.color, marker="_", linestyle="none")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(drawing.number))
    axes.set_xlabel("size of the vectors (embedding_size)")
    axes.set_ylabel(f"{label}, mean over users and seeds")
    drawing.legend(figure, [(series, i) for i, series in enumerate(means)])
    return figure
