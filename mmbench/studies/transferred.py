"""What a study of transfer found: tested tables, convergence, and curves over the users."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure as Drawing

from mmbench.report.comparison import Comparison, compare
from mmbench.report.convergence import Convergence, Trace
from mmbench.report.convergence import section as convergence_section
from mmbench.report.gains import GainTable, gains
from mmbench.report.html import drawing
from mmbench.report.html.content import Figure, Gallery
from mmbench.report.html.gains import section as gain_section
from mmbench.report.html.naming import slug
from mmbench.report.numbers import count, fixed
from mmbench.report.pairing import References
from mmbench.studies.findings import Finding
from mmbench.studies.transfer import Asked, Done, Variant

OVER_SCRATCH = "What transfer gains over training from scratch"
OVER_IDS = "The same systems against IDs alone"
CONVERGENCE = "Convergence on the target"
Points = Mapping[str, Mapping[int, tuple[float, tuple[float, ...]]]]
"""By series and number of users: the mean, and that of each seed."""


def findings(done: Sequence[Done], asked: Asked) -> list[Finding]:
    """Convergence, the table against IDs, and last the table against training from scratch.

    Systems of another split, protocol or other test users cannot be compared, so each of these
    has tables of its own. Every table is one family of tests.

    Raises:
        ConfigError: the runs are not comparable.
        DataError: a run folder is damaged.
    """
    groups: dict[str, list[Done]] = {}
    for each in done:
        facts = each.runs[0].manifest
        key = repr((facts["split"], facts["protocol"], facts["users"]["test"]))
        groups.setdefault(key, []).append(each)
    found: list[Finding] = []
    for number, group in enumerate(groups.values()):
        suffix = "" if len(groups) == 1 else f"-{number + 1}"
        found.append(_convergence(group, asked, f"convergence{suffix}"))
        if any(each.variant.role == "baseline" for each in group):
            over = "the baseline" + (", with as many users" if asked.target_users else "")
            found.append(
                _table(group, asked, OVER_IDS, f"transfer-ids{suffix}", over, _of_baseline(group))
            )
        over = "the same model from scratch"
        over += ", with as many users" if asked.target_users else ""
        found.append(
            _table(group, asked, OVER_SCRATCH, f"transfer{suffix}", over, _of_scratch(group))
        )
    return found


def _of_scratch(group: Sequence[Done]) -> dict[str, str]:
    """By system the one that was trained from scratch: the same model, the same users."""
    scratch = _by_place(group, "scratch", lambda v: (v.model, v.target_users))
    return {
        each.system: scratch[each.variant.model, each.variant.target_users]
        for each in group
        if each.variant.role in ("transfer", "zero-shot")
    }


def _of_baseline(group: Sequence[Done]) -> dict[str, str]:
    baseline = _by_place(group, "baseline", lambda v: v.target_users)
    return {
        each.system: baseline[each.variant.target_users]
        for each in group
        if each.variant.role != "baseline"
    }


def _by_place(
    group: Sequence[Done], role: str, place: Callable[[Variant], object]
) -> dict[object, str]:
    return {place(each.variant): each.system for each in group if each.variant.role == role}


def _table(
    group: Sequence[Done],
    asked: Asked,
    title: str,
    name: str,
    over: str,
    of: Mapping[str, str],
) -> Finding:
    """A leaderboard with declared references; its files hold the same in long form."""
    metrics = dict.fromkeys(
        m for each in group for m in each.variant.recipe.shape.evaluation.metrics
    )
    of = {system: reference for system, reference in of.items() if system != reference}
    c = compare(
        list({run.path: run for each in group for run in each.runs}.values()),
        metrics=list(metrics),
        references=References(of, over),
        family="table",
    )
    table = GainTable(
        f"{title}: {asked.source} to {asked.target}",
        "System",
        "K",
        c,
        tuple(gains(c)),
        (f"gain: over {over}.", *rung_notes(asked)),
    )
    section = gain_section(name, table, "", kind="none")
    if name.startswith("transfer-ids"):
        return Finding(title, c, section)
    figures = _ladders(group, c, name)
    if figures:
        section = replace(section, parts=(Gallery(figures), *section.parts))
    return Finding(title, c, section)


def rung_notes(asked: Asked) -> tuple[str, ...]:
    """What a ladder of target users means."""
    if not asked.target_users:
        return ()
    return (
        "Users are drawn once and nested; those of a rung train and validate. Tested are the same "
        "on every rung: all users by sequential models, the "
        f"{count(asked.target_users[0])} of the smallest rung by general ones. The catalogue stays "
        "whole.",
    )


def _convergence(group: Sequence[Done], asked: Asked, name: str) -> Finding:
    """A table for each number of target users, who validate their own rung alone."""
    scratch = {
        (each.variant.model, each.variant.target_users): each.runs
        for each in group
        if each.variant.role == "scratch"
    }
    untrained = {
        (each.variant.model, each.variant.source_users, each.variant.target_users): each.runs
        for each in group
        if each.variant.role == "zero-shot"
    }
    rungs = list(dict.fromkeys(each.variant.target_users for each in group))
    tables = []
    for rung in rungs:
        here = [each for each in group if each.variant.target_users == rung]
        first = next(each.variant.model for each in here if each.variant.role == "scratch")
        traces = []
        for each in here:
            v = each.variant
            if v.role == "zero-shot":
                continue
            goal = scratch[v.model if v.role != "baseline" else first, rung]
            start = (
                untrained.get((v.model, v.source_users, rung), ()) if v.role == "transfer" else ()
            )
            traces.append(Trace(v.label, each.runs, goal, start))
        heading = f"{asked.source} to {asked.target}"
        heading += "" if rung is None else f", {count(rung)} users"
        select_by = group[0].variant.recipe.shape.training.select_by
        tables.append(
            Convergence(
                heading, select_by, tuple(traces), "the best value of the same model from scratch"
            )
        )
    # Users who validate are those of the rung, so that goals of two rungs cannot be compared.
    shown = tables[0] if len(tables) == 1 else _merged(tables, f"{asked.source} to {asked.target}")
    return Finding(CONVERGENCE, shown, convergence_section(name, tables))


def _merged(tables: Sequence[Convergence], heading: str) -> Convergence:
    """Tables of several numbers of users, as one to be printed."""
    traces = tuple(trace for table in tables for trace in table.traces)
    return replace(tables[0], heading=heading, traces=traces)


def _ladders(group: Sequence[Done], c: Comparison, name: str) -> tuple[Figure, ...]:
    """The mean of each metric over the number of target users, and over that of source users."""
    rows = {system.hash: row for system, row in zip(c.systems, c.cells, strict=True)}
    figures = []
    for side in ("target", "source"):
        places = [(each, _place(each.variant, side)) for each in group]
        if len({place for _, place in places if place is not None}) < 2:
            continue
        for index, column in enumerate(c.columns):
            points: dict[str, dict[int, tuple[float, tuple[float, ...]]]] = {}
            level: dict[str, float] = {}
            for each, place in places:
                cell = rows[each.system][index]
                series = _series(each.variant, side)
                if place is not None:
                    points.setdefault(series, {})[place] = cell.mean, cell.seed_means
                else:
                    level[series] = cell.mean
            what = f"{column.metric.label} by {side} users"
            said = "; ".join(
                f"{series}: " + ", ".join(f"{fixed(v, 4)} at {count(n)}" for n, (v, _) in p.items())
                for series, p in points.items()
            )
            own = f"{name}-{side}-users-{slug(str(column.metric))}"
            draw = partial(_drawn, points, level, column.metric.label, side)
            figures.append(Figure(own, what, f"{said}.", draw))
    return tuple(figures)


def _place(variant: Variant, side: str) -> int | None:
    """Where a system stands on the axis of a ladder; None for one that is a level line."""
    if side == "target":
        return None if variant.role == "zero-shot" else variant.target_users
    return variant.source_users


def _series(variant: Variant, side: str) -> str:
    """The label without the number of users of this side."""
    label = variant.label
    n = variant.target_users if side == "target" else variant.source_users
    return label if n is None else label.replace(
        f", {n:,} users" if side == "target" else f" ({n:,} users)", ""
    )  # fmt: skip


def _drawn(points: Points, level: Mapping[str, float], label: str, side: str) -> Drawing:
    figure, axes = drawing.canvas()
    series = [*points, *(name for name in level if name not in points)]
    for number, name in enumerate(series):
        seen = drawing.look(number)
        if name in points:
            line = points[name]
            axes.plot(
                list(line), [mean for mean, _ in line.values()], color=seen.color,
                marker=seen.marker, linestyle=seen.dashes,
            )  # fmt: skip
            for place, (_, seeds) in line.items():  # each seed by itself, faintly
                axes.plot(
                    [place] * len(seeds), seeds, color=seen.color, marker="_", linestyle="none"
                )
        else:
            axes.axhline(level[name], color=seen.color, linestyle=seen.dashes, linewidth=1.1)
    drawing.logarithmic(axes, [place for line in points.values() for place in line])
    axes.set_xlabel(f"training users of the {side}")
    axes.set_ylabel(f"{label}, mean over users and seeds")
    drawing.legend(figure, [(name, number) for number, name in enumerate(series)])
    return figure
